"""The losses by hand, the ingredients of the recipes, and a fit that is killed."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.conftest import ROOT
from tests.training.synthetic import make_examples, make_records
from training.checkpoints import Checkpoints
from training.fitting import HEADLINE, DivergedError, Fitting, evaluate, fit_head, learning_rate_at
from training.folds import fit_predictor
from training.head import GatedHead, HeadLogits
from training.losses import Batch, loss_of
from training.recipe import Recipe
from training.splits import fold_rows
from training.targets import Targets

TINY = Recipe(epochs=3, batch_size=16, hidden=16)


def targets(answers: list[list[int]], weights: list[list[float]]) -> Targets:
    n = len(answers)
    return Targets(torch.tensor(answers), torch.tensor(weights), torch.zeros(n).long(), torch.ones(n))


def batch(answers: list[list[int]], weights: list[list[float]]) -> Batch:
    n = len(answers)
    return Batch(torch.zeros(n, 8), torch.zeros(n, 8), targets(answers, weights))


@pytest.fixture
def logits() -> HeadLogits:
    torch.manual_seed(0)
    return HeadLogits(torch.randn(2, 5), torch.randn(2, 3), torch.randn(2))


def rest(logits: HeadLogits) -> torch.Tensor:
    """Type and answerability loss of targets that are 0 and 1."""
    types = functional.cross_entropy(logits.answer_type, torch.zeros(2).long())
    return types - functional.logsigmoid(logits.answerable).mean()


def test_the_reports_loss(logits: HeadLogits) -> None:
    loss = loss_of(logits, batch([[2], [4]], [[1.0], [1.0]]), Recipe())
    expected = functional.cross_entropy(logits.answer, torch.tensor([2, 4])) + rest(logits)
    torch.testing.assert_close(loss, expected)


def test_a_record_without_a_known_answer_teaches_type_and_answerability_only() -> None:
    torch.manual_seed(0)
    head = GatedHead(features=8, answers=5, types=3).eval()
    ignored = batch([[0], [0]], [[0.0], [0.0]])
    loss = loss_of(head(ignored.texts, ignored.images), ignored, Recipe())
    loss.backward()
    assert torch.isfinite(loss)
    assert not head.answer[2].weight.grad.any()
    assert head.answerable.bias.grad.any()


def test_the_answers_loss_is_a_mean_over_the_known_ones() -> None:
    torch.manual_seed(0)
    head = GatedHead(features=8, answers=5, types=3).eval()
    known, mixed = batch([[2]], [[1.0]]), batch([[2], [0]], [[1.0], [0.0]])
    torch.testing.assert_close(
        loss_of(head(known.texts, known.images), known, Recipe()),
        loss_of(head(mixed.texts, mixed.images), mixed, Recipe()),
    )


def test_graded_targets(logits: HeadLogits) -> None:
    graded = batch([[2, 3], [4, 0]], [[1.0, 0.6], [0.3, 0.0]])
    log = functional.log_softmax(logits.answer, dim=1)
    by_hand = -(log[0, 2] + 0.6 * log[0, 3] + 0.3 * log[1, 4]) / 2
    torch.testing.assert_close(loss_of(logits, graded, Recipe(targets="accuracy")), by_hand + rest(logits))


def test_label_smoothing(logits: HeadLogits) -> None:
    loss = loss_of(logits, batch([[2], [4]], [[1.0], [1.0]]), Recipe(label_smoothing=0.1))
    expected = functional.cross_entropy(logits.answer, torch.tensor([2, 4]), label_smoothing=0.1)
    torch.testing.assert_close(loss, expected + rest(logits))


def test_binary_cross_entropy(logits: HeadLogits) -> None:
    graded = batch([[2, 3], [4, 0]], [[1.0, 0.6], [0.3, 0.0]])
    dense = torch.zeros(2, 5)
    dense[0, 2], dense[0, 3], dense[1, 4] = 1.0, 0.6, 0.3
    expected = functional.binary_cross_entropy_with_logits(logits.answer, dense, reduction="sum") / 2
    recipe = Recipe(targets="accuracy", answer_loss="bce")
    torch.testing.assert_close(loss_of(logits, graded, recipe), expected + rest(logits))


def test_accuracy_targets_learn_the_answer_that_scores_best() -> None:
    """Six in ten records agree on nothing but a weak answer; the majority's answer is not the one that scores."""
    answers = [[0, 1]] * 6 + [[2, 1]] * 4
    weights = [[0.3, 0.0]] * 6 + [[1.0, 0.0]] * 4  # expected accuracy: 0.18 of answer 0, 0.40 of answer 2
    free = torch.zeros(1, 5, requires_grad=True)
    optimiser = torch.optim.Adam([free], 0.1)
    everything = Batch(torch.zeros(10, 8), torch.zeros(10, 8), targets(answers, weights))
    for _ in range(200):
        optimiser.zero_grad()
        zeros = HeadLogits(free.expand(10, 5), torch.zeros(10, 3), torch.zeros(10))
        loss_of(zeros, everything, Recipe(targets="accuracy")).backward()
        optimiser.step()
    shares = free.detach().softmax(1)[0]
    torch.testing.assert_close(shares[[0, 2]], torch.tensor([0.18, 0.40]) / 0.58, atol=0.02, rtol=0)


