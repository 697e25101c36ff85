"""Several heads, their calibration, and the heads that an interrupted fit has finished."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.synthetic import make_dataset, make_records
from training import folds as module
from training.dataset import fold_rows
from training.folds import (
    Calibration,
    FinishedHeads,
    FittedPredictor,
    average,
    calibrate,
    choose_weight_decay,
    find_calibration,
    fit_predictor,
)
from training.model import GatedHead, predict
from training.recipe import Recipe
from training.trainer import HEADLINE

FOLDED = Recipe(
    epochs=4, learning_rate=1e-2, batch_size=16, dropout=0.0, hidden=16, folds=3, keep="last", calibration="platt"
)


def test_calibration_finds_the_line() -> None:
    """Log-odds that are made overconfident and shifted are put right."""
    rng = np.random.default_rng(0)
    odds = rng.normal(0.5, 1.5, 20_000).astype(np.float32)
    outcome = rng.random(20_000) < 1 / (1 + np.exp(-odds))
    scale, offset = find_calibration(3 * odds - 2, outcome)
    assert scale == pytest.approx(1 / 3, abs=0.03)
    assert offset == pytest.approx(2 / 3, abs=0.05)


def test_a_calibration_turns_no_ranking_round() -> None:
    odds = np.array([-2, -1, 1, 2], np.float32)
    assert find_calibration(odds, odds < 0) == Calibration()
    assert find_calibration(odds, np.ones(4, bool)) == Calibration()


@pytest.mark.parametrize("source", ["hidden", "features"])
@torch.inference_mode()
def test_a_calibrated_head(source: str) -> None:
    texts, images = torch.randn(4, 8), torch.randn(4, 8)
    head = GatedHead(8, answers=5, types=3, hidden=16, answerable_from=source).eval()
    before = head(texts, images)
    calibrate(head.answerable, Calibration(0.5, -1.0))
    after = head(texts, images)
    torch.testing.assert_close(after.answerable, 0.5 * before.answerable - 1)
    assert torch.equal(after.answer, before.answer)
    calibrate(head.answerable, Calibration(0.5, -1.0).inverse())
    torch.testing.assert_close(head(texts, images).answerable, before.answerable)


def test_each_fold_is_calibrated_by_what_the_folds_have_not_seen() -> None:
    records = make_records(240)
    dataset, answers = make_dataset(records, FOLDED)
    folds = fold_rows(records, 3, 0)
    rows: list[int] = []
    fitted = fit_predictor(FOLDED, dataset, dataset, (answers, 4), folds, on_epoch=lambda row: rows.append(row["fold"]))
    assert rows == [1] * 4 + [2] * 4 + [3] * 4
    assert len(fitted.predictor.heads) == 3
    raw = fit_predictor(replace(FOLDED, calibration="none"), dataset, dataset, (answers, 4), folds)
    assert raw.calibration == Calibration()
    whole = dataset.batch(slice(None))
    odds = [[each.head(whole.texts, whole.images).answerable for each in run.fits] for run in (raw, fitted)]
    unseen = torch.empty(240)
    for number, held in enumerate(folds):
        unseen[held] = odds[0][number][held]
    scale, offset = find_calibration(unseen.numpy(), dataset.answerable.numpy())
    assert fitted.calibration == (pytest.approx(scale, rel=1e-3), pytest.approx(offset, abs=1e-3))
    for before, after in zip(*odds, strict=True):
        torch.testing.assert_close(after, scale * before + offset, rtol=1e-3, atol=1e-3)
    best = predict(average([fitted]), [dataset.features]).best
    assert dataset.scores.accuracies(best)[0].mean() > 0.8


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
    dataset, answers = make_dataset(records, recipe)
    folds = fold_rows(records, 3, 0)
    rows: list[dict[str, Any]] = []
    found = fit_predictor(recipe, dataset, dataset, (answers, 4), folds, on_epoch=rows.append)
    epochs = range(1, recipe.epochs + 1)
    assert [(row["fold"], row["epoch"]) for row in rows] == [(fold, epoch) for fold in (1, 2, 3) for epoch in epochs]
    assert [row["val_loss"] for row in rows] == [row["val_loss"] for fit in found.fits for row in fit.history]
    weak, strong = (
        fit_predictor(replace(recipe, weight_decay=decay, decay_trials=0), dataset, dataset, (answers, 4), folds)
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
        dataset, answers = make_dataset(records, FOLDED, width)
        data.append(dataset)
        parts.append(fit_predictor(FOLDED, dataset, dataset, (answers, 4), folds))
    together = predict(average(parts), [dataset.features for dataset in data]).answerable
    apart = [predict(average([part]), [dataset.features]).answerable for part, dataset in zip(parts, data, strict=True)]
    torch.testing.assert_close(together, (apart[0] + apart[1]) / 2)


class KilledError(Exception):
    pass


def test_finished_heads_are_skipped_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = make_records(120)
    recipe = replace(FOLDED, dropout=0.5)
    dataset, answers = make_dataset(records, recipe)
    folds = fold_rows(records, 3, 0)
    rows: list[dict[str, Any]] = []
    whole = fit_predictor(recipe, dataset, dataset, (answers, 4), folds, on_epoch=rows.append)

    def kill(row: dict[str, Any]) -> None:
        if row["fold"] == 3:
            raise KilledError

    with pytest.raises(KilledError):
        heads = FinishedHeads(tmp_path, vars(recipe))
        fit_predictor(recipe, dataset, dataset, (answers, 4), folds, finished=heads, on_epoch=kill)
    fitted: list[int | None] = []
    original = module.fit_head

    def counted(*values: Any, **options: Any) -> Any:
        fitted.append(options["seed"])
        return original(*values, **options)

    monkeypatch.setattr(module, "fit_head", counted)
    again: list[dict[str, Any]] = []
    heads = FinishedHeads(tmp_path, vars(recipe))
    resumed = fit_predictor(recipe, dataset, dataset, (answers, 4), folds, finished=heads, on_epoch=again.append)
    assert fitted == [2]
    assert again == rows
    assert all(map(torch.equal, _weights(resumed), _weights(whole)))
    other = FinishedHeads(tmp_path, vars(replace(recipe, seed=1)))
    assert other.load("clip-fold1", GatedHead(8, answers, 4, 16)) is None
    heads.delete()
    assert not list(tmp_path.rglob("*.pt"))


def test_an_unreadable_head_is_fitted_again(tmp_path: Path) -> None:
    records = make_records(60)
    dataset, answers = make_dataset(records, FOLDED)
    heads = FinishedHeads(tmp_path, {})
    recipe = replace(FOLDED, folds=1, calibration="none")
    first = fit_predictor(recipe, dataset, dataset, (answers, 4), [], finished=heads)
    [path] = tmp_path.rglob("*.pt")
    for content in (b"", path.read_bytes()[:100]):
        path.write_bytes(content)
        again = fit_predictor(recipe, dataset, dataset, (answers, 4), [], finished=heads)
        assert all(map(torch.equal, _weights(again), _weights(first)))
    torch.save({"weights": path}, path)  # not tensors alone: refused by the weights-only reader
    assert heads.load("clip", GatedHead(8, answers, 4, 16)) is None
