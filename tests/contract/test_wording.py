"""The sentences about an answer and its photo, case by case."""

from __future__ import annotations

import json

import pytest

from vizwiz_client.contract.wording import (
    ISSUES,
    RETAKE,
    SURE_FROM,
    UNANSWERABLE_LABELS,
    Thresholds,
    advise,
    in_words,
    is_declined,
    percent,
    quality_in_words,
    to_words,
)

LOW = Thresholds(sure_from=0.3)
HIGH = Thresholds(sure_from=0.92)
BLUR, FRAMING, DARK = "The photo is blurred.", "Part of the object is out of view.", "The photo is too dark."
NOTHING = "Nothing in the photo can be recognised."
ADVISE = Thresholds(advise_from={"blur": 0.6, "framing": 0.5, "dark": 0.5, "unrecognizable": 0.4, "glare": 0.1})


@pytest.mark.parametrize(
    ("candidates", "thresholds", "outcome", "headline", "detail"),
    [
        ([("teapot", 0.72)], None, "answered", "Teapot.", "Fairly sure, 72%."),
        ([("teapot", 0.95), ("mug", 0.04)], None, "answered", "Teapot.", "Very sure, 95%."),
        ([("teapot", 0.5), ("mug", 0.24)], None, "answered", "Teapot.", "Fairly sure, 50%."),
        ([("teapot", 0.5), ("mug", 0.25)], None, "unsure", "Maybe teapot, or mug.", "Not sure, 50%."),
        ([("teapot", 0.6), ("unanswerable", 0.3), ("mug", 0.1)], None, "answered", "Teapot.", "Fairly sure, 60%."),
        ([("teapot", 0.49), ("mug", 0.1)], None, "unsure", "Maybe teapot, or mug.", "Not sure, 49%."),
        (
            [("teapot", 0.19), ("mug", 0.1), ("cup", 0.09)],
            None,
            "unsure",
            "Maybe teapot, or mug.",
            "Only a guess, 19%.",
        ),
        ([("teapot", 0.4), ("mug", 0.04)], None, "unsure", "Maybe teapot.", "Not sure, 40%."),
        ([("teapot", 0.08), ("mug", 0.04)], None, "unsure", "Maybe teapot.", "Only a guess, 8%."),
        ([("teapot", 0.4)], None, "unsure", "Maybe teapot.", "Not sure, 40%."),
        (
            [("teapot", 0.4), ("unanswerable", 0.3), ("mug", 0.2)],
            None,
            "unsure",
            "Maybe teapot, or mug.",
            "Not sure, 40%.",
        ),
        ([("a.m.", 0.8)], None, "answered", "A.m.", "Fairly sure, 80%."),
        ([("teapot", 0.3), ("mug", 0.14)], LOW, "answered", "Teapot.", "Fairly sure, 30%."),
        ([("teapot", 0.3), ("mug", 0.15)], LOW, "unsure", "Maybe teapot, or mug.", "Not sure, 30%."),
        ([("teapot", 0.91), ("mug", 0.04)], HIGH, "unsure", "Maybe teapot.", "Not sure, 91%."),
        ([("teapot", 0.93), ("mug", 0.04)], HIGH, "answered", "Teapot.", "Very sure, 93%."),
    ],
)
def test_answers(
    candidates: list[tuple[str, float]], thresholds: Thresholds | None, outcome: str, headline: str, detail: str
) -> None:
    words = to_words(candidates, declined=False, thresholds=thresholds)
    assert (words.outcome, words.headline, words.detail, words.advice) == (outcome, headline, detail, ())


def test_a_declined_answer_keeps_its_guesses_but_no_noise() -> None:
    words = to_words([("unanswerable", 0.5), ("teapot", 0.25), ("mug", 0.001)], declined=True)
    assert words.outcome == "declined"
    assert words.lines == ("The photo cannot answer this.", "Take another photo, or ask another question.")
    assert words.guesses == ("teapot, 25%, not sure",)


def test_without_a_real_answer_nothing_is_made_up() -> None:
    assert to_words([(label, 0.3) for label in UNANSWERABLE_LABELS], declined=False).outcome == "declined"


