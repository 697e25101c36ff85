"""The official VizWiz metrics: VQA accuracy in both circulating versions, and answerability.

Accuracy follows the VQA evaluation (Antol et al., ICCV 2015); answerability follows Gurari et al., CVPR 2018. VizWiz's
annotated answers are already normalised, so that a prediction alone is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score

from training.reliability import expected_calibration_error, reliability

# The official table, whose apostrophes are mostly U+2019: a prediction that lacks any one of them gets it. Entries that
# a lower-cased prediction never reaches (such as I’ve) are left out.
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
_MAX_PERIODS = 32  # the official script passes re.UNICODE, which is 32, in the place of `count`

_FULL_MARKS = 3  # annotators who must agree for an answer to count in full

Scores = npt.NDArray[np.float64]


@lru_cache(maxsize=1 << 16)
def normalise(answer: str) -> str:
    """The official normalisation of a prediction: punctuation, number words, articles, contractions."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    drop_all = _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or drop_all else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", cleaned, count=_MAX_PERIODS).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def accuracy_leave_one_out(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the annotators of min(matches among the others / 3, 1); ``prediction`` is normalised already."""
    matches = answers.count(prediction)
    agreeing = min(max(matches - 1, 0) / _FULL_MARKS, 1.0)  # leaving out one who gave this answer
    dissenting = min(matches / _FULL_MARKS, 1.0)
    return (matches * agreeing + (len(answers) - matches) * dissenting) / len(answers)


def accuracy_min3(prediction: str, answers: Sequence[str]) -> float:
    """The older script's min(matches / 3, 1); ``prediction`` is normalised already."""
    return min(answers.count(prediction) / _FULL_MARKS, 1.0)


class Accuracies(NamedTuple):
    """Accuracy of each question in [0, 1], float64 [N], in both circulating versions."""

    leave_one_out: Scores
    min3: Scores


def question_accuracies(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> Accuracies:
    """Score each of N predictions, which are normalised here, against its annotators' answers."""
    pairs = [(normalise(prediction), given) for prediction, given in zip(predictions, answers, strict=True)]
    return Accuracies(
        np.array([accuracy_leave_one_out(*pair) for pair in pairs], np.float64),
        np.array([accuracy_min3(*pair) for pair in pairs], np.float64),
    )


def vqa_accuracy(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean accuracy in percent over all questions, in both versions; leave-one-out is the headline."""
    return _in_percent(question_accuracies(predictions, answers))


def vqa_accuracy_by_type(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], answer_types: Sequence[str]
) -> dict[str, dict[str, float]]:
    """:func:`vqa_accuracy` of the questions of each true answer type, with their number, the frequent types first."""
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
    """Score ``confidence`` [N] that a photo can answer against ``answerable`` [N].

    Average precision and F1 come in both polarities; the official ones take unanswerable as positive. Average precision
    has beside it the level that chance reaches. F1 and accuracy are taken at 0.5, which counts as answerable. The
    calibration error is that of :func:`expected_calibration_error`.
    """
    predicted = confidence >= 0.5
    return {
        "unanswerable_ap": _average_precision(~answerable, 1 - confidence.astype(np.float64)),  # in fp32, 1 - 1e-9 is 1
        "unanswerable_ap_chance": float(np.mean(~answerable)),
        "answerable_ap": _average_precision(answerable, confidence),
        "answerable_ap_chance": float(np.mean(answerable)),
        "unanswerable_f1": _f1(~predicted, ~answerable),
        "answerable_f1": _f1(predicted, answerable),
        "answerable_accuracy": 100 * float(np.mean(predicted == answerable)),
        "answerable_ece": expected_calibration_error(reliability(confidence, answerable)),
    }


def _f1(predicted: npt.NDArray[np.bool_], positive: npt.NDArray[np.bool_]) -> float:
    return 2 * int(np.sum(predicted & positive)) / max(int(predicted.sum()) + int(positive.sum()), 1)


def _average_precision(positive: npt.NDArray[np.bool_], score: npt.NDArray[Any]) -> float:
    # Without positives, average precision has no meaning; scikit-learn would warn and return 0.
    return float(average_precision_score(positive, score)) if positive.any() else float("nan")
