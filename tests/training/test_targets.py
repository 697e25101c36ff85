from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.dataset import Record, read_annotations
from training.metrics import question_accuracies
from training.recipe import Recipe
from training.targets import AnswerScores, make_targets
from training.vocabulary import Vocabulary, build_vocabulary

VOCABULARY = Vocabulary("report", ["mug", "cup", "10"], Counter())


def record(*answers: str, answerable: bool = True) -> Record:
    return Record("a.jpg", "?", answers, ("yes",) * len(answers), "other", answerable)


def taught(example: Record, recipe: Recipe) -> dict[str, float]:
    targets = make_targets([example], VOCABULARY, recipe)
    pairs = zip(targets.answers[0].tolist(), targets.weights[0].tolist(), strict=True)
    return {VOCABULARY.answers[number]: pytest.approx(weight) for number, weight in pairs if weight}


def test_what_a_record_teaches() -> None:
    split = record(*["mug"] * 5 + ["cup"] * 2 + ["jar"] * 3)
    assert taught(split, Recipe()) == {"mug": 1.0}
    assert taught(split, Recipe(targets="annotators")) == {"mug": 0.5, "cup": 0.2}
    assert taught(split, Recipe(targets="accuracy")) == {"mug": 1.0, "cup": 0.6}


def test_an_answer_is_worth_what_it_scores_as_a_prediction() -> None:
    """The official evaluation turns a predicted "dont know" into "don't know", which these annotators did not say."""
    vocabulary = Vocabulary("report", ["dont know", "mug"], Counter())
    targets = make_targets([record(*["dont know"] * 7 + ["mug"] * 3)], vocabulary, Recipe(targets="accuracy"))
    assert targets.weights[0, :2].tolist() == pytest.approx([0.0, 0.9])


def test_an_answer_outside_the_list_is_not_taught() -> None:
    outside = record(*["jar"] * 6 + ["cup"] * 4)
    assert taught(outside, Recipe()) == {}
    assert taught(outside, Recipe(targets="annotators")) == {"cup": 0.4}


def test_answerability_is_the_label_or_its_mean_with_the_annotators() -> None:
    half = record(*["mug"] * 4 + ["unanswerable"] * 5 + ["unsuitable"], answerable=True)
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
    part = AnswerScores(records, vocabulary.answers).pick(torch.tensor([5, 3]))
    torch.testing.assert_close(part.accuracies(predictions[[5, 3]])[0], looked_up[0][[5, 3]])
