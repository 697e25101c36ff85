"""Matplotlib figures of a fit and of an evaluation."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.metrics import DECLINE_THRESHOLD, Reliability, SelectiveAccuracy

_BLUE, _ORANGE, _GREY = "#0b5cad", "#c2500a", "#666666"  # distinct for every color vision, also by lightness


def curves(history: list[dict[str, Any]], kept_epoch: int | None, majority_accuracy: float) -> Figure:
    """Loss and VQA accuracy per epoch; one line for each fold and CLIP.

    Args:
        history: a row of scores for each epoch of each head.
        kept_epoch: the epoch to mark, if there is one.
        majority_accuracy: VQA accuracy, in percent, of the most frequent answer.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    _draw(losses, history, "train_loss", "training (with dropout)", _BLUE)
    _draw(losses, history, "val_loss", "validation", _ORANGE)
    losses.set(title="Loss", xlabel="epoch", ylabel="answer + type + answerability, nats")

    _draw(accuracies, history, "vqa_accuracy_leave_one_out", "leave-one-out", _BLUE)
    _draw(accuracies, history, "vqa_accuracy_min3", "min(matches / 3, 1)", _ORANGE)
    accuracies.axhline(majority_accuracy, color=_GREY, linestyle="--", label="most frequent answer, always")
    scored_on = "each head's share of train" if any("fold" in row for row in history) else "val"
    accuracies.set(title=f"VQA accuracy on {scored_on}", xlabel="epoch", ylabel="percent")

    for axes in (losses, accuracies):
        if kept_epoch is not None:
            axes.axvline(kept_epoch, color=_GREY, linewidth=0.8, linestyle=":", label="kept epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def reliability_plot(answerability: Reliability, answer: Reliability) -> Figure:
    """Reliability diagrams of answerability and answer: observed outcome against mean confidence."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axes, bins, title, outcome in (
        (figure.add_subplot(1, 2, 1), answerability, "Answerability", "share of photos that can answer"),
        (figure.add_subplot(1, 2, 2), answer, "Answer", "VQA accuracy, leave-one-out"),
    ):
        axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", label="perfectly calibrated")
        axes.plot(bins.confidence, bins.observed, color=_BLUE, alpha=0.5)
        sizes = 20 + 400 * bins.records / bins.records.sum()
        axes.scatter(bins.confidence, bins.observed, sizes, color=_BLUE, label="a bin; area: its records", zorder=3)
        axes.set(title=title, xlabel="mean confidence", ylabel=outcome, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", markerscale=0.5)
    return figure


def coverage_plot(curve: SelectiveAccuracy) -> Figure:
    """Accuracy and share of answerable photos of the answered questions against coverage, all in percent."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    coverage = 100 * curve.coverage
    axes.plot(coverage, 100 * curve.accuracy, color=_BLUE, label="VQA accuracy of the answered (leave-one-out)")
    axes.plot(coverage, 100 * curve.answerable, color=_ORANGE, linestyle="--", label="answered photos that can answer")
    answered = coverage[curve.threshold >= DECLINE_THRESHOLD]
    at_threshold = answered[-1] if len(answered) else 0.0
    label = f"threshold {DECLINE_THRESHOLD} (answers {at_threshold:.0f}%)"
    axes.axvline(at_threshold, color=_GREY, linestyle=":", label=label)
    axes.set(xlabel="coverage: questions answered, percent", ylabel="percent", xlim=(0, 101), ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def quality_plot(scores: Mapping[str, Mapping[str, float]], bins: Mapping[str, Reliability]) -> Figure:
    """Photo quality: average precision of each issue beside chance, and the reliability of its probability."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    places = np.arange(len(scores))
    bars.barh(places - 0.2, [row["ap"] for row in scores.values()], 0.4, color=_BLUE, label="this run")
    bars.barh(places + 0.2, [row["ap_chance"] for row in scores.values()], 0.4, color=_GREY, label="chance")
    bars.set_yticks(places, list(scores))
    bars.invert_yaxis()
    bars.set(title="Average precision", xlim=(0, 1))
    lines.plot([0, 1], [0, 1], color=_GREY, linestyle="--", label="perfectly calibrated")
    for (issue, each), marker in zip(bins.items(), "os^vD*X", strict=False):
        lines.plot(each.confidence, each.observed, marker=marker, markersize=4, linewidth=1, label=issue)
    lines.set(title="Reliability", xlabel="mean predicted probability", ylabel="share of photos with the issue")
    for axes in (bars, lines):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def confusion_plot(counts: npt.NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Confusion matrix of answer types, true (row) by predicted (column), shaded by share of the row."""
    inches = 2.6 + 0.7 * len(names)
    figure = Figure(figsize=(inches + 1, inches), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        axes.text(column, row, f"{count:,}", ha="center", va="center", color="w" if shares[row, column] > 0.5 else "k")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def as_svg(figure: Figure) -> bytes:
    """Render a figure as self-contained SVG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "vizwiz"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _draw(axes: Any, history: list[dict[str, Any]], key: str, label: str, color: str) -> None:
    lines: dict[Any, list[dict[str, Any]]] = {}
    for row in history:
        if row.get(key) is not None:
            lines.setdefault((row.get("clip"), row.get("fold")), []).append(row)
    for number, rows in enumerate(lines.values()):
        style = {"marker": "o"} if len(lines) == 1 else {"alpha": 0.5, "linewidth": 1}
        epochs, values = [row["epoch"] for row in rows], [row[key] for row in rows]
        axes.plot(epochs, values, color=color, label=label if number == 0 else None, **style)
