"""Fitting a head to encoded features: the loss, an epoch, its scores, and the best epoch of ten."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from training.data import ANSWER_TYPES, Split
from training.features import SplitFeatures
from training.head import GatedHead, HeadLogits
from training.metrics import answerability, vqa_accuracy
from training.recipe import Recipe
from training.vocabulary import majority_answer

_IGNORE = -100  # target of a record whose majority answer is not in the vocabulary


class Batch(NamedTuple):
    """Features and targets of some records; N = records, D = features of an encoder."""

    texts: Tensor  # fp32 [N, D]
    images: Tensor  # fp32 [N, D]
    answer: Tensor  # int64 [N], index into the vocabulary or _IGNORE
    answer_type: Tensor  # int64 [N]
    answerable: Tensor  # fp32 [N], 0 or 1

    def pick(self, rows: Tensor) -> Batch:
        """The batch of these rows."""
        return Batch(*(tensor[rows] for tensor in self))


def make_batch(split: Split, features: SplitFeatures, vocabulary: list[str], device: torch.device) -> Batch:
    """Put a whole split on ``device``: 20,000 records of ViT-L/14 are 120 MB."""
    index = {answer: number for number, answer in enumerate(vocabulary)}
    answers = [index.get(majority_answer(record) or "", _IGNORE) for record in split.records]
    types = [ANSWER_TYPES.index(record.answer_type or "") for record in split.records]
    answerable = [float(record.answerable or 0) for record in split.records]
    batch = (
        torch.from_numpy(features.texts),
        torch.from_numpy(features.images),
        torch.tensor(answers),
        torch.tensor(types),
        torch.tensor(answerable),
    )
    return Batch(*(tensor.to(device) for tensor in batch))


def loss_of(logits: HeadLogits, batch: Batch) -> Tensor:
    """The report's loss: cross-entropy of answer and type, binary cross-entropy of answerability, equally weighted."""
    known = (batch.answer != _IGNORE).sum().clamp(min=1)  # a mean over no record would be NaN
    answer = functional.cross_entropy(logits.answer, batch.answer, ignore_index=_IGNORE, reduction="sum") / known
    answer_type = functional.cross_entropy(logits.answer_type, batch.answer_type)
    answerable = functional.binary_cross_entropy_with_logits(logits.answerable, batch.answerable)
    return answer + answer_type + answerable


def train_epoch(head: GatedHead, optimiser: torch.optim.Optimizer, train: Batch, batch_size: int) -> float:
    """One pass over ``train`` in random order; returns the mean loss per record, dropout included."""
    head.train()
    total = 0.0
    order = torch.randperm(len(train.answer)).to(train.answer.device)
    for rows in order.split(batch_size):
        batch = train.pick(rows)
        loss = loss_of(head(batch.texts, batch.images), batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += loss.item() * len(rows)
    return total / len(train.answer)


@torch.inference_mode()
def evaluate(head: GatedHead, batch: Batch, split: Split, vocabulary: list[str]) -> dict[str, float]:
    """Loss and official metrics of ``head`` on a labelled split."""
    head.eval()
    logits = head(batch.texts, batch.images)
    predictions = [vocabulary[best] for best in logits.answer.argmax(dim=1).tolist()]
    return {
        "val_loss": loss_of(logits, batch).item(),
        **vqa_accuracy(predictions, [record.answers for record in split.records]),
        **answerability(torch.sigmoid(logits.answerable).cpu().numpy(), batch.answerable.cpu().numpy() > 0),
    }


def constant_answer(train: Split, val: Split) -> dict[str, Any]:
    """What always giving the training set's most frequent answer scores on ``val``."""
    answers = Counter(answer for record in train.records if (answer := majority_answer(record)) is not None)
    answer = answers.most_common(1)[0][0]
    return {"answer": answer, **vqa_accuracy([answer] * len(val.records), [record.answers for record in val.records])}


class Fitted(NamedTuple):
    """The head of the best epoch and the scores of all of them."""

    head: GatedHead
    history: list[dict[str, Any]]
    best: dict[str, Any]


def fit_head(recipe: Recipe, train: Batch, val: Batch, val_split: Split, vocabulary: list[str]) -> Fitted:
    """Fit a head and keep the epoch with the best leave-one-out VQA accuracy on val, the first of equals."""
    torch.manual_seed(recipe.seed)
    head = GatedHead(train.texts.shape[1], len(vocabulary), len(ANSWER_TYPES), recipe.hidden, recipe.dropout)
    head.to(train.texts.device)
    optimiser = torch.optim.Adam(head.parameters(), lr=recipe.learning_rate)
    history: list[dict[str, Any]] = []
    best: dict[str, Any] = {"vqa_accuracy_leave_one_out": -1.0}
    weights: dict[str, Tensor] = {}
    for epoch in tqdm(range(1, recipe.epochs + 1), desc="fit", unit="epoch"):
        train_loss = train_epoch(head, optimiser, train, recipe.batch_size)
        row = {"epoch": epoch, "train_loss": train_loss, **evaluate(head, val, val_split, vocabulary)}
        history.append(row)
        tqdm.write(describe(row))
        if row["vqa_accuracy_leave_one_out"] > best["vqa_accuracy_leave_one_out"]:
            best, weights = row, copy.deepcopy(head.state_dict())
    head.load_state_dict(weights)
    return Fitted(head.eval(), history, best)


def describe(row: dict[str, Any]) -> str:
    """One epoch in one line."""
    return (
        f"epoch {row['epoch']:>2}  loss train {row['train_loss']:.3f} val {row['val_loss']:.3f}  "
        f"VQA {row['vqa_accuracy_leave_one_out']:.2f} (min3 {row['vqa_accuracy_min3']:.2f})  "
        f"AP unanswerable {row['unanswerable_ap']:.3f} (chance {row['unanswerable_ap_chance']:.3f}) "
        f"answerable {row['answerable_ap']:.3f} (chance {row['answerable_ap_chance']:.3f})  "
        f"F1 {row['answerable_f1']:.3f}  accuracy {row['answerable_accuracy']:.1f}"
    )
