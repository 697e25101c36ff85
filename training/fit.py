"""Fit the gated head on frozen CLIP features.

    python -m training.fit                                        # the demo data and the demo CLIP
    python -m training.fit --data VizWiz --clip ViT-L/14@336px    # VizWiz, on a GPU if there is one
    python -m training.fit --recipe best --holdout 0.1            # another recipe, and a labelled test from train

Photos and questions are encoded once and cached. The ten epochs after that take seconds on the demo data, and about
two minutes at VizWiz's size on two cores. docs/training.md explains the recipes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from demo import DEMO_CLIP, ensure_demo_dataset
from training.artifacts import explain_full_disk, staged_folder, write_json
from training.backbone import ClipError, FrozenClip, check_clip_source, choose_device, folder_name, load_distinct_clips
from training.baselines import LABELS, LOGISTIC, Baseline, fit_baselines, normalised, underfits
from training.dataset import DatasetError, Split, fold_rows, holdout_rows, read_split, select
from training.folds import FinishedHeads, FittedPredictor, average, choose_sure_from, fit_predictor, summarise
from training.labels import TYPE_SETS
from training.model import ClipEnsemble, predict
from training.plots import curves
from training.quality import add_votes, fit_records, quality_scores, require_votes, vote_shares
from training.recipe import FEW_STEPS, Recipe, RecipeError, add_recipe_flags, recipe_from
from training.report import describe_quality, write_model_card
from training.run import CURVES_FILE, DEFAULT_RUNS, METRICS_FILE, epoch_log, log_quality, write_run
from training.trainer import DivergedError, FeatureDataset, Row, official_scores
from training.training_data import (
    TrainingData,
    choose_vocabulary,
    make_dataset,
    run_config,
    score_majority_baseline,
)
from vizwiz_client.contract import streams


class Result(NamedTuple):
    """Heads and baselines of a fit, with their scores on val."""

    ensemble: ClipEnsemble
    history: list[Row]  # the epochs of every head
    best: Row  # scores of the ensemble
    wording: dict[str, Any]  # thresholds that choose the sentences shown to people
    weight_decay: list[float]  # that the heads of each CLIP were fitted with: a recipe may try several
    baselines: dict[str, Baseline]
    baseline_scores: dict[str, Row]


def fit(
    train: Split,
    val: Split,
    clip: FrozenClip | Sequence[FrozenClip],
    recipe: Recipe,
    runs: Path,
    cache: Path,
    *,
    holdout: float | None = None,
    limit: int | None = None,
    baselines: bool = True,
) -> Path:
    """Encode, fit and write a run folder, which appears complete or not at all. Progress and scores are printed.

    Args:
        train: the split to fit on.
        val: the split to score on.
        clip: one CLIP, or several whose heads' probabilities are averaged.
        recipe: the settings.
        runs: where the run folder goes.
        cache: folder of encoded features.
        holdout: share of the photos of ``train`` to hold out, in (0, 1); the recipe's seed chooses them.
        limit: number of records that both splits were cut to, for the record.
        baselines: whether to fit the baselines too.

    Returns:
        The run folder.

    Raises:
        DatasetError: ``train`` has no answers or lacks votes that the recipe needs, or a photo cannot be read.
        DivergedError: the loss is not finite.
        OSError: ``runs`` or ``cache`` cannot be written.
    """
    rows = np.arange(len(train.records)) if holdout is None else holdout_rows(train, holdout, recipe.seed)[0]
    require_votes(select(train, rows), recipe)
    clips = [clip] if isinstance(clip, FrozenClip) else list(clip)
    data = TrainingData(train, rows, val, clips, choose_vocabulary(recipe, select(train, rows)))
    config = run_config(data, recipe, cache)
    config["data"]["limit"] = limit
    config["holdout"] = None if holdout is None else {"fraction": holdout, "seed": recipe.seed}
    if holdout is not None:
        print(f"held out of train: {len(train.records) - len(rows)} of {len(train.records)} records")
    print(f"vocabulary ({recipe.vocabulary}): {len(data.vocabulary.answers)} answers of {len(rows)} training records")
    print(f"  oracle accuracy on val, by choosing the best of them: {config['vocabulary']['oracle_accuracy']:.2f}")
    if (steps := recipe.steps(len(rows))) < FEW_STEPS:
        print(f"  each head takes {steps} steps, on which it learns little: {_remedy(recipe)}")
    finished = FinishedHeads(runs, config)
    now = datetime.now(timezone.utc)
    names = "+".join(folder_name(clip.source) for clip in clips)
    folder = runs / f"{now:%Y%m%dT%H%M%S.%fZ}-{names}"
    with explain_full_disk(runs, "--runs"):
        with staged_folder(folder) as staging:
            result = fit_ensemble(data, recipe, staging, finished, cache, baselines=baselines)
            created = {"created": now.isoformat(timespec="seconds")}
            write_result(result, data, created | config, staging, folder.name)
        finished.delete()
    return folder


def fit_ensemble(
    data: TrainingData, recipe: Recipe, folder: Path, finished: FinishedHeads, cache: Path, *, baselines: bool = True
) -> Result:
    """Fit the heads of every CLIP, then the baselines; the scores of each epoch are logged in ``folder``."""
    train, rows, val, clips, vocabulary = data
    folds = fold_rows([train.records[row] for row in rows], recipe.folds, recipe.seed) if recipe.folds > 1 else []
    sizes = (len(vocabulary.answers), len(TYPE_SETS[recipe.types]))
    parts: list[FittedPredictor] = []
    on_train: list[FeatureDataset] = []
    on_val: list[FeatureDataset] = []
    for clip in clips:
        on_train.append(make_dataset(train, rows, clip, vocabulary, recipe, cache, rotations=recipe.rotations))
        on_val.append(make_dataset(val, np.arange(len(val.records)), clip, vocabulary, recipe, cache))
    quality = fit_records([train.records[row] for row in rows], [each.images[0] for each in on_train], recipe)
    history: list[Row] = []
    with epoch_log(folder) as log:

        def on_epoch(row: Row) -> None:
            row = {**({"clip": len(parts) + 1} if len(clips) > 1 else {}), **row}
            history.append(row)
            log(row)
            if not folds or row["epoch"] == recipe.epochs:
                print(describe_epoch(row))

        for number, (fitted_on, scored_on) in enumerate(zip(on_train, on_val, strict=True)):
            fitted = fit_predictor(
                recipe,
                fitted_on,
                scored_on,
                sizes,
                folds,
                finished=finished,
                name=f"clip{number + 1}",
                quality=quality.heads[number] if quality else (),
                on_epoch=on_epoch,
            )
            parts.append(fitted)
    if quality:
        for part, heads in zip(parts, quality.heads, strict=True):
            part.predictor.quality.extend(heads)
    ensemble = average(parts)
    fitted_baselines = {}
    if baselines:
        fitted_baselines = fit_baselines(_features(on_train), on_train[0].targets, len(vocabulary.answers))
        warn_of_underfit(ensemble, fitted_baselines[LOGISTIC], on_train, on_val, recipe)
    baseline_scores = {
        name: official_scores(*baseline.predict(normalised(_features(on_val), name)), on_val[0])
        for name, baseline in fitted_baselines.items()
    }
    predictions = predict(ensemble, [dataset.features for dataset in on_val])
    best = summarise(parts, official_scores(predictions.best, predictions.answerable, on_val[0]))
    wording: dict[str, Any] = {}
    if quality:
        wording["advise_from"] = quality.advise_from
        if (shares := vote_shares(val.records)) is not None and predictions.quality is not None:
            answerable = on_val[0].answerable.cpu().numpy()
            scored = quality_scores(predictions.quality.numpy(), shares, answerable, quality.advise_from)
            best = best | {"quality": scored}
    if (sure_from := choose_sure_from(parts, on_train, folds)) is not None:
        wording["sure_from"] = sure_from
    decay = [part.weight_decay for part in parts]
    return Result(ensemble, history, best, wording, decay, fitted_baselines, baseline_scores)


def _remedy(recipe: Recipe) -> str:
    return "give more --repeat-to-steps" if recipe.name == "best" else "give --recipe best, or more --repeat-to-steps"


def warn_of_underfit(
    ensemble: ClipEnsemble,
    logistic: Baseline,
    on_train: list[FeatureDataset],
    on_val: list[FeatureDataset],
    recipe: Recipe,
) -> None:
    """Warn if logistic regression on the same features is significantly better on val."""

    def accuracies(datasets: list[FeatureDataset]) -> tuple[torch.Tensor, torch.Tensor]:
        of_logistic = logistic.predict(normalised(_features(datasets), LOGISTIC)).best
        score = datasets[0].scores.accuracies
        return 100 * score(predict(ensemble, _features(datasets)).best)[0], 100 * score(of_logistic)[0]

    head, baseline = accuracies(on_val)
    if not underfits(head, baseline):
        return
    head_train, baseline_train = accuracies(on_train)
    kind = "underfits" if head_train.mean() < baseline_train.mean() else "fits worse"
    print(
        f"warning: the head {kind}: VQA {head.mean():.2f} on val and {head_train.mean():.2f} on its training records, "
        f"where logistic regression on the same features has {baseline.mean():.2f} and {baseline_train.mean():.2f}. "
        f"Each head took {recipe.steps(len(on_train[0]))} steps: {_remedy(recipe)}",
        file=sys.stderr,
    )


def _features(datasets: list[FeatureDataset]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [dataset.features for dataset in datasets]


def write_result(result: Result, data: TrainingData, config: dict[str, Any], folder: Path, name: str) -> None:
    """Write all files of the run ``name`` but the epoch log into ``folder``."""
    majority = score_majority_baseline(data)
    fitted = {"wording": result.wording, "weight_decay": result.weight_decay}
    write_run(folder, config | fitted, result.ensemble, data.vocabulary.answers, result.baselines)
    metrics = {"best": result.best, "majority_baseline": majority, "baselines": result.baseline_scores}
    write_json(folder / METRICS_FILE, metrics | {"history": result.history})
    if "quality" in result.best:
        log_quality(folder, result.best["epoch"], result.best["quality"])
    figure = curves(result.history, result.best["epoch"], majority["vqa_accuracy_leave_one_out"])
    figure.savefig(folder / CURVES_FILE, dpi=120)
    write_model_card(folder, name)


def describe_epoch(row: Row) -> str:
    """Scores of an epoch in one line."""
    prefix = "".join(f"{key} {row[key]}  " for key in ("clip", "fold") if key in row)
    losses = f"loss {row['train_loss']:.3f}, val {row['val_loss']:.3f}"
    return f"{prefix}epoch {row['epoch']:>2}  {losses}  {describe_metrics(row)}"


def describe_metrics(row: Row) -> str:
    """Scores of a head or a baseline in one line; nan for metrics that are undefined on val."""
    row = {key: math.nan if value is None else value for key, value in row.items()}
    return (
        f"VQA {row['vqa_accuracy_leave_one_out']:.2f}, min3 {row['vqa_accuracy_min3']:.2f}  "
        f"AP un/answerable {row['unanswerable_ap']:.3f}/{row['answerable_ap']:.3f}  "
        f"F1 {row['unanswerable_f1']:.3f}/{row['answerable_f1']:.3f}  accuracy {row['answerable_accuracy']:.1f}"
    )


def next_step(folder: Path) -> str:
    """The command that exports the run in ``folder``; it needs no --run for a run in the default folder."""
    return "next: python -m export.to_onnx" + (f" --run {folder}" if folder.parent != DEFAULT_RUNS else "")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.fit",
        description="Fit the gated head (answer, answer type, answerability) on frozen CLIP features. Without --data "
        "and --clip it uses the demo data and the demo CLIP.",
        epilog="Next: python -m training.evaluate, python -m export.to_onnx",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="VizWiz folder: Annotations/, train/, val/ (default: demo data)")
    parser.add_argument(
        "--quality",
        type=Path,
        metavar="DIR",
        help="folder of votes on photo quality, train.json and val.json (default: Quality/ in the data, if it exists)",
    )
    parser.add_argument(
        "--clip",
        action="append",
        help="OpenAI's name, such as ViT-L/14@336px, a FILE of OpenAI's architecture, open_clip:ARCHITECTURE/TAG, or "
        "open_clip:ARCHITECTURE@FILE for a file of open_clip's (docs/clips.md); "
        "if given twice, heads are fitted on both and averaged",
    )
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")
    parser.add_argument("--runs", type=Path, default=DEFAULT_RUNS, help="where the run folder goes (default: runs)")
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/features"), help="encoded features (default: .cache/features)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N records of each split, for a trial")
    parser.add_argument(
        "--holdout",
        type=float,
        metavar="FRACTION",
        help="share of train to hold out as a labelled test, drawn by --seed, for python -m training.evaluate",
    )
    parser.add_argument(
        "--no-baselines",
        action="store_true",
        help="do not fit logistic regression, which takes about as long as the head with many answers",
    )
    add_recipe_flags(parser)
    return parser.parse_args(argv)


def checked_recipe(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the command line selects.

    Raises:
        RecipeError: lists all invalid settings, before anything is encoded.
    """
    errors = []
    try:
        recipe = recipe_from(arguments)
    except RecipeError as error:
        errors.append(str(error))
    if arguments.limit is not None and arguments.limit < 1:
        errors.append(f"--limit must be at least 1, got {arguments.limit}")
    if arguments.holdout is not None and not 0 < arguments.holdout < 1:
        errors.append(f"--holdout must be above 0 and below 1, got {arguments.holdout}")
    for clip, count in Counter(arguments.clip or []).items():
        if count > 1:
            errors.append(f"--clip {clip} is given more than once: several heads on one CLIP are --folds")
    if errors:
        raise RecipeError("; ".join(errors))
    return recipe


