from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from training.answer_types import OFFICIAL, PAPER, TYPE_SETS, type_of, type_of_answer
from training.dataset import Record, read_annotations
from training.vocabulary import build_vocabulary


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("unanswerable", "unanswerable"),
        ("unsuitable", "unsuitable"),
        ("unsuitable image", "unsuitable"),
        ("yes", "yes"),
        ("Yes it is", "yes"),
        ("no", "no"),
        ("no it is off", "no"),
        ("no. 7 paint", "other"),
        ("nose", "other"),
        ("yesterday", "other"),
        ("20", "number"),
        ("$5.99", "number"),
        ("1 877 328 9677", "number"),
        ("3:42", "number"),
        ("50%", "number"),
        ("twenty five", "number"),
        ("5 dollar bill", "other"),
        ("one way sign", "other"),
        ("blue", "color"),
        ("dark blue", "color"),
        ("light grey and white", "color"),
        ("black/white", "color"),
        ("red wine", "other"),
        ("orange juice", "other"),
        ("striped", "color"),
        ("dark", "other"),
        ("", "other"),
    ],
)
def test_the_papers_types(answer: str, expected: str) -> None:
    assert type_of_answer(answer) == expected


def test_a_type_is_a_number_within_its_set() -> None:
    record = Record("a.jpg", "?", ("blue",) * 10, (None,) * 10, "other", True)
    assert type_of(record, "blue", OFFICIAL) == TYPE_SETS[OFFICIAL].index("other")
    assert type_of(record, "blue", PAPER) == TYPE_SETS[PAPER].index("color")
    assert type_of(record, None, PAPER) == TYPE_SETS[PAPER].index("other")
    assert [len(names) for names in TYPE_SETS.values()] == [4, 7]


def test_the_patterns_on_real_answers(real_annotations: Callable[[str], Path]) -> None:
    """VizWiz's own types were annotated, so that they can judge the patterns where both sets have a type."""
    records = read_annotations(real_annotations("val_reconstructed"))
    train = read_annotations(real_annotations("train_reconstructed"))
    vocabulary = build_vocabulary(train, "paper")
    pairs = Counter((record.answer_type, type_of_answer(vocabulary.target(record) or "")) for record in records)
    answered = {pair: count for pair, count in pairs.items() if pair[1] != "unanswerable"}
    for official, patterns in (("yes/no", {"yes", "no"}), ("number", {"number"})):
        of_type = {pair: count for pair, count in answered.items() if pair[0] == official}
        assert {pattern for _, pattern in of_type} == patterns  # all of them are recognised
    others = sum(count for (official, _), count in answered.items() if official == "other")
    mistaken = sum(answered.get(("other", pattern), 0) for pattern in ("yes", "no", "number"))
    assert mistaken < 0.03 * others  # VizWiz calls "20" of a bank note other
    assert pairs[("other", "color")] > 300
