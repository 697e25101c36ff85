"""Seconds until the embedded server is ready: a first start, which compiles its graphs, and a second one.

    python -m benchmarks start

The graphs' files are read once before, so both starts find them in memory. A restart after a crash is a second start.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import Section, Settings, Table, kinds_here
from benchmarks.serving.servers import Served, prepare, triton
from serving.cache_folder import FOLDER_VARIABLE

GOAL = 0.4  # of a first start


def run(settings: Settings) -> Section:
    """Start each kind of repository with an empty cache, and then again."""
    rows = []
    for kind in kinds_here():
        served = prepare(settings.large, settings.cache, kind)
        for file in served.repository.rglob("model.onnx"):
            file.read_bytes()
        with tempfile.TemporaryDirectory() as cache:
            first, *later = (_ready_s(served, cache) for _ in range(2 if settings.quick else 4))
            size = sum(file.stat().st_size for file in Path(cache).iterdir()) / 1e6
        second = statistics.median(later)
        rows.append([kind.name, f"{second / first:.0%}", f"{first:.1f} s", f"{second:.1f} s", f"{size:,.0f} MB"])
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    header = ("graphs", f"second / first (goal: at most {GOAL:.0%})", "first start", "second start", "cached")
    return [
        Table(header, rows, f"{settings.large} size, without the gateway; the second start is the median of three.")
    ]


def _ready_s(served: Served, cache: str) -> float:
    started = time.monotonic()
    with triton(served, environment={FOLDER_VARIABLE: cache}):
        return time.monotonic() - started
