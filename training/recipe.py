"""How a head is fitted: one frozen dataclass is the only home of the defaults, and the flags derive from it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from typing import Any


class RecipeError(Exception):
    """A combination of settings that cannot be fitted; all its problems are told at once."""


def _knob(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Recipe:
    """The 2023 report's recipe, and its defaults."""

    epochs: int = _knob(10, "passes over the training records")
    learning_rate: float = _knob(1e-3, "Adam's step size; the report's text says 0.01, its code uses 0.001")
    batch_size: int = _knob(64, "records per step")
    dropout: float = _knob(0.5, "share of inputs dropped before either linear layer")
    hidden: int = _knob(512, "width of the joint representation")
    seed: int = _knob(0, "seed of the initial weights, the order of the records and the dropout")

    def __post_init__(self) -> None:
        """Check every setting.

        Raises:
            RecipeError: lists all settings that are out of range.
        """
        wrong = [
            f"--{name.replace('_', '-')} must be {expected}, got {getattr(self, name)}"
            for name, expected, fine in (
                ("epochs", "at least 1", self.epochs >= 1),
                ("learning_rate", "above 0", self.learning_rate > 0),
                ("batch_size", "at least 1", self.batch_size >= 1),
                ("dropout", "in [0, 1)", 0 <= self.dropout < 1),
                ("hidden", "at least 1", self.hidden >= 1),
                ("seed", "at least 0", self.seed >= 0),
            )
            if not fine
        ]
        if wrong:
            raise RecipeError("; ".join(wrong))


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` one flag per field of :class:`Recipe`."""
    group = parser.add_argument_group("recipe (the report's)")
    for knob in fields(Recipe):
        group.add_argument(
            f"--{knob.name.replace('_', '-')}",
            type=type(knob.default),
            default=knob.default,
            metavar=type(knob.default).__name__.upper(),
            help=f"{knob.metadata['help']} (default: {knob.default})",
        )


def recipe_from(arguments: argparse.Namespace) -> Recipe:
    """Build the recipe that the flags of :func:`add_recipe_flags` ask for."""
    return Recipe(**{knob.name: getattr(arguments, knob.name) for knob in fields(Recipe)})
