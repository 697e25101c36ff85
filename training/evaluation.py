"""What a run predicts for a split, and every score of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.answer_types import type_of
from training.data import Split
from training.features import SplitFeatures
from training.metrics import answerability, question_accuracies, vqa_accuracy, vqa_accuracy_by_type
from training.predictor import ClipEnsemble
from training.reliability import (
    BINS,
    Coverage,
    Reliability,
    accuracy_against_coverage,
    at_the_line,
    coverage_table,
    expected_calibration_error,
    reliability,
)
from training.runs import Run
from training.vocabulary import Vocabulary

_BATCH = 1024  # records: the probabilities of 5,860 answers are 24 MB
_Z95 = 1.96  # standard errors on either side of a mean that hold it in 95% of cases


@dataclass(frozen=True)
class Predictions:
    """What was predicted about N questions; K = answer types."""

    answers: list[str]  # the most likely answer of each
    confidence: npt.NDArray[np.float32]  # [N], its probability
    types: npt.NDArray[np.float32]  # [N, K]
    answerable: npt.NDArray[np.float32]  # [N], calibrated: decline under 0.5


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
        result = ensemble([tuple(_on(device, part[rows]) for part in (each.texts, each.images)) for each in features])
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
class Evaluation:
    """Every score of some predictions, and what the plots are drawn from."""

    metrics: dict[str, Any]  # as in metrics.json
    accuracy: npt.NDArray[np.float64]  # [N], leave-one-out, in [0, 1]
    answerability: Reliability
    answer: Reliability
    coverage: Coverage


def evaluate(run: Run, split: Split, predictions: Predictions) -> Evaluation:
    """Score what ``run`` predicted about a labelled split."""
    # Without the counts of the training set, an equality of answers falls to the rule's last resort.
    vocabulary = Vocabulary(run.config["vocabulary"]["rule"], run.answers, Counter())
    type_set = run.config["type_set"]
    true_types = [type_of(record, vocabulary.target(record), type_set) for record in split.records]
    given = [record.answers for record in split.records]
    official_types = [record.answer_type or "" for record in split.records]
    answerable = np.array([bool(record.answerable) for record in split.records])
    accuracy = question_accuracies(predictions.answers, given).leave_one_out
    of_answerability = reliability(predictions.answerable, answerable)
    of_answer = reliability(predictions.confidence, accuracy)
    coverage = accuracy_against_coverage(predictions.answerable, accuracy, answerable)
    confusion = confusion_of_types(true_types, predictions.types.argmax(axis=1), len(run.answer_types))
    metrics = {
        "records": len(split.records),
        **vqa_accuracy(predictions.answers, given),
        "vqa_accuracy_leave_one_out_margin_95": 100 * _margin(accuracy),
        "by_answer_type": vqa_accuracy_by_type(predictions.answers, given, official_types),
        **answerability(predictions.answerable, answerable),
        "answer_ece": expected_calibration_error(of_answer),
        "answer_type_accuracy": 100 * float(np.trace(confusion) / confusion.sum()),
        "ceiling": vocabulary.ceiling(split.records),
        "declining": {"at_0.5": at_the_line(coverage), "tenths": coverage_table(coverage)},
        "answer_types": {"names": run.answer_types, "confusion": confusion.tolist()},
        "reliability": {
            "bins": f"{BINS} of equal width over [0, 1]; empty ones are left out",
            "answerability": _rows(of_answerability),
            "answer": _rows(of_answer),
        },
    }
    return Evaluation(metrics, accuracy, of_answerability, of_answer, coverage)


def confusion_of_types(
    true: Sequence[int] | npt.NDArray[np.int64], predicted: Sequence[int] | npt.NDArray[np.int64], types: int
) -> npt.NDArray[np.int64]:
    """Count N records by their true type (row) and their predicted type (column), int64 [K, K]."""
    counts = np.zeros((types, types), np.int64)
    np.add.at(counts, (np.asarray(true), np.asarray(predicted)), 1)
    return counts


def _on(device: torch.device, features: npt.NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(np.array(features)).to(device)  # a copy: features may be a read-only map of a file


def _margin(values: npt.NDArray[np.float64]) -> float:
    return _Z95 * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def _rows(bins: Reliability) -> list[dict[str, float]]:
    return [
        {"confidence": float(confidence), "observed": float(observed), "records": int(count)}
        for confidence, observed, count in zip(*bins, strict=True)
    ]