def test_a_fit_that_diverges_says_so() -> None:
    examples, answers = make_examples(make_records(20), TINY)
    broken = replace(examples, texts=examples.texts * math.nan)
    with pytest.raises(DivergedError, match=r"loss of epoch 1 is nan: try a --learning-rate below 0.001"):
        fit_head(TINY, broken, examples, (answers, 4))


def test_the_schedules() -> None:
    assert [learning_rate_at(Recipe(), x) for x in (0.0, 0.5, 1.0)] == [1e-3] * 3
    cosine = [learning_rate_at(Recipe(schedule="cosine"), x) for x in (0.0, 0.5, 1.0)]
    assert cosine == pytest.approx([1e-3, 5e-4, 0.0])


def test_weighing_makes_both_kinds_of_record_count_alike() -> None:
    examples, answers = make_examples(make_records(100), TINY)
    fitting = Fitting(replace(TINY, answerable_weighting="balanced"), examples, answers, 4, 0)
    positive = int(examples.answerable.sum())
    assert fitting.positive_weight is not None
    assert fitting.positive_weight.item() == pytest.approx((100 - positive) / positive)
    batch = examples.batch(slice(None))
    expected = loss_of(fitting.head.eval()(batch.texts, batch.images), batch, TINY, fitting.positive_weight).item()
    found = evaluate(fitting.head, examples, TINY, fitting.positive_weight)["val_loss"]
    assert found == pytest.approx(expected, rel=1e-5)  # one axis of the plot holds both


def test_the_average_of_weights_is_what_is_kept() -> None:
    examples, answers = make_examples(make_records(64), TINY)
    recipe = replace(TINY, ema=0.5, epochs=1, batch_size=32)
    fitting = Fitting(recipe, examples, answers, 4, 0)
    seen: list[torch.Tensor] = []
    fitting.optimiser.register_step_post_hook(lambda *_: seen.append(fitting.head.gate.weight.detach().clone()))
    fitting.run_epoch()
    torch.testing.assert_close(fitting.scored().gate.weight, 0.5 * seen[0] + 0.5 * seen[1])


def test_few_records_are_gone_through_until_there_are_steps_enough() -> None:
    examples, answers = make_examples(make_records(40), TINY)
    recipe = replace(TINY, min_steps=25)
    fitting = Fitting(recipe, examples, answers, 4, 0)
    steps: list[float] = []
    fitting.optimiser.register_step_post_hook(lambda *_: steps.append(fitting.optimiser.param_groups[0]["lr"]))
    rows: list[dict[str, Any]] = []
    for _ in range(recipe.epochs):
        loss = fitting.run_epoch()
        rows.append({"epoch": len(rows) + 1, HEADLINE: 0.0})
        fitting.record(rows[-1])
        assert math.isfinite(loss)
    assert len(steps) == recipe.steps(40) == 27  # three epochs of three passes of three steps


def test_a_projection_starts_at_the_principal_components() -> None:
    examples, answers = make_examples(make_records(200), TINY)
    fitting = Fitting(replace(TINY, hidden=6, projection="principal"), examples, answers, 4, 0)
    features = fitting.head.join[0](torch.cat([examples.texts, examples.images[0]], dim=1))
    projected = fitting.head.join.eval()(torch.cat([examples.texts, examples.images[0]], dim=1)).detach()
    torch.testing.assert_close(projected.mean(dim=0), torch.zeros(6), atol=1e-5, rtol=0)
    variance = torch.linalg.eigvalsh(torch.cov(features.detach().T)).flip(0)[:6]
    found = torch.linalg.eigvalsh(torch.cov(projected.T)).flip(0)  # rotated, they keep the variances
    torch.testing.assert_close(found, variance, atol=1e-4, rtol=1e-4)
    before = fitting.head.join[2].weight.detach().clone()
    fitting.run_epoch()
    assert torch.equal(fitting.head.join[2].weight, before)
    assert fitting.head.answer[2].weight.abs().max() > 0


