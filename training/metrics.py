"""Official VizWiz metrics, calibration error and selective accuracy.

VQA accuracy follows the VQA evaluation (Antol et al., ICCV 2015) in both circulating versions; answerability follows
Gurari et al., CVPR 2018. VizWiz's annotated answers are already normalised, so only predictions are normalised here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, f1_score

# The official table of contractions; most of its apostrophes are U+2019. A prediction that lacks one of them gets it.
# Entries with capitals, such as I’ve, are left out: predictions are lower-cased first.
_CURLY = """
couldn’t’ve didn’t doesn’t don’t hadn’t hadn’t’ve hasn’t haven’t he’d he’d’ve he’s how’d how’ll how’s isn’t it’d it’d’ve
it’ll ma’am mightn’t mightn’t’ve might’ve mustn’t must’ve needn’t not’ve o’clock oughtn’t ’ow’s’at shan’t she’d’ve
should’ve shouldn’t shouldn’t’ve somebody’d’ve somebody’ll somebody’s someone’d someone’d’ve someone’ll someone’s
something’d something’d’ve something’ll that’s there’d there’d’ve there’re there’s they’d they’d’ve they’ll they’re
they’ve ’twas wasn’t we’d’ve weren’t what’ll what’re what’s what’ve when’s where’d where’ve who’d who’d’ve who’ll who’s
why’ll why’re why’s won’t would’ve wouldn’t wouldn’t’ve y’all y’all’d’ve y’all’ll you’d you’d’ve you’ll you’re you’ve
""".split()
_STRAIGHT = "ain't aren't can't could've couldn't we've where's who've".split()
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CURLY + _STRAIGHT
    for place, char in enumerate(word)
    if char in "’'"
} | {"somebody’d": "somebodyd", "couldn'tve": "couldn’t’ve", "hadn'tve": "hadn’t’ve"}
for _key in ("couldn’tve", "hadn’tve"):  # the table has these two with the straight apostrophe alone
    del _CONTRACTIONS[_key]
_NUMBERS = {"none": "0"} | {
    word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # the official script passes re.UNICODE, which equals 32, as `count`

_FULL_MARKS = 3  # matching annotators at which an answer scores 1

CALIBRATION_BINS = 15  # of equal width over [0, 1]: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017
SAID_PRECISION = 0.7  # of advice, and of answers without "maybe"
SAID_RECORDS = 20  # a precision over fewer is too noisy to choose by
DECLINE_THRESHOLD = 0.5  # of the calibrated answerability: below it, callers of the exported head decline

_Floats = npt.NDArray[np.floating[Any]]

Scores = npt.NDArray[np.float64]


@lru_cache(maxsize=1 << 16)
def normalise(answer: str) -> str:
    """Normalise a prediction as the official script does: punctuation, number words, articles, contractions."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    drop_all = _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or drop_all else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", cleaned, count=_MAX_PERIODS).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def accuracy_leave_one_out(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the annotators of min(matches among the others / 3, 1), in [0, 1].

    Args:
        prediction: already normalised.
        answers: the annotators' ten answers.
    """
    matches = answers.count(prediction)
    agreeing = min(max(matches - 1, 0) / _FULL_MARKS, 1.0)  # an annotator who gave this answer is left out
    dissenting = min(matches / _FULL_MARKS, 1.0)
    return (matches * agreeing + (len(answers) - matches) * dissenting) / len(answers)


def accuracy_min3(prediction: str, answers: Sequence[str]) -> float:
    """The older script's min(matches / 3, 1), in [0, 1]; ``prediction`` is already normalised."""
    return min(answers.count(prediction) / _FULL_MARKS, 1.0)


class Accuracies(NamedTuple):
    """VQA accuracy of N questions, float64 [N] in [0, 1], in both circulating versions."""

    leave_one_out: Scores
    min3: Scores


def question_accuracies(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> Accuracies:
    """VQA accuracy of each of N predictions, which are normalised first."""
    pairs = [(normalise(prediction), given) for prediction, given in zip(predictions, answers, strict=True)]
    return Accuracies(
        np.array([accuracy_leave_one_out(*pair) for pair in pairs], np.float64),
        np.array([accuracy_min3(*pair) for pair in pairs], np.float64),
    )


def vqa_accuracy(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean VQA accuracy over all questions, in percent, in both versions; leave-one-out is the headline."""
    return _in_percent(question_accuracies(predictions, answers))


def vqa_accuracy_by_type(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], answer_types: Sequence[str]
) -> dict[str, dict[str, float]]:
    """:func:`vqa_accuracy` and the number of questions of each true answer type, most frequent type first."""
    accuracies = question_accuracies(predictions, answers)
    types = np.array(answer_types)
    return {
        name: {"records": count, **_in_percent(Accuracies(*(part[types == name] for part in accuracies)))}
        for name, count in Counter(answer_types).most_common()
    }


def _in_percent(accuracies: Accuracies) -> dict[str, float]:
    return {
        "vqa_accuracy_leave_one_out": 100 * float(np.mean(accuracies.leave_one_out)),
        "vqa_accuracy_min3": 100 * float(np.mean(accuracies.min3)),
    }


def answerability(confidence: npt.NDArray[np.float32], answerable: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Score a predicted answerability.

    Args:
        confidence: fp32 [N] in [0, 1], the predicted probability that the photo can answer.
        answerable: bool [N], the annotated label.

    Returns:
        Average precision and F1 in both polarities (official: unanswerable is positive), the average precision of
        chance, accuracy in percent and the expected calibration error. A confidence of 0.5 counts as answerable.
    """
    predicted = confidence >= DECLINE_THRESHOLD
    return {
        "unanswerable_ap": average_precision(~answerable, 1 - confidence.astype(np.float64)),  # in fp32, 1 - 1e-9 is 1
        "unanswerable_ap_chance": float(np.mean(~answerable)),
        "answerable_ap": average_precision(answerable, confidence),
        "answerable_ap_chance": float(np.mean(answerable)),
        "unanswerable_f1": float(f1_score(~answerable, ~predicted, zero_division=0.0)),
        "answerable_f1": float(f1_score(answerable, predicted, zero_division=0.0)),
        "answerable_accuracy": 100 * float(np.mean(predicted == answerable)),
        "answerable_ece": expected_calibration_error(reliability(confidence, answerable)),
    }


def average_precision(positive: npt.NDArray[np.bool_], score: npt.NDArray[Any]) -> float:
    """Average precision of ``score`` [N]; NaN without positives, where scikit-learn would warn and return 0."""
    return float(average_precision_score(positive, score)) if positive.any() else float("nan")


def choose_threshold(confidence: _Floats, right: _Floats | npt.NDArray[np.bool_]) -> float | None:
    """The lowest confidence from which on the predictions are right often enough to be said to a person.

    Args:
        confidence: [N] in [0, 1].
        right: [N] in [0, 1], which may be graded as VQA accuracy is.

    Returns:
        The lowest threshold whose precision, less its standard error, is SAID_PRECISION or more, over at least
        SAID_RECORDS predictions; None without one. Without the standard error, the lowest of many noisy thresholds
        would be too low for other records.
    """
    order = np.argsort(-np.asarray(confidence, np.float64), kind="stable")
    descending = np.asarray(confidence, np.float64)[order]
    count = np.arange(1, len(order) + 1)
    precision = np.cumsum(np.asarray(right, np.float64)[order]) / count
    enough = precision - np.sqrt(np.maximum(precision * (1 - precision), 0) / count) >= SAID_PRECISION
    is_last = np.append(descending[1:] < descending[:-1], True)  # of the predictions of equal confidence
    thresholds = np.flatnonzero(is_last & enough & (count >= SAID_RECORDS))
    return float(descending[thresholds[-1]]) if len(thresholds) else None


class Reliability(NamedTuple):
    """Confidence and outcome of the K non-empty confidence bins."""

    confidence: Scores  # [K], mean confidence of the bin
    observed: Scores  # [K], mean outcome of the bin
    records: npt.NDArray[np.int64]  # [K]


def reliability(
    confidence: _Floats, outcome: _Floats | npt.NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> Reliability:
    """Bin confidences and compare them with their outcomes.

    Bin k holds the confidences in [k / bins, (k + 1) / bins); the last bin holds 1 too.

    Args:
        confidence: [N] in [0, 1].
        outcome: [N] in [0, 1], which may be graded as VQA accuracy is.
        bins: number of bins of equal width.
    """
    confidence = np.asarray(confidence, np.float64)
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    filled = count > 0
    sums = (np.bincount(bin_of, values, bins)[filled] for values in (confidence, np.asarray(outcome, np.float64)))
    mean_confidence, observed = (total / count[filled] for total in sums)
    return Reliability(mean_confidence, observed, count[filled])


def expected_calibration_error(bins: Reliability) -> float:
    """Mean gap between a bin's confidence and its outcome, weighted by records, in [0, 1]."""
    return float(np.average(np.abs(bins.confidence - bins.observed), weights=bins.records))


class SelectiveAccuracy(NamedTuple):
    """Accuracy at each coverage; T = distinct answerabilities, used as thresholds, descending."""

    threshold: Scores  # [T], the lowest answerability that is answered
    coverage: Scores  # [T], share of the questions that are answered
    accuracy: Scores  # [T], mean VQA accuracy of the answered questions, in [0, 1]
    answerable: Scores  # [T], share of the answered questions that the photo can answer


def selective_accuracy(
    answerability: _Floats, accuracy: Scores, answerable: npt.NDArray[np.bool_]
) -> SelectiveAccuracy:
    """Accuracy against coverage when questions are declined from the lowest answerability upwards.

    "unanswerable" is a correct answer in VizWiz. A head scores well by giving it on the questions that it should
    decline, so accuracy can fall while the share of answerable questions rises. Look at both.

    Args:
        answerability: [N], the predicted answerability; questions of equal answerability are declined together.
        accuracy: float64 [N], VQA accuracy of each question in [0, 1].
        answerable: bool [N], the annotated label.
    """
    order = np.argsort(-np.asarray(answerability, np.float64), kind="stable")
    descending = np.asarray(answerability, np.float64)[order]
    last = np.append(np.flatnonzero(np.diff(descending)), len(order) - 1)  # of the questions of equal answerability
    answered = last + 1
    return SelectiveAccuracy(
        descending[last],
        answered / len(order),
        np.cumsum(accuracy[order])[last] / answered,
        np.cumsum(answerable[order])[last] / answered,
    )


def deciles(curve: SelectiveAccuracy) -> list[dict[str, float]]:
    """Points of ``curve`` nearest to a coverage of 100%, 90%, ... 10%, in percent."""
    points = [int(np.abs(curve.coverage - tenth / 10).argmin()) for tenth in range(10, 0, -1)]
    return [_point(curve, point) for point in dict.fromkeys(points)]


def at_threshold(curve: SelectiveAccuracy) -> dict[str, float]:
    """Point of ``curve`` at the threshold of callers: answerability of 0.5 or more is answered."""
    answered = np.flatnonzero(curve.threshold >= DECLINE_THRESHOLD)
    if not len(answered):
        nan = float("nan")
        return {"threshold": nan, "coverage": 0.0, "vqa_accuracy_leave_one_out": nan, "answerable": nan}
    return _point(curve, int(answered[-1]))


def _point(curve: SelectiveAccuracy, index: int) -> dict[str, float]:
    return {
        "threshold": float(curve.threshold[index]),
        "coverage": 100 * float(curve.coverage[index]),
        "vqa_accuracy_leave_one_out": 100 * float(curve.accuracy[index]),
        "answerable": 100 * float(curve.answerable[index]),
    }
