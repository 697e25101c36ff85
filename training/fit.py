"""Fit the gated head on frozen CLIP features.

    python -m training.fit                                        # the embedded demo data and demo CLIP
    python -m training.fit --data VizWiz --clip ViT-L/14@336px    # the real thing, on a GPU where there is one
    python -m training.fit --recipe best --holdout 0.1            # another recipe, and a test of one's own

The photos and questions are encoded once and cached; the ten epochs after that take seconds on the demo data, and less
than a minute at VizWiz's size on two cores. docs/training.md explains the recipes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from demo import DEMO_CLIP, ensure_demo_dataset
from training.answer_types import TYPE_SETS
from training.artifacts import disk_full_names, staged_folder, write_json
from training.backbone import ClipError, FrozenClip, check_clip_source, choose_device, load_clip
from training.baselines import LABELS, LOGISTIC, Baseline, fit_baselines, normalised, underfits
from training.checkpoints import Checkpoints, FitRunningError, locked_checkpoints
from training.dataset import DatasetError, Split, read_split
from training.fitting import DivergedError, Examples, Row, scores
from training.folds import FittedPredictor, fit_predictor, join, predict, summary
from training.material import Material, choose_vocabulary, describe_material, make_examples, score_majority_baseline
from training.plots import plot_curves
from training.predictor import ClipEnsemble
from training.progress import (
    EVENTS_FOLDER,
    PROGRESS_FILE,
    ProgressLog,
    describe,
    describe_chance,
    describe_metrics,
)
from training.recipe import FEW_STEPS, Recipe, RecipeError, add_recipe_flags, recipe_from
from training.report import write_model_card
from training.run import CURVES_FILE, DEFAULT_RUNS, METRICS_FILE, write_run
from training.splits import fold_rows, holdout_rows, take
from vizwiz_client.contract import streams

_REMEDY = "give --recipe best, or more --min-steps"


class Result(NamedTuple):
    """What a fit came to."""

    ensemble: ClipEnsemble
    history: list[Row]  # the epochs of every head
    best: Row  # the scores on val of what the run predicts
    baselines: dict[str, Baseline]
    of_baselines: dict[str, Row]  # their scores on val


def fit(
    train: Split,
    val: Split,
    clip: FrozenClip | Sequence[FrozenClip],
    recipe: Recipe,
    runs: Path,
    cache: Path,
    *,
    holdout: float | None = None,
    resume: bool = False,
    limit: int | None = None,
    baselines: bool = True,
) -> Path:
    """Encode, fit and write a run folder; returns the folder, which appears whole or not at all.

    Args:
        clip: one CLIP, or several whose heads' probabilities are averaged.
        holdout: share of ``train`` that is carved out, by the recipe's seed, and not fitted on.
        resume: go on where a killed fit of the same settings and data was.
        limit: what both splits were cut to when they were read, for the record.
        baselines: fit both baselines too.

    Raises:
        DatasetError: nothing to learn from in ``train``, or a photo that cannot be read.
        FitRunningError: another process is fitting the same among ``runs``.
    """
    rows = np.arange(len(train.records)) if holdout is None else holdout_rows(train, holdout, recipe.seed)[0]
    clips = [clip] if isinstance(clip, FrozenClip) else list(clip)
    material = Material(train, rows, val, clips, choose_vocabulary(recipe, take(train, rows)))
    config = describe_material(material, recipe, cache)
    config["data"]["limit"] = limit
    config["holdout"] = None if holdout is None else {"fraction": holdout, "seed": recipe.seed}
    if holdout is not None:
        print(f"held out of train: {len(train.records) - len(rows)} of {len(train.records)} records")
    print(
        f"vocabulary ({recipe.vocabulary}): {len(material.vocabulary.answers)} answers of {len(rows)} training records"
    )
    print(f"  oracle accuracy on val, by choosing the best of them: {config['vocabulary']['oracle_accuracy']:.2f}")
    if (steps := recipe.steps(len(rows))) < FEW_STEPS:
        print(f"  each head takes {steps} steps, on which it learns little: {_REMEDY}")
    with disk_full_names(runs, "--runs"), locked_checkpoints(runs, config, resume=resume) as checkpoints:
        result = fit_ensemble(material, recipe, checkpoints, cache, baselines=baselines)
        folder = write_result(result, material, config, checkpoints.folder, runs)
        checkpoints.clear()
    return folder


def fit_ensemble(
    material: Material, recipe: Recipe, checkpoints: Checkpoints, cache: Path, *, baselines: bool = True
) -> Result:
    """Fit the heads of every CLIP and the baselines, recording each epoch in the folder of ``checkpoints``."""
    train, rows, val, clips, vocabulary = material
    folds = fold_rows([train.records[row] for row in rows], recipe.folds, recipe.seed) if recipe.folds > 1 else []
    parts: list[FittedPredictor] = []
    on_train: list[Examples] = []
    on_val: list[Examples] = []
    history: list[Row] = []
    with ProgressLog(checkpoints.folder) as log:

        def report(row: Row) -> None:
            row = {**({"clip": len(parts) + 1} if len(clips) > 1 else {}), **row}
            history.append(row)
            log.epoch(row)
            if not folds or row["epoch"] == recipe.epochs:
                print(describe(row))

        for number, clip in enumerate(clips, 1):
            on_train.append(make_examples(train, rows, clip, vocabulary, recipe, cache, rotations=recipe.views))
            on_val.append(make_examples(val, np.arange(len(val.records)), clip, vocabulary, recipe, cache))
            sizes = (len(vocabulary.answers), len(TYPE_SETS[recipe.types]))
            parts.append(
                fit_predictor(
                    recipe,
                    on_train[-1],
                    on_val[-1],
                    sizes,
                    folds,
                    checkpoints=checkpoints,
                    name=f"clip{number}",
                    report=report,
                )
            )
    ensemble = join(parts, on_val[0].answerable.device)
    found = {}
    if baselines:
        found = fit_baselines(_features(on_train), on_train[0].targets, len(vocabulary.answers))
        warn_of_underfit(ensemble, found[LOGISTIC], on_train, on_val, recipe)
    of_baselines = {
        name: scores(*baseline.predict(normalised(_features(on_val), name)), on_val[0])
        for name, baseline in found.items()
    }
    best = summary(parts, scores(*predict(ensemble, on_val), on_val[0]))
    return Result(ensemble, history, best, found, of_baselines)


def warn_of_underfit(
    ensemble: ClipEnsemble, logistic: Baseline, on_train: list[Examples], on_val: list[Examples], recipe: Recipe
) -> None:
    """Warn if logistic regression on the same features is significantly better on val."""

    def accuracies(examples: list[Examples]) -> tuple[torch.Tensor, torch.Tensor]:
        theirs = logistic.predict(normalised(_features(examples), LOGISTIC)).best
        of = examples[0].scores.accuracies
        return 100 * of(predict(ensemble, examples).best)[0], 100 * of(theirs)[0]

    ours, theirs = accuracies(on_val)
    if not underfits(ours, theirs):
        return
    ours_known, theirs_known = accuracies(on_train)
    kind = "underfits" if ours_known.mean() < theirs_known.mean() else "fits worse"
    print(
        f"warning: the head {kind}: VQA {ours.mean():.2f} on val and {ours_known.mean():.2f} on its training records, "
        f"where logistic regression on the same features has {theirs.mean():.2f} and {theirs_known.mean():.2f}. "
        f"Each head took {recipe.steps(len(on_train[0]))} steps: {_REMEDY}",
        file=sys.stderr,
    )


def _features(examples: list[Examples]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(each.texts, each.images[0]) for each in examples]


def write_result(result: Result, material: Material, config: dict[str, Any], progress: Path, runs: Path) -> Path:
    """Write the run folder, with the progress that was recorded in ``progress``; returns it."""
    now = datetime.now(timezone.utc)
    names = [Path(clip.source).stem if Path(clip.source).is_file() else clip.source for clip in material.clips]
    name = f"{now:%Y%m%dT%H%M%S.%fZ}-{'+'.join(names)}".replace("/", "-")
    folder = runs / name
    majority = score_majority_baseline(material)
    with staged_folder(folder) as staging:
        created = {"created": now.isoformat(timespec="seconds")}
        write_run(staging, created | config, result.ensemble, material.vocabulary.answers, result.baselines)
        measured = {"best": result.best, "majority_baseline": majority, "baselines": result.of_baselines}
        write_json(staging / METRICS_FILE, measured | {"history": result.history})
        plot_curves(result.history, result.best["epoch"], majority["vqa_accuracy_leave_one_out"], staging / CURVES_FILE)
        shutil.copy(progress / PROGRESS_FILE, staging)
        shutil.copytree(progress / EVENTS_FOLDER, staging / EVENTS_FOLDER)
        write_model_card(staging, folder.name)
    return folder


def next_step(folder: Path) -> str:
    """How the run in ``folder`` is exported: without ``--run``, the newest among the default runs is."""
    return "next: python -m export.to_onnx" + (f" --run {folder}" if folder.parent != DEFAULT_RUNS else "")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.fit",
        description="Fit the gated head (answer, answer type, answerability) on frozen CLIP features. Without --data "
        "and --clip it uses the embedded demo material.",
        epilog="Next: python -m training.evaluate, python -m export.to_onnx",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="VizWiz folder: Annotations/, train/, val/ (default: demo data)")
    parser.add_argument(
        "--clip",
        action="append",
        help="OpenAI's name, such as ViT-L/14@336px or RN50x64, or a checkpoint file; given twice, heads are fitted on "
        "both and averaged (such a run can be evaluated, not exported)",
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
        "--resume", action="store_true", help="go on where a killed fit of the same settings and data was"
    )
    parser.add_argument(
        "--no-baselines",
        action="store_true",
        help="do not fit logistic regression beside the head: with many answers it takes about as long",
    )
    add_recipe_flags(parser)
    return parser.parse_args(argv)


def checked_recipe(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the command line asks for.

    Raises:
        RecipeError: lists all that is wrong with the settings, before anything long is begun.
    """
    problems = []
    try:
        recipe = recipe_from(arguments)
    except RecipeError as error:
        problems.append(str(error))
    if arguments.limit is not None and arguments.limit < 1:
        problems.append(f"--limit must be at least 1, got {arguments.limit}")
    if arguments.holdout is not None and not 0 < arguments.holdout < 1:
        problems.append(f"--holdout must be above 0 and below 1, got {arguments.holdout}")
    for clip, count in Counter(arguments.clip or []).items():
        if count > 1:
            problems.append(f"--clip {clip} is given more than once: several heads on one CLIP are --folds")
    if problems:
        raise RecipeError("; ".join(problems))
    return recipe


