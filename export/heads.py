"""The fitted heads as one ONNX graph: their probabilities averaged, answerability calibrated, the head's number beside.

It is written node by node: a head has a dozen, and tracing it through PyTorch took longer than all else that a new
head's export does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from export.graphs import BATCH, OPSET, save_graph
from training.head import GatedHead
from training.predictor import Predictor
from vizwiz_client.contract import tensors
from vizwiz_client.contract.tensors import TensorSpec, head_id

_IR_VERSION = 10  # read by ONNX Runtime 1.18 and later


def write_head(predictor: Predictor, digest: str, path: Path) -> None:
    """Write what a run predicts with, to be published under ``digest``, to ``path``.

    Features fp32 [B, D] of photos and questions in; answer [B, V], answer type [B, K], answerable [B, 1] and head id
    int64 [B, 1] out.
    """
    heads = [head for head in predictor.heads if isinstance(head, GatedHead)]
    graph = _Nodes()
    both = graph.add("Concat", tensors.TEXT_FEATURES.name, tensors.IMAGE_FEATURES.name, axis=1)
    answer, answer_type, answerable = zip(*(_head(graph, both, head) for head in heads), strict=True)
    graph.add("Mean", *answer, to=tensors.ANSWER.name)
    graph.add("Mean", *answer_type, to=tensors.ANSWER_TYPE.name)
    scale, offset = map(graph.constant, predictor.calibration.line)
    line = graph.add("Add", graph.add("Mul", _log_odds_of_mean(graph, answerable), scale), offset)
    graph.add("Sigmoid", line, to=tensors.ANSWERABLE.name)
    number, one = (graph.constant(torch.tensor(value)) for value in ([[head_id(digest)]], [1]))
    batch = graph.add("Shape", both, start=0, end=1)
    graph.add("Expand", number, graph.add("Concat", batch, one, axis=0), to=tensors.HEAD_ID.name)
    (answers, types), width = heads[0].gate.weight.shape, len(heads[0].get_parameter("join.0.weight")) // 2
    inputs = [_value(spec, width) for spec in (tensors.IMAGE_FEATURES, tensors.TEXT_FEATURES)]
    outputs = [_value(*each) for each in zip(tensors.HEAD_OUTPUTS, (answers, types, 1, 1), strict=True)]
    whole = helper.make_graph(graph.nodes, "gated_head", inputs, outputs, graph.weights)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    save_graph(model, path)


def _head(graph: _Nodes, both: str, head: GatedHead) -> tuple[str, str, str]:
    """:class:`GatedHead` behind ``both`` features; returns two probabilities, and the log-odds of answerable."""
    joined = graph.linear(graph.norm(both, head.join[0]), head.join[2])
    answer_type = graph.linear(joined, head.answer_type)
    gate = graph.add("Sigmoid", graph.linear(answer_type, head.gate))
    answer = graph.add("Mul", graph.linear(graph.norm(joined, head.answer[0]), head.answer[2]), gate)
    return (
        graph.add("Softmax", answer, axis=1),
        graph.add("Softmax", answer_type, axis=1),
        graph.linear(joined, head.answerable),
    )


def _log_odds_of_mean(graph: _Nodes, odds: Sequence[str]) -> str:
    """The log-odds of the mean of the probabilities that have the log-odds ``odds``.

    By logarithms of the probabilities, -softplus(-x), and of their complements: ONNX Runtime's sigmoid is exact to
    1e-7, which is not enough where a probability is smaller. For one head it is ``odds`` itself.
    """
    if len(odds) == 1:
        return odds[0]
    columns = graph.add("Concat", *odds, axis=1)  # [B, F]
    fold_axis = graph.constant(torch.tensor([1]))
    found, not_found = (
        graph.add("ReduceLogSumExp", graph.add("Neg", graph.add("Softplus", x)), fold_axis, keepdims=1)
        for x in (graph.add("Neg", columns), columns)
    )
    return graph.add("Sub", found, not_found)


class _Nodes:
    """A graph in the making; what is added is named by its number."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        """Add a node, and return the name of its output."""
        output = to or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, value: torch.Tensor) -> str:
        """Add a weight, and return its name."""
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value.detach().numpy(), name))
        return name

    def linear(self, x: str, layer: nn.Module) -> str:
        assert isinstance(layer, nn.Linear)
        return self.add("Gemm", x, self.constant(layer.weight), self.constant(layer.bias), transB=1)

    def norm(self, x: str, layer: nn.Module) -> str:
        assert isinstance(layer, nn.LayerNorm)
        scale, shift = self.constant(layer.weight), self.constant(layer.bias)
        return self.add("LayerNormalization", x, scale, shift, axis=-1, epsilon=layer.eps)


def _value(spec: TensorSpec, size: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(spec.dtype), [BATCH, size])
