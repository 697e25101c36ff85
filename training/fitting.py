"""Fitting one head to encoded features: the loss, an epoch, its scores, and the epoch that is kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.checkpoints import Checkpoints
from training.head import GatedHead, HeadLogits
from training.losses import Batch, MeanLoss, loss_of
from training.metrics import answerability
from training.recipe import BALANCED, BCE, BEST_EPOCH, COSINE, PRINCIPAL, Recipe
from training.targets import AnswerScores, Targets

HEADLINE = "vqa_accuracy_leave_one_out"
_ANSWERABLE_RATE = 0.4  # share of the learning rate beside a principal projection: its one row learns faster
_EVALUATION_BATCH = 1024  # records: a batch of logits over 5,860 answers is 24 MB

Row = dict[str, Any]


class DivergedError(Exception):
    """A fit whose loss is no longer a number."""


@dataclass(frozen=True)
class Examples:
    """A whole labelled split on the device of the fit: 20,000 records of ViT-L/14 are 120 MB, and 63 more each view."""

    texts: Tensor  # fp32 [N, D]
    images: Tensor  # fp32 [R, N, D]: R rotations of each photo, upright first
    targets: Targets
    scores: AnswerScores
    answerable: Tensor  # bool [N], the official label

    def __len__(self) -> int:
        """N, the number of records."""
        return len(self.texts)

    def batch(self, rows: Tensor | slice) -> Batch:
        """These records, upright."""
        return Batch(self.texts[rows], self.images[0, rows], Targets(*(tensor[rows] for tensor in self.targets)))

    def random_view(self, rows: Tensor) -> Batch:
        """These records, each photo in one of its rotations at random."""
        if len(self.images) == 1:
            return self.batch(rows)
        view = torch.randint(len(self.images), (len(rows),)).to(rows.device)
        return Batch(self.texts[rows], self.images[view, rows], self.targets.pick(rows))

    def batches(self) -> Iterator[Batch]:
        """All records in their order, upright."""
        for start in range(0, len(self), _EVALUATION_BATCH):
            yield self.batch(slice(start, start + _EVALUATION_BATCH))

    def take(self, rows: Tensor) -> Examples:
        """The examples of these rows."""
        there = rows.to(self.texts.device)
        return Examples(
            self.texts[there],
            self.images[:, there],
            self.targets.pick(there),
            self.scores.pick(rows),
            self.answerable[there],
        )


def _logits(head: GatedHead, batch: Batch) -> HeadLogits:
    """The logits of a step, fp32, from products in bf16 where a CPU has them: quicker, as good (docs/training.md).

    For steps alone: what is scored, kept and compared is computed in fp32.
    """
    bf16 = batch.texts.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = head(batch.texts, batch.images)
    return HeadLogits(*(tensor.float() for tensor in logits))


def learning_rate_at(recipe: Recipe, progress: float) -> float:
    """The step size after ``progress`` in [0, 1] of all steps."""
    if recipe.schedule == COSINE:
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.learning_rate


class Fitting:
    """A head in the middle of its fit: everything that the next epoch depends on but the random state."""

    def __init__(self, recipe: Recipe, train: Examples, answers: int, types: int, seed: int) -> None:
        """Start a fit of a head for ``answers`` and ``types`` classes."""
        torch.manual_seed(seed)
        self.recipe, self.train = recipe, train
        self.head = GatedHead(
            train.texts.shape[1], answers, types, recipe.hidden, recipe.dropout, recipe.answerable_from
        )
        if recipe.answer_loss == BCE:
            _start_at_the_base_rate(self.head, train.targets, answers)
        self.head.to(train.texts.device)
        if recipe.projection == PRINCIPAL:
            _start_as_logistic_regression(self.head, train)
        # The decay is the gradient of a penalty, as in logistic regression: AdamW's lets rare answers learn noise.
        # Fused, a step reads and writes every weight once.
        self.optimiser = torch.optim.Adam(_parameter_groups(self.head, recipe), recipe.learning_rate, fused=True)
        self.average = AveragedModel(self.head, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema)) if recipe.ema else None
        self.history: list[Row] = []
        self.best: Row = {HEADLINE: -1.0}
        self.weights: dict[str, Tensor] = {}
        self.positive_weight: Tensor | None = None
        if recipe.answerable_weighting == BALANCED:
            positive = train.targets.answerable.sum()
            self.positive_weight = (len(train) - positive) / positive.clamp(min=1)

    @property
    def _device(self) -> torch.device:
        return self.train.texts.device

    def run_epoch(self) -> float:
        """Go through the training records in random order; returns the mean loss per record, dropout included."""
        self.head.train()
        device = self._device
        passes = self.recipe.passes(len(self.train))
        order = [torch.randperm(len(self.train)).to(device) for _ in range(passes)]
        parts = [rows for each in order for rows in each.split(self.recipe.batch_size)]
        total = torch.zeros((), dtype=torch.float64, device=device)  # read once an epoch: a GPU need not wait for it
        for step, rows in enumerate(parts):
            progress = (len(self.history) + step / len(parts)) / self.recipe.epochs
            for group in self.optimiser.param_groups:
                group["lr"] = group["rate"] * learning_rate_at(self.recipe, progress)
            batch = self.train.random_view(rows)
            loss = loss_of(_logits(self.head, batch), batch, self.recipe, self.positive_weight)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            if self.average:
                self.average.update_parameters(self.head)
            total += loss.detach() * len(rows)
        return total.item() / (passes * len(self.train))

    def record(self, row: Row) -> None:
        """Add the scores of an epoch, and keep its weights where the recipe says so."""
        self.history.append(row)
        if self.recipe.keep != BEST_EPOCH or row[HEADLINE] > self.best[HEADLINE]:  # the first of equals
            self.best, self.weights = row, copy.deepcopy(self.scored().state_dict())

    def scored(self) -> GatedHead:
        """The head that is scored and kept: the averaged one, where there is an average."""
        head = self.average.module if self.average else self.head
        assert isinstance(head, GatedHead)
        return head

    def state(self) -> dict[str, Any]:
        """All of it, and the random state, for :meth:`restore`; of a finished fit, what it came to."""
        result = {"history": self.history, "best": self.best, "weights": self.weights}
        if len(self.history) == self.recipe.epochs:
            return result
        return result | {
            "head": self.head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.history, self.best, self.weights = state["history"], state["best"], state["weights"]
        if len(self.history) == self.recipe.epochs:
            return
        self.head.load_state_dict(state["head"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average:
            self.average.load_state_dict(state["average"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self._device)


def _start_at_the_base_rate(head: GatedHead, targets: Targets, answers: int) -> None:
    """Set the answers' biases so that every answer begins at its mean target: 5,000 halves would drown the rest.

    The gate begins near a half, which is why the bias is twice the log-odds.
    """
    total = torch.zeros(answers).index_add_(0, targets.answers.cpu().flatten(), targets.weights.cpu().flatten())
    rate = (total + 0.1) / (len(targets.answers) + 1)
    last = head.answer[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.bias.copy_(2 * torch.logit(rate))


def _parameter_groups(head: GatedHead, recipe: Recipe) -> list[dict[str, Any]]:
    """Adam's groups: one for each trained tensor, with its weight decay and its share of the learning rate."""
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
        tensor.requires_grad_(not (principal and layer == "join"))
    return [group for group in groups if group["params"][0].requires_grad]


