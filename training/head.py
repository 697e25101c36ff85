"""The gated linear head of "Less Is More: Linear Layers on CLIP Features as Powerful VizWiz Model" (arXiv 2206.05281).

The answerability branch is the 2023 report's, or one that reads the features themselves (docs/training.md).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.recipe import FEATURES, JOINED


class HeadLogits(NamedTuple):
    """What the head computes before any softmax or sigmoid; B = batch, V = answers, K = answer types."""

    answer: Tensor  # [B, V]
    answer_type: Tensor  # [B, K]
    answerable: Tensor  # [B]


class Dropout(nn.Dropout):
    """PyTorch's, with the mask drawn four times as fast on a CPU, where that was a tenth of a fit's time."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Drop a share of ``inputs`` and scale up the others, while training."""
        if not self.training or inputs.device.type != "cpu":
            return super().forward(inputs)
        kept = torch.rand(inputs.shape) >= self.p
        return inputs * (kept / (1 - self.p))


class GatedHead(nn.Module):
    """Maps a question's and a photo's CLIP features to an answer, an answer type and an answerability.

    The sigmoid gate is computed from the type logits alone: it learns which answers belong to a type and masks the
    others.
    """

    def __init__(
        self,
        features: int,
        answers: int,
        types: int,
        hidden: int = 512,
        dropout: float = 0.5,
        answerable_from: str = JOINED,
    ) -> None:
        """Build a head for ``features`` = D numbers of each encoder, ``answers`` = V and ``types`` = K classes.

        Args:
            answerable_from: ``joined`` or ``features``, as the recipe says.
        """
        super().__init__()
        self.answerable_from = answerable_from
        self.join = nn.Sequential(nn.LayerNorm(2 * features), Dropout(dropout), nn.Linear(2 * features, hidden))
        self.answer = nn.Sequential(nn.LayerNorm(hidden), Dropout(dropout), nn.Linear(hidden, answers))
        self.answer_type = nn.Linear(hidden, types)
        self.gate = nn.Linear(types, answers)
        self.answerable = nn.Linear(2 * features if answerable_from == FEATURES else hidden, 1)

    def forward(self, text_features: Tensor, image_features: Tensor) -> HeadLogits:
        """Compute the logits from ``text_features`` [B, D] and ``image_features`` [B, D]."""
        norm, dropout, join = self.join
        features = norm(torch.cat([text_features, image_features], dim=1))
        joined = join(dropout(features))
        answer_type = self.answer_type(joined)
        answer = self.answer(joined) * torch.sigmoid(self.gate(answer_type))
        answerable = self.answerable(features if self.answerable_from == FEATURES else joined)
        return HeadLogits(answer, answer_type, answerable.squeeze(1))
