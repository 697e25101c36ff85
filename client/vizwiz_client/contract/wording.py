"""The sentences about an answer and its photo that a person reads or hears.

The command ``vizwiz-client ask`` and the gateway's page use it; programs read probabilities instead. Answers are labels
without articles, so the sentences have none either: "Maybe teapot, or mug."
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeGuard

DECLINE_BELOW = 0.5  # threshold that the served probability `answerable` is calibrated for
UNANSWERABLE_LABELS = (
    "unanswerable",
    "unsuitable",
    "unsuitable image",
)  # labels of VizWiz that mean "the photo cannot tell"

SURE_FROM = 0.5  # unless the run chose another: the first answer is more probable than all others together
CLOSE_FROM = 0.5  # share of the first answer's probability from which the second is close
VERY_SURE_FROM = 0.9
GUESS_BELOW = 0.2
MENTION_FROM = 0.05  # a less probable second answer is not part of the sentence
LIST_FROM = 0.01  # a less probable guess is noise to a listener
MAX_REASONS = 2  # more advice at once is not remembered

DECLINED = "The photo cannot answer this."
DECLINED_ADVICE = "Take another photo, or ask another question."
RETAKE = "Then take another photo."
QUESTION_TRUNCATED = "The question was too long; its end was ignored."
DEMO = "Demo: this model has learnt drawn pictures only. Its answers to real photos mean nothing."

Outcome = Literal["answered", "unsure", "declined"]


class Issue(NamedTuple):
    """A quality issue in words: in a list of probabilities, and as advice (what is wrong, what to do)."""

    name: str
    advice: str


UNRECOGNIZABLE = "unrecognizable"
ISSUES = {  # by the label of the output `quality`
    "blur": Issue("blurred", "The photo is blurred. Hold the phone still, and move it a little away."),
    "framing": Issue("badly framed", "Part of the object is out of view. Move the phone back."),
    "dark": Issue("too dark", "The photo is too dark. Turn on a light."),
    "bright": Issue("too bright", "The photo is too bright. Turn away from the light."),
    "obstruction": Issue("lens covered", "Something covers the lens. Move your fingers away from it, or wipe it."),
    "rotation": Issue("turned", "The photo is turned on its side. Turn the phone."),
    UNRECOGNIZABLE: Issue(
        "not recognisable",
        "Nothing in the photo can be recognised. Point the phone at the object, and move it back.",
    ),
}


@dataclass(frozen=True)
class Thresholds:
    """Thresholds that choose the sentences; export writes them into the ensemble's config.

    Attributes:
        sure_from: from this probability on, the first answer has no "maybe".
        advise_from: for each quality issue, the probability from which it is a reason. Other issues are never said.
    """

    sure_from: float = SURE_FROM
    advise_from: Mapping[str, float] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, text: str) -> Thresholds:
        """Read the JSON of the ensemble's parameter ``wording``.

        Nothing is refused, because answers matter more than their wording: unknown keys and values that are not
        probabilities are ignored, and the defaults hold where nothing can be read.
        """
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return cls()
        found = found if isinstance(found, dict) else {}
        sure_from, advise_from = found.get("sure_from"), found.get("advise_from")
        pairs = advise_from.items() if isinstance(advise_from, dict) else ()
        return cls(
            sure_from if _is_probability(sure_from) else SURE_FROM,
            {issue: value for issue, value in pairs if _is_probability(value)},
        )


@dataclass(frozen=True)
class Wording:
    """An answer in words.

    Attributes:
        outcome: "answered", "unsure" (the first answer is under ``sure_from``, or the second is close) or "declined".
        headline: the answer as one sentence, such as "Teapot."
        detail: how sure the model is, such as "Fairly sure, 72%."; empty if the answer is declined.
        advice: how to get a better answer, if the answer is declined or nothing in the photo can be recognised.
        guesses: answers of at least 1% with their confidence, best first, such as "teapot, 72%, fairly sure".
    """

    outcome: Outcome
    headline: str
    detail: str
    advice: tuple[str, ...]
    guesses: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """Everything to tell a person, in order; guesses are extra."""
        return (self.headline, *([self.detail] if self.detail else []), *self.advice)


def is_declined(answerable: float, answer: str) -> bool:
    """Whether the photo probably cannot answer: ``answerable`` is under 0.5, or ``answer`` is a label that says so."""
    return answerable < DECLINE_BELOW or answer in UNANSWERABLE_LABELS


def reasons(quality: Mapping[str, float], thresholds: Thresholds) -> tuple[str, ...]:
    """The issues to report to a person.

    Args:
        quality: the probability of each issue.
        thresholds: the lowest probability at which each issue is reported.

    Returns:
        At most two issues, most probable first. That nothing can be recognised is reported only without another reason:
        blur or darkness say more about what to do.
    """
    seen = [issue for issue, _ in _by_probability(quality) if issue in ISSUES and _is_seen(issue, quality, thresholds)]
    concrete = [issue for issue in seen if issue != UNRECOGNIZABLE]
    return tuple((concrete or seen)[:MAX_REASONS])


def advise(quality: Mapping[str, float], thresholds: Thresholds) -> tuple[str, ...]:
    """What is wrong with a photo and how to take a better one: a sentence or two for each of its :func:`reasons`."""
    return tuple(ISSUES[issue].advice for issue in reasons(quality, thresholds))


def to_words(
    candidates: Iterable[tuple[str, float]],
    *,
    declined: bool,
    quality: Mapping[str, float] | None = None,
    thresholds: Thresholds | None = None,
) -> Wording:
    """Put an answer into words.

    Args:
        candidates: answers and their probabilities, best first. Labels such as "unanswerable" are left out.
        declined: whether the photo probably cannot answer the question.
        quality: the probability of each quality issue; None where none is served.
        thresholds: those of the served head; None for the defaults.
    """
    quality, thresholds = quality or {}, thresholds or Thresholds()
    answers = [(answer, confidence) for answer, confidence in candidates if answer not in UNANSWERABLE_LABELS]
    (first, confidence), (second, next_confidence) = [*answers, ("", 0.0), ("", 0.0)][:2]
    is_close = next_confidence >= max(CLOSE_FROM * confidence, MENTION_FROM)
    sure_from = math.inf if is_close else thresholds.sure_from  # of two close answers, the model is sure of neither
    guesses = tuple(
        f"{answer}, {percent(confidence)}, {in_words(confidence, sure_from)}"
        for answer, confidence in answers
        if confidence >= LIST_FROM
    )
    advice = advise(quality, thresholds)
    advice = (*advice, RETAKE) if advice else ()
    if declined or not answers:
        return Wording("declined", DECLINED, "", advice or (DECLINED_ADVICE,), guesses)
    if not _is_seen(UNRECOGNIZABLE, quality, thresholds):
        advice = ()
    detail = f"{in_words(confidence, sure_from).capitalize()}, {percent(confidence)}."
    if confidence >= sure_from:
        return Wording("answered", _sentence(first), detail, advice, guesses)
    alternative = f", or {second}" if next_confidence >= MENTION_FROM else ""
    return Wording("unsure", _sentence(f"maybe {first}{alternative}"), detail, advice, guesses)


def quality_in_words(quality: Mapping[str, float]) -> tuple[str, ...]:
    """Quality issues with their probabilities, most probable first, such as "blurred, 81%"."""
    names = {label: issue.name for label, issue in ISSUES.items()}
    return tuple(f"{names.get(issue, issue)}, {percent(value)}" for issue, value in _by_probability(quality))


def in_words(confidence: float, sure_from: float = SURE_FROM) -> str:
    """How sure the model is: "very sure", "fairly sure", "not sure" or "only a guess"."""
    if confidence >= sure_from:
        return "very sure" if confidence >= VERY_SURE_FROM else "fairly sure"
    return "only a guess" if confidence < GUESS_BELOW else "not sure"


def percent(confidence: float) -> str:
    """A probability for people. No answer is certain, and none that is shown is impossible."""
    return "under 1%" if confidence < 0.01 else f"{min(confidence, 0.99):.0%}"


def _by_probability(quality: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(quality.items(), key=lambda item: -item[1])


def _is_seen(issue: str, quality: Mapping[str, float], thresholds: Thresholds) -> bool:
    """Whether the issue reaches its threshold."""
    return quality.get(issue, 0.0) >= thresholds.advise_from.get(issue, math.inf)


def _is_probability(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
