"""CLIP's image and text encoder as ONNX graphs, in a variant and a precision.

The graphs compute what the modules of the packages ``clip`` and ``open_clip`` compute, arranged for serving:

- the image graph takes uint8 pixels and normalises them itself;
- query, key and value are three matrix products, so that runtimes can fuse attention;
- the text graph takes 77 token ids and computes only as many positions as its batch needs (:func:`truncate_padding`);
- the last transformer block computes only the position that is read out;
- batch normalisation is folded into the convolution before it.

Functions take and return names of values. B = batch, S = image size, T = positions, W = width, D = embedding dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from export.graph_builder import (
    FusedOperators,
    GraphBuilder,
    GraphError,
    PortableOperators,
    causal_mask,
    tensor_value,
)
from export.parity_inputs import calibration_photos
from export.quantize import quantize_matmuls
from export.targets import GraphKind
from training.backbone import FrozenClip
from vizwiz_client.contract import tensors
from vizwiz_client.contract.tokenizer import END_OF_TEXT

_STANDARD_DOMAINS = ("", "ai.onnx")


def write_image_encoder(model: FrozenClip, kind: GraphKind, path: Path) -> None:
    """Write the image encoder: uint8 [B, S, S, 3] to fp32 [B, D].

    Args:
        model: the CLIP to export.
        kind: variant and precision of the graph.
        path: the ONNX file.

    Raises:
        GraphError: the graph has operators that its variant does not allow: see :func:`check_operators`.
    """
    ops, visual = _operators(kind), model.model.visual
    features = image_encoder(ops, model, tensors.IMAGE.name)
    image = tensor_value(tensors.IMAGE, model.image_size, model.image_size, 3)
    _save(ops.graph, image, features, tensor_value(tensors.IMAGE_FEATURES, model.embed_dim), path)
    check_operators(ops.graph.nodes, kind, count_attentions(visual))
    # A ResNet is convolutions but for its attention pool: int8 there fails parity (docs/decisions.md).
    if kind.precision == "int8" and not is_resnet(visual):
        quantize_matmuls(path, calibration_photos(model))


def write_text_encoder(model: FrozenClip, kind: GraphKind, path: Path) -> None:
    """Write the text encoder: token ids int32 [B, 77] to fp32 [B, D].

    Arguments and errors are those of :func:`write_image_encoder`.
    """
    ops = _operators(kind)
    ids = clamp_ids(ops.graph, tensors.TOKENS.name, len(model.model.token_embedding.weight))
    if kind.device != "tensorrt":  # a TensorRT engine has no shapes that depend on values
        ids = truncate_padding(ops.graph, ids)
    features = text_encoder(ops, model.model, ids)
    # The axis is not named like the truncated length: ONNX Runtime plans one memory pattern for axes of one name.
    tokens = tensor_value(tensors.TOKENS, "context")
    _save(ops.graph, tokens, features, tensor_value(tensors.TEXT_FEATURES, model.embed_dim), path)
    check_operators(ops.graph.nodes, kind, count_attentions(model.model.transformer))
    if kind.precision == "int8":
        quantize_matmuls(path)  # weights alone: static activation scales fail parity, and questions are cheap


def check_operators(nodes: Sequence[onnx.NodeProto], kind: GraphKind, attentions: int) -> None:
    """Check that a graph uses the operators of its variant.

    Args:
        nodes: the nodes of the graph.
        kind: the kind of the graph.
        attentions: the number of attention layers that a fused graph must fuse.

    Raises:
        GraphError: an attention is not fused, or a portable graph has a non-standard operator.
    """
    if kind.variant == "fused":
        found = sum(node.op_type == "MultiHeadAttention" for node in nodes)
        if found != attentions:
            raise GraphError(
                f"{found} of {attentions} attentions are fused, so the graph would be slow: report this as a bug of "
                "the export, and use `--variant portable` meanwhile"
            )
    else:
        others = {f"{node.domain}::{node.op_type}" for node in nodes if node.domain not in _STANDARD_DOMAINS}
        if others:
            raise GraphError(
                f"a portable graph has operators outside the ONNX standard: {', '.join(sorted(others))}; report this "
                "as a bug of the export"
            )


def image_encoder(ops: PortableOperators, model: FrozenClip, image: str) -> str:
    """``CLIP.encode_image`` of either family: ``image`` uint8 [B, S, S, 3] to fp32 [B, D]."""
    visual, pixels = model.model.visual, normalize(ops.graph, image, model.mean, model.std)
    features = resnet(ops, visual, pixels) if is_resnet(visual) else vision_transformer(ops, visual, pixels)
    return ops.graph.to_fp32(features)


def is_resnet(visual: Any) -> bool:
    """Whether the image encoder is a ModifiedResNet rather than a VisionTransformer."""
    return hasattr(visual, "attnpool")


def count_attentions(encoder: nn.Module) -> int:
    """Number of attention layers: one per transformer block, one in a ResNet's attention pool."""
    return is_resnet(encoder) + sum(isinstance(layer, nn.MultiheadAttention) for layer in encoder.modules())


