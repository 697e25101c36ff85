"""The plot: throughput and latency by concurrency of every model, and the server's memory by requests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.serving.goals import figure as figure_of
from benchmarks.serving.job import BARE
from benchmarks.serving.plan import CONCURRENCIES, PLAIN, Cell
from vizwiz_client.contract import tensors

# told apart with any colour vision, and by their marks
_STYLES = {
    tensors.ENSEMBLE: ("#0b5cad", "o"),
    f"{tensors.ENSEMBLE}_raw": ("#2a9d8f", "s"),
    PLAIN[0]: ("#c2500a", "^"),
    PLAIN[1]: ("#e0a030", "v"),
    BARE: ("#666666", "x"),
}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw what was measured to a PNG."""
    models = list(dict.fromkeys(key.split(", ")[0] for key in results if ", " in key))  # one key is the conditions
    memory = {key: found["curve"] for key, found in results.items() if key.endswith(", memory")}
    figure = Figure(figsize=(4.2 * (len(models) + bool(memory)), 7), layout="constrained")
    axes = figure.subplots(2, len(models) + bool(memory), squeeze=False)
    for column, model in enumerate(models):
        _draw(axes[0, column], results, model, "questions_per_s", "questions a second", logarithmic=False)
        _draw(axes[1, column], results, model, "p50_ms", "p50 of a request, ms", logarithmic=True)
        axes[0, column].set_title(model)
    if memory:
        _draw_memory(axes[0, -1], memory)
        axes[1, -1].set_axis_off()
        handles = [axes[0, 0].plot([], [], color=c, marker=m, label=name)[0] for name, (c, m) in _STYLES.items()]
        axes[1, -1].legend(handles=handles, loc="center")
    else:
        axes[0, 0].legend()
    figure.savefig(path, dpi=120)


def _draw(axes: Any, results: Mapping[str, Any], model: str, name: str, label: str, *, logarithmic: bool) -> None:
    for system, (color, mark) in _STYLES.items():
        points = [(c, figure_of(results, Cell(model, system, c), name)) for c in CONCURRENCIES]
        found = [(c, value) for c, value in points if value is not None]
        if found:
            axes.plot(*zip(*found, strict=True), color=color, marker=mark, label=system)
    axes.set_xscale("log", base=2)
    axes.set_xticks(CONCURRENCIES, map(str, CONCURRENCIES))
    axes.set_xlim(CONCURRENCIES[0] * 0.8, CONCURRENCIES[-1] * 1.25)
    axes.set(xlabel="requests under way", ylabel=label)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))  # the labels of all nine would overlap
        axes.yaxis.set_minor_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _draw_memory(axes: Any, memory: Mapping[str, list[list[int]]]) -> None:
    for key, curve in memory.items():
        color, _ = next(style for system, style in reversed(_STYLES.items()) if f", {system}," in key)
        requests, at_rest, busiest = zip(*curve, strict=True)
        axes.plot(requests, [each / 1e6 for each in at_rest], color=color)
        axes.plot(requests, [each / 1e6 for each in busiest], color=color, linestyle=":")
    axes.set(
        xlabel="requests answered",
        ylabel="memory at rest (dotted: busiest), MB",
        title=next(iter(memory)).split(", ")[0],
    )
    axes.set_ylim(0, 1.1e-6 * max(max(sizes) for curve in memory.values() for _, *sizes in curve))
    axes.grid(alpha=0.3)
