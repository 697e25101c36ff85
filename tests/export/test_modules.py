"""The re-expressed encoders against the ``clip`` package's own modules, on the same weights, layer for layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from export.modules import (
    Block,
    Bottleneck,
    ResNetEncoder,
    TextEncoder,
    attention_layers,
    first_end,
    image_encoder,
)
from export.operators import Operators
from training.clip_models import FrozenClip, clip_tokenize, load_clip, normalise_pixels
from vizwiz_client.contract.tensors import TOKEN_LENGTHS
from vizwiz_client.contract.tokens import END_OF_TEXT, START_OF_TEXT

QUESTIONS = ["what is this?", "what color is the mug on the left?", "is it on"]
OPERATORS = Operators()


def assert_close(got: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, reference, rtol=0, atol=tolerance * reference.abs().max().item())


@torch.inference_mode()
def test_image_encoder(tiny_clip: FrozenClip) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (3, tiny_clip.side, tiny_clip.side, 3), dtype=torch.uint8)
    reference = tiny_clip.model.encode_image(normalise_pixels(pixels))
    assert_close(image_encoder(tiny_clip.model, OPERATORS).eval()(pixels), reference)


@torch.inference_mode()
@pytest.mark.parametrize("length", TOKEN_LENGTHS)
def test_a_question_has_one_feature_at_every_length(tiny_clip: FrozenClip, length: int) -> None:
    tokens = clip_tokenize(QUESTIONS)
    used = int((tokens > 0).sum(dim=1).max())
    if used > length:
        tokens = tokens[[0, 2]]
    encoder = TextEncoder(tiny_clip.model, OPERATORS).eval()
    assert_close(encoder(tokens[:, :length].int()), tiny_clip.model.encode_text(tokens))


@torch.inference_mode()
def test_two_questions_have_two_features(tiny_clip: FrozenClip) -> None:
    features = TextEncoder(tiny_clip.model, OPERATORS).eval()(clip_tokenize(QUESTIONS).int())
    assert (features[0] - features[1]).abs().max() > 0.01 * features.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_end_is_found_by_a_runtime_of_any_precision(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that computes in 16 bits takes those for the fp32 of a graph: so does this test."""
    rows = [
        [START_OF_TEXT, END_OF_TEXT, 0, 0],
        [START_OF_TEXT, 5, END_OF_TEXT, 0],
        [START_OF_TEXT, END_OF_TEXT - 2, 7, END_OF_TEXT],
        [START_OF_TEXT, END_OF_TEXT, 5, END_OF_TEXT],  # a question may hold the end token's text
    ]
    tokens = torch.nn.functional.pad(torch.tensor(rows, dtype=torch.int32), (0, 73))
    monkeypatch.setattr(torch, "float32", dtype)
    assert first_end(tokens).tolist() == [1, 2, 3, 1]


@torch.inference_mode()
def test_every_block_of_the_transformers(tiny_vit: FrozenClip) -> None:
    torch.manual_seed(0)
    for transformer, causal in ((tiny_vit.model.visual.transformer, False), (tiny_vit.model.transformer, True)):
        norm = nn.LayerNorm(transformer.width)
        for source in transformer.resblocks:
            assert (source.attn_mask is not None) is causal
            x = torch.randn(2, 9, transformer.width)
            normed = source.ln_1(x)
            after, residual = Block(source, OPERATORS).eval()(x, normed, normed, norm, causal=causal)
            expected = source(x.transpose(0, 1)).transpose(0, 1)
            assert_close(residual, expected)
            assert_close(after, norm(expected))


@torch.inference_mode()
def test_the_last_block_is_the_whole_block_at_one_position(tiny_vit: FrozenClip) -> None:
    torch.manual_seed(0)
    source, norm = tiny_vit.model.visual.transformer.resblocks[0], nn.LayerNorm(128)
    x = torch.randn(2, 9, 128)
    normed = source.ln_1(x)
    block = Block(source, OPERATORS).eval()
    assert_close(block(x[:, :1], normed[:, :1], normed, norm)[0], block(x, normed, normed, norm)[0][:, :1])


@torch.inference_mode()
@pytest.mark.parametrize("tiny_clip", [(1, 2, 1, 1)], ids=["resnet"], indirect=True)
def test_every_layer_of_the_resnet(tiny_clip: FrozenClip) -> None:
    torch.manual_seed(0)
    visual = tiny_clip.model.visual
    for norm in visual.modules():
        if isinstance(norm, nn.BatchNorm2d):  # a fresh one changes nothing, so a lost one would not show
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.weight, 1, 0.3)
            nn.init.normal_(norm.bias)
    encoder = ResNetEncoder(visual, OPERATORS).eval()
    x = torch.rand(2, 3, 64, 64)
    stem = encoder.stem(x)
    for number in (1, 2, 3):
        convolution, norm = getattr(visual, f"conv{number}"), getattr(visual, f"bn{number}")
        x = torch.relu(norm(convolution(x)))
    x = visual.avgpool(x)
    assert_close(stem, x)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        for source in layer:
            expected = source(x)
            assert_close(Bottleneck(source).eval()(x), expected)
            x = expected
    cells = x.flatten(2).transpose(1, 2)
    assert_close(encoder._attention_pool(cells), visual.attnpool(x))


def test_attentions_are_counted(tiny_clip: FrozenClip) -> None:
    family = 1 if hasattr(tiny_clip.model.visual, "attnpool") else 3
    assert attention_layers(image_encoder(tiny_clip.model, OPERATORS)) == family
    assert attention_layers(TextEncoder(tiny_clip.model, OPERATORS)) == 2


def test_taking_over_the_weights_changes_none(tiny_clip: FrozenClip) -> None:
    image_encoder(tiny_clip.model, OPERATORS)
    assert load_clip(tiny_clip.source).digest == tiny_clip.digest