def run_command(arguments: argparse.Namespace) -> Path:
    """Run the command; returns the run folder."""
    recipe = checked_recipe(arguments)
    device = choose_device(arguments.device)
    sources = arguments.clip or [str(DEMO_CLIP)]
    for source in sources:
        check_clip_source(source)
    print(f"data: {arguments.data or 'the demo data (--data names a VizWiz folder)'}")
    named = " and ".join(arguments.clip or ["the demo CLIP (--clip names another)"])
    print(f"CLIP: {named} on {device}\nrecipe: {recipe.name}")
    data = arguments.data or ensure_demo_dataset()
    train, val = (
        add_votes(read_split(data, name, limit=arguments.limit), arguments.quality) for name in ("train", "val")
    )
    require_votes(train, recipe)
    clips = load_distinct_clips(sources, device)
    arguments.runs.mkdir(parents=True, exist_ok=True)  # fail now, not after the fit
    folder = fit(
        train,
        val,
        clips,
        recipe,
        arguments.runs,
        arguments.cache,
        holdout=arguments.holdout,
        limit=arguments.limit,
        baselines=not arguments.no_baselines,
    )
    metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    best, majority = metrics["best"], metrics["majority_baseline"]
    print(f"kept: {describe_epoch(best)}")
    print(
        f"always {majority['answer']!r}: VQA {majority['vqa_accuracy_leave_one_out']:.2f}, "
        f"min3 {majority['vqa_accuracy_min3']:.2f}  AP by chance {best['unanswerable_ap_chance']:.3f}/"
        f"{best['answerable_ap_chance']:.3f}"
    )
    for name, row in metrics["baselines"].items():
        print(f"{LABELS[name]}: {describe_metrics(row)}")
    if "quality" in best:
        print(describe_quality(best["quality"]))
    print(f"run folder: {folder}\nloss curves: {folder / CURVES_FILE}")
    if arguments.limit:
        print(f"a trial on --limit {arguments.limit} records, now the newest run: export another one with --run")
    print(next_step(folder))
    return folder


def main(argv: list[str] | None = None) -> int:
    """Run the command; an expected error prints one line and exits with 2."""
    try:
        run_command(parse_arguments(argv))
    except (DatasetError, ClipError, RecipeError, DivergedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted; encoded features and finished heads are kept, the same command continues",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(streams.run(main))
