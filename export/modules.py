"""CLIP's encoders as they are served: the same weights, written as the nodes of a graph.

They differ from the ``clip`` package's own modules in ways none of which changes a result:

- query, key and value are three matrix products, and attention, residuals and activations are :mod:`export.operators`;
- standardising the pixels happens in the graph, so that a client sends uint8;
- the text encoder takes questions of any length up to 77: it is causal and read out at the end token, which no later
  position can reach;
- the last block of a transformer is computed for the one position that is read out;
- batch normalisation is multiplied into the convolution before it.

Each function takes the names of values and returns the name of what it wrote; B = batch, T = positions, W = width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from export.graphs import GraphBuilder
from export.operators import Operators, hide_behind
from training.backbone import PIXEL_MEAN, PIXEL_STD
from vizwiz_client.contract.tokenizer import END_OF_TEXT


def image_encoder(ops: Operators, visual: Any, image: str) -> str:
    """CLIP's image encoder of either family from ``image`` uint8 [B, S, S, 3] to fp32 [B, D]."""
    pixels = standardise(ops.graph, image)
    features = resnet(ops, visual, pixels) if is_resnet(visual) else vision_transformer(ops, visual, pixels)
    return ops.graph.wide(features)


def is_resnet(visual: Any) -> bool:
    """Which of CLIP's two families the image encoder ``visual`` is of."""
    return hasattr(visual, "attnpool")


def attention_layers(module: nn.Module) -> int:
    """How many attentions a half of CLIP computes: one per block of a transformer, one in a ResNet's pool."""
    return is_resnet(module) + sum(isinstance(layer, nn.MultiheadAttention) for layer in module.modules())


def standardise(graph: GraphBuilder, image: str) -> str:
    """What ``clip`` does to pixels, uint8 [B, S, S, 3] to [B, 3, S, S]."""
    mean, std = (graph.constant(np.array(each) * 255, np.float32) for each in (PIXEL_MEAN, PIXEL_STD))
    centred = graph.add("Sub", graph.add("Cast", image, to=TensorProto.FLOAT), mean)
    return graph.narrow(graph.add("Transpose", graph.add("Div", centred, std), perm=[0, 3, 1, 2]))


def vision_transformer(ops: Operators, visual: Any, pixels: str) -> str:
    """CLIP's ``VisionTransformer``, [B, 3, S, S] to [B, D]."""
    graph = ops.graph
    patches = rows(graph, convolution(graph, visual.conv1, pixels), visual.conv1.out_channels)
    batch = graph.add("Shape", patches, start=0, end=1)
    shape = graph.add("Concat", batch, graph.constant([1, 1]), axis=0)
    classes = graph.add("Expand", graph.weight(visual.class_embedding), shape)
    x = graph.add("Concat", classes, patches, axis=1)
    x = graph.norm(graph.add("Add", x, graph.weight(visual.positional_embedding)), visual.ln_pre)
    return graph.product(transformer(ops, visual.transformer, visual.ln_post, x), visual.proj)


def text_encoder(ops: Operators, clip_model: Any, tokens: str) -> str:
    """``CLIP.encode_text`` of ``tokens`` int32 [B, T], T up to 77, zero after the end token, to fp32 [B, D]."""
    graph = ops.graph
    length, zero = graph.add("Shape", tokens, start=1, end=2), graph.constant([0])
    embedded = graph.add("Gather", graph.weight(clip_model.token_embedding.weight), tokens)
    positions = graph.add("Slice", graph.weight(clip_model.positional_embedding), zero, length, zero)
    count = graph.add("Squeeze", length, zero)
    end = first_end(graph, tokens, count)
    x = graph.add("Add", embedded, positions)
    x = transformer(ops, clip_model.transformer, clip_model.ln_final, x, (count, end))
    return graph.wide(graph.product(x, clip_model.text_projection))


