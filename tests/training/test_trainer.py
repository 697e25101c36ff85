"""The losses by hand, and the settings of the recipes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.training.synthetic import make_dataset, make_records
from training.labels import IGNORED_TARGET, Targets
from training.model import GatedHead, HeadLogits
from training.recipe import Recipe
from training.trainer import DivergedError, Trainer, evaluate, fit_head, learning_rate_at, total_loss

TINY = Recipe(epochs=3, batch_size=16, hidden=16)


def targets(*answers: int) -> Targets:
    n = len(answers)
    return Targets(torch.tensor(answers), torch.zeros(n).long(), torch.ones(n))


@pytest.fixture
def logits() -> HeadLogits:
    torch.manual_seed(0)
    return HeadLogits(torch.randn(2, 5), torch.randn(2, 3), torch.randn(2))


def rest(logits: HeadLogits) -> torch.Tensor:
    """Type and answerability loss of targets that are 0 and 1."""
    types = functional.cross_entropy(logits.answer_type, torch.zeros(2).long())
    return types - functional.logsigmoid(logits.answerable).mean()


def test_the_reports_loss(logits: HeadLogits) -> None:
    loss = total_loss(logits, targets(2, 4))
    expected = functional.cross_entropy(logits.answer, torch.tensor([2, 4])) + rest(logits)
    torch.testing.assert_close(loss, expected)


def test_a_record_without_a_target_answer_has_type_and_answerability_only() -> None:
    torch.manual_seed(0)
    head = GatedHead(embed_dim=8, answers=5, types=3).eval()
    loss = total_loss(head(torch.zeros(2, 8), torch.zeros(2, 8)), targets(IGNORED_TARGET, IGNORED_TARGET))
    loss.backward()
    assert torch.isfinite(loss)
    assert not head.answer[2].weight.grad.any()
    assert head.answerable.bias.grad.any()


def test_the_answer_loss_is_a_mean_over_records_with_a_target_answer() -> None:
    torch.manual_seed(0)
    head = GatedHead(embed_dim=8, answers=5, types=3).eval()
    known, mixed = (head(torch.zeros(n, 8), torch.zeros(n, 8)) for n in (1, 2))
    torch.testing.assert_close(total_loss(known, targets(2)), total_loss(mixed, targets(2, IGNORED_TARGET)))


def test_a_fit_that_diverges_says_so() -> None:
    dataset, answers = make_dataset(make_records(20), TINY)
    broken = replace(dataset, texts=dataset.texts * math.nan)
    with pytest.raises(DivergedError, match=r"loss of epoch 1 is nan: try a --learning-rate below 0.001"):
        fit_head(TINY, broken, dataset, (answers, 4))


def test_the_schedules() -> None:
    assert [learning_rate_at(Recipe(), x) for x in (0.0, 0.5, 1.0)] == [1e-3] * 3
    cosine = [learning_rate_at(Recipe(schedule="cosine"), x) for x in (0.0, 0.5, 1.0)]
    assert cosine == pytest.approx([1e-3, 5e-4, 0.0])


def test_the_average_of_weights_is_what_is_kept() -> None:
    dataset, answers = make_dataset(make_records(64), TINY)
    recipe = replace(TINY, ema=0.5, epochs=1, batch_size=32)
    trainer = Trainer(recipe, dataset, answers, 4, 0)
    seen: list[torch.Tensor] = []
    trainer.optimiser.register_step_post_hook(lambda *_: seen.append(trainer.head.gate.weight.detach().clone()))
    trainer.run_epoch()
    torch.testing.assert_close(trainer.scored_head.gate.weight, 0.5 * seen[0] + 0.5 * seen[1])


def test_an_epoch_passes_over_few_records_several_times() -> None:
    dataset, answers = make_dataset(make_records(40), TINY)
    recipe = replace(TINY, repeat_to_steps=30)
    trainer = Trainer(recipe, dataset, answers, 4, 0)
    steps: list[float] = []
    trainer.optimiser.register_step_post_hook(lambda *_: steps.append(trainer.optimiser.param_groups[0]["lr"]))
    for _ in range(recipe.epochs):
        assert math.isfinite(trainer.run_epoch())
    assert len(steps) == recipe.steps(40) == 27  # 3 epochs of 3 passes of 3 steps; 4 passes would take 36


def test_a_projection_starts_at_the_principal_components() -> None:
    dataset, answers = make_dataset(make_records(200), TINY)
    trainer = Trainer(replace(TINY, hidden=6, projection="principal"), dataset, answers, 4, 0)
    features = trainer.head.projection[0](torch.cat([dataset.texts, dataset.images[0]], dim=1))
    projected = trainer.head.projection.eval()(torch.cat([dataset.texts, dataset.images[0]], dim=1)).detach()
    torch.testing.assert_close(projected.mean(dim=0), torch.zeros(6), atol=1e-5, rtol=0)
    variance = torch.linalg.eigvalsh(torch.cov(features.detach().T)).flip(0)[:6]
    found = torch.linalg.eigvalsh(torch.cov(projected.T)).flip(0)  # rotated, they keep the variances
    torch.testing.assert_close(found, variance, atol=1e-4, rtol=1e-4)
    before = trainer.head.projection[2].weight.detach().clone()
    trainer.run_epoch()
    assert torch.equal(trainer.head.projection[2].weight, before)
    assert trainer.head.answer[2].weight.abs().max() > 0


def test_rotated_photos_are_seen_in_training_and_not_in_scoring() -> None:
    dataset, _ = make_dataset(make_records(40), TINY, rotations=4)
    assert torch.equal(dataset.batch(slice(0, 3)).images, dataset.images[0, :3])
    rows = torch.arange(40)
    drawn = torch.stack([dataset.random_rotations(rows).images for _ in range(60)])
    for rotated in dataset.images:
        assert (drawn == rotated).all(dim=2).any(dim=0).all()  # each record in each rotation


def test_the_epoch_that_is_kept() -> None:
    dataset, answers = make_dataset(make_records(64), TINY)
    rows: list[dict[str, Any]] = []
    best = fit_head(TINY, dataset, dataset, (answers, 4), on_epoch=rows.append)
    last = fit_head(replace(TINY, keep="last"), dataset, dataset, (answers, 4))
    assert best.history == rows
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert best.best == max(rows, key=lambda row: row["vqa_accuracy_leave_one_out"])
    assert last.best["epoch"] == 3
    assert evaluate(best.head, dataset)["val_loss"] == best.best["val_loss"]