def _start_as_logistic_regression(head: GatedHead, train: Examples) -> None:
    """Set the projection to the principal components of the training features, and the other layers to base rates.

    The fit then starts as logistic regression with weights of 0. From random projections it learns noise as fast as
    signal. The components are rotated at random: Adam's steps suit inputs of equal variance.
    """
    norm, _, project = head.join
    last = head.answer[-1]
    assert isinstance(project, torch.nn.Linear)
    assert isinstance(last, torch.nn.Linear)
    targets = train.targets
    with torch.no_grad():
        features = norm(torch.cat([train.texts, train.images[0]], dim=1))
        mean = features.mean(dim=0)
        _, directions = torch.linalg.eigh((features - mean).T @ (features - mean))  # ascending
        components = directions.flip(1).T[: project.out_features]
        rotation = torch.linalg.qr(torch.randn(len(project.weight), len(components)))[0].to(features)
        project.weight.copy_(rotation @ components)
        project.bias.copy_(-(project.weight @ mean))
        last.weight.zero_()
        total = torch.full_like(last.bias, 0.1).index_add_(0, targets.answers.flatten(), targets.weights.flatten())
        last.bias.copy_(2 * (total / total.sum()).log())  # twice: the gates begin at a half
        head.gate.weight.zero_()
        head.gate.bias.zero_()
        head.answerable.weight.zero_()
        head.answerable.bias.fill_(torch.logit(targets.answerable.mean().clamp(0.01, 0.99)).item())


