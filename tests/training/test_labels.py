from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.dataset import Record, read_annotations
from training.labels import (
    IGNORED_TARGET,
    TYPE_SETS,
    AnswerScores,
    Vocabulary,
    all_confidences_unknown,
    build_vocabulary,
    levenshtein,
    majority_answer,
    make_targets,
    type_of,
    type_of_answer,
)
from training.metrics import question_accuracies
from training.recipe import OFFICIAL, PAPER, Recipe

VOCABULARY = Vocabulary("report", ["mug", "cup", "10"], Counter())


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


def test_oracle_accuracy_by_hand() -> None:
    vocabulary = Vocabulary("report", ["mug", "The cup"], Counter())
    by_hand = [record(*["mug"] * 2 + ["cup"] * 8), record(*["pot"] * 9 + ["mug"]), record(*["pot"] * 10)]
    assert vocabulary.oracle_accuracy(by_hand) == pytest.approx(
        100 * (1.0 + 0.3 + 0.0) / 3
    )  # "the cup" scores as "cup"


@pytest.mark.parametrize(("a", "b", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0)])
def test_levenshtein(a: str, b: str, distance: int) -> None:
    assert levenshtein(a, b) == levenshtein(b, a) == distance


@pytest.fixture(scope="module")
def rebuilt(real_annotations: Callable[[str], Path]) -> dict[str, tuple[Record, ...]]:
    """The real training and validation records."""
    return {name: read_annotations(real_annotations(f"{name}_reconstructed")) for name in ("train", "val")}


@pytest.mark.parametrize(
    ("rule", "classes", "oracle_accuracy"),
    [("report", 5463, 83.74), ("paper", 4834, 83.39)],
)
def test_the_rebuilt_training_set(
    rule: str, classes: int, oracle_accuracy: float, rebuilt: dict[str, tuple[Record, ...]]
) -> None:
    vocabulary = build_vocabulary(rebuilt["train"], rule)
    assert len(vocabulary.answers) == classes
    assert round(vocabulary.oracle_accuracy(rebuilt["val"]), 2) == oracle_accuracy


def test_confidences_of_the_rebuilt_training_set(rebuilt: dict[str, tuple[Record, ...]]) -> None:
    assert sum(all_confidences_unknown(record) for record in rebuilt["train"]) == 20_123


def test_the_majority_is_the_target_answer() -> None:
    inside = record(*["mug"] * 5 + ["cup"] * 2 + ["jar"] * 3)
    outside = record(*["jar"] * 6 + ["cup"] * 4)
    targets = make_targets([inside, outside], VOCABULARY, Recipe())
    assert targets.answer.tolist() == [VOCABULARY.answers.index("mug"), IGNORED_TARGET]


def test_answerability_is_the_label_or_its_mean_with_the_annotators() -> None:
    half = record(*["mug"] * 4 + ["unanswerable"] * 5 + ["unsuitable"])
    assert make_targets([half], VOCABULARY, Recipe()).answerable.tolist() == [1.0]
    soft = make_targets([half], VOCABULARY, Recipe(answerable_targets="annotators"))
    assert soft.answerable.tolist() == pytest.approx([0.7])


def test_predictions_are_normalised_and_targets_are_not() -> None:
    scores = AnswerScores([record(*["10"] * 10)], ["ten", "10", "The mug"])
    for index, expected in ((0, 1.0), (1, 1.0), (2, 0.0)):
        assert scores.accuracies(torch.tensor([index]))[0].tolist() == [expected]


def test_looked_up_accuracies_are_the_official_ones(real_annotations: Callable[[str], Path]) -> None:
    records = read_annotations(real_annotations("val_reconstructed"))
    vocabulary = build_vocabulary(records)
    predictions = torch.randint(len(vocabulary.answers), (len(records),), generator=torch.Generator().manual_seed(0))
    predictions[::2] = vocabulary.answers.index("unanswerable")
    looked_up = AnswerScores(records, vocabulary.answers).accuracies(predictions)
    official = question_accuracies(
        [vocabulary.answers[index] for index in predictions.tolist()], [record.answers for record in records]
    )
    for got, expected in zip(looked_up, official, strict=True):
        torch.testing.assert_close(got, torch.from_numpy(expected))
    part = AnswerScores(records, vocabulary.answers).select(torch.tensor([5, 3]))
    torch.testing.assert_close(part.accuracies(predictions[[5, 3]])[0], looked_up[0][[5, 3]])


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
