"""The fitted heads as one ONNX graph: their probabilities averaged, answerability calibrated, the head's number beside.

It mirrors :class:`training.predictor.Predictor`, but for answerability, which is more exact where it is certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.graphs import GraphBuilder, tensor_value
from training.head import GatedHead
from training.predictor import Predictor
from training.recipe import FEATURES
from vizwiz_client.contract import tensors
from vizwiz_client.contract.tensors import head_id


def write_head(predictor: Predictor, digest: str, path: Path) -> None:
    """Write what a run predicts with, to be published under ``digest``, to ``path``.

    Features fp32 [B, D] of photos and questions in; answer [B, V], answer type [B, K], answerable [B, 1] and head id
    int64 [B, 1] out.
    """
    heads = [head for head in predictor.heads if isinstance(head, GatedHead)]
    graph = GraphBuilder()
    both = graph.add("Concat", tensors.TEXT_FEATURES.name, tensors.IMAGE_FEATURES.name, axis=1)
    answer, answer_type, answerable = zip(*(_head(graph, both, head) for head in heads), strict=True)
    graph.add("Mean", *answer, name=tensors.ANSWER.name)
    graph.add("Mean", *answer_type, name=tensors.ANSWER_TYPE.name)
    scale, offset = map(graph.number, predictor.calibration.line.tolist())
    line = graph.add("Add", graph.add("Mul", _log_odds_of_mean(graph, answerable), scale), offset)
    graph.add("Sigmoid", line, name=tensors.ANSWERABLE.name)
    shape = graph.add("Concat", graph.add("Shape", both, start=0, end=1), graph.constant([1]), axis=0)
    graph.add("Expand", graph.constant([[head_id(digest)]]), shape, name=tensors.HEAD_ID.name)
    (answers, types), width = heads[0].gate.weight.shape, len(heads[0].get_parameter("join.0.weight")) // 2
    inputs = [tensor_value(spec, width) for spec in (tensors.IMAGE_FEATURES, tensors.TEXT_FEATURES)]
    outputs = [tensor_value(*each) for each in zip(tensors.HEAD_OUTPUTS, (answers, types, 1, 1), strict=True)]
    graph.save(path, inputs, outputs)


def _head(graph: GraphBuilder, both: str, head: GatedHead) -> tuple[str, str, str]:
    """:class:`GatedHead` behind ``both`` features; returns two probabilities, and the log-odds of answerable."""
    features = graph.norm(both, head.join[0])
    joined = graph.linear(features, head.join[2])
    answer_type = graph.linear(joined, head.answer_type)
    gate = graph.add("Sigmoid", graph.linear(answer_type, head.gate))
    answer = graph.add("Mul", graph.linear(graph.norm(joined, head.answer[0]), head.answer[2]), gate)
    return (
        graph.add("Softmax", answer, axis=1),
        graph.add("Softmax", answer_type, axis=1),
        graph.linear(features if head.answerable_from == FEATURES else joined, head.answerable),
    )


def _log_odds_of_mean(graph: GraphBuilder, odds: Sequence[str]) -> str:
    """The log-odds of the mean of the probabilities that have the log-odds ``odds``.

    By logarithms of the probabilities, -softplus(-x), and of their complements: ONNX Runtime's sigmoid is exact to
    1e-7, which is not enough where a probability is smaller. For one head it is ``odds`` itself.
    """
    if len(odds) == 1:
        return odds[0]
    columns = graph.add("Concat", *odds, axis=1)  # [B, F]
    fold_axis = graph.constant([1])
    found, not_found = (
        graph.add("ReduceLogSumExp", graph.add("Neg", graph.add("Softplus", x)), fold_axis, keepdims=1)
        for x in (graph.add("Neg", columns), columns)
    )
    return graph.add("Sub", found, not_found)
