"""The 2023 report's headline runs, one command each: download, encode, fit, evaluate, compare.

    python -m training.reproduce --data VizWiz --clip ViT-L/14@336px
    python -m training.reproduce --data VizWiz --clip RN50x64

The report's scores on val are 54.21 and 52.21. Encoding 24,842 photos takes most of the time, once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from training.artifacts import explain_full_disk, staged_file
from training.backbone import ClipError, FrozenClip, check_clip_source, choose_device, clip_name, load_distinct_clips
from training.baselines import LABELS
from training.dataset import HOLDOUT, DatasetError, read_split
from training.download import BASE_URL, DownloadError, download, download_quality
from training.evaluate import evaluate_run, read_records
from training.fit import checked_recipe, fit, next_step
from training.quality import QUALITY_FOLDER, add_votes
from training.recipe import NO, Recipe, RecipeError, add_recipe_flags
from training.report import write_model_card
from training.run import DEFAULT_RUNS, RunError, read_run
from training.scoring import SubmissionError
from training.trainer import DivergedError
from vizwiz_client.contract import streams

TABLE_FILE = "reproduction.md"
_NEEDED = ("train", "val")
_HEADER = (
    "source",
    "CLIP",
    "split",
    "VQA",
    "VQA, min3",
    "AP answerable (chance)",
    "AP unanswerable (chance)",
    "accuracy of answerability",
    "answerability, as published",
)


class Published(NamedTuple):
    """A published score, in percent."""

    source: str
    clip: str
    split: str
    vqa: float
    answerability: float  # the report and the paper name the metric differently


PUBLISHED = (
    Published("report", "ViT-L/14@336px", "val", 54.21, 84.20),
    Published("report", "ViT-L/14@336px", "its held-out test", 53.35, 81.44),
    Published("report", "RN50x64", "val", 52.21, 83.31),
    Published("report", "RN50x64", "its held-out test", 53.80, 82.34),
    Published("paper", "ViT-L/14@336px", "test-dev", 60.66, 83.50),
    Published("paper", "ViT-L/14@336px", "test-standard", 59.01, 82.86),
    Published("paper", "RN50x64", "test-dev", 60.73, 82.74),
    Published("paper", "RN50x64", "test-standard", 59.40, 82.54),
)


def reproduce(
    data: Path,
    clips: Sequence[FrozenClip],
    recipe: Recipe,
    holdout_fraction: float,
    runs: Path,
    cache: Path,
) -> Path:
    """Fit, evaluate on val and on the held-out part of train, and print the comparison; returns the run folder.

    Raises:
        DatasetError: the data cannot be read, or are too few to hold out a part.
    """
    train, val = (add_votes(read_split(data, name)) for name in _NEEDED)
    folder = fit(train, val, clips, recipe, runs, cache, holdout=holdout_fraction)
    run = read_run(folder)
    measured = {}
    for name in ("val", HOLDOUT):
        metrics = evaluate_run(run, read_records(run, name, data), clips, cache, folder / f"evaluation-{name}")
        assert metrics is not None  # both are labelled
        measured[name] = metrics
    table = comparison(measured, [clip_name(clip.source) for clip in clips])
    with explain_full_disk(folder, "--runs"):
        write_model_card(folder)
        with staged_file(folder / TABLE_FILE) as staging:
            staging.write_text(table, encoding="utf-8")
    print(f"\n{table}")
    return folder


def comparison(measured: dict[str, dict[str, Any]], clips: Sequence[str]) -> str:
    """Markdown table of ``measured`` metrics by split, beside the published scores of the same CLIPs, or of all."""
    same = [entry for entry in PUBLISHED if entry.clip in clips] or PUBLISHED
    rows = [
        _HEADER,
        *(_measured_row(name, metrics, " + ".join(clips)) for name, metrics in measured.items()),
        *(
            _baseline_row(name, scores, f"always {scores['answer']!r}")
            for name, scores in ((name, metrics["majority_baseline"]) for name, metrics in measured.items())
        ),
        *(
            _baseline_row(name, scores, LABELS[baseline])
            for name, metrics in measured.items()
            for baseline, scores in metrics["baselines"].items()
        ),
        *((row.source, row.clip, row.split, f"{row.vqa:.2f}", *[""] * 4, f"{row.answerability:.2f}") for row in same),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    padded.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(row)} |\n" for row in padded)


def _measured_row(name: str, metrics: dict[str, Any], clips: str) -> tuple[str, ...]:
    return (
        "this run",
        clips,
        f"{name}, {metrics['records']:,}",
        f"{metrics['vqa_accuracy_leave_one_out']:.2f} ± {metrics['vqa_accuracy_leave_one_out_margin_95']:.2f}",
        f"{metrics['vqa_accuracy_min3']:.2f}",
        f"{100 * metrics['answerable_ap']:.2f} ({100 * metrics['answerable_ap_chance']:.1f})",
        f"{100 * metrics['unanswerable_ap']:.2f} ({100 * metrics['unanswerable_ap_chance']:.1f})",
        f"{metrics['answerable_accuracy']:.2f}",
        "",
    )


def _baseline_row(split: str, scores: dict[str, Any], label: str) -> tuple[str, ...]:
    vqa = f"{scores['vqa_accuracy_leave_one_out']:.2f}", f"{scores['vqa_accuracy_min3']:.2f}"
    ap = [f"{100 * scores[key]:.2f}" if key in scores else "" for key in ("answerable_ap", "unanswerable_ap")]
    return (label, "", split, *vqa, *ap, "", "")


def download_missing(data: Path, base_url: str, *, quality: bool = False) -> None:
    """Fetch the annotations and the photos of train and val, and the votes on ``quality``, where they are missing.

    Raises:
        DownloadError: as :func:`training.download.download`.
    """
    missing = [name for name in ("Annotations", *_NEEDED) if not (data / name).exists()]
    if missing:
        print(f"{data} has no {', '.join(missing)}: downloading from {base_url}")
        with explain_full_disk(data, "--data"):
            download(data, _NEEDED, base_url=base_url)
    if quality and not (data / QUALITY_FOLDER).exists():
        with explain_full_disk(data, "--data"):
            download_quality(data)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduce",
        description="Download what is missing of VizWiz, encode, fit, evaluate on val and on a held-out part of train, "
        "and print the scores beside the 2023 report's and the paper's.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="docs/evaluation.md explains how the scores compare.",
    )
    parser.add_argument("--data", type=Path, required=True, help="VizWiz folder; what it lacks is downloaded into it")
    parser.add_argument(
        "--clip", action="append", required=True, help="ViT-L/14@336px or RN50x64 as in the report, or another CLIP"
    )
    parser.add_argument(
        "--holdout", type=float, default=0.1, metavar="FRACTION", help="of train's photos, as a test (default: 0.1)"
    )
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")
    parser.add_argument("--runs", type=Path, default=DEFAULT_RUNS, help="where the run folder goes (default: runs)")
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/features"), help="encoded features (default: .cache/features)"
    )
    parser.add_argument("--base-url", default=BASE_URL, help=f"a mirror of {BASE_URL}")
    add_recipe_flags(parser)
    parser.set_defaults(limit=None)  # for checked_recipe, which training.fit shares
    return parser.parse_args(argv)


def run_command(arguments: argparse.Namespace) -> Path:
    """Run the command; returns the run folder."""
    recipe = checked_recipe(arguments)  # before gigabytes are downloaded
    device = choose_device(arguments.device)
    for source in arguments.clip:
        check_clip_source(source)
    download_missing(arguments.data, arguments.base_url, quality=recipe.answerable_quality != NO)
    clips = load_distinct_clips(arguments.clip, device)
    folder = reproduce(arguments.data, clips, recipe, arguments.holdout, arguments.runs, arguments.cache)
    print(f"run folder: {folder}\n{next_step(folder)}")
    return folder


def main(argv: list[str] | None = None) -> int:
    """Run the command; an expected error prints one line and exits with 2."""
    try:
        run_command(parse_arguments(argv))
    except (
        *(DatasetError, ClipError, RecipeError, DivergedError, RunError),
        *(DownloadError, SubmissionError, OSError),
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted; downloads, encoded features and finished heads are kept, the same command continues",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(streams.run(main))
