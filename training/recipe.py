"""How a head is fitted: one frozen dataclass is the only home of the defaults, and the flags derive from it.

A recipe is chosen by its name, and any flag overrides one of its settings. A combination that cannot be fitted is
refused with all of its problems.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from training.answer_types import OFFICIAL, PAPER, TYPE_SETS
from training.vocabulary import RULES, TOP_K

MAJORITY, ANNOTATORS, ACCURACY = "majority", "annotators", "accuracy"  # targets
CE, BCE = "ce", "bce"  # answer losses
JOINED, FEATURES = "joined", "features"  # what answerability is read from
LABEL = "label"  # answerable targets, beside ANNOTATORS
BALANCED, NONE = "balanced", "none"
CONSTANT, COSINE = "constant", "cosine"  # schedules
RANDOM, PRINCIPAL = "random", "principal"  # where the projection starts
BEST_EPOCH, LAST_EPOCH = "best", "last"
TEMPERATURE, PLATT = "temperature", "platt"  # calibrations
VIEWS = (1, 2, 3, 4)
FEW_STEPS = 150  # of a fit: on VizWiz `best` takes 222, the others 1,450 and more
_MOST = 1 << 20  # beyond any use, and what memory would answer with an error that names no flag


class RecipeError(Exception):
    """A combination of settings that cannot be fitted; all its problems are told at once."""


def _knob(default: Any, meaning: str, choices: tuple[Any, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": meaning, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """All settings of a fit; the defaults are the 2023 report's."""

    name: str = _knob("report", "the recipe that the other settings were taken from")
    epochs: int = _knob(10, "passes over the training records")
    learning_rate: float = _knob(1e-3, "Adam's step size; the report's text says 0.01, its code uses 0.001")
    batch_size: int = _knob(128, "records per step")
    min_steps: int = _knob(0, "steps of a head at least: each epoch goes through few records several times")
    dropout: float = _knob(0.5, "share of inputs dropped before either linear layer")
    hidden: int = _knob(512, "width of the joint representation")
    projection: str = _knob(
        RANDOM,
        "random and trained, or the principal components of the features, rotated at random and fixed",
        (RANDOM, PRINCIPAL),
    )
    seed: int = _knob(0, "seed of the initial weights, the order of the records, the dropout and the folds")
    vocabulary: str = _knob("report", "rule of the answer list (docs/training.md)", RULES)
    vocabulary_size: int = _knob(0, "answers that --vocabulary top-k keeps")
    types: str = _knob(OFFICIAL, "answer types: the 4 official ones or the paper's 7", tuple(TYPE_SETS))
    views: int = _knob(1, "rotations of each photo, one of which an epoch sees at random", VIEWS)
    folds: int = _knob(1, "heads, each fitted without its share of train; their probabilities are averaged")
    targets: str = _knob(
        MAJORITY,
        "what answers are taught: the majority's, all in proportion to the annotators, or by the accuracy each scores",
        (MAJORITY, ANNOTATORS, ACCURACY),
    )
    answer_loss: str = _knob(CE, "cross-entropy over all answers, or binary cross-entropy of each", (CE, BCE))
    label_smoothing: float = _knob(0.0, "share of the answer's target that is spread over all answers")
    answerable_from: str = _knob(
        JOINED, "what answerability is read from: what the answers are too, or CLIP's features", (JOINED, FEATURES)
    )
    answerable_targets: str = _knob(
        LABEL, "the official label, or its mean with the share of annotators who found an answer", (LABEL, ANNOTATORS)
    )
    answerable_weighting: str = _knob(NONE, "weigh answerable and unanswerable records alike", (NONE, BALANCED))
    weight_decay: float = _knob(0.0, "L2 penalty of the weights that read features or the projection")
    decay_trials: int = _knob(
        0, "how often the weight decay is quadrupled at most, while the folds' held-out records gain by it"
    )
    schedule: str = _knob(CONSTANT, "learning rate: constant, or a cosine down to 0", (CONSTANT, COSINE))
    ema: float = _knob(0.0, "weight averaging: share of the old average that a step keeps; 0 is none")
    keep: str = _knob(
        BEST_EPOCH,
        "the epoch that is kept: the best on val (of a fold: on its share) or the last",
        (BEST_EPOCH, LAST_EPOCH),
    )
    calibration: str = _knob(NONE, "of answerability, on what each fold was not fitted on", (NONE, TEMPERATURE, PLATT))

    def steps(self, records: int) -> int:
        """How many steps each head is fitted in, on so many ``records``, a fold's share of which it does not see."""
        seen = records - records // self.folds if self.folds > 1 else records
        return self.epochs * self.passes(seen) * math.ceil(seen / self.batch_size)

    def passes(self, seen: int) -> int:
        """How often an epoch of a head goes through the ``seen`` records that it is fitted on."""
        return max(1, math.ceil(self.min_steps / (self.epochs * math.ceil(seen / self.batch_size))))

    def __post_init__(self) -> None:
        """Check every setting.

        Raises:
            RecipeError: lists all settings that are out of range or do not go together.
        """
        if wrong := [*self._out_of_range(), *self._out_of_choice(), *self._conflicts()]:
            raise RecipeError("; ".join(wrong))

    def _out_of_range(self) -> Iterator[str]:
        for name, expected, fine in (
            ("epochs", "at least 1", self.epochs >= 1),
            ("learning_rate", "above 0 and at most 1", 0 < self.learning_rate <= 1),
            ("batch_size", f"in 1 to {_MOST:,}", 1 <= self.batch_size <= _MOST),
            ("min_steps", f"in 0 to {_MOST:,}", 0 <= self.min_steps <= _MOST),
            ("dropout", "in [0, 1)", 0 <= self.dropout < 1),
            ("hidden", f"in 1 to {_MOST:,}", 1 <= self.hidden <= _MOST),
            ("seed", "in 0 to 2**32 - 1", 0 <= self.seed < 2**32),
            ("vocabulary_size", "at least 0", self.vocabulary_size >= 0),
            ("folds", "at least 1", self.folds >= 1),
            ("label_smoothing", "in [0, 1)", 0 <= self.label_smoothing < 1),
            ("weight_decay", "at least 0 and finite", 0 <= self.weight_decay < math.inf),
            ("decay_trials", "in 0 to 10", 0 <= self.decay_trials <= 10),
            ("ema", "in [0, 1)", 0 <= self.ema < 1),
        ):
            if not fine:
                yield f"{flag_of(name)} must be {expected}, got {getattr(self, name)}"

    def _out_of_choice(self) -> Iterator[str]:
        for knob in fields(self):
            choices = knob.metadata["choices"]
            if choices and getattr(self, knob.name) not in choices:
                listed = ", ".join(map(str, choices))
                yield f"{flag_of(knob.name)} must be one of {listed}, got {getattr(self, knob.name)}"

    def _conflicts(self) -> Iterator[str]:
        if self.vocabulary == TOP_K and self.vocabulary_size == 0:
            yield "--vocabulary top-k needs --vocabulary-size"
        if self.vocabulary != TOP_K and self.vocabulary_size > 0:
            yield f"--vocabulary-size is for --vocabulary top-k, not {self.vocabulary}"
        if self.answer_loss == BCE and self.label_smoothing > 0:
            yield "--label-smoothing is for --answer-loss ce: binary cross-entropy has no distribution to smooth"
        if self.decay_trials and self.folds == 1:
            yield (
                "--decay-trials needs --folds 2 or more, whose held-out records choose (--decay-trials 0 does without)"
            )
        if self.calibration != NONE and self.folds == 1:
            yield (
                f"--calibration {self.calibration} needs --folds 2 or more, because one head leaves nothing to "
                "calibrate on (--calibration none does without)"
            )


