from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from training.metrics import (
    accuracy_leave_one_out,
    accuracy_min3,
    answerability,
    at_threshold,
    deciles,
    expected_calibration_error,
    normalise,
    reliability,
    selective_accuracy,
    vqa_accuracy,
    vqa_accuracy_by_type,
)


@pytest.mark.parametrize(
    ("prediction", "normalised"),
    [
        ("The dog, and ten cats.", "dog and 10 cats"),
        ("none", "0"),
        ("dont know", "don’t know"),
        ("don't know", "don't know"),  # as people type it: not in the table
        ("cant", "can't"),
        ("wheres it", "where's it"),
        ("couldnt've", "couldnt've"),
        ("couldnt’ve", "couldn’t’ve"),
        ("couldn'tve", "couldn’t’ve"),
        ("couldn’tve", "couldn’tve"),  # the table has this one with a straight apostrophe alone
        ("somebody’d", "somebodyd"),
        ("ow’s’at", "’ow’s’at"),
        ("somethingd", "something’d"),
        ("lets", "lets"),
        (". " * 40 + "mug", ". . . . . . . . mug"),  # the official script removes the first 32 periods only
        ("1,000", "1000"),
        ("coca-cola", "coca cola"),
        ("coca- cola", "coca cola"),
        ("2.5 l", "2.5 l"),
        ("N.Y.", "ny"),
        ("a\nred\tmug", "red mug"),
        ("black/white", "black white"),
        ("yes!", "yes"),
    ],
)
def test_normalisation(prediction: str, normalised: str) -> None:
    assert normalise(prediction) == normalised


@pytest.mark.parametrize(
    ("matches", "leave_one_out", "min3"),
    [(0, 0.0, 0.0), (1, 0.3, 1 / 3), (2, 0.6, 2 / 3), (3, 0.9, 1.0), (4, 1.0, 1.0), (10, 1.0, 1.0)],
)
def test_accuracy_by_hand(matches: int, leave_one_out: float, min3: float) -> None:
    answers = ["mug"] * matches + [f"other {n}" for n in range(10 - matches)]
    assert accuracy_leave_one_out("mug", answers) == pytest.approx(leave_one_out)
    assert accuracy_min3("mug", answers) == pytest.approx(min3)


def test_leave_one_out_is_what_leaving_one_out_gives() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        answers = list(random.choice(["mug", "cup", "bowl", "pot"], 10))
        literal = np.mean(
            [min((answers[:n] + answers[n + 1 :]).count("mug") / 3, 1) for n in range(10)],
        )
        assert accuracy_leave_one_out("mug", answers) == pytest.approx(literal)


def test_the_majority_baseline_on_the_real_validation_set(real_annotations: Callable[[str], Path]) -> None:
    raw = json.loads(real_annotations("val_reconstructed").read_text(encoding="utf-8"))
    answers = [[answer["answer"] for answer in entry["answers"]] for entry in raw]
    majority = vqa_accuracy(["unanswerable"] * len(answers), answers)
    assert round(majority["vqa_accuracy_leave_one_out"], 2) == 52.12
    best = [max(accuracy_leave_one_out(answer, given) for answer in set(given)) for given in answers]
    assert round(100 * float(np.mean(best)), 2) == 94.11