def normalize(graph: GraphBuilder, image: str, mean: Sequence[float], std: Sequence[float]) -> str:
    """Normalise uint8 [B, S, S, 3] by the mean and standard deviation of each channel; returns [B, 3, S, S]."""
    shift, scale = (graph.constant(np.array(each) * 255, np.float32) for each in (mean, std))
    centred = graph.add("Sub", graph.add("Cast", image, to=TensorProto.FLOAT), shift)
    return graph.to_compute_dtype(graph.add("Transpose", graph.add("Div", centred, scale), perm=[0, 3, 1, 2]))


def vision_transformer(ops: PortableOperators, visual: Any, pixels: str) -> str:
    """CLIP's ``VisionTransformer``: [B, 3, S, S] to [B, D]."""
    graph = ops.graph
    patches = flatten_cells(graph, convolution(graph, visual.conv1, pixels), visual.conv1.out_channels)
    batch = graph.add("Shape", patches, start=0, end=1)
    shape = graph.add("Concat", batch, graph.constant([1, 1]), axis=0)
    class_token = graph.add("Expand", graph.weight(visual.class_embedding), shape)
    x = graph.add("Concat", class_token, patches, axis=1)
    x = graph.layer_norm(graph.add("Add", x, graph.weight(visual.positional_embedding)), visual.ln_pre)
    return graph.matmul(transformer(ops, visual.transformer, visual.ln_post, x), visual.proj)


def text_encoder(ops: PortableOperators, clip_model: Any, ids: str) -> str:
    """``CLIP.encode_text`` of ``ids`` int32 [B, T], T up to 77, zero after the end token; returns fp32 [B, D]."""
    graph = ops.graph
    length, zero = graph.add("Shape", ids, start=1, end=2), graph.constant([0])
    embedded = graph.add("Gather", graph.weight(clip_model.token_embedding.weight), ids)
    positions = graph.add("Slice", graph.weight(clip_model.positional_embedding), zero, length, zero)
    count = graph.add("Squeeze", length, zero)
    end = first_end(graph, ids, count)
    x = graph.add("Add", embedded, positions)
    x = transformer(ops, clip_model.transformer, clip_model.ln_final, x, (count, end))
    return graph.to_fp32(graph.matmul(x, clip_model.text_projection))


def clamp_ids(graph: GraphBuilder, ids: str, vocab_size: int) -> str:
    """Clamp token ids int32 [B, T] to 0 .. ``vocab_size`` - 1.

    Clients may send any int32. Unclamped, OpenVINO reads another row of the embedding, and ONNX Runtime fails the whole
    batch. ``Clip`` is no alternative: ONNX Runtime before 1.19 and its CUDA provider lack it for int32.
    """
    highest = graph.add("Min", ids, graph.constant(vocab_size - 1, np.int32))
    return graph.add("Max", highest, graph.constant(0, np.int32))


def truncate_padding(graph: GraphBuilder, ids: str) -> str:
    """Truncate ``ids`` int32 [B, 77] after the last end token of the batch, to one of ``TOKEN_LENGTHS``.

    The result is exact for any ids: the encoder is causal, and reads each question out at its first end token.
    """
    lengths = [
        next(length for length in tensors.TOKEN_LENGTHS if length > end) for end in range(tensors.CONTEXT_LENGTH)
    ]
    is_end = graph.add("Equal", ids, graph.constant(END_OF_TEXT, np.int32))
    # floats, because CUDA's ArgMax takes no integers; of several ends any will do
    ends = graph.add("ArgMax", graph.add("Cast", is_end, to=TensorProto.FLOAT), axis=1, keepdims=0)
    used = graph.add("Gather", graph.constant(lengths), graph.add("ReduceMax", ends, keepdims=1))
    return graph.add("Slice", ids, graph.constant([0]), used, graph.constant([1]))


