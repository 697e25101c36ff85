"""The sentences about an answer that a person reads or hears.

The command ``vizwiz-client ask`` and the gateway's page use it; programs read probabilities instead. Answers are labels
without articles, so the sentences have none either: "Maybe teapot, or mug."
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

DECLINE_BELOW = 0.5  # threshold that the served probability `answerable` is calibrated for
UNANSWERABLE_LABELS = (
    "unanswerable",
    "unsuitable",
    "unsuitable image",
)  # labels of VizWiz that mean "the photo cannot tell"

SURE_FROM = 0.5  # from here on, the first answer is more probable than all others together
MENTION_FROM = 0.05  # a less probable second answer is not part of the sentence
LIST_FROM = 0.01  # a less probable guess is noise to a listener
CONFIDENCE_WORDS = ((0.9, "very sure"), (SURE_FROM, "fairly sure"), (0.2, "not sure"), (0.0, "only a guess"))

DECLINED = "The photo cannot answer this."
DECLINED_ADVICE = "Take another photo, or ask another question."
QUESTION_TRUNCATED = "The question was too long; its end was ignored."

Outcome = Literal["answered", "unsure", "declined"]


@dataclass(frozen=True)
class Wording:
    """An answer in words.

    Attributes:
        outcome: "answered", "unsure" (the best answer is less probable than all others together) or "declined".
        sentence: the answer as one sentence, such as "Teapot."
        detail: how sure the model is, such as "Fairly sure, 72%."; what to do if the answer is declined.
        guesses: answers of at least 1% with their confidence, best first, such as "teapot, 72%, fairly sure".
    """

    outcome: Outcome
    sentence: str
    detail: str
    guesses: tuple[str, ...]


def is_declined(answerable: float, answer: str) -> bool:
    """Whether the photo probably cannot answer: ``answerable`` is under 0.5, or ``answer`` is a label that says so."""
    return answerable < DECLINE_BELOW or answer in UNANSWERABLE_LABELS


def to_words(candidates: Iterable[tuple[str, float]], *, declined: bool) -> Wording:
    """Put an answer into words.

    Args:
        candidates: answers and their probabilities, best first. Labels such as "unanswerable" are left out.
        declined: whether the photo probably cannot answer the question.
    """
    answers = [(answer, confidence) for answer, confidence in candidates if answer not in UNANSWERABLE_LABELS]
    guesses = tuple(
        f"{answer}, {percent(confidence)}, {in_words(confidence)}"
        for answer, confidence in answers
        if confidence >= LIST_FROM
    )
    if declined or not answers:
        return Wording("declined", DECLINED, DECLINED_ADVICE, guesses)
    first, confidence = answers[0]
    detail = f"{in_words(confidence).capitalize()}, {percent(confidence)}."
    if confidence >= SURE_FROM:
        return Wording("answered", _sentence(first), detail, guesses)
    second = "".join(f", or {answer}" for answer, confidence in answers[1:2] if confidence >= MENTION_FROM)
    return Wording("unsure", _sentence(f"maybe {first}{second}"), detail, guesses)


def in_words(confidence: float) -> str:
    """How sure the model is: one of CONFIDENCE_WORDS."""
    return next((words for lowest, words in CONFIDENCE_WORDS if confidence >= lowest), CONFIDENCE_WORDS[-1][1])


def percent(confidence: float) -> str:
    """A probability for people. No answer is certain, and none that is shown is impossible."""
    return "under 1%" if confidence < 0.01 else f"{min(confidence, 0.99):.0%}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
