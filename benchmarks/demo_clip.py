"""Photo quality by the demo CLIP, and its VQA accuracy beside another CLIP's: five seeds of `report`.

    python -m benchmarks.demo_clip                          # 3 minutes
    python -m benchmarks.demo_clip --before OLD.pt          # such as an earlier demo/clip_demo.pt, from the history
    python -m benchmarks.demo_clip --answerable-quality     # what that setting changes in two recipes, 16 minutes

The scores are those of the demo's val. The difference is the mean over the seeds; its 95% interval is a paired
bootstrap over the questions.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.report import Table
from demo import DEMO_CLIP, ensure_demo_dataset
from training.backbone import FrozenClip, load_clip
from training.dataset import Split, read_split
from training.fit import fit_ensemble
from training.folds import FinishedHeads
from training.metrics import average_precision
from training.model import predict
from training.quality import ISSUES, add_votes
from training.recipe import NO, RECIPES, REPORT, YES, Recipe
from training.training_data import TrainingData, choose_vocabulary, make_dataset

BOOTSTRAPS = 10_000
HEADER = (
    "issue",
    "AP (chance)",
    "(AP - chance) / (1 - chance), lowest",
    "F1 at 0.5",
    "ECE",
    "precision / recall of advice",
)


class Fitted(NamedTuple):
    """One fit on the demo's train, scored on its val."""

    accuracies: npt.NDArray[Any]  # [N], leave-one-out, percent
    answerable: npt.NDArray[Any]  # [N], confidence that the photo can answer
    quality: dict[str, Any]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_clip", description=__doc__)
    parser.add_argument("--before", type=Path, help="checkpoint of the CLIP that is compared")
    parser.add_argument("--answerable-quality", action="store_true", help="compare the recipes with and without it")
    parser.add_argument("--seeds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--cache", type=Path, default=Path(".cache/features"), help="default: %(default)s")
    arguments = parser.parse_args()
    splits = [add_votes(read_split(ensure_demo_dataset(), name)) for name in ("train", "val")]
    clip = load_clip(DEMO_CLIP)
    if arguments.answerable_quality:
        for recipe in (REPORT, RECIPES["best"]):
            print(reading_quality(clip, splits, arguments.seeds, arguments.cache, recipe), flush=True)
        return
    now = fit_seeds(clip, splits, arguments.seeds, arguments.cache)
    rows = {issue: [fitted.quality["issues"][issue] for fitted in now] for issue in ISSUES}
    rows["unrecognizable, if unanswerable"] = [each.quality["unrecognizable_if_unanswerable"] for each in now]
    print(Table(HEADER, [describe(*row) for row in rows.items()]))
    print(f"\nVQA accuracy: {accuracy(now)}")
    if arguments.before:
        before = fit_seeds(load_clip(str(arguments.before)), splits, arguments.seeds, arguments.cache)
        print(f"before: {accuracy(before)}\ndifference: {difference(now, before)}")


def reading_quality(clip: FrozenClip, splits: Sequence[Split], seeds: int, cache: Path, recipe: Recipe) -> str:
    """The scores of ``recipe`` without and with --answerable-quality, and their differences."""
    without, reading = (
        fit_seeds(clip, splits, seeds, cache, replace(recipe, answerable_quality=choice)) for choice in (NO, YES)
    )
    unanswerable = np.array([not record.answerable for record in splits[1].records])

    def precision(fits: Sequence[Fitted], rows: Any = slice(None)) -> float:
        return statistics.mean(average_precision(unanswerable[rows], -each.answerable[rows]) for each in fits)

    count = len(unanswerable)
    drawn = np.random.default_rng(0).integers(0, count, (BOOTSTRAPS // 10, count))
    low, high = np.percentile([precision(reading, rows) - precision(without, rows) for rows in drawn], [2.5, 97.5])
    before, after = precision(without), precision(reading)
    return (
        f"{recipe.name}: AP unanswerable {before:.4f}, reading quality {after:.4f}: {after - before:+.4f} "
        f"({low:+.4f} to {high:+.4f})\n"
        f"  VQA accuracy {accuracy(without)}, reading quality {accuracy(reading)}: {difference(reading, without)}"
    )


def fit_seeds(
    clip: FrozenClip, splits: Sequence[Split], seeds: int, cache: Path, recipe: Recipe = REPORT
) -> list[Fitted]:
    """Fit ``recipe`` with each seed."""
    return [fit_seed(clip, splits, cache, replace(recipe, seed=seed)) for seed in range(seeds)]


def fit_seed(clip: FrozenClip, splits: Sequence[Split], cache: Path, recipe: Recipe) -> Fitted:
    """Fit ``recipe``."""
    train, val = splits
    data = TrainingData(train, np.arange(len(train.records)), val, [clip], choose_vocabulary(recipe, train))
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):  # a line for each epoch
        finished = FinishedHeads(Path(folder), {})
        result = fit_ensemble(data, recipe, Path(folder), finished, cache, baselines=False)
    on_val = make_dataset(val, np.arange(len(val.records)), clip, data.vocabulary, recipe, cache)
    predicted = predict(result.ensemble, [on_val.features])
    accuracies = 100 * on_val.scores.accuracies(predicted.best)[0].double().numpy()
    return Fitted(accuracies, predicted.answerable.numpy(), result.best["quality"])


def describe(issue: str, rows: Sequence[dict[str, float]]) -> tuple[str, ...]:
    """A row of the table: means over the seeds, and the lowest AP over chance as a share of what is possible."""
    mean = {key: f"{statistics.mean(row[key] for row in rows):.3f}" for key in rows[0]}
    lifts = [(row["ap"] - row["ap_chance"]) / (1 - row["ap_chance"]) for row in rows]
    lift = f"{statistics.mean(lifts):.2f}, {min(lifts):.2f}"
    advice = f"{mean['advice_precision']} / {mean['advice_recall']}" if "advice_recall" in mean else ""
    return issue, f"{mean['ap']} ({mean['ap_chance']})", lift, mean.get("f1", ""), mean.get("ece", ""), advice


def accuracy(fits: Sequence[Fitted]) -> str:
    """The mean over the seeds, and each."""
    found = [float(fitted.accuracies.mean()) for fitted in fits]
    return f"{statistics.mean(found):.2f} ({', '.join(f'{each:.2f}' for each in found)})"


def difference(ours: Sequence[Fitted], theirs: Sequence[Fitted]) -> str:
    """The mean difference and its 95% interval."""
    gained = np.mean([a.accuracies - b.accuracies for a, b in zip(ours, theirs, strict=True)], axis=0)  # [N]
    rows = np.random.default_rng(0).integers(0, len(gained), (BOOTSTRAPS, len(gained)))
    low, high = np.percentile(gained[rows].mean(axis=1), [2.5, 97.5])
    return f"{gained.mean():+.2f} ({low:+.2f} to {high:+.2f})"


if __name__ == "__main__":
    main()
