"""Plot of the load benchmark: throughput and latency of each model by concurrency."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_COLORS = ("#0b5cad", "#2a9d8f", "#c2500a", "#e0a030", "#666666")  # distinct with any colour vision
_MARKERS = "os^vx"
_CELL = re.compile(r"(.+), (.+), concurrency (\d+), batch 1")


def draw(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw ``results`` to a PNG."""
    series: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for key, found in results.items():
        if (match := _CELL.fullmatch(key)) and "p50_ms" in found:
            point = int(match[3]), found["questions_per_s"], found["p50_ms"]
            series.setdefault((match[1], match[2]), []).append(point)
    models = list(dict.fromkeys(model for model, _ in series)) or [""]
    systems = list(dict.fromkeys(system for _, system in series))
    figure = Figure(figsize=(4.2 * len(models), 7), layout="constrained")
    axes = figure.subplots(2, len(models), squeeze=False)
    for (model, system), points in series.items():
        number, column = systems.index(system), models.index(model)
        style = {"color": _COLORS[number], "marker": _MARKERS[number], "label": system}
        concurrency, throughput, latency = zip(*sorted(points), strict=True)
        axes[0, column].plot(concurrency, throughput, **style)
        axes[1, column].plot(concurrency, latency, **style)
    for column, model in enumerate(models):
        axes[0, column].set(title=model, ylabel="questions per second", ylim=(0, None))
        axes[1, column].set(ylabel="p50, ms", yscale="log")
        for each in axes[:, column]:
            each.set_xscale("log", base=2)
            each.xaxis.set_major_formatter("{x:g}")
            each.set_xlabel("requests in flight")
            each.grid(alpha=0.3)
    if systems:
        axes[0, 0].legend()
    figure.savefig(path, dpi=120)
