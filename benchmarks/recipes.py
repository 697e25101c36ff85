"""Every recipe against logistic regression on the same features, on the demo's photos.

    python -m benchmarks.recipes              # 300, 1,000 and 3,000 records of train, three seeds, scored on val
    python -m benchmarks.recipes --choose     # variants of `best`, scored on a part of train: no look at val

A difference is the mean over the seeds; its 95% interval is a paired bootstrap over the scored records. The `C` of
logistic regression is chosen on a part of train. `report` and each head of `paper` keep their best epoch, `report` the
best on the scored records, which favours it. The demo data and its features are made where they are missing.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score, log_loss

from demo import DEMO_CLIP, ensure_demo_dataset
from training.backbone import load_clip
from training.baselines import LOGISTIC, fit_baseline, normalised
from training.dataset import Record, Split, fold_rows, read_split
from training.features import encode_split
from training.folds import Calibration, calibrate, fit_predictor
from training.labels import TYPE_SETS, AnswerScores, build_vocabulary, make_targets
from training.metrics import expected_calibration_error, reliability
from training.model import ClipEnsemble, predict
from training.recipe import RECIPES, REPORT, Recipe
from training.trainer import FeatureDataset

SIZES = (300, 1_000, 3_000)
CS = (0.001, 0.01, 0.1, 1.0)
FITTED_SHARE = 0.85  # of train, where settings are chosen on the rest of it
BOOTSTRAPS = 2_000
BEST = RECIPES["best"]
VARIANTS = {
    "best": BEST,
    "  random projection": replace(BEST, projection="random"),
    "  no weight decay": replace(BEST, weight_decay=0.0, decay_trials=0),
    "  300 steps": replace(BEST, repeat_to_steps=300),
    "  1,200 steps": replace(BEST, repeat_to_steps=1_200),
    "  dropout 0.5": replace(BEST, dropout=0.5),
}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Part:
    """Some records and their features."""

    records: Sequence[Record]
    texts: Array  # fp32 [N, D]
    images: Array  # fp32 [R, N, D], R rotations

    def select(self, rows: Array) -> Part:
        """These records."""
        return Part([self.records[row] for row in rows], self.texts[rows], self.images[:, rows])

    @property
    def answerable(self) -> Array:
        """The official label of each record."""
        return np.array([bool(record.answerable) for record in self.records])

    def examples(self, recipe: Recipe, answers: Any) -> FeatureDataset:
        """What a fit by ``recipe`` reads."""
        return FeatureDataset(
            torch.from_numpy(self.texts),
            torch.from_numpy(self.images[: recipe.rotations]),
            make_targets(self.records, answers, recipe),
            AnswerScores(self.records, answers.answers),
            torch.from_numpy(self.answerable),
        )


@dataclass(frozen=True)
class Outcome:
    """What a model said about N questions, and how good that was."""

    accuracy: Array  # [N], leave-one-out, in [0, 1]
    answerable: Array  # [N], confidence that the photo can answer
    uncalibrated: Array  # [N], the same without calibration


def divide(records: Sequence[Record], groups: Sequence[Any]) -> tuple[list[Record], list[Record]]:
    """85% of ``groups`` [N] at random with their records, and the rest."""
    parts: tuple[list[Record], list[Record]] = [], []
    for record, inside in zip(records, _drawn(groups), strict=True):
        parts[not inside].append(record)
    return parts


def _drawn(groups: Sequence[Any]) -> Array:
    distinct = list(dict.fromkeys(groups))
    order = np.random.default_rng(0).permutation(len(distinct))
    fitted = {distinct[number] for number in order[: round(FITTED_SHARE * len(distinct))]}
    return np.array([group in fitted for group in groups])


def divide_part(part: Part) -> tuple[Part, Part]:
    """85% of the records at random, and the rest."""
    inside = _drawn(range(len(part.records)))
    return part.select(np.flatnonzero(inside)), part.select(np.flatnonzero(~inside))


def fit_recipe(recipe: Recipe, train: Part, test: Part) -> Outcome:
    """Fit ``recipe`` on ``train`` and predict ``test``."""
    recipe = replace(recipe, rotations=min(recipe.rotations, len(train.images)))
    vocabulary = build_vocabulary(train.records, recipe.vocabulary)
    on_train, on_test = train.examples(recipe, vocabulary), test.examples(replace(recipe, rotations=1), vocabulary)
    folds = fold_rows(train.records, recipe.folds, recipe.seed) if recipe.folds > 1 else []
    sizes = (len(vocabulary.answers), len(TYPE_SETS[recipe.types]))
    fitted = fit_predictor(recipe, on_train, on_test, sizes, folds)
    ensemble = ClipEnsemble([fitted.predictor]).eval()
    predictions = predict(ensemble, [on_test.features])
    uncalibrated = predictions.answerable
    if fitted.calibration != Calibration():
        for each in fitted.fits:
            calibrate(each.head.answerable, fitted.calibration.inverse())
        uncalibrated = predict(ensemble, [on_test.features]).answerable
    accuracy = on_test.scores.accuracies(predictions.best)[0]
    return Outcome(accuracy.numpy(), predictions.answerable.numpy(), uncalibrated.numpy())


def fit_logistic(c: float, train: Part, test: Part) -> Outcome:
    """Fit logistic regression on ``train`` and predict ``test``."""
    vocabulary = build_vocabulary(train.records)
    on_train, on_test = (part.examples(REPORT, vocabulary) for part in (train, test))
    x, y = (normalised([(each.texts, each.images[0])], LOGISTIC) for each in (on_train, on_test))
    best, answerable = fit_baseline(x, on_train.targets, len(vocabulary.answers), c).predict(y)
    return Outcome(on_test.scores.accuracies(best)[0].numpy(), answerable.numpy(), answerable.numpy())


def choose_c(train: Part) -> float:
    """The ``C`` that is best on a part of ``train``."""
    fitted, rest = divide_part(train)
    return max(CS, key=lambda c: fit_logistic(c, fitted, rest).accuracy.mean())


def describe(name: str, outcomes: Sequence[Outcome], answerable: Array, seconds: float) -> str:
    """One row of the table: means over the seeds."""

    def ece(confidence: Array) -> float:
        return expected_calibration_error(reliability(confidence, answerable))

    def loss(confidence: Array) -> float:
        return float(log_loss(answerable, confidence.astype(np.float64)))

    scores = [
        (
            average_precision_score(answerable, o.answerable),
            average_precision_score(~answerable, -o.answerable),
            *(measure(given) for measure in (ece, loss) for given in (o.uncalibrated, o.answerable)),
        )
        for o in outcomes
    ]
    vqa = 100 * _mean([o.accuracy.mean() for o in outcomes])
    cells = "".join(f"{value:>9.3f}" for value in np.mean(scores, axis=0))
    return f"{name:<38}{vqa:>7.2f}{cells}{seconds:>8.0f} s"


COLUMNS = ("AP ans.", "AP un.", "ECE", "cal.", "loss", "cal.")  # calibration error and log loss, before and after
HEADER = f"{'':<38}{'VQA':>7}" + "".join(f"{name:>9}" for name in (*COLUMNS, "time"))


def compare(name: str, ours: Sequence[Outcome], theirs: Sequence[Outcome], answerable: Array) -> str:
    """The mean difference over the seeds and its 95% interval, by a paired bootstrap over the questions."""
    gained = _mean([o.accuracy for o in ours]) - _mean([o.accuracy for o in theirs])  # [N]

    def precision(outcomes: Sequence[Outcome], rows: Any) -> Any:
        return _mean([average_precision_score(answerable[rows], o.answerable[rows]) for o in outcomes])

    measures: dict[str, tuple[int, Callable[[Any], float]]] = {
        "VQA": (BOOTSTRAPS, lambda rows: 100 * float(gained[rows].mean())),
        "AP answerable": (BOOTSTRAPS // 10, lambda rows: precision(ours, rows) - precision(theirs, rows)),
    }
    rng = np.random.default_rng(0)
    found = []
    for measure, (count, of) in measures.items():
        drawn = [of(rng.integers(0, len(answerable), len(answerable))) for _ in range(count)]
        low, high = np.percentile(drawn, [2.5, 97.5])
        found.append(f"{measure} {of(slice(None)):+.3f} ({low:+.3f} to {high:+.3f})")
    return f"  {name}: {', '.join(found)}"


def run(train: Part, test: Part, recipes: dict[str, Recipe], seeds: int) -> None:
    """Print the scores of every recipe and of logistic regression, and how the first recipe compares with each."""
    answerable = test.answerable
    started = time.perf_counter()
    c = choose_c(train)
    found = {f"logistic regression, C = {c:g}": [fit_logistic(c, train, test)]}
    print(f"fitted on {len(train.records):,} records, scored on {len(test.records):,}\n{HEADER}")
    print(describe(*next(iter(found.items())), answerable, time.perf_counter() - started), flush=True)
    for name, recipe in recipes.items():
        started = time.perf_counter()
        found[name] = [fit_recipe(replace(recipe, seed=seed), train, test) for seed in range(seeds)]
        print(describe(name, found[name], answerable, (time.perf_counter() - started) / seeds), flush=True)
    first = next(iter(recipes))
    for name, outcomes in found.items():
        if name != first:
            print(compare(f"{first} - {name.strip()}", found[first], outcomes, answerable), flush=True)


def describe_machine() -> str:
    """The machine and its load."""
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"load average {os.getloadavg()[0]:.1f}"
    )


def _mean(values: Sequence[Any]) -> Any:
    return sum(values[1:], start=values[0]) / len(values)


def _encoded(split: Split, cache: Path) -> Part:
    features = encode_split(load_clip(str(DEMO_CLIP)), split, cache, rotations=4)
    images = np.stack([np.array(view) for view in (features.images, *features.rotated)])
    return Part(split.records, np.array(features.texts), images)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choose", action="store_true", help="fit variants of `best` on 85%% of train, score the rest")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="records of train")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path(".cache/features"), help="encoded features")
    arguments = parser.parse_args()
    data = ensure_demo_dataset()
    train, test = (_encoded(read_split(data, name), arguments.cache) for name in ("train", "val"))
    print(describe_machine())
    for size in arguments.sizes:
        rows = np.random.default_rng(size).permutation(len(train.records))[:size]
        fitted, scored = train.select(np.sort(rows)), test
        if arguments.choose:
            fitted, scored = divide_part(fitted)
        recipes = VARIANTS if arguments.choose else {name: RECIPES[name] for name in ("best", "report", "paper")}
        run(fitted, scored, recipes, arguments.seeds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