def run_command(arguments: argparse.Namespace) -> Path:
    """Do what the command line asks for and return the run folder."""
    recipe = checked_recipe(arguments)
    device = choose_device(arguments.device)
    sources = arguments.clip or [str(DEMO_CLIP)]
    for source in sources:
        check_clip_source(source)
    print(f"data: {arguments.data or 'the embedded demo data (--data names a VizWiz folder)'}")
    named = " and ".join(arguments.clip or ["the embedded demo CLIP (--clip names another)"])
    print(f"CLIP: {named} on {device}\nrecipe: {recipe.name}")
    data = arguments.data or ensure_demo_dataset()
    train, val = (read_split(data, name, limit=arguments.limit) for name in ("train", "val"))
    clips = [load_clip(source, device) for source in sources]
    arguments.runs.mkdir(parents=True, exist_ok=True)  # found out now, not after the fit
    folder = fit(
        train,
        val,
        clips,
        recipe,
        arguments.runs,
        arguments.cache,
        holdout=arguments.holdout,
        resume=arguments.resume,
        limit=arguments.limit,
        baselines=not arguments.no_baselines,
    )
    metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    best, majority = metrics["best"], metrics["majority_baseline"]
    print(f"kept: {describe(best)}")
    print(
        f"always {majority['answer']!r}: VQA {majority['vqa_accuracy_leave_one_out']:.2f}, "
        f"min3 {majority['vqa_accuracy_min3']:.2f}  {describe_chance(best)}"
    )
    for name, row in metrics["baselines"].items():
        print(f"{LABELS[name]}: {describe_metrics(row)}")
    print(f"run folder: {folder}\nloss curves: {folder / CURVES_FILE}")
    print(next_step(folder))
    return folder


def main(argv: list[str] | None = None) -> int:
    """Run the command; errors that have a remedy are one line and exit code 2."""
    try:
        run_command(parse_arguments(argv))
    except (DatasetError, ClipError, RecipeError, DivergedError, FitRunningError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "stopped; what was encoded and every finished epoch are kept: the same command with --resume goes on from "
            "there",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(streams.run(main))
