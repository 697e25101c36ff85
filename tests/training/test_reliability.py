from __future__ import annotations

import numpy as np
import pytest

from training.reliability import (
    accuracy_against_coverage,
    at_the_line,
    coverage_table,
    expected_calibration_error,
    reliability,
)


def test_reliability_by_hand() -> None:
    confidence = np.array([0.0, 0.05, 0.1, 0.55, 1.0])
    bins = reliability(confidence, np.array([False, True, False, True, True]), bins=10)
    assert bins.confidence == pytest.approx([0.025, 0.1, 0.55, 1.0])  # [0, 0.1), [0.1, 0.2), [0.5, 0.6), [0.9, 1]
    assert bins.observed == pytest.approx([0.5, 0.0, 1.0, 1.0])
    assert bins.records.tolist() == [2, 1, 1, 1]
    # (2 x |0.025 - 0.5| + |0.1 - 0| + |0.55 - 1| + |1 - 1|) / 5
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.475 + 0.1 + 0.45 + 0) / 5)


def test_reliability_of_a_graded_outcome() -> None:
    bins = reliability(np.array([0.62, 0.64]), np.array([0.3, 0.9]), bins=5)
    assert bins.observed == pytest.approx([0.6])
    assert expected_calibration_error(bins) == pytest.approx(0.03)


def test_the_calibration_error_of_an_honest_confidence_vanishes() -> None:
    random = np.random.default_rng(0)
    honest = random.random(200_000)
    outcome = random.random(200_000) < honest
    assert expected_calibration_error(reliability(honest, outcome)) < 0.005
    assert expected_calibration_error(reliability(honest**2, outcome)) > 0.15


def test_fifteen_bins_unless_told() -> None:
    bins = reliability(np.linspace(0, 1, 3001), np.zeros(3001))
    assert len(bins.records) == 15
    assert bins.records.sum() == 3001
    assert bins.records[-1] == 201  # the last one holds 1 too


def test_coverage_by_hand() -> None:
    answerability = np.array([0.2, 0.9, 0.6, 0.6], np.float32)
    accuracy = np.array([1.0, 0.3, 0.6, 0.0])
    answerable = np.array([False, True, True, False])
    curve = accuracy_against_coverage(answerability, accuracy, answerable)
    assert curve.threshold == pytest.approx([0.9, 0.6, 0.2])  # equals are declined together
    assert curve.coverage == pytest.approx([0.25, 0.75, 1.0])
    assert curve.accuracy == pytest.approx([0.3, 0.3, 0.475])
    assert curve.answerable == pytest.approx([1.0, 2 / 3, 0.5])
    assert at_the_line(curve) == pytest.approx(
        {"threshold": 0.6, "coverage": 75.0, "vqa_accuracy_leave_one_out": 30.0, "answerable": 200 / 3}, rel=1e-6
    )
    assert [row["coverage"] for row in coverage_table(curve)] == [100.0, 75.0, 25.0]


def test_exactly_one_half_is_answered() -> None:
    curve = accuracy_against_coverage(np.array([0.5, 0.49999]), np.array([1.0, 0.0]), np.array([True, False]))
    assert at_the_line(curve)["coverage"] == 50.0


def test_everything_declined() -> None:
    curve = accuracy_against_coverage(np.array([0.4, 0.1]), np.array([1.0, 0.0]), np.array([True, False]))
    line = at_the_line(curve)
    assert line["coverage"] == 0.0
    assert np.isnan(line["vqa_accuracy_leave_one_out"])


def test_coverage_of_a_useful_answerability_rises() -> None:
    random = np.random.default_rng(0)
    answerability = random.random(5000)
    accuracy = (random.random(5000) < answerability).astype(float)
    rows = coverage_table(accuracy_against_coverage(answerability, accuracy, accuracy > 0))
    assert [round(row["coverage"]) for row in rows] == [100, 90, 80, 70, 60, 50, 40, 30, 20, 10]
    scores = [row["vqa_accuracy_leave_one_out"] for row in rows]
    assert scores == sorted(scores)
    assert scores[0] == pytest.approx(50, abs=2)
