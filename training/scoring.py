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
import torch
from sklearn.metrics import confusion_matrix

from training.artifacts import write_json
from training.baselines import features_of
from training.dataset import Record, Split
from training.features import SplitFeatures
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
from training.model import ClipEnsemble
from training.run import Run

ANSWERS_SUBMISSION = "submission_answers.json"
ANSWERABILITY_SUBMISSION = "submission_answerability.json"
_BATCH = 1024  # records: the probabilities of 5,860 answers are 24 MB
_Z95 = 1.96  # standard errors on either side of a mean: its 95% interval


class SubmissionError(Exception):
    """Predictions that the evaluation server would refuse or misread."""


@dataclass(frozen=True)
class Predictions:
    """Predictions about N questions; K = answer types."""

    answers: list[str]  # the most likely answer of each
    confidence: npt.NDArray[np.float32]  # [N], probability of that answer
    types: npt.NDArray[np.float32]  # [N, K], probabilities
    answerable: npt.NDArray[np.float32]  # [N], calibrated probability


@torch.inference_mode()
def predict(
    ensemble: ClipEnsemble, features: Sequence[SplitFeatures], vocabulary: Sequence[str], device: torch.device
) -> Predictions:
    """Predict from the features of each of the ensemble's CLIPs, in batches."""
    ensemble = ensemble.to(device)
    total = len(features[0].texts)
    best, confidence, types, answerable = [], [], [], []
    for start in range(0, total, _BATCH):
        rows = slice(start, start + _BATCH)
        batch = [SplitFeatures(each.images[rows], each.texts[rows]) for each in features]
        result = ensemble(features_of(batch, device))
        top = result.answer.max(dim=1)
        best += top.indices.tolist()
        confidence.append(top.values.cpu().numpy())
        types.append(result.answer_type.cpu().numpy())
        answerable.append(result.answerable.cpu().numpy())
    return Predictions(
        [vocabulary[index] for index in best],
        np.concatenate(confidence),
        np.concatenate(types),
        np.concatenate(answerable),
    )


@dataclass(frozen=True)
class Scores:
    """Scores of predictions, and the data of their plots."""

    metrics: dict[str, Any]  # the content of metrics.json
    answerability: Reliability
    answer: Reliability
    selective: SelectiveAccuracy


def score(run: Run, split: Split, predictions: Predictions) -> Scores:
    """Score the predictions of ``run`` about a labelled split; docs/evaluation.md explains every metric."""
    # Without the answer counts of train, ties between target answers are broken by the rule's last criterion.
    vocabulary = Vocabulary(run.config["vocabulary"]["rule"], run.answers, Counter())
    true_types = [type_of(record, vocabulary.target(record), run.config["type_set"]) for record in split.records]
    given = [record.answers for record in split.records]
    annotated_types = [record.answer_type or "" for record in split.records]
    answerable = np.array([bool(record.answerable) for record in split.records])
    accuracy = question_accuracies(predictions.answers, given).leave_one_out
    of_answerability = reliability(predictions.answerable, answerable)
    of_answer = reliability(predictions.confidence, accuracy)
    selective = selective_accuracy(predictions.answerable, accuracy, answerable)
    confusion = confusion_matrix(true_types, predictions.types.argmax(axis=1), labels=range(len(run.answer_types)))
    metrics = {
        "records": len(split.records),
        **vqa_accuracy(predictions.answers, given),
        "vqa_accuracy_leave_one_out_margin_95": 100 * _margin(accuracy),
        "by_answer_type": vqa_accuracy_by_type(predictions.answers, given, annotated_types),
        **answerability(predictions.answerable, answerable),
        "answer_ece": expected_calibration_error(of_answer),
        "answer_type_accuracy": 100 * float(np.trace(confusion) / confusion.sum()),
        "oracle_accuracy": vocabulary.oracle_accuracy(split.records),
        "selective_accuracy": {"at_threshold": at_threshold(selective), "deciles": deciles(selective)},
        "answer_types": {"names": run.answer_types, "confusion": confusion.tolist()},
        "reliability": {
            "bins": f"{CALIBRATION_BINS} of equal width over [0, 1]; empty ones are left out",
            "answerability": _rows(of_answerability),
            "answer": _rows(of_answer),
        },
    }
    return Scores(metrics, of_answerability, of_answer, selective)


def majority_baseline(answer: str, records: Sequence[Record]) -> dict[str, Any]:
    """VQA accuracy, in percent, of giving ``answer``, the most frequent target of train, to every question."""
    return {"answer": answer, **vqa_accuracy([answer] * len(records), [record.answers for record in records])}


def _margin(values: npt.NDArray[np.float64]) -> float:
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
