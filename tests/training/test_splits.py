from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.dataset import DatasetError, Record, Split
from training.splits import fold_rows, holdout, holdout_rows


def make_split(count: int) -> Split:
    records = tuple(
        Record(f"{number:04}.jpg", "?", ("mug",) * 10, (None,) * 10, "other", True) for number in range(count)
    )
    return Split("train", records, Path("train"), "digest")


def images(split: Split) -> set[str]:
    return {record.image for record in split.records}


def test_a_holdout_divides_the_records() -> None:
    whole = make_split(1000)
    kept, held = holdout(whole, 0.1, seed=3)
    assert (len(kept.records), len(held.records)) == (900, 100)
    assert images(kept) | images(held) == images(whole)
    assert not images(kept) & images(held)
    assert (kept.name, held.name) == ("train", "holdout")
    assert held.photos == whole.photos


def test_a_holdout_depends_on_names_and_seed_not_on_the_order() -> None:
    whole = make_split(1000)
    turned = Split(whole.name, whole.records[::-1], whole.photos, whole.digest)
    assert images(holdout(turned, 0.1, seed=3)[1]) == images(holdout(whole, 0.1, seed=3)[1])
    assert images(holdout(whole, 0.1, seed=4)[1]) != images(holdout(whole, 0.1, seed=3)[1])


def test_two_questions_about_one_photo_are_on_one_side() -> None:
    single = make_split(50)
    double = Split("train", single.records * 2, single.photos, "digest")
    kept, held = holdout(double, 0.3, seed=0)
    assert len(held.records) == 30
    assert not images(kept) & images(held)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(DatasetError, match="--holdout must be above 0 and below 1"):
        holdout_rows(make_split(10), fraction, seed=0)


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"--holdout 0\.01 of the 10 photos of train leaves one side empty"):
        holdout_rows(make_split(10), 0.01, seed=0)


def test_folds_divide_the_rows_evenly() -> None:
    records = make_split(103).records
    folds = fold_rows(records, 10, seed=0)
    assert sorted(len(rows) for rows in folds) == [10] * 7 + [11] * 3
    assert sorted(np.concatenate(folds)) == list(range(103))
    assert [list(rows) for rows in fold_rows(records, 10, seed=1)] != [list(rows) for rows in folds]
    with pytest.raises(DatasetError, match="3 photos cannot be divided into 10 folds: give fewer --folds"):
        fold_rows(records[:3], 10, seed=0)
