"""The tables, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_COLUMNS = {
    "requests": "requests",
    "p50 ms": "p50_ms",
    "p95 ms": "p95_ms",
    "p99 ms": "p99_ms",
    "requests/s": "requests_per_s",
    "questions/s": "questions_per_s",
    "server cores": "server_cores",
    "CPU ms/question": "server_cpu_ms",
    "generator cores": "generator_cores",
    "memory MB": "memory_mb",
    "images at once": "clip_image_batch",
    "from cache": "cache_hits",
    "errors": "errors",
}
_CELL = re.compile(r"(.+), concurrency (\d+), batch (\d+)(, repeated questions)?")


def tables(results: Mapping[str, Any]) -> Iterator[str]:
    """Every table that there are results for, each with its heading."""
    for model in dict.fromkeys(key.split(", ")[0] for key in results):
        found = {
            key.removeprefix(f"{model}, "): value for key, value in results.items() if key.startswith(f"{model}, ")
        }
        cells = {match: found[match.string] for match in map(_CELL.fullmatch, found) if match}
        if cells:
            yield f"### {model}\n\n{_load_table(cells)}"
        first = {key.removesuffix(", first requests"): value for key, value in found.items() if "first requests" in key}
        if first:
            yield f"First requests on a fresh server, {model}\n\n{_first_table(first)}"


def _load_table(cells: Mapping[re.Match[str], Mapping[str, Any]]) -> str:
    head = ["system", "concurrency", "batch", *_COLUMNS]
    rows = [head, ["---"] * len(head)]
    order = sorted(cells, key=lambda match: (match[1], bool(match[4]), int(match[3]), int(match[2])))
    for match in order:
        system = match[1] + (", repeated" if match[4] else "")
        rows.append([system, match[2], match[3], *(_text(cells[match].get(name)) for name in _COLUMNS.values())])
    return _joined(rows)


def _first_table(first: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [["ensemble", "questions", "first ms", "tenth ms", "first / tenth"], ["---"] * 5]
    for ensemble, kinds in first.items():
        for kind, found in kinds.items():
            ratio = found["first_ms"] / found["tenth_ms"]
            rows.append([ensemble, kind, _text(found["first_ms"]), _text(found["tenth_ms"]), f"{ratio:.2f}"])
    return _joined(rows)


def _joined(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _text(value: float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
