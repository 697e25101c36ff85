"""Compare runs on the val of one VizWiz folder, question by question.

    python -m training.compare runs/A runs/B runs/C        # the differences are from the first
    python -m training.compare runs/A runs/B --json

Two CLIPs on one's own data, and both together:

    python -m training.fit --data VizWiz --clip ViT-L/14@336px
    python -m training.fit --data VizWiz --clip RN50x64
    python -m training.fit --data VizWiz --clip ViT-L/14@336px --clip RN50x64
    python -m training.compare runs/*

Features come from the cache of the fits, so this takes seconds.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from training.artifacts import to_json
from training.backbone import ClipError, choose_device, clip_name, load_clip
from training.baselines import features_of
from training.dataset import DatasetError, Split, read_split
from training.evaluate import load_clips_of
from training.features import encode_split
from training.metrics import answerability, question_accuracies
from training.model import predict
from training.recipe import LAST_EPOCH
from training.run import Run, RunError, read_run
from training.scoring import margin_95
from vizwiz_client.contract import streams


@dataclass(frozen=True)
class Row:
    """The scores of one run; accuracies in percent."""

    run: str
    clips: list[str]
    recipe: str
    answers: int  # length of the answer list
    vqa_accuracy_leave_one_out: float
    minus_first: float  # VQA accuracy less that of the first run
    minus_first_margin_95: float  # half of the 95% interval of that difference, paired by question
    unanswerable_ap: float
    answerable_ap: float
    epoch_chosen_here: bool  # the fit chose its epoch on this val, or a part of it, which favours it
    limit: int | None  # the fit's --limit


def compare(
    runs: Sequence[Run], val: Split, cache: Path, device: torch.device, clip_files: Sequence[str] = ()
) -> list[Row]:
    """Score ``runs`` on ``val``.

    Args:
        runs: the fitted runs; differences are from the first.
        val: a labelled split.
        cache: folder of encoded features.
        device: where to encode what is not cached, and to predict.
        clip_files: checkpoints that have moved since a fit, of any of the runs.

    Raises:
        ClipError: a CLIP of a run cannot be loaded, or has other weights than in the fit.
        DatasetError: a photo cannot be read.
    """
    given = [record.answers for record in val.records]
    answerable = np.array([bool(record.answerable) for record in val.records])
    accuracies: list[npt.NDArray[np.float64]] = []
    rows = []
    load_once = functools.lru_cache(maxsize=2)(load_clip)  # runs share CLIPs, and all of them may not fit on a GPU
    moved = {load_once(source, device).digest: source for source in clip_files}
    for run in runs:
        sources = [moved.get(clip["sha256"], str(clip["source"])) for clip in run.clips]
        clips = load_clips_of(run, sources, device, load=load_once)
        features = [encode_split(clip, val, cache) for clip in clips]
        predictions = predict(run.load_ensemble().to(device), features_of(features, device))
        answers = [run.answers[index] for index in predictions.best.tolist()]
        accuracies.append(100 * question_accuracies(answers, given).leave_one_out)
        difference = accuracies[-1] - accuracies[0]
        scores = answerability(predictions.answerable.numpy(), answerable)
        rows.append(
            Row(
                run.folder.name,
                [clip_name(clip["source"]) for clip in run.clips],
                run.config["recipe"]["name"],
                len(run.answers),
                float(accuracies[-1].mean()),
                float(difference.mean()),
                margin_95(difference),
                scores["unanswerable_ap"],
                scores["answerable_ap"],
                _chose_epoch_on(val, run),
                run.config["data"].get("limit"),
            )
        )
    return rows


def _chose_epoch_on(val: Split, run: Run) -> bool:
    recipe = run.config["recipe"]
    return recipe["keep"] != LAST_EPOCH and recipe["folds"] == 1 and run.config["data"]["val"]["sha256"] == val.digest


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    header = ("CLIP", "recipe", "answers", "VQA", "minus first (95%)", "AP un/answerable", "run")
    cells = [
        (
            " and ".join(row.clips),
            row.recipe + f" --limit {row.limit}" * bool(row.limit),
            str(row.answers),
            f"{row.vqa_accuracy_leave_one_out:.2f}{'*' * row.epoch_chosen_here}",
            "" if row is rows[0] else f"{row.minus_first:+.2f} ± {row.minus_first_margin_95:.2f}",
            f"{row.unanswerable_ap:.3f}/{row.answerable_ap:.3f}",
            row.run,
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in (header, *cells)]
    if any(row.epoch_chosen_here for row in rows):
        lines.append("* its fit chose the epoch on this val, which favours it; --recipe best does not")
    return "\n".join(line.rstrip() for line in lines)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.compare",
        description="Compare runs on one val: VQA accuracy, its difference from the first run's with a 95% interval "
        "that pairs the questions, and average precision of answerability.",
        epilog="A difference whose interval holds 0 may be chance.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders; differences are from the first")
    parser.add_argument("--data", type=Path, help="VizWiz folder (default: that of the first run's fit)")
    parser.add_argument(
        "--clip",
        action="append",
        default=[],
        help="checkpoint file of a CLIP that has moved since its fit; once for each, in any order",
    )
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/features"), help="encoded features (default: .cache/features)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def run_command(arguments: argparse.Namespace) -> None:
    """Run the command."""
    runs = [read_run(folder) for folder in arguments.runs]
    first = runs[0].config["data"]
    val = read_split(arguments.data or Path(first["folder"]), "val", limit=first.get("limit"))
    rows = compare(runs, val, arguments.cache, choose_device(arguments.device), arguments.clip)
    if arguments.json:
        print(to_json({"records": len(val.records), "runs": [asdict(row) for row in rows]}))
    else:
        print(f"val of {val.folder}, {len(val.records)} questions\n{table(rows)}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; an expected error prints one line and exits with 2."""
    try:
        run_command(parse_arguments(argv))
    except (DatasetError, ClipError, RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; encoded features are kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(streams.run(main))
