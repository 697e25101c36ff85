"""Fit one head on encoded features: the feature dataset, the loss, the epochs, and the epoch that is kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.labels import IGNORED_TARGET, AnswerScores, Targets
from training.metrics import answerability
from training.model import PREDICTION_BATCH, GatedHead, HeadLogits, QualityHead
from training.recipe import BEST_EPOCH, COSINE, PRINCIPAL, Recipe

HEADLINE = "vqa_accuracy_leave_one_out"
_ANSWERABLE_RATE = 0.4  # of the learning rate, with a principal projection: a single row of weights learns faster

Row = dict[str, Any]  # the scores of an epoch
OnEpoch = Callable[[Row], None]


class DivergedError(Exception):
    """A fit whose loss is no longer finite."""


class Batch(NamedTuple):
    """Features and targets of B records; D = features of an encoder."""

    texts: Tensor  # fp32 [B, D]
    images: Tensor  # fp32 [B, D]
    targets: Targets


@dataclass(frozen=True)
class FeatureDataset:
    """Features, targets and answer scores of N records on the device of the fit.

    20,000 records of ViT-L/14 take 120 MB, and 63 MB more for each rotation.
    """

    texts: Tensor  # fp32 [N, D]
    images: Tensor  # fp32 [R, N, D]: R rotations of each photo, upright first
    targets: Targets
    scores: AnswerScores
    answerable: Tensor  # bool [N], the official label

    def __len__(self) -> int:
        """Number of records, N."""
        return len(self.texts)

    @property
    def features(self) -> tuple[Tensor, Tensor]:
        """Text features and those of the upright photos, fp32 [N, D] each."""
        return self.texts, self.images[0]

    def batch(self, rows: Tensor | slice) -> Batch:
        """These records, with upright photos."""
        return Batch(self.texts[rows], self.images[0, rows], Targets(*(tensor[rows] for tensor in self.targets)))

    def random_rotations(self, rows: Tensor) -> Batch:
        """These records, each photo in a random rotation."""
        if len(self.images) == 1:
            return self.batch(rows)
        rotation = torch.randint(len(self.images), (len(rows),)).to(rows.device)
        return Batch(self.texts[rows], self.images[rotation, rows], self.targets.select(rows))

    def batches(self) -> Iterator[Batch]:
        """All records in order, with upright photos."""
        for start in range(0, len(self), PREDICTION_BATCH):
            yield self.batch(slice(start, start + PREDICTION_BATCH))

    def select(self, rows: Tensor) -> FeatureDataset:
        """The dataset of these rows."""
        on_device = rows.to(self.texts.device)
        return FeatureDataset(
            self.texts[on_device],
            self.images[:, on_device],
            self.targets.select(on_device),
            self.scores.select(rows),
            self.answerable[on_device],
        )


def total_loss(logits: HeadLogits, targets: Targets) -> Tensor:
    """Loss of a step: the sum of the mean answer, answer type and answerability losses."""
    answer, count = answer_loss(logits.answer, targets)
    answer_type = functional.cross_entropy(logits.answer_type, targets.answer_type)
    answerable = functional.binary_cross_entropy_with_logits(logits.answerable, targets.answerable)
    return answer / count.clamp(min=1) + answer_type + answerable  # a mean over no record would be NaN


def answer_loss(logits: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of answer ``logits`` [B, V], and the number of records that have a target answer."""
    loss = functional.cross_entropy(logits, targets.answer, reduction="sum", ignore_index=IGNORED_TARGET)
    return loss, (targets.answer != IGNORED_TARGET).sum()


def learning_rate_at(recipe: Recipe, progress: float) -> float:
    """Learning rate after ``progress`` in [0, 1] of all steps."""
    if recipe.schedule == COSINE:
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.learning_rate


def make_head(
    recipe: Recipe, train: FeatureDataset, answers: int, types: int, quality: QualityHead | None = None
) -> GatedHead:
    """A head with random weights on the device of ``train``."""
    embed_dim = train.texts.shape[1]
    head = GatedHead(embed_dim, answers, types, recipe.hidden, recipe.dropout, recipe.answerable_from, quality)
    return head.to(train.texts.device)