def test_answerability_in_both_polarities() -> None:
    answerable = np.array([True, True, False, True, False])
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.1], np.float32)
    scores = answerability(confidence, answerable)
    assert scores["answerable_ap"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert scores["unanswerable_ap"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["answerable_ap_chance"] == pytest.approx(0.6)
    assert scores["unanswerable_ap_chance"] == pytest.approx(0.4)
    assert scores["answerable_f1"] == pytest.approx(2 * 3 / (2 * 3 + 1))
    assert scores["unanswerable_f1"] == pytest.approx(2 * 1 / (2 * 1 + 1))
    assert scores["answerable_accuracy"] == pytest.approx(80)


def test_tiny_confidences_do_not_tie() -> None:
    """In fp32, 1 - 1e-9, 1 - 1e-12 and 1 - 2e-9 are all 1."""
    confidence = np.array([1e-9, 1e-12, 2e-9, 0.9], np.float32)
    answerable = np.array([True, False, True, True])
    assert answerability(confidence, answerable)["unanswerable_ap"] == 1


OFFICIAL = [  # prediction, answers, score in percent: what vqaEval.py of the VizWiz API (January 2023) prints
    ("Mug!", ["mug"] * 4 + ["cup"] * 6, 100.0),
    ("a mug", ["mug"] * 3 + ["cup"] * 7, 90.0),
    ("none", ["0"] * 2 + ["none"] * 8, 60.0),
    ("dont know", ["don't know"] * 10, 0.0),
    ("dont know", ["don’t know"] * 2 + ["don't know"] * 8, 60.0),
    ("cant tell", ["can't tell"] * 10, 100.0),
    ("1,000.", ["1000"] + ["1,000"] * 9, 30.0),
    ("2.5", ["2.5"] * 5 + ["25"] * 5, 100.0),
    ("coca-cola", ["coca cola"] * 3 + ["coca-cola"] * 7, 90.0),
    ("the", [""] * 10, 100.0),
]


def test_scores_are_the_official_ones() -> None:
    predictions, answers, scores = zip(*OFFICIAL, strict=True)
    found = [vqa_accuracy([p], [a])["vqa_accuracy_leave_one_out"] for p, a in zip(predictions, answers, strict=True)]
    assert found == pytest.approx(scores)


def test_average_precision_without_positives_is_not_a_number() -> None:
    scores = answerability(np.array([0.9, 0.2], np.float32), np.array([True, True]))
    assert math.isnan(scores["unanswerable_ap"])
    assert scores["answerable_ap"] == 1


def test_a_confidence_of_one_half_is_answerable() -> None:
    scores = answerability(np.array([0.5, 0.5, 0.49], np.float32), np.array([True, False, False]))
    assert scores["answerable_accuracy"] == pytest.approx(200 / 3)  # 0.5 is answered
    assert scores["answerable_f1"] == pytest.approx(2 / 3)
    # all three are in one of 15 bins, [7/15, 8/15): mean confidence 0.49667, one in three answerable
    assert scores["answerable_ece"] == pytest.approx(1.49 / 3 - 1 / 3, abs=1e-6)


def test_f1_is_0_without_positives() -> None:
    assert answerability(np.zeros(3, np.float32), np.zeros(3, bool))["answerable_f1"] == 0


def test_accuracy_by_answer_type_by_hand() -> None:
    answers = [["mug"] * 10, ["mug"] * 2 + ["cup"] * 8, ["unanswerable"] * 10, ["red"] * 9 + ["mug"]]
    scores = vqa_accuracy_by_type(["The mug."] * 4, answers, ["other", "other", "unanswerable", "other"])
    assert list(scores) == ["other", "unanswerable"]
    assert scores["other"]["records"] == 3
    assert scores["other"]["vqa_accuracy_leave_one_out"] == pytest.approx(100 * (1 + 0.6 + 0.3) / 3)
    assert scores["other"]["vqa_accuracy_min3"] == pytest.approx(100 * (1 + 2 / 3 + 1 / 3) / 3)
    assert scores["unanswerable"] == {"records": 1, "vqa_accuracy_leave_one_out": 0.0, "vqa_accuracy_min3": 0.0}


def test_types_make_up_the_whole_of_the_real_validation_set(real_annotations: Callable[[str], Path]) -> None:
    raw = json.loads(real_annotations("val_reconstructed").read_text(encoding="utf-8"))
    answers = [[answer["answer"] for answer in entry["answers"]] for entry in raw]
    types = [entry["answer_type"] for entry in raw]
    scores = vqa_accuracy_by_type(["unanswerable"] * len(raw), answers, types)
    assert {name: row["records"] for name, row in scores.items()} == dict(Counter(types))
    whole = sum(row["records"] * row["vqa_accuracy_leave_one_out"] for row in scores.values()) / len(raw)
    assert round(whole, 2) == 52.12
    assert scores["unanswerable"]["vqa_accuracy_leave_one_out"] > 95


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


def test_selective_accuracy_by_hand() -> None:
    answerability = np.array([0.2, 0.9, 0.6, 0.6], np.float32)
    accuracy = np.array([1.0, 0.3, 0.6, 0.0])
    answerable = np.array([False, True, True, False])
    curve = selective_accuracy(answerability, accuracy, answerable)
    assert curve.threshold == pytest.approx([0.9, 0.6, 0.2])  # equals are declined together
    assert curve.coverage == pytest.approx([0.25, 0.75, 1.0])
    assert curve.accuracy == pytest.approx([0.3, 0.3, 0.475])
    assert curve.answerable == pytest.approx([1.0, 2 / 3, 0.5])
    assert at_threshold(curve) == pytest.approx(
        {"threshold": 0.6, "coverage": 75.0, "vqa_accuracy_leave_one_out": 30.0, "answerable": 200 / 3}, rel=1e-6
    )
    assert [row["coverage"] for row in deciles(curve)] == [100.0, 75.0, 25.0]


def test_exactly_one_half_is_answered() -> None:
    curve = selective_accuracy(np.array([0.5, 0.49999]), np.array([1.0, 0.0]), np.array([True, False]))
    assert at_threshold(curve)["coverage"] == 50.0


def test_everything_declined() -> None:
    curve = selective_accuracy(np.array([0.4, 0.1]), np.array([1.0, 0.0]), np.array([True, False]))
    point = at_threshold(curve)
    assert point["coverage"] == 0.0
    assert np.isnan(point["vqa_accuracy_leave_one_out"])