def clamp_ids(graph: GraphBuilder, tokens: str, vocabulary: int) -> str:
    """Token ids int32 [B, T], those outside 0 to ``vocabulary`` - 1 replaced by the nearest of these.

    Clients may send any int32. Unclamped, one runtime reads another row of the embedding, and another fails the whole
    batch, good requests included. ``Clip`` would do, but ONNX Runtime before 1.19 and its CUDA provider lack it for
    int32.
    """
    highest = graph.add("Min", tokens, graph.constant(vocabulary - 1, np.int32))
    return graph.add("Max", highest, graph.constant(0, np.int32))


def first_end(graph: GraphBuilder, tokens: str, length: str) -> str:
    """Position int64 [B] of the first end token in ``tokens`` int32 [B, T]: where ``clip`` finds the highest id.

    A runtime that computes in 16 bits turns the fp32 of a graph into those, and both the start's and the end's id
    round to 49408; ranks of positions, up to 77, stay exact. CUDA's ArgMax takes no integers.

    Args:
        length: T, int64 [].
    """
    # no two ranks alike: runtimes differ in which of two they take
    rank = graph.add("Range", length, graph.constant(0), graph.constant(-1))
    is_end = graph.add("Equal", tokens, graph.constant(END_OF_TEXT, np.int32))
    found = graph.add("Cast", graph.add("Where", is_end, rank, graph.constant(0)), to=TensorProto.FLOAT)
    return graph.add("ArgMax", found, axis=1, keepdims=0)


def transformer(
    ops: Operators, source: Any, last_norm: nn.LayerNorm, x: str, causal: tuple[str, str] | None = None
) -> str:
    """CLIP's ``Transformer`` and the LayerNorm behind it, [B, T, W] to what comes out at one position, [B, W].

    Args:
        causal: T, int64 [], and the position that is read out, int64 [B]; without them a position sees all, and the
            first is read out.
    """
    graph = ops.graph
    blocks = list(source.resblocks)
    norms = [*(block.ln_1 for block in blocks[1:]), last_norm]
    normed = graph.norm(x, blocks[0].ln_1)
    for each, norm in zip(blocks[:-1], norms[:-1], strict=True):
        normed, x = block(ops, each, x, normed, normed, norm, causal=causal[0] if causal else "")
    bias = ""
    if causal is None:
        x, asking = first(graph, x), first(graph, normed)
    else:
        length, position = causal
        index = graph.add("Unsqueeze", position, graph.constant([1, 2]))
        index = graph.add("Expand", index, graph.constant([1, 1, source.width]))
        x, asking = (graph.add("GatherElements", each, index, axis=1) for each in (x, normed))
        bias = graph.add("Unsqueeze", hide_behind(graph, length, position), graph.constant([1, 2]))
    return graph.add("Squeeze", block(ops, blocks[-1], x, asking, normed, last_norm, bias=bias)[0], graph.constant([1]))


def block(
    ops: Operators, source: Any, x: str, asking: str, normed: str, next_norm: nn.LayerNorm, **attention: str
) -> tuple[str, str]:
    """CLIP's ``ResidualAttentionBlock``, from its first LayerNorm's output to the next block's.

    Args:
        x: the residual [B, Q, W] of the positions to compute.
        asking: the first LayerNorm's output at those positions [B, Q, W].
        normed: the same at all positions [B, T, W].
        next_norm: the LayerNorm of whatever follows.
        attention: ``causal`` and ``bias`` of :meth:`Operators.attention`.

    Returns:
        ``next_norm``'s output and the residual, both [B, Q, W].
    """
    attn, mlp, graph = source.attn, source.mlp, ops.graph
    projections = zip((asking, normed, normed), attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), strict=True)
    query, key, value = (graph.affine(*each) for each in projections)
    mixed = ops.attention(query, key, value, attn.num_heads, attn.embed_dim, **attention)
    normed, x = ops.add_norm(x, graph.linear(mixed, attn.out_proj), source.ln_2)
    widened = ops.quick_gelu(graph.linear(normed, mlp.c_fc))
    return ops.add_norm(x, graph.linear(widened, mlp.c_proj), next_norm)


