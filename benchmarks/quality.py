"""Photo quality and answers by the demo CLIP: five seeds of `report`, and what --answerable-quality changes.

    python -m benchmarks quality

The scores are those of the demo's val. A difference is the mean over the seeds; its 95% interval is a paired bootstrap
over the questions.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.report import Section, Settings, Table
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

BOOTSTRAPS = 1_000
SEEDS = 5
HEADER = (
    "issue",
    "AP (chance)",
    "(AP - chance) / (1 - chance), lowest",
    "F1 at 0.5",
    "ECE",
    "precision / recall of advice",
)
READING = (
    *("recipe", "AP unanswerable", "with `--answerable-quality yes`", "difference"),
    "VQA accuracy, without and with",
)


class Fitted(NamedTuple):
    """One fit on the demo's train, scored on its val."""

    accuracies: npt.NDArray[Any]  # [N], leave-one-out, percent
    answerable: npt.NDArray[Any]  # [N], confidence that the photo can answer
    quality: dict[str, Any]


def run(settings: Settings) -> Section:
    """Fit with each seed, without and with --answerable-quality."""
    splits = [add_votes(read_split(ensure_demo_dataset(), name)) for name in ("train", "val")]
    clip = load_clip(DEMO_CLIP)
    seeds, cache = 1 if settings.quick else SEEDS, settings.cache / "features"
    rows = []
    for recipe in (REPORT,) if settings.quick else (REPORT, RECIPES["best"]):
        without, reading = (
            fit_seeds(clip, splits, seeds, cache, replace(recipe, answerable_quality=choice)) for choice in (NO, YES)
        )
        rows.append([f"`{recipe.name}`", *compare(without, reading, splits[1])])
        if recipe is REPORT:
            report = without
    issues = {issue: [fitted.quality["issues"][issue] for fitted in report] for issue in ISSUES}
    issues["unrecognizable, if unanswerable"] = [each.quality["unrecognizable_if_unanswerable"] for each in report]
    found = accuracies(report)
    text = (
        f"`report` on the demo's val ({len(splits[1].records)} photos), means of {seeds} seeds. VQA accuracy "
        f"{statistics.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})."
    )
    return [Table(HEADER, [describe(*row) for row in issues.items()], text), Table(READING, rows)]


def compare(without: Sequence[Fitted], reading: Sequence[Fitted], val: Split) -> list[str]:
    """The scores without and with --answerable-quality, and their differences."""
    unanswerable = np.array([not record.answerable for record in val.records])
    rng = np.random.default_rng(0)

    def precision(fits: Sequence[Fitted], rows: Any = slice(None)) -> float:
        return statistics.mean(average_precision(unanswerable[rows], -each.answerable[rows]) for each in fits)

    def difference(rows: Any = slice(None)) -> float:
        return precision(reading, rows) - precision(without, rows)

    count = len(unanswerable)
    low, high = np.percentile([difference(rng.integers(0, count, count)) for _ in range(BOOTSTRAPS)], [2.5, 97.5])
    return [
        *(f"{precision(fits):.4f}" for fits in (without, reading)),
        f"{difference():+.4f} ({low:+.4f} to {high:+.4f})",
        ", ".join(f"{statistics.mean(accuracies(fits)):.2f}" for fits in (without, reading)),
    ]


def accuracies(fits: Sequence[Fitted]) -> list[float]:
    """VQA accuracy of each seed, in percent."""
    return [float(each.accuracies.mean()) for each in fits]


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
    scored = 100 * on_val.scores.accuracies(predicted.best)[0].double().numpy()
    choice = f"--answerable-quality {recipe.answerable_quality}"
    print(f"{recipe.name} {choice}, seed {recipe.seed}: VQA {scored.mean():.2f}", file=sys.stderr, flush=True)
    return Fitted(scored, predicted.answerable.numpy(), result.best["quality"])


def describe(issue: str, rows: Sequence[dict[str, float]]) -> tuple[str, ...]:
    """A row of the table: means over the seeds, and the lowest AP over chance as a share of what is possible."""
    mean = {key: f"{statistics.mean(row[key] for row in rows):.3f}" for key in rows[0]}
    lifts = [(row["ap"] - row["ap_chance"]) / (1 - row["ap_chance"]) for row in rows]
    lift = f"{statistics.mean(lifts):.2f}, {min(lifts):.2f}"
    advice = f"{mean['advice_precision']} / {mean['advice_recall']}" if "advice_recall" in mean else ""
    return issue, f"{mean['ap']} ({mean['ap_chance']})", lift, mean.get("f1", ""), mean.get("ece", ""), advice
