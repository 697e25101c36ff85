"""The fitted heads as one ONNX graph: mean probabilities and the head's id.

The graph computes what :class:`training.model.ClipEnsemble` computes, with more exact log-odds of answerability and of
quality issues.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.graph_builder import GraphBuilder, tensor_value
from training.model import ClipEnsemble, GatedHead, Predictor, QualityHead
from training.recipe import FEATURES
from vizwiz_client.contract import tensors
from vizwiz_client.contract.tensors import TensorSpec, head_id


def write_head(ensemble: ClipEnsemble, digest: str, path: Path) -> None:
    """Write the heads of a run.

    Inputs: ``image_features`` and ``text_features`` fp32 [B, D]; of several CLIPs ``image_features_1`` and so on.
    Outputs: ``answer`` fp32 [B, V], ``answer_type`` fp32 [B, K], ``answerable`` fp32 [B, 1] and ``head_id`` int64
    [B, 1]; with quality heads also ``quality`` fp32 [B, Q].

    Args:
        ensemble: the fitted heads, and the quality heads if there are any; as many for each CLIP.
        digest: the digest in the published model's name; ``head_id`` encodes it.
        path: the ONNX file.
    """
    members = [member for member in ensemble.members if isinstance(member, Predictor)]
    if len({(len(member.heads), len(member.quality)) for member in members}) > 1:
        raise ValueError("the CLIPs have different numbers of heads, so the mean of all heads is not that of the CLIPs")
    graph, clips = GraphBuilder(), len(members)
    images, texts = (tensors.of_each_clip(spec, clips) for spec in (tensors.IMAGE_FEATURES, tensors.TEXT_FEATURES))
    logits: list[tuple[str, str, str]] = []
    for member, image, text in zip(members, images, texts, strict=True):
        both = graph.add("Concat", text.name, image.name, axis=1)
        logits += [_gated_head(graph, both, image.name, head) for head in member.heads if isinstance(head, GatedHead)]
    answer, answer_type, answerable = zip(*logits, strict=True)
    graph.add("Mean", *answer, name=tensors.ANSWER.name)
    graph.add("Mean", *answer_type, name=tensors.ANSWER_TYPE.name)
    graph.add("Sigmoid", _log_odds_of_mean(graph, answerable, keepdims=1), name=tensors.ANSWERABLE.name)
    shape = graph.add("Concat", graph.add("Shape", texts[0].name, start=0, end=1), graph.constant([1]), axis=0)
    graph.add("Expand", graph.constant([[head_id(digest)]]), shape, name=tensors.HEAD_ID.name)
    first = [next(head for head in member.heads if isinstance(head, GatedHead)) for member in members]
    embed_dims = [len(head.get_parameter("projection.0.weight")) // 2 for head in first]
    inputs = [tensor_value(*each) for specs in (images, texts) for each in zip(specs, embed_dims, strict=True)]
    sizes = (*first[0].gate.weight.shape, 1, 1)
    outputs = [tensor_value(*each) for each in zip(tensors.HEAD_OUTPUTS, sizes, strict=True)]
    if members[0].quality:
        outputs.append(tensor_value(tensors.QUALITY, _quality(graph, members, images)))
    graph.save(path, inputs, outputs)


def _gated_head(graph: GraphBuilder, both: str, image: str, head: GatedHead) -> tuple[str, str, str]:
    """:class:`GatedHead` of ``both`` features [B, 2 D], of which ``image`` [B, D] is a part.

    Returns:
        Probabilities of answers and of answer types, and the log-odds of answerability.
    """
    features = graph.layer_norm(both, head.projection[0])
    hidden = graph.linear(features, head.projection[2])
    answer_type = graph.linear(hidden, head.answer_type)
    gate = graph.add("Sigmoid", graph.linear(answer_type, head.gate))
    answer = graph.add("Mul", graph.linear(graph.layer_norm(hidden, head.answer[0]), head.answer[2]), gate)
    inputs = features if head.answerable_from == FEATURES else hidden
    if head.quality is not None:
        inputs = graph.add("Concat", inputs, _quality_head(graph, image, head.quality), axis=1)
    return (
        graph.add("Softmax", answer, axis=1),
        graph.add("Softmax", answer_type, axis=1),
        graph.linear(inputs, head.answerable),
    )


def _quality_head(graph: GraphBuilder, image: str, head: QualityHead) -> str:
    """Log-odds [B, Q] of :class:`QualityHead` of the features ``image`` [B, D]."""
    return graph.linear(graph.layer_norm(image, head.norm), head.linear)


def _quality(graph: GraphBuilder, members: Sequence[Predictor], images: Sequence[TensorSpec]) -> int:
    """Mean of the probabilities of quality issues, over every :class:`QualityHead`; return the number of issues, Q."""
    issues, log_odds = 0, []
    for member, image in zip(members, images, strict=True):
        for head in member.quality:
            assert isinstance(head, QualityHead)
            issues = head.linear.out_features
            log_odds.append(_quality_head(graph, image.name, head))
    if len(log_odds) > 1:
        log_odds = [graph.add("Unsqueeze", x, graph.constant([1])) for x in log_odds]  # [B, 1, Q]
    graph.add("Sigmoid", _log_odds_of_mean(graph, log_odds, keepdims=0), name=tensors.QUALITY.name)
    return issues


def _log_odds_of_mean(graph: GraphBuilder, log_odds: Sequence[str], *, keepdims: int) -> str:
    """Log-odds of the mean of probabilities whose log-odds are given, all of one shape.

    Computed from log-probabilities, -softplus(-x), and their complements: ONNX Runtime's sigmoid is exact to 1e-7,
    which is too coarse for smaller probabilities.

    Args:
        graph: the graph.
        log_odds: one for each head, [B, 1] or [B, 1, Q].
        keepdims: 1 to keep the axis over which the heads are averaged, the second; 0 to remove it.
    """
    if len(log_odds) == 1:
        return log_odds[0]
    columns = graph.add("Concat", *log_odds, axis=1)  # [B, heads] or [B, heads, Q]
    head_axis = graph.constant([1])
    log_mean, log_complement = (
        graph.add("ReduceLogSumExp", graph.add("Neg", graph.add("Softplus", x)), head_axis, keepdims=keepdims)
        for x in (graph.add("Neg", columns), columns)
    )
    return graph.add("Sub", log_mean, log_complement)
