"""What several heads predict together, and its calibration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.synthetic import make_examples, make_records
from training.calibration import find_calibration
from training.folds import answerability_of, fit_predictor, join, score
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
    """Probabilities that are made overconfident and shifted are put right."""
    rng = np.random.default_rng(0)
    odds = rng.normal(0.5, 1.5, 20_000)
    outcome = rng.random(20_000) < 1 / (1 + np.exp(-odds))
    wrong = (1 / (1 + np.exp(-(3 * odds - 2)))).astype(np.float32)  # scale 3, offset -2
    scale, offset = find_calibration("platt", wrong, outcome).line.tolist()
    assert scale == pytest.approx(1 / 3, abs=0.03)
    assert offset == pytest.approx(2 / 3, abs=0.05)
    overconfident = (1 / (1 + np.exp(-3 * odds))).astype(np.float32)
    scale, offset = find_calibration("temperature", overconfident, outcome).line.tolist()
    assert (scale, offset) == (pytest.approx(1 / 3, abs=0.03), 0.0)


def test_a_calibration_turns_no_ranking_round() -> None:
    probability = np.array([0.1, 0.2, 0.8, 0.9], np.float32)
    assert find_calibration("platt", probability, probability < 0.5).line.tolist() == [1.0, 0.0]
    assert find_calibration("platt", probability, np.ones(4, bool)).line.tolist() == [1.0, 0.0]
    assert find_calibration("none", probability, probability > 0.5).line.tolist() == [1.0, 0.0]


def test_folds_are_calibrated_on_what_they_have_not_seen() -> None:
    records = make_records(240)
    examples, answers = make_examples(records, FOLDED)
    folds = fold_rows(records, 3, 0)
    rows: list[int] = []
    fitted = fit_predictor(FOLDED, examples, examples, (answers, 4), folds, report=lambda row: rows.append(row["fold"]))
    assert rows == [1] * 4 + [2] * 4 + [3] * 4
    assert len(fitted.predictor.heads) == 3
    raw = fit_predictor(replace(FOLDED, calibration="none"), examples, examples, (answers, 4), folds)
    for number, held in enumerate(folds):
        alone = ClipEnsemble([Predictor([raw.fits[number].head])])
        np.testing.assert_allclose(
            raw.unseen[held], answerability_of(alone, [examples.take(torch.from_numpy(held))]), atol=1e-6
        )
    expected = find_calibration("platt", raw.unseen, examples.answerable.numpy())
    torch.testing.assert_close(fitted.predictor.calibration.line, expected.line)
    ensemble = join(FOLDED, [fitted], examples.answerable)
    assert score(ensemble, [examples])["vqa_accuracy_leave_one_out"] > 80


def test_the_average_of_two_clips_is_calibrated_again() -> None:
    records = make_records(120)
    folds = fold_rows(records, 3, 0)
    parts = []
    for width in (8, 6):
        examples, answers = make_examples(records, FOLDED, width)
        parts.append(fit_predictor(FOLDED, examples, examples, (answers, 4), folds))
    ensemble = join(FOLDED, parts, examples.answerable)
    mean = (parts[0].unseen + parts[1].unseen) / 2
    expected = find_calibration("platt", mean, examples.answerable.numpy())
    torch.testing.assert_close(ensemble.calibration.line, expected.line)
