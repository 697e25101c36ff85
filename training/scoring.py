"""Predictions of a run about one split, their scores, and the two submission files of the official evaluation server.

https://vizwiz.org/tasks-and-datasets/vqa/: task 1 takes ``[{"image", "answer"}]``, task 2 ``[{"image", "answerable"}]``
with a confidence in [0, 1].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix

from training.artifacts import write_json
from training.dataset import Record, Split
from training.labels import Vocabulary, type_of
from training.metrics import (
    CALIBRATION_BINS,
    Reliability,
    SelectiveAccuracy,
    answerability,
    at_threshold,
    deciles,
    expected_calibration_error,
    question_accuracies,
    reliability,
    selective_accuracy,
    vqa_accuracy,
    vqa_accuracy_by_type,
)
from training.model import Predictions
from training.quality import advice_scores, quality_reliability, quality_scores, vote_shares
from training.run import Run
from vizwiz_client.contract.wording import is_declined

ANSWERS_SUBMISSION = "submission_answers.json"
ANSWERABILITY_SUBMISSION = "submission_answerability.json"
_Z95 = 1.96  # standard errors on either side of a mean: its 95% interval


class SubmissionError(Exception):
    """Predictions that the evaluation server would refuse or misread."""


@dataclass(frozen=True)
class Scores:
    """Scores of predictions, and the data of their plots."""

    metrics: dict[str, Any]  # the content of metrics.json
    answerability: Reliability
    answer: Reliability
    selective: SelectiveAccuracy
    quality: dict[str, Reliability]  # of each quality issue; empty without votes or without quality heads


def score(run: Run, split: Split, predictions: Predictions) -> Scores:
    """Score the predictions of ``run`` about a labelled split; docs/evaluation.md explains every metric."""
    # Without the answer counts of train, ties between target answers are broken by the rule's last criterion.
    vocabulary = Vocabulary(run.config["vocabulary"]["rule"], run.answers, Counter())
    true_types = [type_of(record, vocabulary.target(record), run.config["type_set"]) for record in split.records]
    given = [record.answers for record in split.records]
    annotated_types = [record.answer_type or "" for record in split.records]
    answerable = np.array([bool(record.answerable) for record in split.records])
    answers = [run.answers[index] for index in predictions.best.tolist()]
    predicted_answerable = predictions.answerable.numpy()
    accuracy = question_accuracies(answers, given).leave_one_out
    of_answerability = reliability(predicted_answerable, answerable)
    of_answer = reliability(predictions.confidence.numpy(), accuracy)
    selective = selective_accuracy(predicted_answerable, accuracy, answerable)
    predicted_types = predictions.answer_type.argmax(dim=1).numpy()
    confusion = confusion_matrix(true_types, predicted_types, labels=range(len(run.answer_types)))
    shares = vote_shares(split.records)
    quality = {}
    of_quality = {}
    if predictions.quality is not None and shares is not None:
        probabilities = predictions.quality.numpy()
        advise_from = run.wording["advise_from"]
        declined = np.array([is_declined(*each) for each in zip(predicted_answerable, answers, strict=True)])
        quality = {
            "quality": quality_scores(probabilities, shares, answerable, advise_from)
            | {"advice": advice_scores(probabilities, shares, declined, advise_from)}
        }
        of_quality = quality_reliability(probabilities, shares)
    metrics = {
        "records": len(split.records),
        **vqa_accuracy(answers, given),
        "vqa_accuracy_leave_one_out_margin_95": 100 * margin_95(accuracy),
        "by_answer_type": vqa_accuracy_by_type(answers, given, annotated_types),
        **answerability(predicted_answerable, answerable),
        "answer_ece": expected_calibration_error(of_answer),
        "answer_type_accuracy": 100 * float(np.trace(confusion) / confusion.sum()),
        "oracle_accuracy": vocabulary.oracle_accuracy(split.records),
        "selective_accuracy": {"at_threshold": at_threshold(selective), "deciles": deciles(selective)},
        "answer_types": {"names": run.answer_types, "confusion": confusion.tolist()},
        "reliability": {
            "bins": f"{CALIBRATION_BINS} of equal width over [0, 1]; empty ones are left out",
            "answerability": _rows(of_answerability),
            "answer": _rows(of_answer),
            **{f"quality_{issue}": _rows(bins) for issue, bins in of_quality.items()},
        },
        **quality,
    }
    return Scores(metrics, of_answerability, of_answer, selective, of_quality)


def majority_baseline(answer: str, records: Sequence[Record]) -> dict[str, Any]:
    """VQA accuracy, in percent, of giving ``answer``, the most frequent target of train, to every question."""
    return {"answer": answer, **vqa_accuracy([answer] * len(records), [record.answers for record in records])}


def margin_95(values: npt.NDArray[np.float64]) -> float:
    """Half of the 95% interval of the mean of ``values`` [N]; NaN for fewer than two."""
    return _Z95 * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def _rows(bins: Reliability) -> list[dict[str, float]]:
    return [
        {"confidence": float(confidence), "observed": float(observed), "records": int(count)}
        for confidence, observed, count in zip(*bins, strict=True)
    ]


def write_submissions(
    folder: Path, images: Sequence[str], answers: Sequence[str], answerable: npt.NDArray[np.float32]
) -> list[Path]:
    """Write both submission files.

    Args:
        folder: where to write them.
        images: file names of N photos.
        answers: N predicted answers.
        answerable: fp32 [N], predicted probability that the photo can answer.

    Returns:
        The paths of the answers and of the answerability.

    Raises:
        SubmissionError: lengths differ, a photo occurs twice, an answer is empty, or a confidence is outside [0, 1].
    """
    if problems := _submission_problems(images, answers, answerable):
        raise SubmissionError("the submission would not be accepted: " + "; ".join(problems))
    paths = [folder / ANSWERS_SUBMISSION, folder / ANSWERABILITY_SUBMISSION]
    for path, key, values in zip(paths, ("answer", "answerable"), (answers, answerable.tolist()), strict=True):
        write_json(path, [{"image": image, key: value} for image, value in zip(images, values, strict=True)])
    return paths


def _submission_problems(
    images: Sequence[str], answers: Sequence[str], answerable: npt.NDArray[np.float32]
) -> list[str]:
    if not len(images) == len(answers) == len(answerable):
        return [f"{len(images)} photos, {len(answers)} answers and {len(answerable)} confidences"]
    problems = []
    if repeated := len(images) - len(set(images)):
        problems.append(f"{repeated} photo(s) occur more than once")
    if empty := sum(not answer.strip() for answer in answers):
        problems.append(f"{empty} answer(s) are empty")
    if outside := int(np.sum(~((answerable >= 0) & (answerable <= 1)))):  # NaN compares false: it counts as outside
        problems.append(f"{outside} confidence(s) are outside [0, 1]")
    return problems
