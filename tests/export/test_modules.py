"""The re-expressed encoders against the ``clip`` package's own modules, on the same weights."""

from __future__ import annotations

import pytest
import torch

from export.modules import Block, TextEncoder, image_encoder
from training.clip_models import FrozenClip, clip_tokenize, normalise_pixels
from vizwiz_client.contract.tensors import TOKEN_LENGTHS

QUESTIONS = ["what is this?", "what color is the mug on the left?", "is it on"]


def assert_close(got: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, reference, rtol=0, atol=tolerance * reference.abs().max().item())


@torch.inference_mode()
def test_image_encoder(tiny_clip: FrozenClip) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (3, tiny_clip.side, tiny_clip.side, 3), dtype=torch.uint8)
    reference = tiny_clip.model.encode_image(normalise_pixels(pixels))
    assert_close(image_encoder(tiny_clip.model).eval()(pixels), reference)


@torch.inference_mode()
@pytest.mark.parametrize("length", TOKEN_LENGTHS)
def test_a_question_has_one_feature_at_every_length(tiny_clip: FrozenClip, length: int) -> None:
    tokens = clip_tokenize(QUESTIONS)
    used = int((tokens > 0).sum(dim=1).max())
    if used > length:
        tokens = tokens[[0, 2]]
    encoder = TextEncoder(tiny_clip.model).eval()
    assert_close(encoder(tokens[:, :length].int()), tiny_clip.model.encode_text(tokens))


@torch.inference_mode()
def test_two_questions_have_two_features(tiny_clip: FrozenClip) -> None:
    features = TextEncoder(tiny_clip.model).eval()(clip_tokenize(QUESTIONS).int())
    assert (features[0] - features[1]).abs().max() > 0.01 * features.abs().max()


@torch.inference_mode()
def test_every_block_of_the_transformers(tiny_vit: FrozenClip) -> None:
    torch.manual_seed(0)
    mask = tiny_vit.model.build_attention_mask()[:9, :9]
    for transformer, causal in ((tiny_vit.model.visual.transformer, None), (tiny_vit.model.transformer, mask)):
        for block in transformer.resblocks:
            x = torch.randn(2, 9, transformer.width)
            assert_close(Block(block).eval()(x, causal), block(x.transpose(0, 1)).transpose(0, 1))
