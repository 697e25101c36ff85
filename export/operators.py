"""The operators that the two variants of a graph write differently: standard ONNX, or ONNX Runtime's fused ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from export.graphs import MICROSOFT, GraphBuilder

MASKED = -1e4  # added to a score: e^-10000 is 0 at every precision, and fp16 holds the number


class Operators:
    """Standard ONNX operators, which every runtime can take: the variant ``portable``."""

    def __init__(self, graph: GraphBuilder) -> None:
        """Write into ``graph``."""
        self.graph = graph
        self._masks: dict[str, str] = {}  # by length: all layers share one

    def attention(
        self, query: str, key: str, value: str, heads: int, width: int, *, causal: str = "", bias: str = ""
    ) -> str:
        """Multi-head attention on projected ``query`` [B, Q, W], ``key`` and ``value`` [B, T, W]; returns [B, Q, W].

        Args:
            width: W, a multiple of ``heads``.
            causal: T, int64 [], if a position sees none behind it; then Q = T.
            bias: added to the scores, fp32 [B, 1, 1, T].
        """
        graph, size = self.graph, width // heads
        split = graph.constant([0, 0, heads, size])  # 0 keeps an axis
        query, key, value = (graph.add("Reshape", x, split) for x in (query, key, value))
        query = graph.add("Mul", graph.add("Transpose", query, perm=[0, 2, 1, 3]), graph.number(size**-0.5))
        products = graph.add("MatMul", query, graph.add("Transpose", key, perm=[0, 2, 3, 1]))
        scores = graph.wide(products)  # [B, H, Q, T]
        for added in (self._mask(causal) if causal else "", bias):
            scores = graph.add("Add", scores, added) if added else scores
        shares = graph.narrow(graph.add("Softmax", scores, axis=-1))
        mixed = graph.add("MatMul", shares, graph.add("Transpose", value, perm=[0, 2, 1, 3]))
        joined = graph.constant([0, 0, width])
        return graph.add("Reshape", graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), joined)

    def add_norm(self, x: str, update: str, norm: nn.LayerNorm) -> tuple[str, str]:
        """The LayerNorm of ``x + update``, and that sum; all [B, T, W]."""
        total = self.graph.add("Add", x, update)
        return self.graph.norm(total, norm), total

    def quick_gelu(self, x: str) -> str:
        """CLIP's activation, ``QuickGELU``."""
        scaled = self.graph.add("Mul", x, self.graph.number(1.702))
        return self.graph.add("Mul", x, self.graph.add("Sigmoid", scaled))

    def _mask(self, length: str) -> str:
        """What hides later positions: fp32 [T, T]."""
        if length not in self._masks:
            graph = self.graph
            position = graph.add("Range", graph.constant(0), length, graph.constant(1))
            self._masks[length] = hide_behind(graph, length, position)
        return self._masks[length]


class FusedOperators(Operators):
    """ONNX Runtime's operators, one kernel for what takes several otherwise: the variant ``fused``."""

    def attention(
        self, query: str, key: str, value: str, heads: int, width: int, *, causal: str = "", bias: str = ""
    ) -> str:
        more = ["", "", self.graph.narrow(bias)] if bias else []
        inputs, later = [query, key, value, *more], int(bool(causal))
        return self.graph.add("MultiHeadAttention", *inputs, domain=MICROSOFT, num_heads=heads, unidirectional=later)

    def add_norm(self, x: str, update: str, norm: nn.LayerNorm) -> tuple[str, str]:
        # ONNX Runtime's CUDA kernel adds up in the type of its input, unless the server chose its strict mode
        if self.graph.dtype != torch.float32:
            return super().add_norm(x, update, norm)
        normed, total = self.graph.new_name("norm"), self.graph.new_name("sum")
        inputs = [x, update, *map(self.graph.weight, (norm.weight, norm.bias))]
        outputs = [normed, "", "", total]
        self.graph.add_node("SkipLayerNormalization", inputs, outputs, domain=MICROSOFT, epsilon=norm.eps)
        return normed, total

    def quick_gelu(self, x: str) -> str:
        return self.graph.add("QuickGelu", x, domain=MICROSOFT, alpha=1.702)


def hide_behind(graph: GraphBuilder, length: str, position: str) -> str:
    """What is added to scores so that nobody sees behind ``position`` int64 [N], of ``length`` = T: fp32 [N, T]."""
    places = graph.add("Range", graph.constant(0), length, graph.constant(1))
    behind = graph.add("Greater", places, graph.add("Unsqueeze", position, graph.constant([1])))
    return graph.add("Where", behind, graph.constant(MASKED, np.float32), graph.constant(0, np.float32))
