"""Fit the gated head on frozen CLIP features.

    python -m training.fit                                        # the embedded demo data and demo CLIP
    python -m training.fit --data VizWiz --clip ViT-L/14@336px    # the real thing, on a GPU where there is one

The photos and questions are encoded once and cached; the ten epochs after that take seconds on the demo data.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

from training.clip_models import ClipError, FrozenClip, check_clip_source, load_clip
from training.data import ANSWER_TYPES, DatasetError, Split, read_split
from training.demo import DEMO_CLIP, ensure_demo_dataset
from training.features import encode_split
from training.fitting import constant_answer, describe, fit_head, make_batch
from training.plots import plot_curves
from training.recipe import Recipe, RecipeError, add_recipe_flags, recipe_from
from training.runs import CURVES_FILE, METRICS_FILE, write_run
from training.storage import staged_folder, write_json
from training.vocabulary import all_confidences_unknown, build_vocabulary
from vizwiz_client.contract.tensors import CONTRACT_VERSION


def fit(train: Split, val: Split, clip: FrozenClip, recipe: Recipe, runs: Path, cache: Path) -> Path:
    """Encode, fit and write a run folder; returns the folder, which appears whole or not at all.

    Raises:
        DatasetError: nothing to learn from in ``train``, or a photo that cannot be read.
    """
    vocabulary = build_vocabulary(train.records)
    if not vocabulary:
        raise DatasetError(f"{train.folder}: no record of train has an answer given with confidence 'yes'")
    unknown = sum(all_confidences_unknown(record) for record in train.records)
    print(f"vocabulary: {len(vocabulary)} answers of {len(train.records)} training records")
    if unknown:
        print(f"  {unknown} records have no known confidence: all ten of their answers count")

    train_batch, val_batch = (
        make_batch(split, encode_split(clip, split, cache), vocabulary, clip.device) for split in (train, val)
    )
    constant = constant_answer(train, val)
    fitted = fit_head(recipe, train_batch, val_batch, val, vocabulary)

    now = datetime.now(timezone.utc)
    name = f"{now:%Y%m%dT%H%M%S.%fZ}-{Path(clip.source).stem if Path(clip.source).is_file() else clip.source}"
    config = {
        "contract_version": CONTRACT_VERSION,
        "created": now.isoformat(timespec="seconds"),
        "recipe": vars(recipe),
        "answer_types": ANSWER_TYPES,
        "data": {
            "folder": str(train.folder),
            **{s.name: {"records": len(s.records), "sha256": s.digest} for s in (train, val)},
        },
        "clip": {"source": clip.source, "sha256": clip.digest, "side": clip.side, "width": clip.width},
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("vizwiz-client", "torch", "clip-anytorch", "numpy", "pillow")},
        "device": str(clip.device),
    }
    folder = runs / name.replace("/", "-")
    with staged_folder(folder) as staging:
        write_run(staging, config, fitted.head, vocabulary)
        write_json(staging / METRICS_FILE, {"best": fitted.best, "constant": constant, "history": fitted.history})
        plot_curves(fitted.history, fitted.best["epoch"], constant["vqa_accuracy_leave_one_out"], staging / CURVES_FILE)
    return folder


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.fit",
        description="Fit the gated head (answer, answer type, answerability) on frozen CLIP features. Without --data "
        "and --clip it uses the embedded demo material.",
        epilog="Next: python -m export.to_onnx",
    )
    parser.add_argument("--data", type=Path, help="VizWiz folder: Annotations/, train/, val/ (default: demo data)")
    parser.add_argument("--clip", help="OpenAI's name, such as ViT-L/14@336px or RN50x64, or a checkpoint file")
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folder goes (default: runs)")
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/features"), help="encoded features (default: .cache/features)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N records of each split, for a trial")
    add_recipe_flags(parser)
    return parser.parse_args(argv)


def choose_device(asked: str) -> torch.device:
    """Resolve ``--device``.

    Raises:
        ClipError: there is no such device, or CUDA was asked for and this PyTorch sees none.
    """
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ClipError(f"--device {asked}: no such device; give auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ClipError(f"--device {asked}: this PyTorch sees no CUDA device; use --device cpu")
    return device


def run_command(arguments: argparse.Namespace) -> Path:
    """Do what the command line asks for and return the run folder."""
    recipe = recipe_from(arguments)
    if arguments.limit is not None and arguments.limit < 1:
        raise RecipeError(f"--limit must be at least 1, got {arguments.limit}")
    device = choose_device(arguments.device)
    source = arguments.clip or str(DEMO_CLIP)
    check_clip_source(source)
    print(f"data: {arguments.data or 'the embedded demo data (--data names a VizWiz folder)'}")
    print(f"CLIP: {arguments.clip or 'the embedded demo CLIP (--clip names another)'} on {device}")
    data = arguments.data or ensure_demo_dataset()
    train, val = (read_split(data, name, limit=arguments.limit) for name in ("train", "val"))
    folder = fit(train, val, load_clip(source, device), recipe, arguments.runs, arguments.cache)
    metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    best, constant = metrics["best"], metrics["constant"]
    print(f"best: {describe(best)}")
    print(f"always {constant['answer']!r}: VQA {constant['vqa_accuracy_leave_one_out']:.2f}")
    print(f"run folder: {folder}\nloss curves: {folder / CURVES_FILE}\nnext: python -m export.to_onnx")
    return folder


def main(argv: list[str] | None = None) -> int:
    """Run the command; errors that have a remedy are one line and exit code 2."""
    try:
        run_command(parse_arguments(argv))
    except (DatasetError, ClipError, RecipeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