def resnet(ops: Operators, visual: Any, pixels: str) -> str:
    """CLIP's ``ModifiedResNet``, [B, 3, S, S] to [B, D]."""
    x = stem(ops.graph, visual, pixels)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        for source in layer:
            x = bottleneck(ops.graph, source, x)
    return attention_pool(ops, visual.attnpool, x)


def stem(graph: GraphBuilder, visual: Any, x: str) -> str:
    """The three convolutions before the blocks, [B, 3, S, S] to [B, C, S / 4, S / 4]."""
    for conv, norm in ((visual.conv1, visual.bn1), (visual.conv2, visual.bn2), (visual.conv3, visual.bn3)):
        x = graph.add("Relu", normed_convolution(graph, conv, norm, x))
    return average_pool(graph, visual.avgpool, x)


def bottleneck(graph: GraphBuilder, source: Any, x: str) -> str:
    """CLIP's ``Bottleneck``, a residual block of the ResNet, [B, C, H, W] to [B, C', H', W']."""
    body = graph.add("Relu", normed_convolution(graph, source.conv1, source.bn1, x))
    body = graph.add("Relu", normed_convolution(graph, source.conv2, source.bn2, body))
    body = normed_convolution(graph, source.conv3, source.bn3, average_pool(graph, source.avgpool, body))
    if source.downsample is not None:
        pool, conv, norm = source.downsample
        x = normed_convolution(graph, conv, norm, average_pool(graph, pool, x))
    return graph.add("Relu", graph.add("Add", body, x))


def attention_pool(ops: Operators, pool: Any, x: str) -> str:
    """CLIP's ``AttentionPool2d``: attend from the mean of the cells of [B, C, H, W] to it and all cells; [B, D]."""
    graph, width = ops.graph, pool.q_proj.in_features
    cells = rows(graph, x, width)
    mean = graph.narrow(graph.add("ReduceMean", graph.wide(cells), graph.constant([1]), keepdims=1))
    x = graph.add("Concat", mean, cells, axis=1)
    x = graph.add("Add", x, graph.weight(pool.positional_embedding))
    query = graph.linear(first(graph, x), pool.q_proj)
    key, value = (graph.linear(x, layer) for layer in (pool.k_proj, pool.v_proj))
    mixed = ops.attention(query, key, value, pool.num_heads, width)
    return graph.add("Squeeze", graph.linear(mixed, pool.c_proj), graph.constant([1]))


def first(graph: GraphBuilder, x: str) -> str:
    """The first position of ``x`` [B, T, W]: [B, 1, W]."""
    return graph.add("Slice", x, graph.constant([0]), graph.constant([1]), graph.constant([1]))


def rows(graph: GraphBuilder, x: str, channels: int) -> str:
    """The cells of ``x`` [B, C, H, W] one after the other: [B, H * W, C]."""
    return graph.add("Transpose", graph.add("Reshape", x, graph.constant([0, channels, -1])), perm=[0, 2, 1])


def normed_convolution(graph: GraphBuilder, conv: nn.Conv2d, norm: nn.BatchNorm2d, x: str) -> str:
    """A convolution and the batch normalisation behind it, as one convolution."""
    return convolution(graph, fuse_conv_bn_eval(conv, norm), x)


def convolution(graph: GraphBuilder, conv: nn.Conv2d, x: str) -> str:
    """``conv`` on [B, C, H, W]."""
    weights = [graph.weight(each) for each in (conv.weight, conv.bias) if each is not None]
    pads = [*map(int, conv.padding)] * 2
    return graph.add("Conv", x, *weights, kernel_shape=conv.kernel_size, strides=conv.stride, pads=pads)


def average_pool(graph: GraphBuilder, pool: nn.Module, x: str) -> str:
    """``pool``, which CLIP leaves out by an identity or a window of one cell."""
    size = pool.kernel_size if isinstance(pool, nn.AvgPool2d) else 1
    return x if size == 1 else graph.add("AveragePool", x, kernel_shape=[size] * 2, strides=[size] * 2)
