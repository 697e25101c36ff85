"""What the records of a split teach and are scored against, as tensors over the answer list.

Answers are looked up twice. As targets they must be in the list as they stand; as predictions they are normalised
first, as the official evaluation does. Both happen once per split, so that scoring an epoch is a comparison of tensors.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.answer_types import type_of
from training.dataset import ANSWERS_PER_QUESTION, Record
from training.metrics import accuracy_leave_one_out, accuracy_min3, normalise
from training.recipe import ANNOTATORS, LABEL, MAJORITY, Recipe
from training.vocabulary import Vocabulary, one_line

NO_ANSWER = 0  # where an entry's weight is 0, its answer is not read; 0 can be gathered
_UNANSWERABLE = {"unanswerable", "unsuitable", "unsuitable image"}


class Targets(NamedTuple):
    """What N records teach. T = 1 for the majority answer alone, else 10."""

    answers: Tensor  # int64 [N, T], indices into the answer list
    weights: Tensor  # fp32 [N, T], of each of them; a row of zeros teaches no answer
    answer_type: Tensor  # int64 [N]
    answerable: Tensor  # fp32 [N], in [0, 1]

    def pick(self, rows: Tensor) -> Targets:
        """The targets of these rows."""
        return Targets(*(tensor[rows] for tensor in self))

    def to(self, device: torch.device) -> Targets:
        """The same on ``device``."""
        return Targets(*(tensor.to(device) for tensor in self))


def make_targets(records: Sequence[Record], vocabulary: Vocabulary, recipe: Recipe) -> Targets:
    """Look up what labelled ``records`` teach by ``recipe``."""
    index = {answer: number for number, answer in enumerate(vocabulary.answers)}
    chosen = [vocabulary.target(record) for record in records]
    width = 1 if recipe.targets == MAJORITY else ANSWERS_PER_QUESTION
    answers = np.full((len(records), width), NO_ANSWER, np.int64)
    weights = np.zeros((len(records), width), np.float32)
    for row, (record, target) in enumerate(zip(records, chosen, strict=True)):
        taught = {target: 1.0} if recipe.targets == MAJORITY else _graded(record, recipe.targets)
        known = [(index[answer], weight) for answer, weight in taught.items() if answer in index]
        for column, (number, weight) in enumerate(known):
            answers[row, column], weights[row, column] = number, weight
    types = [type_of(record, target, recipe.types) for record, target in zip(records, chosen, strict=True)]
    answerable = [_answerable(record, recipe.answerable_targets) for record in records]
    return Targets(torch.from_numpy(answers), torch.from_numpy(weights), torch.tensor(types), torch.tensor(answerable))


def _graded(record: Record, grading: str) -> dict[str | None, float]:
    """What each distinct answer is worth: the share of the annotators who gave it, or the accuracy it would score."""
    votes = [one_line(answer) for answer in record.answers]
    if grading == ANNOTATORS:
        return {answer: count / len(votes) for answer, count in Counter(votes).items()}
    # as it would be predicted: "dont know" is normalised to "don't know", which nobody gave
    return {answer: accuracy_leave_one_out(normalise(answer), votes) for answer in dict.fromkeys(votes)}


def _answerable(record: Record, source: str) -> float:
    """The official label, or its mean with the share of the annotators who found an answer."""
    label = float(record.answerable or 0)
    if source == LABEL:
        return label
    found = sum(answer not in _UNANSWERABLE for answer in record.answers) / len(record.answers)
    return (label + found) / 2


class AnswerScores:
    """The official accuracies of every answer of the list on some records, looked up at once."""

    def __init__(self, records: Sequence[Record], answers: Sequence[str]) -> None:
        """Normalise ``answers`` and score those that annotators gave."""
        normal = [normalise(answer) for answer in answers]
        number = {answer: place for place, answer in enumerate(dict.fromkeys(normal))}
        self._normal = torch.tensor([number[answer] for answer in normal])  # int64 [V]
        given = np.full((len(records), ANSWERS_PER_QUESTION), -1, np.int64)
        scores = np.zeros((2, len(records), ANSWERS_PER_QUESTION))
        for row, record in enumerate(records):
            known = [answer for answer in dict.fromkeys(record.answers) if answer in number]
            for column, answer in enumerate(known):
                given[row, column] = number[answer]
                scores[0, row, column] = accuracy_leave_one_out(answer, record.answers)
                scores[1, row, column] = accuracy_min3(answer, record.answers)
        self._given, self._scores = torch.from_numpy(given), torch.from_numpy(scores)

    def pick(self, rows: Tensor) -> AnswerScores:
        """The scores of these rows."""
        part = copy.copy(self)
        part._given, part._scores = self._given[rows], self._scores[:, rows]
        return part

    def accuracies(self, predictions: Tensor) -> tuple[Tensor, Tensor]:
        """Leave-one-out and min(matches / 3, 1) accuracy, float64 [N] each, of the predicted indices, int64 [N]."""
        hit = self._normal[predictions.cpu()][:, None] == self._given
        leave_one_out, min3 = (hit * self._scores).sum(dim=2)
        return leave_one_out, min3
