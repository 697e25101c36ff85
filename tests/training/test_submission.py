from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training.submission import SubmissionError, write_submissions


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
        "the submission would not be accepted: 1 photo(s) come more than once; 1 answer(s) are empty; "
        "2 confidence(s) are outside [0, 1]"
    )
    with pytest.raises(SubmissionError, match="1 photos, 2 answers and 1 confidences"):
        write_submissions(tmp_path, ["a.jpg"], ["mug", "cup"], np.array([0.5]))
    assert not list(tmp_path.iterdir())
