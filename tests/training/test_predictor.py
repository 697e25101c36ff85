"""What several heads predict together, and its calibration."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.synthetic import make_examples, make_records
from training.calibration import Line, calibrate, find_calibration
from training.fitting import HEADLINE, scores
from training.folds import FittedPredictor, choose_weight_decay, fit_predictor, join, predict
from training.head import GatedHead
from training.predictor import Calibration, ClipEnsemble, Predictor
from training.recipe import Recipe
from training.splits import fold_rows

FOLDED = Recipe(
    epochs=4, learning_rate=1e-2, batch_size=16, dropout=0.0, hidden=16, folds=3, keep="last", calibration="platt"
)


def make_heads(count: int, width: int = 8) -> list[GatedHead]:
    torch.manual_seed(0)
    return [GatedHead(width, answers=5, types=3, hidden=16).eval() for _ in range(count)]


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
    members = [Predictor(make_heads(2, 8)), Predictor(make_heads(1, 6), Calibration(2.0, 0.5))]
    features = [(torch.randn(4, 8), torch.randn(4, 8)), (torch.randn(4, 6), torch.randn(4, 6))]
    got = ClipEnsemble(members)(features)
    apart = [member(*pair) for member, pair in zip(members, features, strict=True)]
    for whole, first, second in zip(got, *apart, strict=True):
        torch.testing.assert_close(whole, (first + second) / 2)


@torch.inference_mode()
def test_one_clip_alone_is_its_predictor() -> None:
    predictor, features = Predictor(make_heads(2)), (torch.randn(4, 8), torch.randn(4, 8))
    assert all(map(torch.equal, ClipEnsemble([predictor])([features]), predictor(*features)))


def test_calibration_finds_the_line() -> None:
    """Log-odds that are made overconfident and shifted are put right."""
    rng = np.random.default_rng(0)
    odds = rng.normal(0.5, 1.5, 20_000).astype(np.float32)
    outcome = rng.random(20_000) < 1 / (1 + np.exp(-odds))
    scale, offset = find_calibration("platt", 3 * odds - 2, outcome)
    assert scale == pytest.approx(1 / 3, abs=0.03)
    assert offset == pytest.approx(2 / 3, abs=0.05)
    scale, offset = find_calibration("temperature", 3 * odds, outcome)
    assert (scale, offset) == (pytest.approx(1 / 3, abs=0.03), 0.0)


def test_a_calibration_turns_no_ranking_round() -> None:
    odds = np.array([-2, -1, 1, 2], np.float32)
    assert find_calibration("platt", odds, odds < 0) == Line()
    assert find_calibration("platt", odds, np.ones(4, bool)) == Line()
    assert find_calibration("none", odds, odds > 0) == Line()


@pytest.mark.parametrize("source", ["joined", "features"])
@torch.inference_mode()
def test_a_calibrated_head(source: str) -> None:
    texts, images = torch.randn(4, 8), torch.randn(4, 8)
    head = GatedHead(8, answers=5, types=3, hidden=16, answerable_from=source).eval()
    before = head(texts, images)
    calibrate(head, Line(0.5, -1.0))
    after = head(texts, images)
    torch.testing.assert_close(after.answerable, 0.5 * before.answerable - 1)
    assert torch.equal(after.answer, before.answer)
    calibrate(head, Line(0.5, -1.0).inverse())
    torch.testing.assert_close(head(texts, images).answerable, before.answerable)


def test_each_fold_is_calibrated_by_what_the_folds_have_not_seen() -> None:
    records = make_records(240)
    examples, answers = make_examples(records, FOLDED)
    folds = fold_rows(records, 3, 0)
    rows: list[int] = []
    fitted = fit_predictor(FOLDED, examples, examples, (answers, 4), folds, report=lambda row: rows.append(row["fold"]))
    assert rows == [1] * 4 + [2] * 4 + [3] * 4
    assert len(fitted.predictor.heads) == 3
    raw = fit_predictor(replace(FOLDED, calibration="none"), examples, examples, (answers, 4), folds)
    assert raw.calibration == Line()
    whole = examples.batch(slice(None))
    odds = [[each.head(whole.texts, whole.images).answerable for each in run.fits] for run in (raw, fitted)]
    unseen = torch.empty(240)
    for number, held in enumerate(folds):
        unseen[held] = odds[0][number][held]
    scale, offset = find_calibration("platt", unseen.numpy(), examples.answerable.numpy())
    assert fitted.calibration == (pytest.approx(scale, rel=1e-3), pytest.approx(offset, abs=1e-3))
    for before, after in zip(*odds, strict=True):
        torch.testing.assert_close(after, scale * before + offset, rtol=1e-3, atol=1e-3)
    ensemble = join([fitted], torch.device("cpu"))
    assert scores(*predict(ensemble, [examples]), examples)["vqa_accuracy_leave_one_out"] > 80


def test_weight_decay_rises_while_held_out_records_gain() -> None:
    """From 0.01 to 0.04 the accuracy rises, to 0.16 it does not."""
    recipe = replace(FOLDED, weight_decay=0.01, decay_trials=3)
    folds = [np.arange(start, start + 40) for start in (0, 40, 80)]
    scores_by_decay = {0.01: 50.0, 0.04: 60.0, 0.16: 60.0, 0.64: 99.0}
    tried: list[tuple[float, int]] = []

    def fit_fold(candidate: Recipe, number: int) -> Any:
        tried.append((candidate.weight_decay, number))
        return SimpleNamespace(best={HEADLINE: scores_by_decay[candidate.weight_decay]})

    assert choose_weight_decay(recipe, folds, fit_fold).weight_decay == 0.04
    assert tried == [(decay, number) for decay in (0.01, 0.04, 0.16) for number in range(3)]
    tried.clear()
    many = [np.arange(600) + 600 * number for number in range(3)]
    choose_weight_decay(recipe, many, fit_fold)
    assert {number for _, number in tried} == {0, 1}  # 1,200 held-out records are enough


def test_what_is_chosen_is_what_is_reported_and_kept() -> None:
    records = make_records(120)
    recipe = replace(FOLDED, weight_decay=0.01, decay_trials=1)
    examples, answers = make_examples(records, recipe)
    folds = fold_rows(records, 3, 0)
    rows: list[dict[str, Any]] = []
    found = fit_predictor(recipe, examples, examples, (answers, 4), folds, report=rows.append)
    epochs = range(1, recipe.epochs + 1)
    assert [(row["fold"], row["epoch"]) for row in rows] == [(fold, epoch) for fold in (1, 2, 3) for epoch in epochs]
    assert [row["val_loss"] for row in rows] == [row["val_loss"] for fit in found.fits for row in fit.history]
    weak, strong = (
        fit_predictor(replace(recipe, weight_decay=decay, decay_trials=0), examples, examples, (answers, 4), folds)
        for decay in (0.01, 0.04)
    )
    chosen = weak if all(map(torch.equal, _weights(found), _weights(weak))) else strong
    assert all(map(torch.equal, _weights(found), _weights(chosen)))


def _weights(fitted: FittedPredictor) -> list[torch.Tensor]:
    return list(fitted.predictor.state_dict().values())


def test_two_clips_are_averaged() -> None:
    records = make_records(120)
    folds = fold_rows(records, 3, 0)
    parts, data = [], []
    for width in (8, 6):
        examples, answers = make_examples(records, FOLDED, width)
        data.append(examples)
        parts.append(fit_predictor(FOLDED, examples, examples, (answers, 4), folds))
    together = predict(join(parts, torch.device("cpu")), data).answerable
    apart = [
        predict(join([part], torch.device("cpu")), [examples]).answerable
        for part, examples in zip(parts, data, strict=True)
    ]
    torch.testing.assert_close(together, (apart[0] + apart[1]) / 2)