class Fitted(NamedTuple):
    """The head of the kept epoch, that epoch's scores and those of all epochs."""

    head: GatedHead
    history: list[Row]
    best: Row


def fit_head(
    recipe: Recipe,
    train: Examples,
    val: Examples,
    sizes: tuple[int, int],
    *,
    seed: int | None = None,
    checkpoints: Checkpoints | None = None,
    name: str = "head",
    report: Callable[[Row], None] = lambda row: None,
) -> Fitted:
    """Fit a head to ``train``, scoring every epoch on ``val``.

    Args:
        sizes: number of answers and of answer types.
        seed: instead of the recipe's: folds differ in it.
        checkpoints: where a state is left after every epoch, under ``name``, and gone on from.
        report: called with the scores of every epoch, those of an interrupted fit included.

    Raises:
        DivergedError: the loss is not finite.
    """
    fitting = Fitting(recipe, train, *sizes, recipe.seed if seed is None else seed)
    if checkpoints and (state := checkpoints.load(name)):
        fitting.restore(state)
    for row in fitting.history:
        report(row)
    for epoch in range(len(fitting.history) + 1, recipe.epochs + 1):
        train_loss = fitting.run_epoch()
        if not math.isfinite(train_loss):
            raise DivergedError(
                f"the training loss of epoch {epoch} is {train_loss}: try a --learning-rate below "
                f"{recipe.learning_rate:g}; if that does not help, the CLIP's weights are not finite"
            )
        scored = evaluate(fitting.scored(), val, recipe, fitting.positive_weight)
        row = {"epoch": epoch, "train_loss": train_loss, **scored}
        fitting.record(row)
        if checkpoints:
            checkpoints.save(name, fitting.state())
        report(row)
    head = fitting.scored()
    head.load_state_dict(fitting.weights)
    return Fitted(head.eval().requires_grad_(False), fitting.history, fitting.best)


@torch.inference_mode()
def evaluate(
    head: GatedHead, examples: Examples, recipe: Recipe, positive_weight: Tensor | None = None
) -> dict[str, float]:
    """Loss, of the kind that steps minimise, and official metrics of ``head`` on labelled examples."""
    head.eval()
    loss, best, answerable = MeanLoss(recipe, positive_weight), [], []
    for batch in examples.batches():
        logits = head(batch.texts, batch.images)
        loss.add(logits, batch.targets)
        best.append(logits.answer.argmax(dim=1))
        answerable.append(torch.sigmoid(logits.answerable))
    return {"val_loss": loss.value(), **scores(torch.cat(best), torch.cat(answerable), examples)}


def scores(best: Tensor, answerable: Tensor, examples: Examples) -> dict[str, float]:
    """Official metrics of the ``best`` answers int64 [N] and the answerability fp32 [N]."""
    leave_one_out, min3 = examples.scores.accuracies(best)
    return {
        HEADLINE: 100 * leave_one_out.mean().item(),
        "vqa_accuracy_min3": 100 * min3.mean().item(),
        **answerability(answerable.cpu().numpy(), examples.answerable.cpu().numpy()),
    }
