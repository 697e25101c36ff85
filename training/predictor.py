"""What a run predicts with: one head or several, their probabilities averaged, the answerability calibrated.

A fit of ten folds leaves ten heads, a fit on two CLIPs leaves heads for each; averaging their probabilities (never
their weights) is what the papers report. Calibration is part of the prediction, so that 0.5 is always the line between
answering and declining.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.head import GatedHead

_SMALLEST = 1e-30  # keeps the log-odds of a certain prediction finite, in fp32


class Probabilities(NamedTuple):
    """What is predicted about B questions; V = answers, K = answer types."""

    answer: Tensor  # fp32 [B, V], rows sum to 1
    answer_type: Tensor  # fp32 [B, K], rows sum to 1
    answerable: Tensor  # fp32 [B], calibrated: decline under 0.5


class Calibration(nn.Module):
    """Platt's scaling (1999) of a probability's log-odds: ``sigmoid(scale * log(p / (1 - p)) + offset)``.

    An offset of 0 makes it temperature scaling (Guo et al., ICML 2017); the scale is positive, so that no ranking
    changes.
    """

    def __init__(self, scale: float = 1.0, offset: float = 0.0) -> None:
        """Build a calibration; the default changes nothing."""
        super().__init__()
        self.line: Tensor
        self.register_buffer("line", torch.tensor([scale, offset]))  # fp32 [2]

    def forward(self, probability: Tensor, complement: Tensor) -> Tensor:
        """Calibrate probabilities of any shape, given with ``1 - probability``."""
        return torch.sigmoid(self.line[0] * log_odds(probability, complement) + self.line[1])


def log_odds(probability: Tensor, complement: Tensor) -> Tensor:
    """``log(p / (1 - p))``, finite also for 0 and 1.

    Args:
        complement: ``1 - p``. Near 1, fp32 holds it far better than the difference does.
    """
    return torch.log(probability.clamp(min=_SMALLEST)) - torch.log(complement.clamp(min=_SMALLEST))


class Predictor(nn.Module):
    """The heads that were fitted on one CLIP: one, or one per fold."""

    def __init__(self, heads: Sequence[GatedHead], calibration: Calibration | None = None) -> None:
        """Average ``heads``, which all have the same D, V and K."""
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.calibration = calibration or Calibration()

    def forward(self, text_features: Tensor, image_features: Tensor) -> Probabilities:
        """Predict from ``text_features`` [B, D] and ``image_features`` [B, D]."""
        logits = [head(text_features, image_features) for head in self.heads]
        return Probabilities(
            _mean([functional.softmax(each.answer, dim=1) for each in logits]),
            _mean([functional.softmax(each.answer_type, dim=1) for each in logits]),
            self.calibration(
                _mean([torch.sigmoid(each.answerable) for each in logits]),
                _mean([torch.sigmoid(-each.answerable) for each in logits]),
            ),
        )


class ClipEnsemble(nn.Module):
    """One predictor per CLIP; with one CLIP it predicts what its only member does."""

    def __init__(self, members: Sequence[Predictor], calibration: Calibration | None = None) -> None:
        """Average ``members``, each of which takes the features of its own CLIP."""
        super().__init__()
        self.members = nn.ModuleList(members)
        self.calibration = calibration or Calibration()

    def forward(self, features: Sequence[tuple[Tensor, Tensor]]) -> Probabilities:
        """Predict from one pair of text and image features, [B, D] each, per member; D may differ between them."""
        if len(self.members) == 1:
            return self.members[0](*features[0])
        predictions = [member(*pair) for member, pair in zip(self.members, features, strict=True)]
        answer, answer_type, answerable = (_mean(list(column)) for column in zip(*predictions, strict=True))
        return Probabilities(answer, answer_type, self.calibration(answerable, 1 - answerable))


def _mean(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]  # summed one by one: ten stacked copies of [B, V] would be ten times the memory
    for part in parts[1:]:
        total = total + part
    return total / len(parts)
