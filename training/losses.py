"""What a fit minimises: the answer's, the type's and the answerability's loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from training.head import HeadLogits
from training.recipe import BCE, Recipe
from training.targets import Targets


class Batch(NamedTuple):
    """Features and targets of some records; N = records, D = features of an encoder."""

    texts: Tensor  # fp32 [N, D]
    images: Tensor  # fp32 [N, D]
    targets: Targets


def loss_of(logits: HeadLogits, batch: Batch, recipe: Recipe, positive_weight: Tensor | None = None) -> Tensor:
    """Answer, type and answerability loss, equally weighted; a mean over records.

    Args:
        positive_weight: of answerable records against unanswerable ones, where they are weighed.
    """
    targets = batch.targets
    answer, taught = answer_loss(logits.answer, targets, recipe)
    answer_type = functional.cross_entropy(logits.answer_type, targets.answer_type)
    answerable = functional.binary_cross_entropy_with_logits(
        logits.answerable, targets.answerable, pos_weight=positive_weight
    )
    return answer / taught.clamp(min=1) + answer_type + answerable  # a mean over no record would be NaN


def answer_loss(logits: Tensor, targets: Targets, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The summed loss of answer ``logits`` [N, V], and the number of records it is a sum over.

    ``ce``: cross-entropy with the targets' weights, over the records that have any. Where the weights are accuracies,
    they are not made to sum to 1: the minimum is then in proportion to each answer's expected accuracy, and its best
    answer is the one that scores best. ``bce``: binary cross-entropy of every answer, over all records.
    """
    if recipe.answer_loss == BCE:
        raised = (targets.weights * logits.gather(1, targets.answers)).sum()
        return functional.softplus(logits).sum() - raised, torch.tensor(len(logits))
    known = targets.weights.sum(dim=1) > 0
    log_probabilities = functional.log_softmax(logits, dim=1)
    loss = -(targets.weights * log_probabilities.gather(1, targets.answers)).sum(dim=1)
    if recipe.label_smoothing:
        uniform = -log_probabilities.mean(dim=1) * targets.weights.sum(dim=1)
        loss = (1 - recipe.label_smoothing) * loss + recipe.label_smoothing * uniform
    return loss.sum(), known.sum()


class MeanLoss:
    """:func:`loss_of` of a whole split, from its batches."""

    def __init__(self, recipe: Recipe, positive_weight: Tensor | None = None) -> None:
        self.recipe, self.positive_weight = recipe, positive_weight
        self.answer, self.taught, self.rest, self.records = 0.0, 0, 0.0, 0

    def add(self, logits: HeadLogits, targets: Targets) -> None:
        answer, taught = answer_loss(logits.answer, targets, self.recipe)
        self.answer += answer.item()
        self.taught += int(taught)
        self.rest += functional.cross_entropy(logits.answer_type, targets.answer_type, reduction="sum").item()
        self.rest += functional.binary_cross_entropy_with_logits(
            logits.answerable, targets.answerable, reduction="sum", pos_weight=self.positive_weight
        ).item()
        self.records += len(logits.answer)

    def value(self) -> float:
        return self.answer / max(self.taught, 1) + self.rest / self.records
