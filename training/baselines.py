"""Baselines: logistic regression on the CLIP features that the head reads, and on those of the question alone.

Both are one linear layer on normalised features, fitted in a fixed number of mini-batch steps. scikit-learn's solver,
which uses all records in every step, takes hours for 5,860 answers.
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
from training.labels import IGNORED_TARGET, Targets
from training.model import PREDICTION_BATCH

QUESTION_ONLY, LOGISTIC = "question_only", "logistic_regression"
LABELS = {QUESTION_ONLY: "logistic regression, question alone", LOGISTIC: "logistic regression"}
C = 0.03  # as in scikit-learn: weight of the summed loss against half the squared weights
STEPS = 200
_BATCH = 512  # records
_LEARNING_RATE = 4e-3
_Z95 = 1.96  # standard errors

Features = Sequence[tuple[Tensor, Tensor]]  # texts and images of every CLIP, fp32 [N, D] each


class BaselinePredictions(NamedTuple):
    """Predictions of a baseline for N questions."""

    best: Tensor  # int64 [N], index of the most likely answer
    answerable: Tensor  # fp32 [N]


class Baseline(NamedTuple):
    """A linear layer on F features: a row for each of V answers, then one for answerability."""

    weight: Tensor  # fp32 [V + 1, F]
    bias: Tensor  # fp32 [V + 1]

    @torch.inference_mode()
    def predict(self, features: Tensor) -> BaselinePredictions:
        """Predict from normalised ``features`` fp32 [N, F]."""
        weight, bias = self.weight.to(features.device), self.bias.to(features.device)
        logits = [functional.linear(rows, weight, bias) for rows in features.split(PREDICTION_BATCH)]
        return BaselinePredictions(
            torch.cat([part[:, :-1].argmax(dim=1) for part in logits]),
            torch.cat([torch.sigmoid(part[:, -1]) for part in logits]),
        )


def normalised(features: Features, name: str) -> Tensor:
    """Input of the baseline ``name``, fp32 [N, F]: features of each CLIP with mean 0 and variance 1."""
    parts = [texts if name == QUESTION_ONLY else torch.cat([texts, images], dim=1) for texts, images in features]
    return torch.cat([functional.layer_norm(part, part.shape[1:]) for part in parts], dim=1)


def features_of(encoded: Sequence[SplitFeatures], device: torch.device) -> Features:
    """Encoded features of a split as tensors, of upright photos."""
    return [(torch.tensor(each.texts, device=device), torch.tensor(each.images, device=device)) for each in encoded]


def fit_baselines(features: Features, targets: Targets, answers: int) -> dict[str, Baseline]:
    """Fit both baselines to the training records.

    Args:
        features: of the training records.
        targets: of the training records.
        answers: length of the answer list, V.
    """
    return {name: fit_baseline(normalised(features, name), targets, answers) for name in LABELS}


def fit_baseline(features: Tensor, targets: Targets, answers: int, c: float = C) -> Baseline:
    """Maximise the likelihood of answers and answerability under an L2 penalty, by Adam with a cosine schedule.

    Args:
        features: normalised, fp32 [N, F].
        targets: of the same records.
        answers: length of the answer list, V.
        c: as in scikit-learn.
    """
    count, dim = features.shape
    answer = targets.answer
    weight = torch.zeros(answers + 1, dim, device=features.device, requires_grad=True)
    # Biases start at the base rates, which the few steps would not reach.
    frequency = torch.bincount(answer[answer != IGNORED_TARGET], minlength=answers) + 0.1
    answerable_rate = targets.answerable.mean().clamp(0.01, 0.99)
    bias = torch.cat([frequency.log(), torch.logit(answerable_rate)[None]]).requires_grad_()
    groups: list[dict[str, Any]] = [{"params": [weight], "weight_decay": 1 / (c * count)}, {"params": [bias]}]
    optimiser = torch.optim.Adam(groups, _LEARNING_RATE, fused=True)  # its decay is an L2 penalty
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
        known = (answer[batch] != IGNORED_TARGET).sum().clamp(min=1)
        summed = functional.cross_entropy(logits[:, :-1], answer[batch], reduction="sum", ignore_index=IGNORED_TARGET)
        loss = summed / known + functional.binary_cross_entropy_with_logits(logits[:, -1], targets.answerable[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return Baseline(weight.detach(), bias.detach())


def underfits(head: Tensor, logistic: Tensor) -> bool:
    """Whether the accuracies ``head`` [N] are significantly below those of logistic regression (95% interval)."""
    gap = logistic - head
    return len(gap) > 1 and bool(gap.mean() > _Z95 * gap.std() / len(gap) ** 0.5)


def save_baselines(baselines: dict[str, Baseline], path: Path) -> None:
    """Write the weights of the baselines."""
    tensors = {
        f"{name}.{key}": getattr(each, key).cpu() for name, each in baselines.items() for key in Baseline._fields
    }
    path.write_bytes(safetensors.torch.save(tensors))  # save_file ignores the umask


def load_baselines(path: Path) -> dict[str, Baseline]:
    """Read what :func:`save_baselines` wrote."""
    tensors = safetensors.torch.load_file(path)
    return {name: Baseline(*(tensors[f"{name}.{key}"] for key in Baseline._fields)) for name in LABELS}