REPORT = Recipe()
RECIPES = {
    recipe.name: recipe
    for recipe in (
        REPORT,
        Recipe(name="paper", vocabulary="paper", types=PAPER, views=4, folds=10),
        Recipe(
            name="best",
            epochs=6,
            min_steps=200,
            learning_rate=4e-3,
            batch_size=512,
            projection=PRINCIPAL,
            folds=10,
            targets=ACCURACY,
            answerable_from=FEATURES,
            answerable_targets=ANNOTATORS,
            weight_decay=0.005,
            decay_trials=2,
            schedule=COSINE,
            ema=0.98,
            keep=LAST_EPOCH,
            calibration=PLATT,
        ),
    )
}
SENTENCES = {
    "report": "the 2023 report's: majority answers of confident annotators, the 4 official types, one head, the epoch "
    "that is best on val",
    "paper": "Less Is More's (arXiv 2206.05281): its answer list, 7 answer types told by pattern, rotated views of the "
    "photos, 10 folds averaged",
    "best": "what measures best on real questions (docs/training.md): targets graded by all ten annotators, averaged "
    "weights, folds averaged, answerability read from CLIP's features themselves and calibrated",
}


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return f"--{name.replace('_', '-')}"


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` ``--recipe`` and one flag per setting of :class:`Recipe`."""
    listed = "".join(f"\n  {name}: {sentence}." for name, sentence in SENTENCES.items())
    group = parser.add_argument_group(
        "recipe", f"--recipe is one of{listed} Each of its settings has a flag of its own."
    )
    group.add_argument("--recipe", choices=RECIPES, default="report", help="default: report")
    for knob in _settings():
        defaults = {name: getattr(recipe, knob.name) for name, recipe in RECIPES.items()}
        same = len(set(defaults.values())) == 1
        shown = defaults["report"] if same else ", ".join(f"{name} {value}" for name, value in defaults.items())
        group.add_argument(
            flag_of(knob.name),
            type=type(knob.default),
            choices=knob.metadata["choices"],
            metavar=None if knob.metadata["choices"] else type(knob.default).__name__.upper(),
            help=f"{knob.metadata['help']} (default: {shown})",
        )


def recipe_from(arguments: argparse.Namespace) -> Recipe:
    """Build the recipe that the flags of :func:`add_recipe_flags` ask for.

    Raises:
        RecipeError: the settings cannot be fitted together.
    """
    asked = {knob.name: getattr(arguments, knob.name) for knob in _settings()}
    return replace(RECIPES[arguments.recipe], **{name: value for name, value in asked.items() if value is not None})


def _settings() -> list[Any]:
    return [knob for knob in fields(Recipe) if knob.name != "name"]
