from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from training.model import ClipEnsemble, GatedHead, Predictor, QualityHead


def test_the_head_is_the_papers() -> None:
    """Written out from section 3 of arXiv 2206.05281, layer by layer."""
    torch.manual_seed(0)
    head = GatedHead(embed_dim=8, answers=5, types=3, hidden=16).eval()
    text, image = torch.randn(4, 8), torch.randn(4, 8)
    weights = head.state_dict()

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    hidden = linear("projection.2", functional.layer_norm(torch.cat([text, image], 1), (16,)))
    types = linear("answer_type", hidden)
    answers = linear("answer.2", functional.layer_norm(hidden, (16,))) * torch.sigmoid(linear("gate", types))

    logits = head(text, image)
    torch.testing.assert_close(logits.answer, answers)
    torch.testing.assert_close(logits.answer_type, types)
    torch.testing.assert_close(logits.answerable, linear("answerable", hidden)[:, 0])


def test_answerability_can_be_read_from_the_features() -> None:
    torch.manual_seed(0)
    head = GatedHead(embed_dim=8, answers=5, types=3, hidden=16, answerable_from="features")
    torch.nn.init.normal_(head.projection[0].weight)
    text, image = torch.randn(4, 8), torch.randn(4, 8)
    logits = head.train()(text, image)
    normalised = functional.layer_norm(
        torch.cat([text, image], 1), (16,), head.projection[0].weight, head.projection[0].bias
    )
    torch.testing.assert_close(logits.answerable, head.answerable(normalised)[:, 0])  # nothing is dropped before it
    logits.answerable.sum().backward()
    assert head.projection[2].weight.grad is None


@pytest.mark.parametrize("source", ["hidden", "features"])
def test_answerability_reads_quality_too_and_moves_nothing_else(source: str) -> None:
    """Before its weights are learnt, the log-odds change nothing; no gradient reaches the quality head."""
    torch.manual_seed(0)
    quality = QualityHead(8, 7)
    torch.manual_seed(1)
    without, after = GatedHead(8, answers=5, types=3, hidden=16, answerable_from=source).eval(), torch.rand(1)
    torch.manual_seed(1)
    head = GatedHead(8, answers=5, types=3, hidden=16, answerable_from=source, quality=quality).eval()
    assert torch.equal(torch.rand(1), after)
    text, image = torch.randn(4, 8), torch.randn(4, 8)
    for got, expected in zip(head(text, image), without(text, image), strict=True):
        torch.testing.assert_close(got, expected)
    with torch.no_grad():
        head.answerable.weight[0, -7:] = weight = torch.randn(7)
    logits = head(text, image)
    torch.testing.assert_close(logits.answerable, without(text, image).answerable + quality(image) @ weight)
    logits.answerable.sum().backward()
    assert all(parameter.grad is None for parameter in quality.parameters())


def test_dropout_is_where_the_paper_has_it() -> None:
    torch.manual_seed(0)
    head = GatedHead(embed_dim=8, answers=5, types=3)
    assert [module.p for module in head.modules() if isinstance(module, torch.nn.Dropout)] == [0.5, 0.5]
    text, image = torch.randn(4, 8), torch.randn(4, 8)
    assert not torch.equal(head.train()(text, image).answer, head(text, image).answer)


def make_heads(count: int, embed_dim: int = 8) -> list[GatedHead]:
    torch.manual_seed(0)
    return [GatedHead(embed_dim, answers=5, types=3, hidden=16).eval() for _ in range(count)]


def make_predictor(count: int, embed_dim: int = 8) -> Predictor:
    heads = make_heads(count, embed_dim)
    return Predictor(heads, [QualityHead(embed_dim, 7) for _ in range(count)])


@torch.inference_mode()
def test_quality_is_a_linear_layer_on_the_normalised_photo() -> None:
    predictor = make_predictor(2)
    heads = list(predictor.quality)
    torch.nn.init.normal_(heads[0].norm.weight)
    texts, images = torch.randn(4, 8), torch.randn(4, 8)

    def probabilities(head: torch.nn.Module) -> torch.Tensor:
        normalised = functional.layer_norm(images, (8,), head.norm.weight, head.norm.bias)
        return torch.sigmoid(normalised @ head.linear.weight.T + head.linear.bias)

    torch.testing.assert_close(
        predictor(texts, images).quality, (probabilities(heads[0]) + probabilities(heads[1])) / 2
    )
    assert Predictor(make_heads(1))(texts, images).quality is None


@torch.inference_mode()
def test_probabilities_are_averaged_and_weights_are_not() -> None:
    heads = make_heads(3)
    texts, images = torch.randn(4, 8), torch.randn(4, 8)
    got = Predictor(heads)(texts, images)
    logits = [head(texts, images) for head in heads]
    torch.testing.assert_close(got.answer, torch.stack([each.answer.softmax(1) for each in logits]).mean(0))
    torch.testing.assert_close(got.answer_type, torch.stack([each.answer_type.softmax(1) for each in logits]).mean(0))
    torch.testing.assert_close(got.answerable, torch.stack([each.answerable.sigmoid() for each in logits]).mean(0))


@torch.inference_mode()
def test_two_clips_of_different_width() -> None:
    members = [make_predictor(2, 8), make_predictor(1, 6)]
    features = [(torch.randn(4, 8), torch.randn(4, 8)), (torch.randn(4, 6), torch.randn(4, 6))]
    got = ClipEnsemble(members)(features)
    apart = [member(*pair) for member, pair in zip(members, features, strict=True)]
    for whole, first, second in zip(got, *apart, strict=True):
        torch.testing.assert_close(whole, (first + second) / 2)


@torch.inference_mode()
def test_one_clip_alone_is_its_predictor() -> None:
    predictor, features = make_predictor(2), (torch.randn(4, 8), torch.randn(4, 8))
    assert all(map(torch.equal, ClipEnsemble([predictor])([features]), predictor(*features)))
