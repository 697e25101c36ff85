from __future__ import annotations

import json
from pathlib import Path

from training.data import Record
from training.vocabulary import all_confidences_unknown, build_vocabulary, majority_answer


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
    assert build_vocabulary([record("mug", confidences=["no"])]) == []


def test_an_answer_is_one_line_of_a_label_file() -> None:
    assert majority_answer(record("two\nlines\r")) == "two lines"
    assert majority_answer(record(" ", "mug")) == "mug"


def test_a_vocabulary_lists_every_majority_answer_once() -> None:
    assert build_vocabulary([record("mug"), record("cup"), record("mug")]) == ["mug", "cup"]


def test_the_rebuilt_training_set(vizwiz: Path) -> None:
    raw = json.loads((vizwiz / "Annotations" / "train_reconstructed.json").read_text(encoding="utf-8"))
    records = [
        Record(
            entry["image"],
            entry["question"],
            tuple(answer["answer"] for answer in entry["answers"]),
            tuple(answer["answer_confidence"] for answer in entry["answers"]),
        )
        for entry in raw
    ]
    assert len(build_vocabulary(records)) == 5463
    assert sum(all_confidences_unknown(record) for record in records) == 20_123
