"""Every recipe against logistic regression on the same features, on the demo's photos.

    python -m benchmarks recipes              # 300, 1,000 and 3,000 records of train, three seeds, scored on val
    python -m benchmarks recipes --choose     # variants of `best`, scored on a part of train: no look at val

A difference is the mean over the seeds; its 95% interval is a paired bootstrap over the scored records. The `C` of
logistic regression is chosen on a part of train. `report` and each head of `paper` keep their best epoch, `report` the
best on the scored records, which favours it. The demo data and its features are made where they are missing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score

from benchmarks.report import Section, Settings, Table
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
BY_NAME = {name: RECIPES[name] for name in ("best", "report", "paper")}
VARIANTS = {
    "best": BEST,
    "random projection": replace(BEST, projection="random"),
    "no weight decay": replace(BEST, weight_decay=0.0, decay_trials=0),
    "300 steps": replace(BEST, repeat_to_steps=300),
    "1,200 steps": replace(BEST, repeat_to_steps=1_200),
    "dropout 0.5": replace(BEST, dropout=0.5),
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


def inside(count: int) -> Array:
    """bool [count]: a random 85% of train, on which settings are tried that the rest of it chooses."""
    rows = np.random.default_rng(0).permutation(count)
    return rows < round(FITTED_SHARE * count)


def divide(part: Part) -> tuple[Part, Part]:
    """85% of the records at random, and the rest."""
    chosen = inside(len(part.records))
    return part.select(np.flatnonzero(chosen)), part.select(np.flatnonzero(~chosen))


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
    fitted, rest = divide(train)
    return max(CS, key=lambda c: fit_logistic(c, fitted, rest).accuracy.mean())


HEADER = (
    *("fitted on", "model", "VQA", "first recipe minus it", "AP answerable", "first recipe minus it"),
    *("AP unanswerable", "ECE", "before calibration"),
)


def score(train: Part, test: Part, recipes: Mapping[str, Recipe], seeds: int, c: float) -> list[list[str]]:
    """A row of HEADER for each recipe, and one for logistic regression by ``c``: means over the seeds."""
    found: dict[str, list[Outcome]] = {}
    for name, recipe in recipes.items():
        found[name] = [fit_recipe(replace(recipe, seed=seed), train, test) for seed in range(seeds)]
        print(f"{name}: VQA {100 * _accuracies(found[name]).mean():.2f}", file=sys.stderr, flush=True)
    found[f"logistic regression, C = {c:g}"] = [fit_logistic(c, train, test)]
    first = next(iter(found.values()))
    return [
        [f"{len(train.records):,}", f"`{name}`" if name in RECIPES else name, *_cells(each, first, test.answerable)]
        for name, each in found.items()
    ]


def _cells(outcomes: Sequence[Outcome], first: Sequence[Outcome], answerable: Array) -> list[str]:
    """The scores of a model, and the differences of the ``first`` model to it."""

    def precision(of: Sequence[Outcome], rows: Any = slice(None)) -> float:
        return float(_mean([average_precision_score(answerable[rows], o.answerable[rows]) for o in of]))

    unanswerable = _mean([average_precision_score(~answerable, -o.answerable) for o in outcomes])
    calibrated, before = (
        _mean([expected_calibration_error(reliability(confidence, answerable)) for confidence in confidences])
        for confidences in ([o.answerable for o in outcomes], [o.uncalibrated for o in outcomes])
    )
    gained = 100 * (_accuracies(first) - _accuracies(outcomes))
    differences = ["", ""]
    if outcomes is not first:
        differences = [
            _interval(lambda rows: gained[rows].mean(), len(answerable), BOOTSTRAPS, 2),
            _interval(lambda rows: precision(first, rows) - precision(outcomes, rows), len(answerable), 200, 3),
        ]
    vqa = f"{100 * _accuracies(outcomes).mean():.2f}"
    found = [vqa, differences[0], f"{precision(outcomes):.3f}", differences[1]]
    return [*found, f"{unanswerable:.3f}", f"{calibrated:.3f}", f"{before:.3f}"]


def _interval(difference: Callable[[Any], float], count: int, bootstraps: int, digits: int) -> str:
    """The difference, and its 95% interval by a paired bootstrap over ``count`` questions."""
    rng = np.random.default_rng(0)
    low, high = np.percentile([difference(rng.integers(0, count, count)) for _ in range(bootstraps)], [2.5, 97.5])
    return f"{difference(slice(None)):+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _accuracies(outcomes: Sequence[Outcome]) -> Array:
    """[N], means over the seeds."""
    return np.asarray(_mean([o.accuracy for o in outcomes]))


def _mean(values: Sequence[Any]) -> Any:
    return sum(values[1:], start=values[0]) / len(values)


def _encoded(split: Split, settings: Settings) -> Part:
    features = encode_split(load_clip(str(DEMO_CLIP)), split, settings.cache / "features", rotations=4)
    images = np.stack([np.array(view) for view in (features.images, *features.rotated)])
    return Part(split.records, np.array(features.texts), images)


def asked(settings: Settings) -> tuple[dict[str, Recipe], int]:
    """The recipes to compare, and the number of seeds of each; `best` takes minutes, so --quick leaves it out."""
    if settings.quick:
        return {REPORT.name: REPORT}, 1
    return VARIANTS if settings.choose else BY_NAME, settings.seeds


def run(settings: Settings) -> Section:
    """Score the recipes, or variants of `best`, on some sizes of train."""
    data = ensure_demo_dataset()
    train, test = (_encoded(read_split(data, name), settings) for name in ("train", "val"))
    recipes, seeds = asked(settings)
    rows = []
    for size in SIZES[:1] if settings.quick else SIZES:
        chosen = np.random.default_rng(size).permutation(len(train.records))[:size]
        fitted, scored = train.select(np.sort(chosen)), test
        if settings.choose:
            fitted, scored = divide(fitted)
        rows += score(fitted, scored, recipes, seeds, choose_c(fitted))
    text = f"Scored on {len(scored.records)} records of the demo; seeds of each recipe: {seeds}."
    return [Table(HEADER, rows, text)]
