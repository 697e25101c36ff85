"""Divides a labelled split: a held-out test, since the official one hides its answers, and folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from training.artifacts import digest_of
from training.dataset import DatasetError, Record, Split

HOLDOUT = "holdout"  # name of the part that is carved out

Rows = npt.NDArray[np.int64]


def holdout(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Divide ``split`` into what is left to fit on and a held-out part named ``holdout``.

    A record's side depends on its photo's name, ``fraction`` and ``seed`` alone: not on the order of the records.

    Raises:
        DatasetError: ``fraction`` is not between 0 and 1, or leaves one side empty.
    """
    kept, carved = holdout_rows(split, fraction, seed)
    return take(split, kept), replace(take(split, carved), name=HOLDOUT)


def holdout_rows(split: Split, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """The rows of both sides of :func:`holdout`, ascending.

    Raises:
        DatasetError: as :func:`holdout`.
    """
    if not 0 < fraction < 1:
        raise DatasetError(f"--holdout must be above 0 and below 1, got {fraction}")
    names = sorted({record.image for record in split.records}, key=lambda name: digest_of(f"holdout {seed}", name))
    carved = set(names[: round(len(names) * fraction)])
    if not 0 < len(carved) < len(names):
        raise DatasetError(
            f"--holdout {fraction} of the {len(names)} photos of {split.name} leaves one side empty: give another share"
        )
    held = np.array([record.image in carved for record in split.records])
    return np.flatnonzero(~held), np.flatnonzero(held)


def take(split: Split, rows: Rows) -> Split:
    """The split of these rows, in their order."""
    return replace(split, records=tuple(split.records[row] for row in rows))


def fold_rows(records: Sequence[Record], folds: int, seed: int) -> list[Rows]:
    """Divide the rows of ``records`` into ``folds`` parts whose sizes differ by one at most, at random by photo name.

    Raises:
        DatasetError: there are fewer photos than folds.
    """
    names = sorted({record.image for record in records}, key=lambda name: digest_of(f"fold {seed}", name))
    if len(names) < folds:
        raise DatasetError(f"{len(names)} photos cannot be divided into {folds} folds: give fewer --folds")
    fold = {name: number % folds for number, name in enumerate(names)}
    of_row = np.array([fold[record.image] for record in records])
    return [np.flatnonzero(of_row == number) for number in range(folds)]
