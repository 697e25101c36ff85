"""The loss curves of a fit, as the report shows them: training and validation loss per epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def plot_curves(history: list[dict[str, Any]], best_epoch: int, constant_accuracy: float, path: Path) -> None:
    """Draw loss and VQA accuracy (percent) per epoch to a PNG, with the best epoch and a constant answer marked."""
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)

    losses.plot(epochs, [row["train_loss"] for row in history], marker="o", label="training (with dropout)")
    losses.plot(epochs, [row["val_loss"] for row in history], marker="o", label="validation")
    losses.set(title="Loss", xlabel="epoch", ylabel="answer + type + answerability, nats")

    accuracies.plot(epochs, [row["vqa_accuracy_leave_one_out"] for row in history], marker="o", label="leave-one-out")
    accuracies.plot(epochs, [row["vqa_accuracy_min3"] for row in history], marker="o", label="min(matches / 3, 1)")
    accuracies.axhline(constant_accuracy, color="grey", linestyle="--", label="most frequent answer, always")
    accuracies.set(title="VQA accuracy on val", xlabel="epoch", ylabel="percent")

    for axes in (losses, accuracies):
        axes.axvline(best_epoch, color="grey", linewidth=0.8, linestyle=":", label="best epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
