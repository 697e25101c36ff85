from __future__ import annotations

import torch
from torch.nn import functional

from training.fitting import Batch, loss_of
from training.head import GatedHead


def test_the_head_is_the_papers() -> None:
    """Written out from section 3 of arXiv 2206.05281, layer by layer."""
    torch.manual_seed(0)
    head = GatedHead(features=8, answers=5, types=3, hidden=16).eval()
    text, image = torch.randn(4, 8), torch.randn(4, 8)
    weights = head.state_dict()

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    joined = linear("join.2", functional.layer_norm(torch.cat([text, image], 1), (16,)))
    types = linear("answer_type", joined)
    answers = linear("answer.2", functional.layer_norm(joined, (16,))) * torch.sigmoid(linear("gate", types))

    logits = head(text, image)
    torch.testing.assert_close(logits.answer, answers)
    torch.testing.assert_close(logits.answer_type, types)
    torch.testing.assert_close(logits.answerable, linear("answerable", joined)[:, 0])


def test_dropout_is_where_the_paper_has_it() -> None:
    torch.manual_seed(0)
    head = GatedHead(features=8, answers=5, types=3)
    assert [module.p for module in head.modules() if isinstance(module, torch.nn.Dropout)] == [0.5, 0.5]
    text, image = torch.randn(4, 8), torch.randn(4, 8)
    assert not torch.equal(head.train()(text, image).answer, head(text, image).answer)


def batch(answer: list[int]) -> Batch:
    n = len(answer)
    return Batch(torch.zeros(n, 8), torch.zeros(n, 8), torch.tensor(answer), torch.zeros(n).long(), torch.ones(n))


def test_a_record_without_a_known_answer_teaches_type_and_answerability_only() -> None:
    torch.manual_seed(0)
    head = GatedHead(features=8, answers=5, types=3).eval()
    ignored = batch([-100, -100])
    loss = loss_of(head(ignored.texts, ignored.images), ignored)
    loss.backward()
    assert torch.isfinite(loss)
    assert head.answer[2].weight.grad is None or not head.answer[2].weight.grad.any()
    assert head.answerable.weight.grad is not None
    assert head.answerable.bias.grad.any()


def test_the_answers_loss_is_a_mean_over_the_known_ones() -> None:
    torch.manual_seed(0)
    head = GatedHead(features=8, answers=5, types=3).eval()
    known, mixed = batch([2]), batch([2, -100])
    torch.testing.assert_close(
        loss_of(head(known.texts, known.images), known), loss_of(head(mixed.texts, mixed.images), mixed)
    )
