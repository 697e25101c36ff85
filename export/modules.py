"""CLIP's encoders as they are served: the same weights, re-expressed so that they export well.

The encoders differ from the ``clip`` package's own modules in ways none of which changes a result:

- query, key and value are three matrix products, and attention, residuals and activations are :mod:`export.operators`;
- standardising the pixels happens in the graph, so that a client sends uint8;
- the text encoder takes questions at their own length: it is causal and read out at the end token, which no later
  position can reach;
- the last block of a transformer is computed for the one position that is read out;
- batch normalisation is multiplied into the convolution before it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from export.operators import MASKED, Operators
from training.clip_models import normalise_pixels
from vizwiz_client.contract.tokens import END_OF_TEXT


class SelfAttention(nn.Module):
    """``nn.MultiheadAttention`` on [B, T, W], batch first, with separate projections."""

    def __init__(self, source: nn.MultiheadAttention, operators: Operators) -> None:
        """Take over the weights of ``source``."""
        super().__init__()
        self.heads, self.operators = source.num_heads, operators
        weights, biases = source.in_proj_weight.chunk(3), source.in_proj_bias.chunk(3)
        self.query, self.key, self.value = (_linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.out = source.out_proj

    def forward(self, asking: Tensor, x: Tensor, *, causal: bool = False, bias: Tensor | None = None) -> Tensor:
        """Attend from ``asking`` [B, Q, W] to ``x`` [B, T, W] as :class:`Operators` does; returns [B, Q, W]."""
        query, key, value = self.query(asking), self.key(x), self.value(x)
        return self.out(self.operators.attention(query, key, value, self.heads, causal=causal, bias=bias))


class Block(nn.Module):
    """CLIP's ``ResidualAttentionBlock`` on [B, T, W], from its first LayerNorm's output to the next block's."""

    def __init__(self, source: Any, operators: Operators) -> None:
        """Take over the layers of ``source``."""
        super().__init__()
        self.operators = operators
        self.attention = SelfAttention(source.attn, operators)
        self.norm = source.ln_2
        self.widen, self.narrow = source.mlp.c_fc, source.mlp.c_proj

    def forward(
        self, x: Tensor, asking: Tensor, normed: Tensor, next_norm: nn.LayerNorm, **attention: Any
    ) -> tuple[Tensor, Tensor]:
        """Apply the block.

        Args:
            x: the residual [B, Q, W] of the positions to compute.
            asking: the first LayerNorm's output at those positions [B, Q, W].
            normed: the same at all positions [B, T, W].
            next_norm: the LayerNorm of whatever follows.
            attention: ``causal`` and ``bias``.

        Returns:
            ``next_norm``'s output and the residual, both [B, Q, W].
        """
        normed, x = self.operators.add_norm(x, self.attention(asking, normed, **attention), self.norm)
        return self.operators.add_norm(x, self.narrow(self.operators.quick_gelu(self.widen(normed))), next_norm)


class Transformer(nn.Module):
    """CLIP's ``Transformer`` and the LayerNorm behind it, read out at one position."""

    def __init__(self, source: Any, last_norm: nn.LayerNorm, operators: Operators) -> None:
        """Take over the blocks of ``source``."""
        super().__init__()
        self.operators = operators
        self.blocks = nn.ModuleList(Block(block, operators) for block in source.resblocks)
        self.norms = nn.ModuleList([*(block.ln_1 for block in source.resblocks), last_norm])

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """Map ``x`` [B, T, W] to what comes out at ``position`` [B], or at the first, [B, W].

        With a position the transformer is causal.
        """
        first, *later = self.norms
        normed = self.operators.norm(x, first)  # type: ignore[arg-type]
        for block, norm in zip(self.blocks[:-1], later[:-1], strict=True):
            normed, x = block(x, normed, normed, norm, causal=position is not None)
        if position is None:
            x, asking, bias = x[:, :1], normed[:, :1], None
        else:
            x, asking = (_at(position, each) for each in (x, normed))
            behind = torch.arange(normed.shape[1], device=x.device) > position[:, None]
            bias = torch.where(behind, MASKED, 0.0)[:, None, None]
        return self.blocks[-1](x, asking, normed, later[-1], bias=bias)[0].squeeze(1)


