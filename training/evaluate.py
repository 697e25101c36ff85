"""Evaluate a run on val, on the part of train that it held out, or on the official test.

    python -m training.evaluate                    # the newest run, on its val
    python -m training.evaluate --split holdout    # the part that `python -m training.fit --holdout 0.1` held out
    python -m training.evaluate --split test       # hidden answers: writes the two submission files only
    python -m training.evaluate --data Other       # the val of another folder

Features that the fit encoded are read from the cache; the rest takes seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from training.artifacts import explain_full_disk, staged_files, write_json
from training.backbone import ClipError, FrozenClip, check_clip_source, choose_device, load_clip
from training.baselines import features_of, normalised
from training.dataset import HOLDOUT, DatasetError, Split, holdout_rows, read_split, select
from training.features import SplitFeatures, encode_split
from training.metrics import answerability, vqa_accuracy
from training.model import predict
from training.quality import add_votes
from training.report import describe_scores, write_model_card, write_report
from training.run import (
    DEFAULT_RUNS,
    METRICS_FILE,
    RUN_FILE,
    Run,
    RunError,
    annotations_of_fit,
    newest_run,
    read_run,
    read_scores,
)
from training.scoring import SubmissionError, majority_baseline, score, write_submissions
from vizwiz_client.contract import streams

SPLITS = ("val", HOLDOUT, "test")
REPORT_FILE = "report.html"


class EvaluatedRecords(NamedTuple):
    """The records to evaluate, and the whole split they come from.

    Features are encoded for the whole split, so that its cache is shared with the fit.
    """

    whole: Split
    split: Split  # the records to evaluate
    rows: slice | npt.NDArray[np.int64] = slice(None)  # their rows in ``whole``


def evaluate_run(
    run: Run, evaluated: EvaluatedRecords, clips: Sequence[FrozenClip], cache: Path, out: Path
) -> dict[str, Any] | None:
    """Predict ``evaluated`` with ``run`` and write the results to ``out``.

    Args:
        run: the fitted run.
        evaluated: the records to predict.
        clips: the CLIPs of the run, in its order.
        cache: folder of encoded features.
        out: gets the submission files and, if the records are labelled, metrics.json and report.html.

    Returns:
        The metrics; None for the official test, whose answers are hidden.

    Raises:
        DatasetError: a photo cannot be read.
        RunError: metrics.json of the run, which holds its majority answer, cannot be read.
        OSError: ``out`` or ``cache`` cannot be written.
    """
    split = evaluated.split
    labelled = bool(split.records[0].answers)
    out.mkdir(parents=True, exist_ok=True)  # fail now, not after hours of encoding; the next line too
    majority = read_scores(run.folder)["majority_baseline"]["answer"] if labelled else ""
    encoded = [encode_split(clip, evaluated.whole, cache) for clip in clips]
    features = [SplitFeatures(each.images[evaluated.rows], each.texts[evaluated.rows]) for each in encoded]
    device = clips[0].device
    predictions = predict(run.load_ensemble().to(device), features_of(features, device))
    images = [record.image for record in split.records]
    with explain_full_disk(out, "--out"), staged_files(out) as staging:
        answers = [run.answers[index] for index in predictions.best.tolist()]
        write_submissions(staging, images, answers, predictions.answerable.numpy())
        if not labelled:
            return None
        scores = score(run, split, predictions)
        scores.metrics.update(
            split=split.name,
            data_sha256=split.digest,
            run_sha256=run.digest,
            majority_baseline=majority_baseline(majority, split.records),
            baselines=_score_baselines(run, split, features, device),
        )
        write_json(staging / METRICS_FILE, scores.metrics)
        write_report(staging / REPORT_FILE, run, split, scores)
    return scores.metrics


def read_records(run: Run, name: str, data: Path | None = None, quality: Path | None = None) -> EvaluatedRecords:
    """Read the records to evaluate ``run`` on; of val, as many as the fit read, where it had a ``--limit``.

    Args:
        run: the fitted run.
        name: val, holdout or test.
        data: VizWiz folder (default: the one of the fit).
        quality: folder of votes on photo quality (default: as for :func:`training.quality.add_votes`).

    Raises:
        DatasetError: the split cannot be read, or the run held nothing out of train.
    """
    folder = data or Path(run.config["data"]["folder"])
    limit = run.config["data"].get("limit")
    if name != HOLDOUT:
        if name == "test":
            split = read_split(folder, name, labelled=False)
        else:
            split = add_votes(read_split(folder, name, limit=limit), quality)
        return EvaluatedRecords(split, split)
    settings = run.config["holdout"]
    if settings is None:
        raise DatasetError(
            f"{run.folder} held nothing out of train: fit with `python -m training.fit --holdout 0.1` to have a part "
            "that the fit has not seen"
        )
    fitted = run.config["data"]["train"]
    train = add_votes(read_split(folder, "train", limit=limit), quality)
    if train.digest != fitted["sha256"]:
        raise DatasetError(
            f"{folder / 'Annotations' / 'train.json'} is not the file that {run.folder} was fitted on, so its held-out "
            "records are unknown; give the folder of the fit with --data"
        )
    _, rows = holdout_rows(train, settings["fraction"], settings["seed"])
    return EvaluatedRecords(train, replace(select(train, rows), name=HOLDOUT), rows)


def default_out(run: Run, split: Split) -> Path:
    """Default folder of the results on ``split``; for another val than the fit's, its name ends with the digest."""
    suffix = "" if _is_fitted_split(run, split) else f"-{split.digest[:12]}"
    return run.folder / f"evaluation-{split.name}{suffix}"


