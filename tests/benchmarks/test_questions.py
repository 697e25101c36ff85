from __future__ import annotations

import pytest

from benchmarks.questions import plain
from benchmarks.recipes import inside


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


def test_a_part_of_train_is_left_out() -> None:
    chosen = inside(200)
    assert chosen.sum() == 170
    assert not chosen[:170].all()  # at random
    assert (chosen == inside(200)).all()
