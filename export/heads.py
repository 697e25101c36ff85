"""The fitted heads as they are served: all folds in one graph, their probabilities averaged, answerability calibrated.

The folds' matrices are stacked, so that ten heads are as few operators as one; every head's LayerNorm normalises alike,
and its own scale and shift are multiplied into the matrix behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.head import GatedHead
from training.predictor import Calibration, Predictor
from vizwiz_client.contract.tensors import head_id


class ServedHead(nn.Module):
    """What a run predicts with, its heads stacked, and its number among the outputs; F = heads, H = hidden width."""

    def __init__(self, predictor: Predictor, digest: str) -> None:
        """Take over the weights of ``predictor``, which is published under ``digest``."""
        super().__init__()
        self.number: Tensor
        heads = [head for head in predictor.heads if isinstance(head, GatedHead)]
        joins = [_absorb(head.join[0], head.join[2]) for head in heads]
        self.join_weight = _constant(torch.cat([weight for weight, _ in joins]).T)  # [2D, F * H]: one plain product
        self.join_bias = _constant(torch.cat([bias for _, bias in joins]))
        self.shape = (len(heads), len(joins[0][1]))  # F, H
        self.answer = _Stacked([_absorb(head.answer[0], head.answer[2]) for head in heads])
        self.answer_type = _Stacked([_plain(head.answer_type) for head in heads])
        self.gate = _Stacked([_plain(head.gate) for head in heads])
        self.answerable = _Stacked([_plain(head.answerable) for head in heads])
        self.calibration: Calibration = predictor.calibration
        self.register_buffer("number", torch.tensor([[head_id(digest)]]))

    def forward(self, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return answer [B, V], answer type [B, K], answerable [B, 1] and head id int64 [B, 1]."""
        both = _normalise(torch.cat([text_features, image_features], dim=1))
        joined = (both @ self.join_weight + self.join_bias).unflatten(1, self.shape).transpose(0, 1)
        answer_type = self.answer_type(joined)  # [F, B, K]
        answer = self.answer(_normalise(joined)) * torch.sigmoid(self.gate(answer_type))  # [F, B, V]
        answerable = self.answerable(joined)  # [F, B, 1]
        return (
            functional.softmax(answer, dim=2).mean(dim=0),
            functional.softmax(answer_type, dim=2).mean(dim=0),
            self.calibration(torch.sigmoid(answerable).mean(dim=0), torch.sigmoid(-answerable).mean(dim=0)),
            self.number.expand(image_features.shape[0], 1),
        )


class _Stacked(nn.Module):
    """One linear layer per head, as one batched product [F, B, in] -> [F, B, out]."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.weight = _constant(torch.stack([weight.T for weight, _ in layers]))  # [F, in, out]
        self.bias = _constant(torch.stack([bias for _, bias in layers])[:, None])  # [F, 1, out]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def _absorb(norm: nn.Module, linear: nn.Module) -> tuple[Tensor, Tensor]:
    """The weight and bias that do on normalised input what ``linear`` does behind ``norm``'s scale and shift, fp64."""
    weight, bias = _plain(linear)
    scale, shift = _plain(norm)
    return weight * scale, bias + weight @ shift


def _plain(layer: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(layer, nn.Linear | nn.LayerNorm)
    return layer.weight.detach().double(), layer.bias.detach().double()


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.float().contiguous(), requires_grad=False)


def _normalise(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:])