def load_clips_of(
    run: Run,
    sources: Sequence[str] | None,
    device: torch.device,
    *,
    load: Callable[[str, torch.device], FrozenClip] = load_clip,
) -> list[FrozenClip]:
    """Load the CLIPs of ``run`` and verify their weights.

    Args:
        run: the fitted run.
        sources: names or checkpoint files, in the run's order (default: those of the fit).
        device: where to load them.
        load: loads a name or file.

    Raises:
        ClipError: a CLIP cannot be loaded.
        RunError: one is missing, or its weights are not those of the fit.
    """
    names = list(sources) if sources else [str(clip["source"]) for clip in run.clips]
    run.check_clips(names)
    for name in names:
        check_clip_source(name)
    clips = [load(name, device) for name in names]
    run.check_clips(names, [clip.digest for clip in clips])
    return clips


def _is_fitted_split(run: Run, split: Split) -> bool:
    """Whether the annotation file is the fit's. A run records no digest of test, so any test counts as the fit's."""
    return annotations_of_fit(run.config).get(split.name, split.digest) == split.digest


def _score_baselines(
    run: Run, split: Split, features: Sequence[SplitFeatures], device: torch.device
) -> dict[str, dict[str, float]]:
    given = [record.answers for record in split.records]
    answerable = np.array([bool(record.answerable) for record in split.records])
    scores = {}
    for name, baseline in run.load_baselines().items():
        best, confidence = baseline.predict(normalised(features_of(features, device), name))
        answers = [run.answers[index] for index in best.tolist()]
        scores[name] = {**vqa_accuracy(answers, given), **answerability(confidence.cpu().numpy(), answerable)}
    return scores


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate",
        description="Evaluate a run: write submission files, metrics as JSON and an HTML report. The answers of the "
        "official test are hidden: it gets the submission files only. docs/evaluation.md explains every score.",
    )
    parser.add_argument("--run", type=Path, help="run folder (default: the newest in --runs)")
    parser.add_argument("--runs", type=Path, default=DEFAULT_RUNS, help="where runs are (default: runs)")
    parser.add_argument("--data", type=Path, help="VizWiz folder (default: the one of the fit)")
    parser.add_argument("--quality", type=Path, help="folder of votes on photo quality (default: Quality/ in the data)")
    parser.add_argument("--split", choices=SPLITS, default="val", help="default: val")
    parser.add_argument(
        "--clip", action="append", help="checkpoint file of the CLIP, if it has moved since the fit; once for each CLIP"
    )
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/features"), help="encoded features (default: .cache/features)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the results (default: evaluation-SPLIT in the run folder, or evaluation-val-DIGEST for another "
        "val than the fit's)",
    )
    return parser.parse_args(argv)


def run_command(arguments: argparse.Namespace) -> Path:
    """Run the command; returns the folder of the results."""
    run = read_run(arguments.run or newest_run(arguments.runs))
    device = choose_device(arguments.device)
    evaluated = read_records(run, arguments.split, arguments.data, arguments.quality)
    clips = load_clips_of(run, arguments.clip, device)
    out: Path = arguments.out or default_out(run, evaluated.split)
    if (out / RUN_FILE).exists():
        raise RunError(f"--out {out} is a run folder: its {METRICS_FILE} is that of the fit; name another folder")
    print(f"run: {run.folder}")
    print(f"split: {arguments.split}, {len(evaluated.split.records)} records of {evaluated.whole.folder}")
    metrics = evaluate_run(run, evaluated, clips, arguments.cache, out)
    if metrics is None:
        print(
            "the answers of this split are hidden, and nobody scores submissions for the demo"
            if evaluated.whole.is_demo
            else "the answers of this split are hidden: upload the submission files to the evaluation server"
        )
    else:
        print(describe_scores(metrics))
        if not _is_fitted_split(run, evaluated.split):
            print("this is not the val of the fit: its scores are not added to the model card")
        if out.resolve().parent == run.folder.resolve():  # the model card lists the evaluations in its folder
            with explain_full_disk(run.folder, "--runs"):
                write_model_card(run.folder)
    for path in sorted(path for path in out.iterdir() if not path.name.startswith(".")):
        print(f"  {path}")
    return out


def main(argv: list[str] | None = None) -> int:
    """Run the command; an expected error prints one line and exits with 2."""
    try:
        run_command(parse_arguments(argv))
    except (DatasetError, ClipError, RunError, SubmissionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; encoded features are kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(streams.run(main))