@pytest.mark.parametrize(
    ("quality", "problems"),
    [
        ({}, []),
        ({"blur": 0.6}, [BLUR]),
        ({"blur": 0.59}, []),
        ({"framing": 0.5, "blur": 0.9}, [BLUR, FRAMING]),
        ({"framing": 0.91, "blur": 0.9}, [FRAMING, BLUR]),
        ({"framing": 0.58, "blur": 0.59}, [FRAMING]),  # less probable, but over its threshold
        ({"blur": 0.9, "framing": 0.7, "dark": 0.8}, [BLUR, DARK]),  # the third is too much to remember
        ({"rotation": 0.99}, []),  # without a threshold: never precise enough to be said
        ({"glare": 0.99}, []),  # of a later release, which has words for it
        ({"unrecognizable": 0.95}, [NOTHING]),
        ({"unrecognizable": 0.95, "blur": 0.6}, [BLUR]),
        ({"unrecognizable": 0.95, "blur": 0.59}, [NOTHING]),
    ],
)
def test_advice(quality: dict[str, float], problems: list[str]) -> None:
    advice = advise(quality, ADVISE)
    assert [sentences.split(". ")[0] + "." for sentences in advice] == problems
    assert all(sentences.count(". ") == 1 for sentences in advice), "no reason is without what to do about it"


@pytest.mark.parametrize(
    ("declined", "quality", "lines"),
    [
        (False, {"blur": 0.9}, ["Teapot.", "Fairly sure, 72%."]),
        (False, {"blur": 0.9, "unrecognizable": 0.39}, ["Teapot.", "Fairly sure, 72%."]),
        (False, {"blur": 0.9, "unrecognizable": 0.4}, ["Teapot.", "Fairly sure, 72%.", BLUR, RETAKE]),
        (False, {"unrecognizable": 0.4}, ["Teapot.", "Fairly sure, 72%.", NOTHING, RETAKE]),
        (True, {"blur": 0.9, "dark": 0.6}, ["The photo cannot answer this.", BLUR, DARK, RETAKE]),
        (True, {"blur": 0.1}, ["The photo cannot answer this.", "Take another photo, or ask another question."]),
    ],
)
def test_when_advice_is_told(declined: bool, quality: dict[str, float], lines: list[str]) -> None:
    told = to_words([("teapot", 0.72)], declined=declined, quality=quality, thresholds=ADVISE).lines
    assert len(told) == len(lines)
    for text, start in zip(told, lines, strict=True):
        assert text.startswith(start)


def test_quality_in_words() -> None:
    quality = {"blur": 0.004, "framing": 0.81, "glare": 0.2}
    assert quality_in_words(quality) == ("badly framed, 81%", "glare, 20%", "blurred, under 1%")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            json.dumps({"sure_from": 0.43, "advise_from": {"blur": 0.61, "dark": 1}}),
            Thresholds(0.43, {"blur": 0.61, "dark": 1.0}),
        ),
        (json.dumps({"advise_from": {"blur": 0.61}}), Thresholds(SURE_FROM, {"blur": 0.61})),
        (json.dumps({"sure_from": 0.43, "shout_from": 0.9}), Thresholds(0.43)),
        ("", Thresholds()),  # of an export without the parameter
        ("{}", Thresholds()),
        ('{"sure_from": 0.4', Thresholds()),
        ("[0.4]", Thresholds()),
        ('{"sure_from": NaN, "advise_from": 0.5}', Thresholds()),
        ('{"sure_from": true, "advise_from": {"blur": "0.5", "dark": 1.01, "bright": null}}', Thresholds()),
        ("[" * 100_000, Thresholds()),
    ],
)
def test_thresholds_are_read_and_never_refused(text: str, expected: Thresholds) -> None:
    assert Thresholds.parse(text) == expected


def test_every_issue_has_words() -> None:
    """The labels of the output `quality`, as training orders them."""
    assert list(ISSUES) == ["blur", "framing", "dark", "bright", "obstruction", "rotation", "unrecognizable"]


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


def test_thresholds_and_answers_can_be_members_of_sets() -> None:
    assert len({Thresholds(0.4, {"blur": 0.5}), Thresholds(0.4, {"blur": 0.5})}) == 1