class Trainer:
    """A head during its fit."""

    def __init__(
        self,
        recipe: Recipe,
        train: FeatureDataset,
        answers: int,
        types: int,
        seed: int,
        quality: QualityHead | None = None,
    ) -> None:
        """Initialise a head for ``answers`` answers and ``types`` answer types."""
        torch.manual_seed(seed)
        self.recipe, self.train = recipe, train
        self.head = make_head(recipe, train, answers, types, quality)
        if recipe.projection == PRINCIPAL:
            _initialise_as_logistic_regression(self.head, train)
        # Adam's weight decay is an L2 penalty, as in logistic regression; with AdamW's, rare answers learn noise.
        # The fused version reads and writes every weight once a step.
        self.optimiser = torch.optim.Adam(_parameter_groups(self.head, recipe), recipe.learning_rate, fused=True)
        self.average = AveragedModel(self.head, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema)) if recipe.ema else None
        self.epochs = 0  # finished

    def run_epoch(self) -> float:
        """Train on all records in random order; returns the mean loss per record, with dropout."""
        self.head.train()
        device = self.train.texts.device
        passes = self.recipe.passes(len(self.train))
        order = [torch.randperm(len(self.train)).to(device) for _ in range(passes)]
        parts = [rows for each in order for rows in each.split(self.recipe.batch_size)]
        total = torch.zeros((), dtype=torch.float64, device=device)  # read once an epoch: no waiting for the GPU
        for step, rows in enumerate(parts):
            progress = (self.epochs + step / len(parts)) / self.recipe.epochs
            for group in self.optimiser.param_groups:
                group["lr"] = group["rate"] * learning_rate_at(self.recipe, progress)
            batch = self.train.random_rotations(rows)
            loss = total_loss(_logits(self.head, batch), batch.targets)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            if self.average:
                self.average.update_parameters(self.head)
            total += loss.detach() * len(rows)
        self.epochs += 1
        return total.item() / (passes * len(self.train))

    @property
    def scored_head(self) -> GatedHead:
        """The head to score and keep: the one with averaged weights, if they are averaged."""
        head = self.average.module if self.average else self.head
        assert isinstance(head, GatedHead)
        return head


def _logits(head: GatedHead, batch: Batch) -> HeadLogits:
    """Logits of a step in fp32, from products in bf16 on CPUs that have it, which is faster and as good.

    Scores are computed in fp32.
    """
    bf16 = batch.texts.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = head(batch.texts, batch.images)
    return HeadLogits(*(tensor.float() for tensor in logits))


