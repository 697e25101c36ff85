"""CLIP's encoders as ONNX graphs, in the variant and precision of a target."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import torch
from torch import nn

from export.example_inputs import example_photos, example_questions
from export.graphs import GraphError, write_graph
from export.modules import TextEncoder, attention_layers, image_encoder
from export.operators import FusedOperators, Operators
from export.quantisation import quantise_products
from export.shortening import shorten_questions
from export.targets import Target
from training.clip_models import FrozenClip
from vizwiz_client.contract import tensors

_STANDARD_DOMAINS = ("", "ai.onnx")


def write_image_encoder(model: FrozenClip, target: Target, path: Path) -> None:
    """Write the image encoder of ``model`` to ``path``.

    Raises:
        GraphError: the graph that came out is not the contract's, or not what ``target`` promises.
    """
    encoder = image_encoder(model.model, _operators(target))
    pixels = torch.zeros(2, model.side, model.side, 3, dtype=torch.uint8)
    graph = write_graph(_cast(encoder, target), [pixels], [tensors.IMAGE], [tensors.IMAGE_FEATURES], path)
    _finish(path, graph, target, attention_layers(encoder), example_photos(model.side))


def write_text_encoder(model: FrozenClip, target: Target, path: Path) -> None:
    """Write the text encoder of ``model`` to ``path``; raises as :func:`write_image_encoder`."""
    encoder = TextEncoder(model.model, _operators(target))
    ids = torch.zeros(2, tensors.CONTEXT_LENGTH, dtype=torch.int32)
    shorten = None if target.device == "tensorrt" else shorten_questions  # its engines: no shapes that depend on values
    signature = [tensors.TOKENS], [tensors.TEXT_FEATURES]
    graph = write_graph(_cast(encoder, target), [ids], *signature, path, free_length=True, edit=shorten)
    _finish(path, graph, target, attention_layers(encoder), example_questions())


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
                "export with this PyTorch; `--variant portable` does not need it"
            )
    else:
        others = {f"{node.domain}::{node.op_type}" for node in graph.node if node.domain not in _STANDARD_DOMAINS}
        if others:
            raise GraphError(f"a portable graph has operators that ONNX does not define: {', '.join(sorted(others))}")


def _operators(target: Target) -> Operators:
    return FusedOperators() if target.variant == "fused" else Operators()


def _cast(encoder: nn.Module, target: Target) -> nn.Module:
    """``encoder`` in the type that the graph holds its weights in; LayerNorms stay fp32, which they compute in."""
    if target.precision != "fp16":
        return encoder
    half = deepcopy(encoder).half()  # a copy: the reference of the parity gate shares its weights
    for module in half.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()
    return half


def _finish(
    path: Path, graph: onnx.GraphProto, target: Target, attentions: int, examples: Iterable[npt.NDArray[Any]]
) -> None:
    """Check ``graph``, which is at ``path``, and change that to the precision of ``target``."""
    check_operators(graph, target, attentions)
    if target.precision == "int8":
        quantise_products(path, examples)
