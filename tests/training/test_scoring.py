from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training.baselines import features_of
from training.features import SplitFeatures
from training.model import ClipEnsemble, GatedHead, Predictor, QualityHead, predict
from training.scoring import SubmissionError, write_submissions


def features(records: int, width: int, seed: int) -> SplitFeatures:
    random = np.random.default_rng(seed)
    images, texts = random.standard_normal((2, records, width)).astype(np.float32)
    images.setflags(write=False)  # as a map of a file is
    return SplitFeatures(images, texts)


def ensemble(widths: list[int]) -> ClipEnsemble:
    torch.manual_seed(0)
    members = [
        Predictor([GatedHead(width, 5, 4, 16) for _ in range(2)], [QualityHead(width, 7) for _ in range(3)])
        for width in widths
    ]
    return ClipEnsemble(members).eval()


def test_batches_predict_what_the_whole_predicts() -> None:
    """2,100 records are three batches, the last one short; two CLIPs of different width."""
    both = [features(2100, 6, 0), features(2100, 8, 1)]
    model = ensemble([6, 8])
    encoded = features_of(both, torch.device("cpu"))
    predictions = predict(model, encoded)
    with torch.inference_mode():
        whole = model(encoded)
    confidence, best = whole.answer.max(dim=1)
    assert predictions.best.tolist() == best.tolist()
    assert len(set(best.tolist())) > 1
    torch.testing.assert_close(predictions.confidence, confidence)
    torch.testing.assert_close(predictions.answer_type, whole.answer_type)
    torch.testing.assert_close(predictions.answerable, whole.answerable)
    torch.testing.assert_close(predictions.quality, whole.quality)


def test_the_two_files(tmp_path: Path) -> None:
    first, second = write_submissions(tmp_path, ["b.jpg", "a.jpg"], ["mug", "café"], np.array([0.25, 1.0], np.float32))
    assert json.loads(first.read_text(encoding="utf-8")) == [
        {"image": "b.jpg", "answer": "mug"},
        {"image": "a.jpg", "answer": "café"},
    ]
    assert json.loads(second.read_text(encoding="utf-8")) == [
        {"image": "b.jpg", "answerable": 0.25},
        {"image": "a.jpg", "answerable": 1.0},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([first.name, second.name])


def test_what_would_be_refused_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError) as error:
        write_submissions(tmp_path, ["a.jpg", "a.jpg", "b.jpg"], ["mug", " ", "x"], np.array([0.5, np.nan, 1.5]))
    assert str(error.value) == (
        "the submission would not be accepted: 1 photo(s) occur more than once; 1 answer(s) are empty; "
        "2 confidence(s) are outside [0, 1]"
    )
    with pytest.raises(SubmissionError, match="1 photos, 2 answers and 1 confidences"):
        write_submissions(tmp_path, ["a.jpg"], ["mug", "cup"], np.array([0.5]))
    assert not list(tmp_path.iterdir())
