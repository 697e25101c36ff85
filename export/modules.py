"""CLIP's encoders as they are served: the same weights, re-expressed so that they export well.

The encoders differ from the ``clip`` package's own modules in three ways, none of which changes a result:

- query, key and value are three matrix products, the layout in which runtimes recognise attention;
- standardising the pixels happens in the graph, so that a client sends uint8;
- the causal mask and the positions are cut to the question's own length, so that a short question costs less: the text
  encoder is causal and read out at the end token, which no later position can reach.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.clip_models import normalise_pixels


class SelfAttention(nn.Module):
    """``nn.MultiheadAttention`` on [B, T, W], batch first, with separate projections."""

    def __init__(self, source: nn.MultiheadAttention) -> None:
        """Take over the weights of ``source``."""
        super().__init__()
        self.heads = source.num_heads
        weights, biases = source.in_proj_weight.chunk(3), source.in_proj_bias.chunk(3)
        self.query, self.key, self.value = (_linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.out = source.out_proj

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from every position of ``x`` [B, T, W] to all positions that the additive ``mask`` [T, T] allows."""
        return self.out(attend(self.query(x), self.key(x), self.value(x), self.heads, mask))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention on projected ``query`` [B, Q, W], ``key`` and ``value`` [B, T, W]; returns [B, Q, W]."""
    query, key, value = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value))  # [B, H, ., W / H]
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    if mask is not None:
        scores = scores + mask
    return (torch.softmax(scores, dim=-1) @ value).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """CLIP's ``ResidualAttentionBlock`` on [B, T, W]."""

    def __init__(self, source: Any) -> None:
        """Take over the layers of ``source``."""
        super().__init__()
        self.ln_1, self.ln_2, self.mlp = source.ln_1, source.ln_2, source.mlp
        self.attention = SelfAttention(source.attn)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map [B, T, W] to [B, T, W]."""
        x = x + self.attention(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class TextEncoder(nn.Module):
    """``CLIP.encode_text`` for questions of any one length T up to the context's 77."""

    def __init__(self, clip_model: Any) -> None:
        """Take over the text half of ``clip_model``."""
        super().__init__()
        self.mask: Tensor
        self.embedding = clip_model.token_embedding
        self.positions = clip_model.positional_embedding
        self.blocks = nn.ModuleList(Block(block) for block in clip_model.transformer.resblocks)
        self.ln_final = clip_model.ln_final
        self.projection = clip_model.text_projection
        self.register_buffer("mask", clip_model.build_attention_mask(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode ``tokens`` int32 [B, T], zero after the end token, to fp32 [B, D]."""
        length = tokens.shape[1]
        x = self.embedding(tokens) + self.positions[:length]
        for block in self.blocks:
            x = block(x, self.mask[:length, :length])
        # The end token has the highest id. fp32 holds every id exactly, and ArgMax takes it on every provider.
        end = tokens.to(torch.float32).argmax(dim=1)
        last = torch.gather(x, 1, end[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
        return self.ln_final(last) @ self.projection


class VisionTransformerEncoder(nn.Module):
    """CLIP's ``VisionTransformer`` from uint8 pixels."""

    def __init__(self, visual: Any) -> None:
        """Take over the layers of ``visual``."""
        super().__init__()
        self.patches, self.ln_pre, self.ln_post = visual.conv1, visual.ln_pre, visual.ln_post
        self.class_embedding, self.positions, self.projection = (
            visual.class_embedding,
            visual.positional_embedding,
            visual.proj,
        )
        self.blocks = nn.ModuleList(Block(block) for block in visual.transformer.resblocks)

    def forward(self, image: Tensor) -> Tensor:
        """Encode ``image`` uint8 [B, S, S, 3] to fp32 [B, D]."""
        patches = self.patches(normalise_pixels(image)).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([first, patches], dim=1) + self.positions)
        for block in self.blocks:
            x = block(x)
        return self.ln_post(x[:, 0]) @ self.projection


class ResNetEncoder(nn.Module):
    """CLIP's ``ModifiedResNet`` from uint8 pixels."""

    def __init__(self, visual: Any) -> None:
        """Take over the layers of ``visual``."""
        super().__init__()
        self.stem = nn.ModuleList(
            nn.Sequential(conv, norm, nn.ReLU())
            for conv, norm in (
                (visual.conv1, visual.bn1),
                (visual.conv2, visual.bn2),
                (visual.conv3, visual.bn3),
            )
        )
        self.avgpool = visual.avgpool
        self.layers = nn.ModuleList([visual.layer1, visual.layer2, visual.layer3, visual.layer4])
        self.pool = visual.attnpool

    def forward(self, image: Tensor) -> Tensor:
        """Encode ``image`` uint8 [B, S, S, 3] to fp32 [B, D]."""
        x = normalise_pixels(image)
        for convolution in self.stem:
            x = convolution(x)
        x = self.avgpool(x)
        for layer in self.layers:
            x = layer(x)
        return self._attention_pool(x.flatten(2).transpose(1, 2))

    def _attention_pool(self, x: Tensor) -> Tensor:
        """Attend from the mean of ``x`` [B, cells, W] to it and all cells: CLIP's ``AttentionPool2d``."""
        mean = x.mean(dim=1, keepdim=True)
        x = torch.cat([mean, x], dim=1) + self.pool.positional_embedding
        query, key, value = self.pool.q_proj(x[:, :1]), self.pool.k_proj(x), self.pool.v_proj(x)
        return self.pool.c_proj(attend(query, key, value, self.pool.num_heads)).squeeze(1)


def image_encoder(clip_model: Any) -> nn.Module:
    """The served image encoder of either family of ``clip_model``."""
    visual = clip_model.visual
    return ResNetEncoder(visual) if hasattr(visual, "attnpool") else VisionTransformerEncoder(visual)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # meta: the weights are given, not made
    linear.weight, linear.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))
    return linear
