from __future__ import annotations

import pytest

from benchmarks.question_only import divide, plain
from training.dataset import Record


@pytest.mark.parametrize(
    ("spelt", "tokenised"),
    [
        ("What's this? Thank you very much.", "whats this"),
        ("Please tell me what it’s called, thanks!", "tell me what its called"),
        ("Okay, hello: is the please-button pleasing?", "is the button pleasing"),
        ("  ", ""),
    ],
)
def test_spelling_does_not_reveal_the_source_of_a_question(spelt: str, tokenised: str) -> None:
    assert plain(spelt) == plain(tokenised) == tokenised


@pytest.mark.parametrize("unseen", [False, True])
def test_a_part_is_left_out(unseen: bool) -> None:
    # every question is asked twice, in two spellings
    questions = [f"What is {number}{mark}" for number in range(100) for mark in ("", "?")]
    records = [Record(f"{row}.jpg", question) for row, question in enumerate(questions)]
    fitted, rest = divide(records, [plain(question) for question in questions] if unseen else range(len(records)))
    assert len(fitted) == 170
    assert sorted([*fitted, *rest], key=records.index) == records
    shared = {plain(record.question) for record in fitted} & {plain(record.question) for record in rest}
    assert bool(shared) is not unseen
