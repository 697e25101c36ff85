"""Faults of an export that users would only notice as worse answers: the model is altered before its export."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

SCALE = 1.01


def with_fault(model: Any, fault: Callable[[Any], None]) -> Any:
    """A deep copy of ``model``, a CLIP or a predictor, with ``fault``."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        fault(model)
    return model


def scaled_image_matrix(model: Any) -> None:
    """One matrix of the image encoder is 1% too large."""
    if is_vit(model):
        block = model.visual.transformer.resblocks[0]
        block.attn.in_proj_weight[2 * block.attn.embed_dim :] *= SCALE  # the values'
    else:
        model.visual.layer2[0].conv2.weight *= SCALE


def scaled_text_matrix(model: Any) -> None:
    """One matrix of the text encoder is 1% too large."""
    model.transformer.resblocks[0].mlp.c_fc.weight *= SCALE


def scaled_text_projection(model: Any) -> None:
    """All features are 1% too large, which cosine cannot see."""
    model.text_projection *= SCALE


def missing_image_block(model: Any) -> None:
    """A block of the image encoder is left out, or adds nothing."""
    if is_vit(model):
        model.visual.transformer.resblocks = model.visual.transformer.resblocks[:-1]
    else:
        model.visual.layer4[0].bn3.weight.zero_()
        model.visual.layer4[0].bn3.bias.zero_()


def missing_text_block(model: Any) -> None:
    """The text encoder's first block is left out."""
    model.transformer.resblocks = model.transformer.resblocks[1:]


def swapped_heads(model: Any) -> None:
    """The values of two attention heads of the image encoder change places."""
    if is_vit(model):
        attention = model.visual.transformer.resblocks[0].attn
        start, size = 2 * attention.embed_dim, attention.head_dim
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
    else:
        pool = model.visual.attnpool
        start, size = 0, pool.v_proj.out_features // pool.num_heads
        weight, bias = pool.v_proj.weight, pool.v_proj.bias
    for rows in (weight, bias):
        first, second = rows[start : start + size].clone(), rows[start + size : start + 2 * size].clone()
        rows[start : start + size], rows[start + size : start + 2 * size] = second, first


def swapped_channels(model: Any) -> None:
    """Blue comes first."""
    first = model.visual.conv1
    first.weight = nn.Parameter(first.weight[:, [2, 1, 0]].contiguous())


def swapped_issues(predictor: Any) -> None:
    """Two quality issues change places: a blurred photo is said to be badly framed."""
    for head in predictor.quality:
        for rows in (head.linear.weight, head.linear.bias):
            rows[:2] = rows[:2].flip(0)


def missing_quality_head(predictor: Any) -> None:
    """One of the quality heads is left out of the mean."""
    predictor.quality = predictor.quality[:-1]


def unscaled_quality_features(predictor: Any) -> None:
    """The weight of a quality head's LayerNorm is dropped."""
    predictor.quality[0].norm.weight.fill_(1)


def unshifted_quality_features(predictor: Any) -> None:
    """The bias of a quality head's LayerNorm is dropped."""
    predictor.quality[0].norm.bias.zero_()


def is_vit(model: Any) -> bool:
    """Whether the image encoder is a vision transformer."""
    return hasattr(model.visual, "transformer")