def first_end(graph: GraphBuilder, ids: str, length: str) -> str:
    """Position int64 [B] of the first end token in ``ids`` int32 [B, T]; ``length`` = T, int64 [].

    ``clip`` takes the argmax of the ids. That fails where a runtime computes fp32 in 16 bits: the ids of start and end
    both round to 49408. Ranks of positions, up to 77, stay exact. CUDA's ArgMax takes no integers.
    """
    # distinct ranks: runtimes differ in which of two equal maxima they return
    rank = graph.add("Range", length, graph.constant(0), graph.constant(-1))
    is_end = graph.add("Equal", ids, graph.constant(END_OF_TEXT, np.int32))
    found = graph.add("Cast", graph.add("Where", is_end, rank, graph.constant(0)), to=TensorProto.FLOAT)
    return graph.add("ArgMax", found, axis=1, keepdims=0)


def transformer(
    ops: PortableOperators, source: Any, last_norm: nn.LayerNorm, x: str, causal: tuple[str, str] | None = None
) -> str:
    """CLIP's ``Transformer`` and the LayerNorm after it: [B, T, W] to the output at one position, [B, W].

    Args:
        ops: the operators to write.
        source: CLIP's module.
        last_norm: the LayerNorm after the last block.
        x: the input.
        causal: T, int64 [], and the position to read out, int64 [B]. Without it there is no mask, and position 0 is
            read out.
    """
    graph = ops.graph
    blocks = list(source.resblocks)
    norms = [*(block.ln_1 for block in blocks[1:]), last_norm]
    normed = graph.layer_norm(x, blocks[0].ln_1)
    for each, norm in zip(blocks[:-1], norms[:-1], strict=True):
        normed, x = transformer_block(ops, each, x, normed, normed, norm, causal=causal[0] if causal else "")
    bias = ""
    if causal is None:
        x, query = first_position(graph, x), first_position(graph, normed)
    else:
        length, position = causal
        index = graph.add("Unsqueeze", position, graph.constant([1, 2]))
        index = graph.add("Expand", index, graph.constant([1, 1, source.width]))
        x, query = (graph.add("GatherElements", each, index, axis=1) for each in (x, normed))
        bias = graph.add("Unsqueeze", causal_mask(graph, length, position), graph.constant([1, 2]))
    last, _ = transformer_block(ops, blocks[-1], x, query, normed, last_norm, bias=bias)
    return graph.add("Squeeze", last, graph.constant([1]))


def transformer_block(
    ops: PortableOperators, source: Any, x: str, query: str, normed: str, next_norm: nn.LayerNorm, **masks: str
) -> tuple[str, str]:
    """CLIP's ``ResidualAttentionBlock``, from the output of its first LayerNorm to the next block's.

    Args:
        ops: the operators to write.
        source: CLIP's module.
        x: the residual stream [B, Q, W] at the positions to compute.
        query: the first LayerNorm's output at those positions [B, Q, W].
        normed: the first LayerNorm's output at all positions [B, T, W].
        next_norm: the LayerNorm after this block.
        masks: ``causal`` and ``bias`` of :meth:`PortableOperators.attention`.

    Returns:
        The output of ``next_norm`` and the residual stream, both [B, Q, W].
    """
    attn, mlp, graph = source.attn, source.mlp, ops.graph
    projections = zip((query, normed, normed), attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), strict=True)
    q, k, v = (graph.affine(*each) for each in projections)
    mixed = ops.attention(q, k, v, attn.num_heads, attn.embed_dim, **masks)
    normed, x = ops.add_norm(x, graph.linear(mixed, attn.out_proj), source.ln_2)
    hidden = ops.activation(graph.linear(normed, mlp.c_fc), mlp.gelu)
    return ops.add_norm(x, graph.linear(hidden, mlp.c_proj), next_norm)


def resnet(ops: PortableOperators, visual: Any, pixels: str) -> str:
    """CLIP's ``ModifiedResNet``: [B, 3, S, S] to [B, D]."""
    x = stem(ops.graph, visual, pixels)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        for source in layer:
            x = bottleneck(ops.graph, source, x)
    return attention_pool(ops, visual.attnpool, x)


