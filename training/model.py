"""The gated linear head of "Less Is More: Linear Layers on CLIP Features as Powerful VizWiz Model" (arXiv 2206.05281).

The answerability branch is the 2023 report's, or one that reads the features directly (docs/training.md). A run has
one head per fold, for each CLIP. It averages their probabilities, never their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.recipe import FEATURES, HIDDEN

PREDICTION_BATCH = 1024  # records: probabilities of 5,860 answers are 24 MB


class HeadLogits(NamedTuple):
    """Outputs of a head before softmax and sigmoid; B = batch, V = answers, K = answer types."""

    answer: Tensor  # [B, V]
    answer_type: Tensor  # [B, K]
    answerable: Tensor  # [B]


class Probabilities(NamedTuple):
    """Predictions for B questions; V = answers, K = answer types, Q = quality issues."""

    answer: Tensor  # fp32 [B, V], rows sum to 1
    answer_type: Tensor  # fp32 [B, K], rows sum to 1
    answerable: Tensor  # fp32 [B], calibrated: decline below 0.5
    quality: Tensor | None  # fp32 [B, Q], one probability for each issue; None without quality heads


class Predictions(NamedTuple):
    """Predictions for N questions, on the CPU; K = answer types, Q = quality issues."""

    best: Tensor  # int64 [N], index of the most probable answer
    confidence: Tensor  # fp32 [N], probability of that answer
    answer_type: Tensor  # fp32 [N, K]
    answerable: Tensor  # fp32 [N]
    quality: Tensor | None  # fp32 [N, Q]


class GatedHead(nn.Module):
    """Map CLIP features of a question and a photo to logits of answer, answer type and answerability.

    The sigmoid gate is computed from the type logits only: it learns which answers belong to a type and masks the
    others.
    """

    def __init__(
        self,
        embed_dim: int,
        answers: int,
        types: int,
        hidden: int = 512,
        dropout: float = 0.5,
        answerable_from: str = HIDDEN,
        quality: QualityHead | None = None,
    ) -> None:
        """Build a head.

        Args:
            embed_dim: features of each encoder, D.
            answers: length of the answer list, V.
            types: number of answer types, K.
            hidden: size of the projection.
            dropout: probability of dropping an input of either linear layer.
            answerable_from: what answerability reads, ``hidden`` or ``features``.
            quality: a fitted head whose log-odds answerability reads too; it becomes part of this head, fixed.
        """
        super().__init__()
        self.answerable_from = answerable_from
        self.projection = nn.Sequential(
            nn.LayerNorm(2 * embed_dim), nn.Dropout(dropout), nn.Linear(2 * embed_dim, hidden)
        )
        self.answer = nn.Sequential(nn.LayerNorm(hidden), nn.Dropout(dropout), nn.Linear(hidden, answers))
        self.answer_type = nn.Linear(hidden, types)
        self.gate = nn.Linear(types, answers)
        self.answerable = nn.Linear(2 * embed_dim if answerable_from == FEATURES else hidden, 1)
        self.quality = quality
        if quality is not None:
            quality.requires_grad_(False)
            # The log-odds' weights start at 0 and take no random numbers: the rest starts as in a head without them.
            weight = functional.pad(self.answerable.weight.detach(), (0, quality.linear.out_features))
            self.answerable.weight = nn.Parameter(weight)

    def forward(self, text_features: Tensor, image_features: Tensor) -> HeadLogits:
        """Logits from ``text_features`` [B, D] and ``image_features`` [B, D]."""
        norm, dropout, linear = self.projection
        features = norm(torch.cat([text_features, image_features], dim=1))
        hidden = linear(dropout(features))
        answer_type = self.answer_type(hidden)
        answer = self.answer(hidden) * torch.sigmoid(self.gate(answer_type))
        inputs = features if self.answerable_from == FEATURES else hidden
        if self.quality is not None:
            inputs = torch.cat([inputs, self.quality(image_features)], dim=1)
        return HeadLogits(answer, answer_type, self.answerable(inputs).squeeze(1))


class QualityHead(nn.Module):
    """Map CLIP features of a photo to logits of its quality issues; shares no weights with :class:`GatedHead`."""

    def __init__(self, embed_dim: int, issues: int) -> None:
        """Build a head for ``issues`` = Q quality issues on ``embed_dim`` = D features."""
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.linear = nn.Linear(embed_dim, issues)

    def forward(self, image_features: Tensor) -> Tensor:
        """Logits [B, Q] from ``image_features`` [B, D]."""
        logits: Tensor = self.linear(self.norm(image_features))
        return logits


class Predictor(nn.Module):
    """The heads that were fitted on one CLIP: one, or one per fold."""

    def __init__(self, heads: Sequence[GatedHead], quality: Sequence[QualityHead] = ()) -> None:
        """Average ``heads``, which have the same D, V and K, and ``quality`` heads, which have the same D and Q."""
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.quality = nn.ModuleList(quality)

    def forward(self, text_features: Tensor, image_features: Tensor) -> Probabilities:
        """Mean probabilities from ``text_features`` [B, D] and ``image_features`` [B, D]."""
        logits = [head(text_features, image_features) for head in self.heads]
        return Probabilities(
            _mean([functional.softmax(each.answer, dim=1) for each in logits]),
            _mean([functional.softmax(each.answer_type, dim=1) for each in logits]),
            _mean([torch.sigmoid(each.answerable) for each in logits]),
            _mean([torch.sigmoid(head(image_features)) for head in self.quality]) if self.quality else None,
        )


class ClipEnsemble(nn.Module):
    """One predictor per CLIP, averaged."""

    def __init__(self, members: Sequence[Predictor]) -> None:
        """Average ``members``, each of which takes the features of its own CLIP."""
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, features: Sequence[tuple[Tensor, Tensor]]) -> Probabilities:
        """Mean probabilities from text and image features, [B, D] each, of every member; D may differ."""
        predictions = [member(*pair) for member, pair in zip(self.members, features, strict=True)]
        answer, answer_type, answerable, quality = zip(*predictions, strict=True)
        known = [each for each in quality if each is not None]
        return Probabilities(_mean(answer), _mean(answer_type), _mean(answerable), _mean(known) if known else None)


@torch.inference_mode()
def predict(ensemble: ClipEnsemble, features: Sequence[tuple[Tensor, Tensor]]) -> Predictions:
    """Predict N questions in batches.

    Args:
        ensemble: the fitted heads.
        features: text and image features, fp32 [N, D] each, of each of the ensemble's CLIPs.
    """
    parts: list[Predictions] = []
    for start in range(0, len(features[0][0]), PREDICTION_BATCH):
        rows = slice(start, start + PREDICTION_BATCH)
        answer, answer_type, answerable, quality = ensemble([(texts[rows], images[rows]) for texts, images in features])
        confidence, best = answer.max(dim=1)
        parts.append(Predictions(best, confidence, answer_type, answerable, quality))
    known = [part.quality for part in parts if part.quality is not None]
    return Predictions(
        torch.cat([part.best for part in parts]).cpu(),
        torch.cat([part.confidence for part in parts]).cpu(),
        torch.cat([part.answer_type for part in parts]).cpu(),
        torch.cat([part.answerable for part in parts]).cpu(),
        torch.cat(known).cpu() if known else None,
    )


def _mean(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]  # summed one by one: stacking ten [B, V] would need ten times the memory
    for part in parts[1:]:
        total = total + part
    return total / len(parts)
