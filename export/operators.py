"""The operators that the two variants of a graph write differently: standard ONNX, or ONNX Runtime's fused ones.

In PyTorch both compute the same, by the same code; they differ while a module is exported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.onnx import ops as onnx_ops

MASKED = -1e4  # added to a score: e^-10000 is 0 at every precision, and fp16 holds the number

_MICROSOFT = "com.microsoft::"  # https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md


class Operators:
    """Standard ONNX operators, which every runtime can take: the variant ``portable``."""

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        heads: int,
        *,
        causal: bool = False,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Multi-head attention on projected ``query`` [B, Q, W], ``key`` and ``value`` [B, T, W]; returns [B, Q, W].

        Args:
            causal: a position sees none behind it; Q = T.
            bias: added to the scores, fp32 [B, 1, 1, T].
        """
        query, key, value = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value))
        scores = ((query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)).to(torch.float32)  # [B, H, Q, T]
        if causal:
            position = torch.arange(scores.shape[3], device=scores.device)
            scores = scores + torch.where(position > position[:, None], MASKED, 0.0)
        if bias is not None:
            scores = scores + bias
        return (torch.softmax(scores, dim=-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)

    def norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """LayerNorm of ``x`` [..., W] in fp32: the squares of CLIP's residuals overflow fp16."""
        wide = functional.layer_norm(x.to(torch.float32), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return wide.to(x.dtype)

    def add_norm(self, x: Tensor, update: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """The LayerNorm of ``x + update``, and that sum; all [B, T, W]."""
        total = x + update
        return self.norm(total, norm), total

    def quick_gelu(self, x: Tensor) -> Tensor:
        """CLIP's activation, ``QuickGELU``."""
        return x * torch.sigmoid(1.702 * x)


class FusedOperators(Operators):
    """ONNX Runtime's operators, one kernel for what takes several otherwise: the variant ``fused``."""

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        heads: int,
        *,
        causal: bool = False,
        bias: Tensor | None = None,
    ) -> Tensor:
        if not torch.compiler.is_exporting():
            return super().attention(query, key, value, heads, causal=causal, bias=bias)
        inputs: list[Tensor | None] = [query, key, value]
        if bias is not None:
            inputs += [None, None, bias.to(query.dtype)]
        attributes = {"num_heads": heads, "unidirectional": int(causal)}
        return _one("MultiHeadAttention", inputs, attributes, query)

    def add_norm(self, x: Tensor, update: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        # ONNX Runtime's CUDA kernel adds up in the type of its input, unless the server chose its strict mode
        if x.dtype != torch.float32 or not torch.compiler.is_exporting():
            return super().add_norm(x, update, norm)
        statistics = [*x.shape[:-1], 1]
        normed, _, _, total = onnx_ops.symbolic_multi_out(
            _MICROSOFT + "SkipLayerNormalization",
            [x, update, norm.weight, norm.bias],
            {"epsilon": norm.eps},
            dtypes=[x.dtype, torch.float32, torch.float32, x.dtype],
            shapes=[x.shape, statistics, statistics, x.shape],
            version=1,
        )
        return normed, total

    def quick_gelu(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            return super().quick_gelu(x)
        return _one("QuickGelu", [x], {"alpha": 1.702}, x)


def _one(name: str, inputs: list[Tensor | None], attributes: dict[str, Any], like: Tensor) -> Tensor:
    """One of ONNX Runtime's operators, whose output has the type and shape of ``like``."""
    return onnx_ops.symbolic(_MICROSOFT + name, inputs, attributes, dtype=like.dtype, shape=like.shape, version=1)
