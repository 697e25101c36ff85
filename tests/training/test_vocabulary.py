from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.dataset import Record, read_annotations
from training.vocabulary import (
    Vocabulary,
    all_confidences_unknown,
    build_vocabulary,
    levenshtein,
    majority_answer,
)


def record(*answers: str, confidences: list[str | None] | None = None) -> Record:
    return Record("a.jpg", "?", answers, tuple(confidences or ["yes"] * len(answers)), "other", True)


def test_the_majority_of_the_confident_answers_wins() -> None:
    assert majority_answer(record("cup", "mug", "mug", "cup", "cup")) == "cup"
    confidences: list[str | None] = ["yes", "yes", "maybe", "no", None]
    assert majority_answer(record("mug", "mug", "cup", "cup", "cup", confidences=confidences)) == "mug"


def test_of_equals_the_first_one_given_wins() -> None:
    assert majority_answer(record("mug", "cup", "cup", "mug")) == "mug"


def test_unknown_confidences_count_only_where_all_are_unknown() -> None:
    assert majority_answer(record("mug", "cup", "cup", confidences=[None, None, None])) == "cup"
    assert majority_answer(record("mug", "cup", "cup", confidences=["yes", None, None])) == "mug"


def test_no_confident_answer_gives_no_target() -> None:
    assert majority_answer(record("mug", "cup", confidences=["maybe", "no"])) is None
    assert build_vocabulary([record("mug", confidences=["no"])]).answers == []


def test_an_answer_is_one_line_of_a_label_file() -> None:
    for rule in ("report", "paper"):
        assert build_vocabulary([record("two\nlines\r")], rule).answers == ["two lines"]
        assert build_vocabulary([record(" ", "mug")], rule).answers == ["mug"]


def test_a_vocabulary_lists_every_target_once() -> None:
    assert build_vocabulary([record("mug"), record("cup"), record("mug")]).answers == ["mug", "cup"]


def test_the_papers_rule_heeds_no_confidence() -> None:
    unsure = record("cup", "mug", "mug", confidences=["yes", "no", "no"])
    assert build_vocabulary([unsure], "report").answers == ["cup"]
    assert build_vocabulary([unsure], "paper").answers == ["mug"]


def test_the_papers_rule_breaks_ties_by_frequency_then_by_distance() -> None:
    tie = record("cup", "mug", "mug", "cup")
    assert build_vocabulary([tie, record("mug")], "paper").target(tie) == "mug"
    # As frequent as each other in the whole set: "bottles" is 1 edit from "bottle", "can" is far from both.
    close = record("can", "bottle", "bottles")
    assert build_vocabulary([close], "paper").target(close) == "bottle"
    assert build_vocabulary([close], "report").target(close) == "can"


def test_top_k_keeps_the_most_frequent_targets() -> None:
    records = [record("a"), record("b"), record("b"), record("c"), record("c"), record("c")]
    vocabulary = build_vocabulary(records, "top-k", 2)
    assert vocabulary.answers == ["c", "b"]
    assert vocabulary.target(records[0]) == "a"  # outside the list: it teaches no answer


def test_oracle_accuracy_by_hand() -> None:
    vocabulary = Vocabulary("report", ["mug", "The cup"], Counter())
    by_hand = [record(*["mug"] * 2 + ["cup"] * 8), record(*["pot"] * 9 + ["mug"]), record(*["pot"] * 10)]
    assert vocabulary.oracle_accuracy(by_hand) == pytest.approx(
        100 * (1.0 + 0.3 + 0.0) / 3
    )  # "the cup" scores as "cup"


@pytest.mark.parametrize(("a", "b", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0)])
def test_levenshtein(a: str, b: str, distance: int) -> None:
    assert levenshtein(a, b) == levenshtein(b, a) == distance


@settings(deadline=None)
@given(st.text("ab", max_size=6), st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_levenshtein_is_a_distance(a: str, b: str, c: str) -> None:
    assert (levenshtein(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= levenshtein(a, b) <= max(len(a), len(b))
    assert levenshtein(a, c) <= levenshtein(a, b) + levenshtein(b, c)


@pytest.fixture(scope="module")
def rebuilt(real_annotations: Callable[[str], Path]) -> dict[str, tuple[Record, ...]]:
    """The real training and validation records."""
    return {name: read_annotations(real_annotations(f"{name}_reconstructed")) for name in ("train", "val")}


@pytest.mark.parametrize(
    ("rule", "size", "classes", "oracle_accuracy"),
    [
        ("report", 0, 5463, 83.74),
        ("top-k", 99_999, 5454, 83.74),  # every first-most-common answer
        ("top-k", 1000, 1000, 78.67),
        ("paper", 0, 4834, 83.39),
    ],
)
def test_the_rebuilt_training_set(
    rule: str, size: int, classes: int, oracle_accuracy: float, rebuilt: dict[str, tuple[Record, ...]]
) -> None:
    vocabulary = build_vocabulary(rebuilt["train"], rule, size)
    assert len(vocabulary.answers) == classes
    assert round(vocabulary.oracle_accuracy(rebuilt["val"]), 2) == oracle_accuracy


def test_confidences_of_the_rebuilt_training_set(rebuilt: dict[str, tuple[Record, ...]]) -> None:
    assert sum(all_confidences_unknown(record) for record in rebuilt["train"]) == 20_123
