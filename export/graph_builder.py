"""Builds ONNX graphs node by node, and the operators that differ between portable and fused graphs.

Values are strings: the names of node outputs. B = batch, T = positions, W = embedding width, H = attention heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from vizwiz_client.contract.tensors import TensorSpec

OPSET = 20  # ai.onnx; ONNX Runtime reads it from 1.17 on
MICROSOFT = "com.microsoft"  # https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
_IR_VERSION = 9  # the IR version that belongs to opset 20
_OPSETS = {"": OPSET, MICROSOFT: 1}
_DATA_TYPES = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}
MAX_FILE_BYTES = 1_900_000_000  # of weights in one file: protobuf's limit is 2 GiB
_MASKED = -1e4  # added to masked scores: exp(-10000) is 0 at every precision, and fp16 holds the number


class GraphError(Exception):
    """A graph has operators that its variant does not allow."""


class GraphBuilder:
    """An ONNX graph under construction.

    Args:
        dtype: compute dtype, fp32 or fp16. :meth:`to_fp32` and :meth:`to_compute_dtype` convert between the two.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        """Start an empty graph."""
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self._weights: list[tuple[Tensor, torch.dtype]] = []
        self._constants: dict[tuple[Any, ...], onnx.TensorProto] = {}

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with one output and return the output's name; ``""`` omits an optional input."""
        output = name or self.new_name(operator)
        self.add_node(operator, inputs, [output], **attributes)
        return output

    def add_node(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Add a node with the given ``outputs``."""
        self.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))

    def new_name(self, operator: str) -> str:
        """Return an unused name for an output of the next node."""
        return f"{operator.lower()}_{len(self.nodes)}"

    def rename_output(self, value: str, name: str) -> None:
        """Rename ``value``, which no node reads. OpenVINO would drop an Identity together with its name."""
        next(node for node in reversed(self.nodes) if node.output[0] == value).output[0] = name

    def weight(self, tensor: Tensor, dtype: torch.dtype | None = None) -> str:
        """Add a weight; :meth:`save` casts it to ``dtype`` (default: the compute dtype)."""
        self._weights.append((tensor, dtype or self.dtype))
        return f"weight_{len(self._weights) - 1}"

    def constant(self, value: Any, dtype: npt.DTypeLike = np.int64) -> str:
        """Add a small constant; equal constants are shared."""
        array = np.array(value, dtype)
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(array, f"constant_{len(self._constants)}")
        return self._constants[key].name

    def scalar(self, value: float) -> str:
        """Add a scalar constant of the compute dtype."""
        return self.constant(value, helper.tensor_dtype_to_np_dtype(_DATA_TYPES[self.dtype]))

    def to_fp32(self, x: str) -> str:
        """Cast ``x`` from the compute dtype to fp32."""
        return x if self.dtype == torch.float32 else self.add("Cast", x, to=TensorProto.FLOAT)

    def to_compute_dtype(self, x: str) -> str:
        """Cast ``x`` from fp32 to the compute dtype."""
        return x if self.dtype == torch.float32 else self.add("Cast", x, to=_DATA_TYPES[self.dtype])

    def matmul(self, x: str, matrix: Tensor) -> str:
        """Multiply ``x`` [..., in] by ``matrix`` [in, out]."""
        return self.add("MatMul", x, self.weight(matrix))

    def affine(self, x: str, weight: Tensor, bias: Tensor) -> str:
        """``torch.nn.functional.linear`` of ``x`` [..., in], ``weight`` [out, in] and ``bias`` [out]."""
        return self.add("Add", self.matmul(x, weight.T), self.weight(bias))

    def linear(self, x: str, layer: nn.Module) -> str:
        """Apply ``layer``, an ``nn.Linear`` with a bias, to ``x`` [..., in]."""
        assert isinstance(layer, nn.Linear)
        return self.affine(x, layer.weight, layer.bias)

    def layer_norm(self, x: str, layer: nn.Module) -> str:
        """Apply ``layer``, an ``nn.LayerNorm``, in fp32: the squares of CLIP's residuals overflow fp16."""
        assert isinstance(layer, nn.LayerNorm)
        scale, shift = (self.weight(each, torch.float32) for each in (layer.weight, layer.bias))
        normed = self.add("LayerNormalization", self.to_fp32(x), scale, shift, axis=-1, epsilon=layer.eps)
        return self.to_compute_dtype(normed)

    def save(self, path: Path, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> None:
        """Write the graph to ``path``."""
        graph = helper.make_graph(self.nodes, "graph", inputs, outputs, list(self._constants.values()))
        domains = dict.fromkeys(["", *(node.domain for node in self.nodes)])
        opsets = [helper.make_opsetid(domain, _OPSETS[domain]) for domain in domains]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        for number, (tensor, dtype) in enumerate(self._weights):  # after make_model, which copies the graph
            array = tensor.detach().to(dtype).contiguous().numpy()
            model.graph.initializer.append(numpy_helper.from_array(array, f"weight_{number}"))
        save_model(model, path)


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write ``model`` to ``path``; weights above protobuf's limit go to ``<name>.data`` beside it."""
    weight_bytes = sum(len(weight.raw_data) for weight in model.graph.initializer)
    external = weight_bytes > MAX_FILE_BYTES
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)  # onnx would append to it
    onnx.save_model(model, path, save_as_external_data=external, location=data.name)


def tensor_value(spec: TensorSpec, *shape: int | str) -> onnx.ValueInfoProto:
    """Graph input or output for ``spec``, with a free batch axis before ``shape``."""
    return helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(spec.dtype), ["batch", *shape])


