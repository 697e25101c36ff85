"""The official VizWiz metrics: VQA accuracy in both circulating versions, and answerability.

Accuracy follows the VQA evaluation (Antol et al., ICCV 2015); answerability follows Gurari et al., CVPR 2018. VizWiz's
annotated answers are already normalised, so that a prediction alone is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score

from training.reliability import expected_calibration_error, reliability

# What the official table expands: a prediction that lacks any one of the apostrophes gets it.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word for word in _CONTRACTED for place, char in enumerate(word) if char == "'"
} | {"somebody'd": "somebodyd", "something'd": "somethingd"}  # the official table has these two backwards
_NUMBERS = {"none": "0"} | {
    word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")

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
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", cleaned).lower().split()]
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

    Average precision comes in both polarities with the level that chance reaches; the official one takes unanswerable
    as positive. Accuracy and F1 (of answerable) are taken at 0.5. The calibration error is that of
    :func:`expected_calibration_error`.
    """
    predicted = confidence >= 0.5
    hits = int(np.sum(predicted & answerable))
    return {
        "unanswerable_ap": _average_precision(~answerable, 1 - confidence),
        "unanswerable_ap_chance": float(np.mean(~answerable)),
        "answerable_ap": _average_precision(answerable, confidence),
        "answerable_ap_chance": float(np.mean(answerable)),
        "answerable_f1": 2 * hits / max(int(predicted.sum()) + int(answerable.sum()), 1),
        "answerable_accuracy": 100 * float(np.mean(predicted == answerable)),
        "answerable_ece": expected_calibration_error(reliability(confidence, answerable)),
    }


def _average_precision(positive: npt.NDArray[np.bool_], score: npt.NDArray[np.float32]) -> float:
    # Without positives, average precision has no meaning; scikit-learn would warn and return 0.
    return float(average_precision_score(positive, score)) if positive.any() else float("nan")
