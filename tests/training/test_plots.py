from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from training.metrics import reliability, selective_accuracy
from training.plots import as_svg, confusion_plot, coverage_plot, curves, reliability_plot


def history(**more: int) -> list[dict[str, float]]:
    """Rows of three epochs."""
    scores = {"train_loss": 3.0, "val_loss": 2.5, "vqa_accuracy_leave_one_out": 50.0, "vqa_accuracy_min3": 51.0}
    return [{"epoch": epoch, **more, **{key: value + epoch for key, value in scores.items()}} for epoch in (1, 2, 3)]


def test_curves_show_every_epoch() -> None:
    losses, accuracies = curves(history(), 2, 40.0).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in losses.lines + accuracies.lines}
    assert lines["validation"] == [[1, 3.5], [2, 4.5], [3, 5.5]]
    assert lines["leave-one-out"] == [[1, 51], [2, 52], [3, 53]]
    assert [x for x, _ in lines["kept epoch"]] == [2, 2]
    assert [y for _, y in lines["most frequent answer, always"]] == [40, 40]


def test_folds_are_lines_of_their_own() -> None:
    losses = curves([*history(fold=0), *history(fold=1)], None, 40.0).axes[0]
    assert [len(line.get_xydata()) for line in losses.lines] == [3, 3, 3, 3]
    assert len(losses.get_legend().get_texts()) == 2


def test_confusion_shows_the_counts() -> None:
    axes = confusion_plot(np.array([[1200, 3], [0, 7]]), ["other", "number"]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["1,200", "3", "0", "7"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["other", "number"]


def test_coverage_marks_the_threshold() -> None:
    curve = selective_accuracy(
        np.array([0.9, 0.6, 0.2, 0.1]), np.array([1.0, 0.6, 0.3, 0.0]), np.array([True, True, False, False])
    )
    figure = coverage_plot(curve)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["threshold 0.5 (answers 50%)"].get_xdata()) == [50.0, 50.0]


def figures() -> list[Figure]:
    bins = reliability(np.linspace(0, 1, 50), np.linspace(0, 1, 50) > 0.4)
    return [reliability_plot(bins, bins), curves(history(), None, 40.0)]


@pytest.mark.parametrize("number", [0, 1])
def test_svg_is_the_same_every_time_and_names_no_resource(number: int) -> None:
    svg = as_svg(figures()[number])
    assert as_svg(figures()[number]) == svg
    assert svg.startswith(b"<?xml")
    references = re.findall(rb'(?:href|src)="([^"]*)"|url\(([^)]*)\)', svg)
    assert references
    assert all((first or second).startswith(b"#") for first, second in references)
