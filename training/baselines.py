"""Baselines: logistic regression on the features of the head, and on the question alone.

Both are one linear layer on normalised features, trained by mini-batches for a fixed number of steps: scikit-learn's
solver, which sees all records at every step, takes hours for 5,860 answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from training.features import SplitFeatures
from training.targets import Targets

QUESTION_ONLY, LOGISTIC = "question_only", "logistic_regression"
LABELS = {QUESTION_ONLY: "logistic regression, question alone", LOGISTIC: "logistic regression"}
C = 0.03  # scikit-learn's: the weight of the summed loss against half the squared weights
STEPS = 200
_BATCH = 512  # records
_LEARNING_RATE = 4e-3
_Z95 = 1.96  # standard errors
_ROWS = 1024  # records scored at once

Features = Sequence[tuple[Tensor, Tensor]]  # texts and images, fp32 [N, D] each, of every CLIP


class Predicted(NamedTuple):
    """Predictions for N questions."""

    best: Tensor  # int64 [N], index of the answer
    answerable: Tensor  # fp32 [N]


class Baseline(NamedTuple):
    """A linear layer: one row for each of V answers, and the last for answerability; F = normalised features."""

    weight: Tensor  # fp32 [V + 1, F]
    bias: Tensor  # fp32 [V + 1]

    @torch.inference_mode()
    def predict(self, features: Tensor) -> Predicted:
        """Predict from normalised ``features`` fp32 [N, F]."""
        weight, bias = self.weight.to(features.device), self.bias.to(features.device)
        logits = [functional.linear(rows, weight, bias) for rows in features.split(_ROWS)]
        return Predicted(
            torch.cat([part[:, :-1].argmax(dim=1) for part in logits]),
            torch.cat([torch.sigmoid(part[:, -1]) for part in logits]),
        )


def normalised(features: Features, name: str) -> Tensor:
    """The features that the baseline ``name`` reads, fp32 [N, F]: those of a CLIP have mean 0 and variance 1."""
    parts = [texts if name == QUESTION_ONLY else torch.cat([texts, images], dim=1) for texts, images in features]
    return torch.cat([functional.layer_norm(part, part.shape[1:]) for part in parts], dim=1)


def features_of(encoded: Sequence[SplitFeatures], device: torch.device) -> Features:
    """The encoded features of a split as tensors; photos upright."""
    return [(torch.tensor(each.texts, device=device), torch.tensor(each.images, device=device)) for each in encoded]


def fit_baselines(features: Features, targets: Targets, answers: int) -> dict[str, Baseline]:
    """Fit both baselines to the training records.

    Args:
        targets: what the records teach; of graded answers, the best of each.
        answers: V, the length of the answer list.
    """
    return {name: fit_baseline(normalised(features, name), targets, answers) for name in LABELS}


def fit_baseline(features: Tensor, targets: Targets, answers: int, c: float = C) -> Baseline:
    """Maximise the likelihood of answers and answerability under an L2 penalty, by Adam with a cosine schedule.

    Args:
        features: normalised, fp32 [N, F].
        c: scikit-learn's ``C``.
    """
    count, width = features.shape
    worth, place = targets.weights.max(dim=1)
    answer = targets.answers.gather(1, place[:, None])[:, 0].masked_fill(worth == 0, -100)  # -100 teaches nothing
    weight = torch.zeros(answers + 1, width, device=features.device, requires_grad=True)
    # Biases start at the base rates, which few small steps do not reach.
    frequency = torch.bincount(answer[answer >= 0], minlength=answers) + 0.1
    can = targets.answerable.mean().clamp(0.01, 0.99)
    bias = torch.cat([frequency.log(), torch.logit(can)[None]]).requires_grad_()
    groups: list[dict[str, Any]] = [{"params": [weight], "weight_decay": 1 / (c * count)}, {"params": [bias]}]
    optimiser = torch.optim.Adam(groups, _LEARNING_RATE, fused=True)  # its decay is the gradient of the penalty
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    bf16 = features.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    generator = torch.Generator().manual_seed(0)
    rows = torch.empty(0, dtype=torch.int64)
    for _ in range(STEPS):
        while len(rows) < min(_BATCH, count):
            rows = torch.cat([rows, torch.randperm(count, generator=generator)])
        batch, rows = rows[:_BATCH].to(features.device), rows[_BATCH:]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = functional.linear(features[batch], weight, bias).float()
        known = (answer[batch] >= 0).sum().clamp(min=1)
        loss = functional.cross_entropy(logits[:, :-1], answer[batch], reduction="sum") / known
        loss = loss + functional.binary_cross_entropy_with_logits(logits[:, -1], targets.answerable[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return Baseline(weight.detach(), bias.detach())


def underfits(head: Tensor, logistic: Tensor) -> bool:
    """Whether the accuracies ``head`` [N] are below those of logistic regression by more than chance explains."""
    lost = logistic - head
    return len(lost) > 1 and bool(lost.mean() > _Z95 * lost.std() / len(lost) ** 0.5)


def save_baselines(baselines: dict[str, Baseline], path: Path) -> None:
    """Write the weights of ``baselines``."""
    tensors = {
        f"{name}.{key}": getattr(each, key).cpu() for name, each in baselines.items() for key in Baseline._fields
    }
    path.write_bytes(safetensors.torch.save(tensors))  # save_file's are for the owner alone


def load_baselines(path: Path) -> dict[str, Baseline]:
    """Read what :func:`save_baselines` wrote."""
    tensors = safetensors.torch.load_file(path)
    return {name: Baseline(*(tensors[f"{name}.{key}"] for key in Baseline._fields)) for name in LABELS}
