"""Whether a confidence can be believed: reliability, calibration error, and accuracy against coverage."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

BINS = 15  # of equal width over [0, 1]: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017
DECLINE_BELOW = 0.5  # of the calibrated answerability: where the exported graph's callers decline

_Confidence = npt.NDArray[np.floating[Any]]
_Outcome = npt.NDArray[np.floating[Any]] | npt.NDArray[np.bool_]
_Values = npt.NDArray[np.float64]


class Reliability(NamedTuple):
    """The filled ones of the equally wide bins of a confidence; K = their number."""

    confidence: _Values  # [K], mean confidence of the bin
    observed: _Values  # [K], mean outcome of the bin
    records: npt.NDArray[np.int64]  # [K]


def reliability(confidence: _Confidence, outcome: _Outcome, bins: int = BINS) -> Reliability:
    """Compare ``confidence`` [N] in [0, 1] with ``outcome`` [N] in [0, 1], which may be graded as VQA accuracy is.

    Bin k of ``bins`` holds the confidences in [k / bins, (k + 1) / bins); the last one holds 1 too.
    """
    confidence = np.asarray(confidence, np.float64)
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    filled = count > 0
    sums = (np.bincount(place, values, bins)[filled] for values in (confidence, np.asarray(outcome, np.float64)))
    mean_confidence, observed = (total / count[filled] for total in sums)
    return Reliability(mean_confidence, observed, count[filled])


def expected_calibration_error(bins: Reliability) -> float:
    """Mean over the records of the gap, in [0, 1], between their bin's mean confidence and its mean outcome."""
    return float(np.average(np.abs(bins.confidence - bins.observed), weights=bins.records))


class Coverage(NamedTuple):
    """What is left when the records of lowest answerability are declined; N' = distinct answerabilities, falling."""

    threshold: _Values  # [N'], the lowest answerability that is still answered
    coverage: _Values  # [N'], share of the questions that are answered
    accuracy: _Values  # [N'], mean VQA accuracy in [0, 1] of those
    answerable: _Values  # [N'], share of those that the photo can answer


def accuracy_against_coverage(
    answerability: _Confidence, accuracy: _Values, answerable: npt.NDArray[np.bool_]
) -> Coverage:
    """Decline ever more of N questions, those of equal answerability together.

    The answer "unanswerable" is a right answer for VizWiz: a head that gives it scores well on what it should decline,
    so that the accuracy of what is left can fall while the share of answerable questions rises. Look at both.
    """
    order = np.argsort(-np.asarray(answerability, np.float64), kind="stable")
    falling = np.asarray(answerability, np.float64)[order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(order) - 1)  # of its equals
    kept = last + 1
    return Coverage(
        falling[last],
        kept / len(order),
        np.cumsum(accuracy[order])[last] / kept,
        np.cumsum(answerable[order])[last] / kept,
    )


def coverage_table(curve: Coverage) -> list[dict[str, float]]:
    """Rows of ``curve`` nearest to each tenth of the questions, all of them first."""
    rows = [int(np.abs(curve.coverage - tenth / 10).argmin()) for tenth in range(10, 0, -1)]
    return [_coverage_row(curve, row) for row in dict.fromkeys(rows)]


def at_the_line(curve: Coverage) -> dict[str, float]:
    """The row of ``curve`` where callers decline: what is answered has an answerability of 0.5 or more."""
    answered = np.flatnonzero(curve.threshold >= DECLINE_BELOW)
    if not len(answered):
        nothing = float("nan")
        return {"threshold": nothing, "coverage": 0.0, "vqa_accuracy_leave_one_out": nothing, "answerable": nothing}
    return _coverage_row(curve, int(answered[-1]))


def _coverage_row(curve: Coverage, row: int) -> dict[str, float]:
    return {
        "threshold": float(curve.threshold[row]),
        "coverage": 100 * float(curve.coverage[row]),
        "vqa_accuracy_leave_one_out": 100 * float(curve.accuracy[row]),
        "answerable": 100 * float(curve.answerable[row]),
    }