class TextEncoder(nn.Module):
    """``CLIP.encode_text`` for questions of any one length T up to the context's 77."""

    def __init__(self, clip_model: Any, operators: Operators) -> None:
        """Take over the text half of ``clip_model``."""
        super().__init__()
        self.embedding = clip_model.token_embedding
        self.positions = clip_model.positional_embedding
        self.transformer = Transformer(clip_model.transformer, clip_model.ln_final, operators)
        self.projection = clip_model.text_projection

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode ``tokens`` int32 [B, T], zero after the end token, to fp32 [B, D]."""
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        return (self.transformer(x, first_end(tokens)) @ self.projection).to(torch.float32)


def first_end(tokens: Tensor) -> Tensor:
    """Position int64 [B] of the first end token in ``tokens`` int32 [B, T]: where ``clip`` finds the highest id.

    A runtime that computes in 16 bits turns the fp32 of a graph into those, and both the start's and the end's id
    round to 49408; ranks of positions, up to 77, stay exact. CUDA's ArgMax takes no integers.
    """
    length = tokens.shape[1]
    rank = torch.arange(length, 0, -1, device=tokens.device)  # no two alike: runtimes differ in which of two they take
    return torch.where(tokens == END_OF_TEXT, rank, 0).to(torch.float32).argmax(dim=1)


class VisionTransformerEncoder(nn.Module):
    """CLIP's ``VisionTransformer`` from uint8 pixels."""

    def __init__(self, visual: Any, operators: Operators) -> None:
        """Take over the layers of ``visual``."""
        super().__init__()
        self.operators = operators
        self.patches, self.ln_pre = visual.conv1, visual.ln_pre
        self.class_embedding, self.positions, self.projection = (
            visual.class_embedding,
            visual.positional_embedding,
            visual.proj,
        )
        self.transformer = Transformer(visual.transformer, visual.ln_post, operators)

    def forward(self, image: Tensor) -> Tensor:
        """Encode ``image`` uint8 [B, S, S, 3] to fp32 [B, D]."""
        pixels = normalise_pixels(image).to(self.projection.dtype)
        patches = self.patches(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        x = self.operators.norm(torch.cat([first, patches], dim=1) + self.positions, self.ln_pre)
        return (self.transformer(x) @ self.projection).to(torch.float32)


class ResNetEncoder(nn.Module):
    """CLIP's ``ModifiedResNet`` from uint8 pixels."""

    def __init__(self, visual: Any, operators: Operators) -> None:
        """Take over the layers of ``visual``."""
        super().__init__()
        self.operators = operators
        self.stem = nn.Sequential(
            *_convolution(visual.conv1, visual.bn1),
            *_convolution(visual.conv2, visual.bn2),
            *_convolution(visual.conv3, visual.bn3),
            visual.avgpool,
        )
        layers = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        self.blocks = nn.Sequential(*(Bottleneck(block) for layer in layers for block in layer))
        self.pool = visual.attnpool

    def forward(self, image: Tensor) -> Tensor:
        """Encode ``image`` uint8 [B, S, S, 3] to fp32 [B, D]."""
        pixels = normalise_pixels(image).to(self.pool.positional_embedding.dtype)
        cells = self.blocks(self.stem(pixels)).flatten(2).transpose(1, 2)
        return self._attention_pool(cells).to(torch.float32)

    def _attention_pool(self, x: Tensor) -> Tensor:
        """Attend from the mean of ``x`` [B, cells, W] to it and all cells: CLIP's ``AttentionPool2d``."""
        mean = x.to(torch.float32).mean(dim=1, keepdim=True).to(x.dtype)
        x = torch.cat([mean, x], dim=1) + self.pool.positional_embedding
        query, key, value = self.pool.q_proj(x[:, :1]), self.pool.k_proj(x), self.pool.v_proj(x)
        return self.pool.c_proj(self.operators.attention(query, key, value, self.pool.num_heads)).squeeze(1)


class Bottleneck(nn.Module):
    """CLIP's ``Bottleneck``, a residual block of the ResNet, on [B, C, H, W]."""

    def __init__(self, source: Any) -> None:
        """Take over the layers of ``source``."""
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(source.conv1, source.bn1),
            *_convolution(source.conv2, source.bn2),
            source.avgpool,
            *_convolution(source.conv3, source.bn3)[:1],
        )
        self.shortcut: nn.Module = nn.Identity()
        if source.downsample is not None:
            pool, convolution, norm = source.downsample
            self.shortcut = nn.Sequential(pool, *_convolution(convolution, norm)[:1])

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H', W']."""
        return torch.relu(self.body(x) + self.shortcut(x))


def image_encoder(clip_model: Any, operators: Operators) -> nn.Module:
    """The served image encoder of either family of ``clip_model``."""
    visual = clip_model.visual
    kind = ResNetEncoder if hasattr(visual, "attnpool") else VisionTransformerEncoder
    return kind(visual, operators)


def attention_layers(encoder: nn.Module) -> int:
    """How many attentions ``encoder`` computes: one per block of a transformer, one in a ResNet's pool."""
    return sum(isinstance(module, SelfAttention | ResNetEncoder) for module in encoder.modules())


def _convolution(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Module, nn.Module]:
    return fuse_conv_bn_eval(convolution, norm), nn.ReLU()


def _at(position: Tensor, x: Tensor) -> Tensor:
    """The vectors of ``x`` [B, T, W] at ``position`` [B], as [B, 1, W]."""
    return torch.gather(x, 1, position[:, None, None].expand(-1, 1, x.shape[2]))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # meta: the weights are given, not made
    linear.weight, linear.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))
    return linear