def stem(graph: GraphBuilder, visual: Any, x: str) -> str:
    """The three convolutions before the residual blocks: [B, 3, S, S] to [B, C, S / 4, S / 4]."""
    for conv, norm in ((visual.conv1, visual.bn1), (visual.conv2, visual.bn2), (visual.conv3, visual.bn3)):
        x = graph.add("Relu", conv_batch_norm(graph, conv, norm, x))
    return average_pool(graph, visual.avgpool, x)


def bottleneck(graph: GraphBuilder, source: Any, x: str) -> str:
    """CLIP's ``Bottleneck`` residual block: [B, C, H, W] to [B, C', H', W']."""
    body = graph.add("Relu", conv_batch_norm(graph, source.conv1, source.bn1, x))
    body = graph.add("Relu", conv_batch_norm(graph, source.conv2, source.bn2, body))
    body = conv_batch_norm(graph, source.conv3, source.bn3, average_pool(graph, source.avgpool, body))
    if source.downsample is not None:
        pool, conv, norm = source.downsample
        x = conv_batch_norm(graph, conv, norm, average_pool(graph, pool, x))
    return graph.add("Relu", graph.add("Add", body, x))


def attention_pool(ops: PortableOperators, pool: Any, x: str) -> str:
    """CLIP's ``AttentionPool2d``: the mean cell attends to itself and to all cells; [B, C, H, W] to [B, D]."""
    graph, width = ops.graph, pool.q_proj.in_features
    cells = flatten_cells(graph, x, width)
    mean = graph.to_compute_dtype(graph.add("ReduceMean", graph.to_fp32(cells), graph.constant([1]), keepdims=1))
    x = graph.add("Concat", mean, cells, axis=1)
    x = graph.add("Add", x, graph.weight(pool.positional_embedding))
    query = graph.linear(first_position(graph, x), pool.q_proj)
    key, value = (graph.linear(x, layer) for layer in (pool.k_proj, pool.v_proj))
    mixed = ops.attention(query, key, value, pool.num_heads, width)
    return graph.add("Squeeze", graph.linear(mixed, pool.c_proj), graph.constant([1]))


def first_position(graph: GraphBuilder, x: str) -> str:
    """Slice position 0 of ``x`` [B, T, W]: [B, 1, W]."""
    return graph.add("Slice", x, graph.constant([0]), graph.constant([1]), graph.constant([1]))


def flatten_cells(graph: GraphBuilder, x: str, channels: int) -> str:
    """Reshape [B, C, H, W] to [B, H * W, C]."""
    return graph.add("Transpose", graph.add("Reshape", x, graph.constant([0, channels, -1])), perm=[0, 2, 1])


def conv_batch_norm(graph: GraphBuilder, conv: nn.Conv2d, norm: nn.BatchNorm2d, x: str) -> str:
    """A convolution with the batch normalisation after it folded in."""
    return convolution(graph, fuse_conv_bn_eval(conv, norm), x)


def convolution(graph: GraphBuilder, conv: nn.Conv2d, x: str) -> str:
    """``conv`` of [B, C, H, W]."""
    weights = [graph.weight(each) for each in (conv.weight, conv.bias) if each is not None]
    pads = [*map(int, conv.padding)] * 2
    return graph.add("Conv", x, *weights, kernel_shape=conv.kernel_size, strides=conv.stride, pads=pads)


def average_pool(graph: GraphBuilder, pool: nn.Module, x: str) -> str:
    """``pool``; CLIP disables it by an identity or a window of one cell."""
    size = pool.kernel_size if isinstance(pool, nn.AvgPool2d) else 1
    return x if size == 1 else graph.add("AveragePool", x, kernel_shape=[size] * 2, strides=[size] * 2)


def _operators(kind: GraphKind) -> PortableOperators:
    graph = GraphBuilder(torch.float16 if kind.precision == "fp16" else torch.float32)
    return FusedOperators(graph) if kind.variant == "fused" else PortableOperators(graph)


def _save(
    graph: GraphBuilder, source: onnx.ValueInfoProto, features: str, output: onnx.ValueInfoProto, path: Path
) -> None:
    graph.rename_output(features, output.name)
    graph.save(path, [source], [output])
