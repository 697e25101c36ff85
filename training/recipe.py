"""Settings of a fit: one frozen dataclass holds all defaults, and the flags are derived from it.

A recipe is selected by name, and a flag overrides one of its settings. Settings that cannot be fitted together are
refused with all errors at once.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

REPORT_RULE, PAPER, OFFICIAL = "report", "paper", "official"  # rules of the answer list, sets of answer types
HIDDEN, FEATURES = "hidden", "features"  # inputs of answerability
LABEL, ANNOTATORS = "label", "annotators"  # targets of answerability
NO, YES = "no", "yes"
CONSTANT, COSINE = "constant", "cosine"  # schedules
RANDOM, PRINCIPAL = "random", "principal"  # initial projections
BEST_EPOCH, LAST_EPOCH = "best", "last"
NONE, PLATT = "none", "platt"  # calibrations
FEW_STEPS = 150  # of a fit: on VizWiz `best` takes 222, the others 1,450 and more
_MAX = 1 << 20  # larger than any useful value; above it, errors of memory would name no flag


class RecipeError(Exception):
    """Settings that cannot be fitted; the message lists all errors."""


def _option(default: Any, text: str, choices: tuple[Any, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """All settings of a fit; the defaults are the 2023 report's."""

    name: str = _option("report", "the recipe that the other settings were taken from")
    epochs: int = _option(10, "passes over the training records")
    learning_rate: float = _option(1e-3, "of Adam; the report's text says 0.01, its code uses 0.001")
    batch_size: int = _option(128, "records per step")
    repeat_to_steps: int = _option(
        0,
        "repeat the records within each epoch while a head takes at most this many steps in all; 0 never repeats them",
    )
    dropout: float = _option(0.5, "probability of dropping an input of either linear layer")
    hidden: int = _option(512, "size of the projection")
    projection: str = _option(
        RANDOM,
        "random and trained, or the principal components of the features, rotated at random and fixed",
        (RANDOM, PRINCIPAL),
    )
    seed: int = _option(0, "of the initial weights, the order of the records, the dropout and the folds")
    vocabulary: str = _option(REPORT_RULE, "rule of the answer list (docs/training.md)", (REPORT_RULE, PAPER))
    types: str = _option(OFFICIAL, "answer types: the 4 official ones or the paper's 7", (OFFICIAL, PAPER))
    rotations: int = _option(1, "rotations of each photo; an epoch sees one of them at random", (1, 2, 3, 4))
    folds: int = _option(1, "heads, each fitted without its fold of train; their probabilities are averaged")
    answerable_from: str = _option(
        HIDDEN, "input of answerability: the projection, as for answers, or CLIP's features", (HIDDEN, FEATURES)
    )
    answerable_quality: str = _option(
        NO,
        "whether answerability also reads the log-odds of the photo's quality issues; needs votes on them",
        (NO, YES),
    )
    answerable_targets: str = _option(
        LABEL, "the official label, or its mean with the share of annotators who found an answer", (LABEL, ANNOTATORS)
    )
    weight_decay: float = _option(0.0, "L2 penalty of the weights that read the features or the projection")
    decay_trials: int = _option(
        0, "maximum number of times the weight decay is quadrupled while held-out records of folds gain"
    )
    schedule: str = _option(CONSTANT, "learning rate: constant, or a cosine to 0", (CONSTANT, COSINE))
    ema: float = _option(0.0, "decay of the weights' moving average; 0 for none")
    keep: str = _option(
        BEST_EPOCH,
        "the epoch to keep: the best on val (with folds: on the head's fold) or the last",
        (BEST_EPOCH, LAST_EPOCH),
    )
    calibration: str = _option(NONE, "of answerability, on the records that each fold holds out", (NONE, PLATT))

    def steps(self, records: int) -> int:
        """Number of steps of each head on ``records`` records, whose folds are held out."""
        seen = records - records // self.folds if self.folds > 1 else records
        return self.epochs * self.passes(seen) * math.ceil(seen / self.batch_size)

    def passes(self, seen: int) -> int:
        """Number of passes of an epoch over the ``seen`` records of a head."""
        return max(1, self.repeat_to_steps // (self.epochs * math.ceil(seen / self.batch_size)))

    def __post_init__(self) -> None:
        """Validate every setting.

        Raises:
            RecipeError: lists all settings that are out of range or conflict.
        """
        if errors := [*self._out_of_range(), *self._out_of_choice(), *self._conflicts()]:
            raise RecipeError("; ".join(errors))

    def _out_of_range(self) -> Iterator[str]:
        for name, expected, valid in (
            ("epochs", "at least 1", self.epochs >= 1),
            ("learning_rate", "above 0 and at most 1", 0 < self.learning_rate <= 1),
            ("batch_size", f"in 1 to {_MAX:,}", 1 <= self.batch_size <= _MAX),
            ("repeat_to_steps", f"in 0 to {_MAX:,}", 0 <= self.repeat_to_steps <= _MAX),
            ("dropout", "in [0, 1)", 0 <= self.dropout < 1),
            ("hidden", f"in 1 to {_MAX:,}", 1 <= self.hidden <= _MAX),
            ("seed", "in 0 to 2**32 - 1", 0 <= self.seed < 2**32),
            ("folds", "at least 1", self.folds >= 1),
            ("weight_decay", "at least 0 and finite", 0 <= self.weight_decay < math.inf),
            ("decay_trials", "in 0 to 10", 0 <= self.decay_trials <= 10),
            ("ema", "in [0, 1)", 0 <= self.ema < 1),
        ):
            if not valid:
                yield f"{flag_of(name)} must be {expected}, got {getattr(self, name)}"

    def _out_of_choice(self) -> Iterator[str]:
        for option in fields(self):
            choices = option.metadata["choices"]
            if choices and getattr(self, option.name) not in choices:
                listed = ", ".join(map(str, choices))
                yield f"{flag_of(option.name)} must be one of {listed}, got {getattr(self, option.name)}"

    def _conflicts(self) -> Iterator[str]:
        if self.decay_trials and self.weight_decay == 0:
            yield "--decay-trials needs a --weight-decay above 0 to multiply (or --decay-trials 0)"
        if self.decay_trials and self.folds == 1:
            yield "--decay-trials needs --folds 2 or more, whose held-out records decide (or --decay-trials 0)"
        if self.calibration != NONE and self.folds == 1:
            yield (
                f"--calibration {self.calibration} needs --folds 2 or more, whose held-out records it is fitted on (or "
                "--calibration none)"
            )


REPORT = Recipe()
RECIPES = {
    recipe.name: recipe
    for recipe in (
        REPORT,
        Recipe(name="paper", vocabulary=PAPER, types=PAPER, rotations=4, folds=10),
        Recipe(
            name="best",
            epochs=6,
            repeat_to_steps=400,
            learning_rate=4e-3,
            batch_size=512,
            dropout=0.0,
            projection=PRINCIPAL,
            folds=10,
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
HELP_TEXTS = {
    "report": "the 2023 report's: majority answers of confident annotators, the 4 official types, one head, the epoch "
    "that is best on val",
    "paper": "Less Is More's (arXiv 2206.05281): its answer list and 7 answer types, rotated photos, 10 folds averaged",
    "best": "the best measured answerability, and by far the best answers from few records (docs/results.md): fixed "
    "projection, weight decay chosen on folds, averaged weights, folds averaged, answerability from CLIP's features, "
    "calibrated",
}


def flag_of(name: str) -> str:
    """Flag of a setting."""
    return f"--{name.replace('_', '-')}"


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--recipe`` and a flag for each setting of :class:`Recipe` to ``parser``."""
    listed = "".join(f"\n  {name}: {text}." for name, text in HELP_TEXTS.items())
    group = parser.add_argument_group("recipe", f"--recipe is one of{listed} A flag overrides one of its settings.")
    group.add_argument("--recipe", choices=RECIPES, default="report", help="default: report")
    for option in _settings():
        defaults = {name: getattr(recipe, option.name) for name, recipe in RECIPES.items()}
        equal = len(set(defaults.values())) == 1
        shown = defaults["report"] if equal else ", ".join(f"{name} {value}" for name, value in defaults.items())
        group.add_argument(
            flag_of(option.name),
            type=type(option.default),
            choices=option.metadata["choices"],
            metavar=None if option.metadata["choices"] else type(option.default).__name__.upper(),
            help=f"{option.metadata['help']} (default: {shown})",
        )


def recipe_from(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the flags of :func:`add_recipe_flags` select.

    Raises:
        RecipeError: the settings cannot be fitted together.
    """
    given = {option.name: getattr(arguments, option.name) for option in _settings()}
    return replace(RECIPES[arguments.recipe], **{name: value for name, value in given.items() if value is not None})


def _settings() -> list[Any]:
    return [option for option in fields(Recipe) if option.name != "name"]