def test_bce_starts_at_the_base_rate() -> None:
    recipe = replace(TINY, targets="accuracy", answer_loss="bce")
    examples, answers = make_examples(make_records(200), recipe)
    plain, started = (Fitting(each, examples, answers, 4, 0).head for each in (TINY, recipe))
    losses = [evaluate(head, examples, recipe)["val_loss"] for head in (plain, started)]
    assert losses[1] < losses[0]


def test_rotated_views_are_seen_in_training_and_not_in_scoring() -> None:
    examples, _ = make_examples(make_records(40), TINY, views=4)
    assert torch.equal(examples.batch(slice(0, 3)).images, examples.images[0, :3])
    rows = torch.arange(40)
    drawn = torch.stack([examples.random_view(rows).images for _ in range(60)])
    for view in examples.images:
        assert (drawn == view).all(dim=2).any(dim=0).all()  # each record in each view


def test_the_epoch_that_is_kept() -> None:
    examples, answers = make_examples(make_records(64), TINY)
    rows: list[dict[str, Any]] = []
    best = fit_head(TINY, examples, examples, (answers, 4), report=rows.append)
    last = fit_head(replace(TINY, keep="last"), examples, examples, (answers, 4))
    assert best.history == rows
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert best.best == max(rows, key=lambda row: row["vqa_accuracy_leave_one_out"])
    assert last.best["epoch"] == 3
    assert evaluate(best.head, examples, TINY)["val_loss"] == best.best["val_loss"]


RECIPES_TO_KILL = {
    "report": TINY,
    "all": replace(TINY, ema=0.9, schedule="cosine", targets="accuracy", views=2, folds=2, weight_decay=0.1),
}
SCRIPT = """
import sys
from pathlib import Path
import torch
from tests.training.test_fitting import RECIPES_TO_KILL, fit_with_checkpoints
torch.set_num_threads(1)
fit_with_checkpoints(RECIPES_TO_KILL[sys.argv[1]], Path(sys.argv[2]), resume=False, delay_s=0.3)
"""


def fit_with_checkpoints(recipe: Recipe, place: Path, *, resume: bool, delay_s: float = 0.0) -> dict[str, torch.Tensor]:
    """The weights that a fit on made-up features comes to."""
    records = make_records(100)
    examples, answers = make_examples(records, recipe, views=recipe.views)
    folds = fold_rows(records, recipe.folds, recipe.seed) if recipe.folds > 1 else []
    fitted = fit_predictor(
        recipe,
        examples,
        examples,
        (answers, 4),
        folds,
        checkpoints=Checkpoints(place, vars(recipe), resume=resume),
        report=lambda row: time.sleep(delay_s),
    )
    return fitted.predictor.state_dict()


@pytest.mark.parametrize("name", RECIPES_TO_KILL)
def test_a_killed_fit_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    recipe = RECIPES_TO_KILL[name]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the process that is killed: the order of a sum is part of its bits
    try:
        whole = fit_with_checkpoints(recipe, tmp_path / "whole", resume=False)
        wanted = "clip-fold2.pt" if recipe.folds > 1 else "clip.pt"
        with subprocess.Popen([sys.executable, "-c", SCRIPT, name, str(tmp_path / "killed")], cwd=ROOT) as process:
            try:
                deadline = time.monotonic() + 300
                while not list((tmp_path / "killed").glob(f".unfinished/*/{wanted}")):
                    assert process.poll() is None
                    assert time.monotonic() < deadline, "the fit comes to nothing"
                    time.sleep(0.01)
            finally:
                process.kill()
        resumed = fit_with_checkpoints(recipe, tmp_path / "killed", resume=True)
    finally:
        torch.set_num_threads(threads)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_resuming_goes_on_instead_of_starting_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, answers = make_examples(make_records(64), TINY)
    checkpoints = Checkpoints(tmp_path, {}, resume=False)

    class KilledError(Exception):
        pass

    def kill(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise KilledError

    with pytest.raises(KilledError):
        fit_head(TINY, examples, examples, (answers, 4), checkpoints=checkpoints, report=kill)
    epochs = 0
    original = Fitting.run_epoch

    def counted(fitting: Fitting) -> float:
        nonlocal epochs
        epochs += 1
        return original(fitting)

    monkeypatch.setattr(Fitting, "run_epoch", counted)
    rows: list[dict[str, Any]] = []
    again = Checkpoints(tmp_path, {}, resume=True)
    fit_head(TINY, examples, examples, (answers, 4), checkpoints=again, report=rows.append)
    assert epochs == 1
    assert [row["epoch"] for row in rows] == [1, 2, 3]
