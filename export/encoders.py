"""CLIP's encoders as ONNX graphs, in the variant and precision of a target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch

from export.example_inputs import example_photos
from export.graphs import GraphBuilder, GraphError, tensor_value
from export.modules import attention_layers, clamp_ids, image_encoder, is_resnet, text_encoder
from export.operators import FusedOperators, Operators
from export.quantisation import quantise_products
from export.shortening import shorten_questions
from export.targets import Target
from training.backbone import FrozenClip
from vizwiz_client.contract import tensors

_STANDARD_DOMAINS = ("", "ai.onnx")


def write_image_encoder(model: FrozenClip, target: Target, path: Path) -> None:
    """Write the image encoder of ``model`` to ``path``.

    Raises:
        GraphError: the graph is not what ``target`` promises.
    """
    operators, visual = _operators(target), model.model.visual
    features = image_encoder(operators, visual, tensors.IMAGE.name)
    image = tensor_value(tensors.IMAGE, model.image_size, model.image_size, 3)
    graph = _write(operators.graph, image, features, tensor_value(tensors.IMAGE_FEATURES, model.embed_dim), path)
    check_operators(graph, target, attention_layers(visual))
    # a ResNet is convolutions but for its pool, whose products in 8 bits gain 2% and lose what tells photos apart
    if target.precision == "int8" and not is_resnet(visual):
        quantise_products(path, example_photos(model.image_size))


def write_text_encoder(model: FrozenClip, target: Target, path: Path) -> None:
    """Write the text encoder of ``model`` to ``path``; raises as :func:`write_image_encoder`."""
    operators = _operators(target)
    whole = clamp_ids(operators.graph, tensors.TOKENS.name, len(model.model.token_embedding.weight))
    # TensorRT's engines have no shapes that depend on values
    used = whole if target.device == "tensorrt" else shorten_questions(operators.graph, whole)
    features = text_encoder(operators, model.model, used)
    # not called as the length behind the cut is: ONNX Runtime plans memory for all sizes of one name alike
    tokens = tensor_value(tensors.TOKENS, "context")
    graph = _write(operators.graph, tokens, features, tensor_value(tensors.TEXT_FEATURES, model.embed_dim), path)
    check_operators(graph, target, attention_layers(model.model.transformer))
    if target.precision == "int8":
        # no examples: scales found on them fail the gate on random weights (1 - cosine 1.1e-3); questions cost little
        quantise_products(path)


def check_operators(graph: Any, target: Target, attentions: int) -> None:
    """Check that ``graph`` is in the operators that ``target`` promises.

    Raises:
        GraphError: an attention is not fused, or an operator of a portable graph is not a standard one.
    """
    if target.variant == "fused":
        found = sum(node.op_type == "MultiHeadAttention" for node in graph.node)
        if found != attentions:
            raise GraphError(
                f"{found} of {attentions} attentions are fused, so the graph would run slowly: this is a fault of the "
                "export; `--variant portable` does not need it"
            )
    else:
        others = {f"{node.domain}::{node.op_type}" for node in graph.node if node.domain not in _STANDARD_DOMAINS}
        if others:
            raise GraphError(f"a portable graph has operators that ONNX does not define: {', '.join(sorted(others))}")


def _operators(target: Target) -> Operators:
    graph = GraphBuilder(torch.float16 if target.precision == "fp16" else torch.float32)
    return FusedOperators(graph) if target.variant == "fused" else Operators(graph)


def _write(
    graph: GraphBuilder, given: onnx.ValueInfoProto, features: str, wanted: onnx.ValueInfoProto, path: Path
) -> onnx.GraphProto:
    """Write ``graph``, which maps ``given`` to ``features``, which are called as they are ``wanted``."""
    graph.rename(features, wanted.name)
    return graph.save(path, [given], [wanted])
