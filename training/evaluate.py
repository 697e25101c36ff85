"""Evaluate a fitted run on val, on its held-out part of train, or on the official test.

    python -m training.evaluate                    # the newest run, on the val it was fitted with
    python -m training.evaluate --split holdout    # on what `python -m training.fit --holdout 0.1` held out
    python -m training.evaluate --split test       # hidden answers: the two submission files alone
    python -m training.evaluate --data Other       # the val of another folder, beside that of the fit

Features that the fit encoded are read from the cache; the rest takes seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from training.baselines import features_of, normalised
from training.clip_models import ClipError, FrozenClip, check_clip_source, choose_device, load_clip
from training.data import DatasetError, Split, read_split
from training.evaluation import evaluate, predict
from training.features import SplitFeatures, encode_split
from training.metrics import answerability, vqa_accuracy
from training.model_card import describe_scores, write_model_card
from training.report import write_report
from training.runs import DEFAULT_RUNS, Run, RunError, annotations_of_fit, newest_run, read_run, read_scores
from training.splits import HOLDOUT, holdout_rows, take
from training.storage import disk_full_names, staged_files, write_json
from training.submission import SubmissionError, write_submissions
from vizwiz_client.contract import streams

SPLITS = ("val", HOLDOUT, "test")
SCORES_FILE = "metrics.json"
REPORT_FILE = "report.html"


class Part(NamedTuple):
    """Some records of a split. The fit encodes whole splits, so that a part of one is found in its cache."""

    whole: Split
    split: Split  # the records of the part
    rows: slice | npt.NDArray[np.int64] = slice(None)  # their places in the whole


def evaluate_run(run: Run, part: Part, clips: Sequence[FrozenClip], cache: Path, out: Path) -> dict[str, Any] | None:
    """Predict ``part`` with ``run`` and write what can be said of it to ``out``; returns the metrics.

    A labelled split gets submission files, metrics and a report; the official test, whose answers are hidden, only the
    submission files, and no metrics are returned.

    Raises:
        DatasetError: a photo cannot be read.
        RunError: the run lacks what the evaluation compares with.
        OSError: ``out`` or ``cache`` cannot be written.
    """
    split = part.split
    labelled = bool(split.records[0].answers)
    out.mkdir(parents=True, exist_ok=True)  # this and the next are found out now, not after hours of encoding
    constant = _constant(run, split) if labelled else None
    encoded = [encode_split(clip, part.whole, cache) for clip in clips]
    features = [SplitFeatures(each.images[part.rows], each.texts[part.rows]) for each in encoded]
    predictions = predict(run.load_ensemble(), features, run.answers, clips[0].device)
    images = [record.image for record in split.records]
    with disk_full_names(out, "--out"), staged_files(out) as staging:
        write_submissions(staging, images, predictions.answers, predictions.answerable)
        if not labelled:
            return None
        evaluation = evaluate(run, split, predictions)
        evaluation.metrics.update(
            split=split.name,
            data_sha256=split.digest,
            run_sha256=run.digest,
            constant=constant,
            baselines=_baselines(run, split, features, clips[0].device),
        )
        write_json(staging / SCORES_FILE, evaluation.metrics)
        write_report(staging / REPORT_FILE, run, split, predictions, evaluation)
    return evaluation.metrics


def read_part(run: Run, name: str, data: Path | None = None) -> Part:
    """Read what to evaluate ``run`` on, from ``data`` or from the folder that the run was fitted on.

    A fit that was cut to the first records is evaluated on as many.

    Raises:
        DatasetError: the split is not there, or nothing was held out of the run's train.
    """
    folder = data or Path(run.config["data"]["folder"])
    limit = run.config["data"].get("limit")
    if name != HOLDOUT:
        split = read_split(folder, name, labelled=name != "test", limit=None if name == "test" else limit)
        return Part(split, split)
    settings = run.config["holdout"]
    if settings is None:
        raise DatasetError(
            f"{run.folder} held nothing out of train: fit with `python -m training.fit --holdout 0.1` to have a part "
            "that the fit has not seen"
        )
    fitted = run.config["data"]["train"]
    train = read_split(folder, "train", limit=limit)
    if train.digest != fitted["sha256"]:
        raise DatasetError(
            f"{folder / 'Annotations' / 'train.json'} is not the file that {run.folder} was fitted on: what it held "
            "out cannot be told from what it has seen; give the folder of the fit with --data"
        )
    _, rows = holdout_rows(train, settings["fraction"], settings["seed"])
    return Part(train, replace(take(train, rows), name=HOLDOUT), rows)


def default_out(run: Run, split: Split) -> Path:
    """Where the results on ``split`` go: on another val than the fit's, the folder's name ends with its digest."""
    suffix = "" if _is_of_fit(run, split) else f"-{split.digest[:12]}"
    return run.folder / f"evaluation-{split.name}{suffix}"


def load_clips_of(run: Run, sources: Sequence[str] | None, device: torch.device) -> list[FrozenClip]:
    """Load the CLIPs that ``run`` was fitted on, from where the fit had them or from ``sources``, in the run's order.

    Raises:
        ClipError: one cannot be loaded, or is another than the fit's.
    """
    expected = run.clips
    names = list(sources) if sources else [str(clip["source"]) for clip in expected]
    if len(names) != len(expected):
        raise ClipError(f"{run.folder} was fitted on {len(expected)} CLIP(s), --clip gives {len(names)}")
    for name in names:
        check_clip_source(name)
    clips = [load_clip(name, device) for name in names]
    for clip, fitted in zip(clips, expected, strict=True):
        if clip.digest != fitted["sha256"]:
            raise ClipError(
                f"{run.folder} was fitted on the CLIP {fitted['sha256'][:12]} ({fitted['source']}), but {clip.source} "
                f"is {clip.digest[:12]}: give the CLIP of the fit with --clip, or fit again"
            )
    return clips


def _is_of_fit(run: Run, split: Split) -> bool:
    """Whether the annotations are those of the fit, as any official test counts: a run records nothing of that."""
    return annotations_of_fit(run.config).get(split.name, split.digest) == split.digest


def _constant(run: Run, split: Split) -> dict[str, Any]:
    answer = str(read_scores(run.folder)["constant"]["answer"])
    return {
        "answer": answer,
        **vqa_accuracy([answer] * len(split.records), [record.answers for record in split.records]),
    }


def _baselines(
    run: Run, split: Split, features: Sequence[SplitFeatures], device: torch.device
) -> dict[str, dict[str, float]]:
    """The scores of the baselines that were fitted with ``run``, by name."""
    given = [record.answers for record in split.records]
    answerable = np.array([bool(record.answerable) for record in split.records])
    found = {}
    for name, baseline in run.load_baselines().items():
        best, confidence = baseline.predict(normalised(features_of(features, device), name))
        answers = [run.answers[index] for index in best.tolist()]
        found[name] = {**vqa_accuracy(answers, given), **answerability(confidence.cpu().numpy(), answerable)}
    return found


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate",
        description="Evaluate a fitted run: submission files, metrics as JSON and one HTML report. On the official "
        "test, whose answers are hidden, the submission files alone. docs/evaluation.md explains every score.",
        epilog="The report holds photos of the split: treat it as you treat the photos.",
    )
    parser.add_argument("--run", type=Path, help="run folder (default: the newest in --runs)")
    parser.add_argument("--runs", type=Path, default=DEFAULT_RUNS, help="where runs are (default: runs)")
    parser.add_argument("--data", type=Path, help="VizWiz folder (default: the one of the fit)")
    parser.add_argument("--split", choices=SPLITS, default="val", help="default: val")
    parser.add_argument(
        "--clip", action="append", help="the CLIP of the fit, where it is elsewhere now; once for each of a fit on two"
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
    """Do what the command line asks for and return the folder of the results."""
    run = read_run(arguments.run or newest_run(arguments.runs))
    device = choose_device(arguments.device)
    part = read_part(run, arguments.split, arguments.data)
    clips = load_clips_of(run, arguments.clip, device)
    out: Path = arguments.out or default_out(run, part.split)
    print(f"run: {run.folder}\nsplit: {arguments.split}, {len(part.split.records)} records of {part.whole.folder}")
    metrics = evaluate_run(run, part, clips, arguments.cache, out)
    if metrics is None:
        print("the answers of this split are hidden: upload the submission files to have them scored")
    else:
        print(describe_scores(metrics))
        if not _is_of_fit(run, part.split):
            print("this is another val than the fit's: the model card leaves its scores out")
        if out.resolve().parent == run.folder.resolve():  # the card tells what lies beside it
            with disk_full_names(run.folder, "--runs"):
                write_model_card(run.folder)
    for path in sorted(path for path in out.iterdir() if not path.name.startswith(".")):
        print(f"  {path}")
    return out


def main(argv: list[str] | None = None) -> int:
    """Run the command; errors that have a remedy are one line and exit code 2."""
    try:
        run_command(parse_arguments(argv))
    except (DatasetError, ClipError, RunError, SubmissionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was encoded is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(streams.run(main))
