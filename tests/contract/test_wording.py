"""The sentences about an answer, case by case."""

from __future__ import annotations

import pytest

from vizwiz_client.contract.wording import UNANSWERABLE_LABELS, in_words, is_declined, percent, to_words


@pytest.mark.parametrize(
    ("candidates", "outcome", "sentence", "detail"),
    [
        ([("teapot", 0.72)], "answered", "Teapot.", "Fairly sure, 72%."),
        ([("teapot", 0.95), ("mug", 0.04)], "answered", "Teapot.", "Very sure, 95%."),
        ([("teapot", 0.5), ("mug", 0.5)], "answered", "Teapot.", "Fairly sure, 50%."),
        ([("teapot", 0.49), ("mug", 0.3)], "unsure", "Maybe teapot, or mug.", "Not sure, 49%."),
        ([("teapot", 0.19), ("mug", 0.1), ("cup", 0.09)], "unsure", "Maybe teapot, or mug.", "Only a guess, 19%."),
        ([("teapot", 0.4), ("mug", 0.04)], "unsure", "Maybe teapot.", "Not sure, 40%."),
        ([("teapot", 0.4)], "unsure", "Maybe teapot.", "Not sure, 40%."),
        ([("teapot", 0.4), ("unanswerable", 0.3), ("mug", 0.2)], "unsure", "Maybe teapot, or mug.", "Not sure, 40%."),
        ([("a.m.", 0.8)], "answered", "A.m.", "Fairly sure, 80%."),
    ],
)
def test_answers(candidates: list[tuple[str, float]], outcome: str, sentence: str, detail: str) -> None:
    words = to_words(candidates, declined=False)
    assert (words.outcome, words.sentence, words.detail) == (outcome, sentence, detail)


def test_a_declined_answer_keeps_its_guesses_but_no_noise() -> None:
    words = to_words([("unanswerable", 0.5), ("teapot", 0.25), ("mug", 0.001)], declined=True)
    assert (words.outcome, words.sentence) == ("declined", "The photo cannot answer this.")
    assert words.detail == "Take another photo, or ask another question."
    assert words.guesses == ("teapot, 25%, not sure",)


def test_without_a_real_answer_nothing_is_made_up() -> None:
    assert to_words([(label, 0.3) for label in UNANSWERABLE_LABELS], declined=False).outcome == "declined"


@pytest.mark.parametrize(
    ("answerable", "answer", "declined"),
    [(0.49, "teapot", True), (0.5, "teapot", False), (0.9, "unanswerable", True), (0.9, "unsuitable image", True)],
)
def test_when_an_answer_is_declined(answerable: float, answer: str, declined: bool) -> None:
    assert is_declined(answerable, answer) is declined


@pytest.mark.parametrize(
    ("confidence", "words", "text"),
    [
        (1.0, "very sure", "99%"),
        (0.9, "very sure", "90%"),
        (0.8999, "fairly sure", "90%"),
        (0.2, "not sure", "20%"),
        (0.01, "only a guess", "1%"),
        (0.0, "only a guess", "under 1%"),
        (-1e-9, "only a guess", "under 1%"),
    ],
)
def test_confidence_in_words(confidence: float, words: str, text: str) -> None:
    assert (in_words(confidence), percent(confidence)) == (words, text)