def _parameter_groups(head: GatedHead, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameter groups of Adam: one for each trained tensor, with its weight decay and share of the learning rate."""
    principal = recipe.projection == PRINCIPAL
    groups: list[dict[str, Any]] = []
    for name, tensor in head.named_parameters():
        layer = name.partition(".")[0]
        decayed = tensor.ndim == 2 and layer in ("answer", "answer_type", "answerable")
        groups.append(
            {
                "params": [tensor],
                "rate": _ANSWERABLE_RATE if principal and layer == "answerable" else 1.0,
                "weight_decay": recipe.weight_decay if decayed else 0.0,
            }
        )
        tensor.requires_grad_(layer != "quality" and not (principal and layer == "projection"))
    return [group for group in groups if group["params"][0].requires_grad]


def _initialise_as_logistic_regression(head: GatedHead, train: FeatureDataset) -> None:
    """Set the projection to the principal components of the training features, and the other layers to base rates.

    The fit then starts as logistic regression with weights of 0. From a random projection it learns noise as fast as
    signal. The components are rotated at random, because Adam's steps suit inputs of equal variance.
    """
    norm, _, linear = head.projection
    last = head.answer[-1]
    assert isinstance(linear, torch.nn.Linear)
    assert isinstance(last, torch.nn.Linear)
    targets = train.targets
    with torch.no_grad():
        features = norm(torch.cat([train.texts, train.images[0]], dim=1))
        mean = features.mean(dim=0)
        _, directions = torch.linalg.eigh((features - mean).T @ (features - mean))  # ascending
        components = directions.flip(1).T[: linear.out_features]
        rotation = torch.linalg.qr(torch.randn(len(linear.weight), len(components)))[0].to(features)
        linear.weight.copy_(rotation @ components)
        linear.bias.copy_(-(linear.weight @ mean))
        last.weight.zero_()
        frequency = targets.answer[targets.answer != IGNORED_TARGET].bincount(minlength=len(last.bias)) + 0.1
        last.bias.copy_(2 * (frequency / frequency.sum()).log())  # twice the log rate: the gates start at a half
        head.gate.weight.zero_()
        head.gate.bias.zero_()
        head.answerable.weight.zero_()
        head.answerable.bias.fill_(torch.logit(targets.answerable.mean().clamp(0.01, 0.99)).item())


class FittedHead(NamedTuple):
    """A head with the weights of the kept epoch."""

    head: GatedHead
    history: list[Row]  # scores of every epoch
    best: Row  # scores of the kept epoch


def fit_head(
    recipe: Recipe,
    train: FeatureDataset,
    val: FeatureDataset,
    sizes: tuple[int, int],
    *,
    seed: int | None = None,
    quality: QualityHead | None = None,
    on_epoch: OnEpoch = lambda row: None,
) -> FittedHead:
    """Fit a head to ``train`` and score every epoch on ``val``.

    The fit calls ``torch.manual_seed(seed)``, which resets PyTorch's global generator of the caller too.

    Args:
        recipe: the settings.
        train: records to fit on.
        val: records that every epoch is scored on. If ``recipe.keep`` is "best", the epoch with the highest VQA
            accuracy on them is kept.
        sizes: (V, K): numbers of answers and of answer types.
        seed: of weights, order and dropout (default: the recipe's).
        quality: the head whose log-odds answerability reads too.
        on_epoch: called after each epoch with its scores: ``epoch``, ``train_loss`` and ``val_loss`` in nats, and the
            metrics of :func:`scores`.

    Returns:
        ``head``, with the weights of the kept epoch, in evaluation mode; ``history``, the scores of every epoch;
        ``best``, those of the kept epoch.

    Raises:
        DivergedError: the loss is not finite.
    """
    trainer = Trainer(recipe, train, *sizes, recipe.seed if seed is None else seed, quality)
    history: list[Row] = []
    best: Row = {HEADLINE: -1.0}
    weights: dict[str, Tensor] = {}
    for epoch in range(1, recipe.epochs + 1):
        train_loss = trainer.run_epoch()
        if not math.isfinite(train_loss):
            raise DivergedError(
                f"the training loss of epoch {epoch} is {train_loss}: try a --learning-rate below "
                f"{recipe.learning_rate:g}; if that does not help, the CLIP's weights are not finite"
            )
        row = {"epoch": epoch, "train_loss": train_loss, **evaluate(trainer.scored_head, val)}
        history.append(row)
        if recipe.keep != BEST_EPOCH or row[HEADLINE] > best[HEADLINE]:  # the first of equals
            best, weights = row, copy.deepcopy(trainer.scored_head.state_dict())
        on_epoch(row)
    head = trainer.scored_head
    head.load_state_dict(weights)
    return FittedHead(head.eval().requires_grad_(False), history, best)


@torch.inference_mode()
def evaluate(head: GatedHead, dataset: FeatureDataset) -> dict[str, float]:
    """Loss and official metrics of ``head`` on labelled records."""
    head.eval()
    answer_sum, answer_count, other_sum = 0.0, 0, 0.0
    best, answerable = [], []
    for batch in dataset.batches():
        logits, targets = head(batch.texts, batch.images), batch.targets
        answer, count = answer_loss(logits.answer, targets)
        answer_sum += answer.item()
        answer_count += int(count)
        other_sum += functional.cross_entropy(logits.answer_type, targets.answer_type, reduction="sum").item()
        other_sum += functional.binary_cross_entropy_with_logits(
            logits.answerable, targets.answerable, reduction="sum"
        ).item()
        best.append(logits.answer.argmax(dim=1))
        answerable.append(torch.sigmoid(logits.answerable))
    val_loss = answer_sum / max(answer_count, 1) + other_sum / len(dataset)
    return {"val_loss": val_loss, **official_scores(torch.cat(best), torch.cat(answerable), dataset)}


def official_scores(best: Tensor, answerable: Tensor, dataset: FeatureDataset) -> dict[str, float]:
    """Official metrics of predicted answers int64 [N] and answerability fp32 [N].

    Accuracies are in percent; average precision and F1 are in [0, 1].
    """
    leave_one_out, min3 = dataset.scores.accuracies(best)
    return {
        HEADLINE: 100 * leave_one_out.mean().item(),
        "vqa_accuracy_min3": 100 * min3.mean().item(),
        **answerability(answerable.cpu().numpy(), dataset.answerable.cpu().numpy()),
    }
