"""The graph of the heads, averaged, against PyTorch's heads one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export.head_graph import write_head
from export.targets import GraphKind, open_graph
from tests.export.conftest import randomize
from training.model import ClipEnsemble, GatedHead, Predictor, QualityHead
from vizwiz_client.contract.tensors import head_digest

DIGEST = "0123456789ab"


def make_predictor(
    folds: int, answerable_from: str = "hidden", quality: int = 0, embed_dim: int = 8, reads_quality: bool = False
) -> Predictor:
    """Heads whose every weight differs from its initial value, LayerNorm's scale and shift included."""
    torch.manual_seed(0)
    heads = [
        GatedHead(
            embed_dim=embed_dim,
            answers=5,
            types=3,
            hidden=16,
            answerable_from=answerable_from,
            quality=QualityHead(embed_dim, 7) if reads_quality else None,
        ).eval()
        for _ in range(folds)
    ]
    for parameter in nn.ModuleList(heads).parameters():
        nn.init.normal_(parameter, mean=0.1)
    quality_heads = [QualityHead(embed_dim=embed_dim, issues=7) for _ in range(quality)]
    randomize(nn.ModuleList(quality_heads))
    return Predictor(heads, quality_heads).eval()


def serve(predictor: Predictor, folder: Path, image: Tensor, text: Tensor) -> list[Tensor]:
    """The outputs of the graph of ``predictor``."""
    write_head(ClipEnsemble([predictor]), DIGEST, path := folder / "head.onnx")
    features = {"image_features": image.numpy(), "text_features": text.numpy()}
    return [torch.from_numpy(output) for output in open_graph(path, GraphKind("portable", "fp32"))(features)]


@torch.inference_mode()
def test_served_head_gives_probabilities_and_its_number(tmp_path: Path) -> None:
    served = serve(make_predictor(1), tmp_path, torch.randn(4, 8), torch.randn(4, 8))
    answer, answer_type, answerable, number = served
    torch.testing.assert_close(answer.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(answer_type.sum(dim=1), torch.ones(4))
    assert answerable.shape == number.shape == (4, 1)
    assert head_digest(int(number[0])) == DIGEST


@torch.inference_mode()
@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("reads_quality", [False, True])
@pytest.mark.parametrize("answerable_from", ["hidden", "features"])
def test_folds_are_the_mean_of_the_heads(answerable_from: str, reads_quality: bool, folds: int, tmp_path: Path) -> None:
    predictor = make_predictor(folds, answerable_from=answerable_from, reads_quality=reads_quality)
    image, text = torch.randn(4, 8), torch.randn(4, 8)
    answer, answer_type, answerable, _ = serve(predictor, tmp_path, image, text)
    logits = [head(text, image) for head in predictor.heads]
    torch.testing.assert_close(answer, sum(each.answer.softmax(1) for each in logits) / folds)
    torch.testing.assert_close(answer_type, sum(each.answer_type.softmax(1) for each in logits) / folds)
    torch.testing.assert_close(answerable[:, 0], sum(each.answerable.sigmoid() for each in logits) / folds)


@torch.inference_mode()
@pytest.mark.parametrize("certain", [[1000.0], [1000.0] * 3, [-1000.0] * 3, [1000.0, -1000.0, 0.0]])
def test_certainty_stays_finite(certain: list[float], tmp_path: Path) -> None:
    predictor = make_predictor(len(certain))
    for head, bias in zip(predictor.heads, certain, strict=True):
        head.answerable.bias.fill_(bias)
        head.answerable.weight.zero_()
    answerable = serve(predictor, tmp_path, torch.randn(2, 8), torch.randn(2, 8))[2]
    mean = torch.tensor(certain).sigmoid().mean()
    torch.testing.assert_close(answerable, mean.expand(2, 1))


@torch.inference_mode()
@pytest.mark.parametrize("heads", [1, 3])
def test_quality_is_the_mean_of_its_heads(heads: int, tmp_path: Path) -> None:
    """From image features alone; the other outputs are as they were."""
    predictor = make_predictor(2, quality=heads)
    image, text = torch.randn(4, 8), torch.randn(4, 8)
    *others, quality = serve(predictor, tmp_path, image, text)
    torch.testing.assert_close(quality, sum(head(image).sigmoid() for head in predictor.quality) / heads)
    assert (quality.max(dim=0).values - quality.min(dim=0).values > 0.01).all()
    for got, expected in zip(others, serve(make_predictor(2), tmp_path, image, text), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@torch.inference_mode()
def test_quality_stays_finite_and_exact(tmp_path: Path) -> None:
    """Each column has log-odds of its own, and a mean of probabilities is not that of log-odds."""
    predictor = make_predictor(1, quality=3)
    log_odds = torch.tensor(
        [[1000, -1000, -20, 20, 0, -9, 5], [1000, -1000, -20, 20, 0, 9, 5], [1000, -1000, 0] + [3] * 4]
    )
    for head, biases in zip(predictor.quality, log_odds, strict=True):
        head.linear.weight.zero_()
        head.linear.bias.copy_(biases)
    quality = serve(predictor, tmp_path, torch.randn(2, 8), torch.randn(2, 8))[4]
    mean = log_odds.double().sigmoid().mean(dim=0)
    torch.testing.assert_close(quality.double(), mean.expand(2, 7), rtol=0, atol=3e-7)


@torch.inference_mode()
@pytest.mark.parametrize(("folds", "quality"), [(1, 0), (2, 3)])
def test_several_clips_are_the_mean_of_all_heads(folds: int, quality: int, tmp_path: Path) -> None:
    ensemble = ClipEnsemble([make_predictor(folds, quality=quality, embed_dim=dim) for dim in (8, 6, 8)]).eval()
    for number, parameter in enumerate(ensemble.parameters()):  # no two members alike
        nn.init.normal_(parameter, mean=0.1, std=0.5, generator=torch.Generator().manual_seed(number))
    features = [(torch.randn(4, dim), torch.randn(4, dim)) for dim in (8, 6, 8)]
    write_head(ensemble, DIGEST, path := tmp_path / "head.onnx")
    feed = {}
    for number, (text, image) in enumerate(features, 1):
        feed |= {f"text_features_{number}": text.numpy(), f"image_features_{number}": image.numpy()}
    answer, answer_type, answerable, number, *rest = open_graph(path, GraphKind("portable", "fp32"))(feed)
    expected = ensemble(features)
    torch.testing.assert_close(torch.from_numpy(answer), expected.answer)
    torch.testing.assert_close(torch.from_numpy(answer_type), expected.answer_type)
    torch.testing.assert_close(torch.from_numpy(answerable)[:, 0], expected.answerable)
    assert head_digest(int(number[0, 0])) == DIGEST
    assert len(rest) == bool(quality)
    if quality:
        torch.testing.assert_close(torch.from_numpy(rest[0]), expected.quality)


def test_clips_with_different_numbers_of_heads_are_refused(tmp_path: Path) -> None:
    """The mean of all heads would not be the mean of the CLIPs."""
    ensemble = ClipEnsemble([make_predictor(1), make_predictor(2)])
    with pytest.raises(ValueError, match="different numbers of heads"):
        write_head(ensemble, DIGEST, tmp_path / "head.onnx")