def causal_mask(graph: GraphBuilder, length: str, position: str) -> str:
    """Additive causal mask fp32 [N, T] for queries at ``position`` int64 [N] over ``length`` = T keys."""
    keys = graph.add("Range", graph.constant(0), length, graph.constant(1))
    later = graph.add("Greater", keys, graph.add("Unsqueeze", position, graph.constant([1])))
    return graph.add("Where", later, graph.constant(_MASKED, np.float32), graph.constant(0, np.float32))


class PortableOperators:
    """Attention, residual LayerNorm and activations in standard ONNX operators."""

    def __init__(self, graph: GraphBuilder) -> None:
        """Write nodes into ``graph``."""
        self.graph = graph
        self._masks: dict[str, str] = {}  # causal mask by length: all layers share one

    def attention(
        self, query: str, key: str, value: str, num_heads: int, width: int, *, causal: str = "", bias: str = ""
    ) -> str:
        """Multi-head attention, before the output projection.

        Args:
            query: projected queries [B, Q, W].
            key: projected keys [B, T, W].
            value: projected values [B, T, W].
            num_heads: H.
            width: W, a multiple of H.
            causal: T, int64 [], to apply a causal mask; then Q = T.
            bias: additive mask, fp32 [B, 1, 1, T].

        Returns:
            [B, Q, W].
        """
        graph, head_dim = self.graph, width // num_heads
        split = graph.constant([0, 0, num_heads, head_dim])  # 0 keeps an axis
        query, key, value = (graph.add("Reshape", x, split) for x in (query, key, value))
        query = graph.add("Mul", graph.add("Transpose", query, perm=[0, 2, 1, 3]), graph.scalar(head_dim**-0.5))
        products = graph.add("MatMul", query, graph.add("Transpose", key, perm=[0, 2, 3, 1]))
        scores = graph.to_fp32(products)  # [B, H, Q, T]
        for mask in (self._causal_mask(causal) if causal else "", bias):
            scores = graph.add("Add", scores, mask) if mask else scores
        weights = graph.to_compute_dtype(graph.add("Softmax", scores, axis=-1))
        mixed = graph.add("MatMul", weights, graph.add("Transpose", value, perm=[0, 2, 1, 3]))
        merged = graph.constant([0, 0, width])
        return graph.add("Reshape", graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), merged)

    def add_norm(self, x: str, update: str, norm: nn.LayerNorm) -> tuple[str, str]:
        """Return the LayerNorm of ``x + update``, and the sum; all [B, T, W]."""
        total = self.graph.add("Add", x, update)
        return self.graph.layer_norm(total, norm), total

    def activation(self, x: str, layer: nn.Module) -> str:
        """Apply ``layer``, an exact ``nn.GELU``, or OpenAI's or open_clip's ``QuickGELU``."""
        if isinstance(layer, nn.GELU):
            assert layer.approximate == "none"
            return self.graph.add("Gelu", x)
        assert type(layer).__name__ == "QuickGELU"
        return self.quick_gelu(x)

    def quick_gelu(self, x: str) -> str:
        """``x * sigmoid(1.702 * x)``."""
        scaled = self.graph.add("Mul", x, self.graph.scalar(1.702))
        return self.graph.add("Mul", x, self.graph.add("Sigmoid", scaled))

    def _causal_mask(self, length: str) -> str:
        """Causal mask fp32 [T, T]."""
        if length not in self._masks:
            graph = self.graph
            position = graph.add("Range", graph.constant(0), length, graph.constant(1))
            self._masks[length] = causal_mask(graph, length, position)
        return self._masks[length]


class FusedOperators(PortableOperators):
    """The same in ONNX Runtime's fused operators, one kernel each."""

    def attention(
        self, query: str, key: str, value: str, num_heads: int, width: int, *, causal: str = "", bias: str = ""
    ) -> str:
        masks = ["", "", self.graph.to_compute_dtype(bias)] if bias else []
        return self.graph.add(
            "MultiHeadAttention",
            query,
            key,
            value,
            *masks,
            domain=MICROSOFT,
            num_heads=num_heads,
            unidirectional=int(bool(causal)),
        )

    def add_norm(self, x: str, update: str, norm: nn.LayerNorm) -> tuple[str, str]:
        # ONNX Runtime's CUDA kernel accumulates in the input's dtype, unless the server sets its strict mode
        if self.graph.dtype != torch.float32:
            return super().add_norm(x, update, norm)
        normed, total = self.graph.new_name("norm"), self.graph.new_name("sum")
        inputs = [x, update, *map(self.graph.weight, (norm.weight, norm.bias))]
        outputs = [normed, "", "", total]
        self.graph.add_node("SkipLayerNormalization", inputs, outputs, domain=MICROSOFT, epsilon=norm.eps)
        return normed, total

    def quick_gelu(self, x: str) -> str:
        return self.graph.add("QuickGelu", x, domain=MICROSOFT, alpha=1.702)
