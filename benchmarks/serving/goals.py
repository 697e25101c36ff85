"""The goals of the embedded server, held against what was measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.serving.job import BARE
from benchmarks.serving.models import MODELS
from benchmarks.serving.plan import LARGE, PLAIN, Cell
from vizwiz_client.contract import tensors

MOST_ADDED_MS, MOST_ADDED_SHARE = 3.0, 0.05  # p50 over the bare encoders: either is enough
LEAST_SPEEDUPS = dict(zip(PLAIN, (3.0, 1.0), strict=True))  # over FastAPI
BUSY = 16  # the concurrency of that
FLAT_BYTES = 100.0  # of memory, a request: a million requests may take no more than 100 MB


class Goal(NamedTuple):
    """A goal, what was measured, and whether that is enough; None where it was not measured."""

    text: str
    measured: str
    passed: bool | None

    def __str__(self) -> str:
        word = {True: "pass", False: "FAIL", None: "not measured"}[self.passed]
        return f"| {self.text} | {self.measured} | {word} |"


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """Every goal."""
    return [*_added(results), *_speedups(results), _no_error(results), *_memory(results)]


def _added(results: Mapping[str, Any]) -> Iterator[Goal]:
    for model in MODELS:
        text = f"{model}: added p50 over the bare encoders at most {MOST_ADDED_MS:g} ms or {MOST_ADDED_SHARE:.0%}"
        ours, bare = (figure(results, Cell(model, system), "p50_ms") for system in (tensors.ENSEMBLE, BARE))
        if ours is None or bare is None:
            yield Goal(text, "", None)
            continue
        added = ours - bare
        passed = added <= max(MOST_ADDED_MS, MOST_ADDED_SHARE * bare)
        yield Goal(text, f"{bare:.2f} + {added:.2f} ms ({added / bare:+.1%})", passed)


def _speedups(results: Mapping[str, Any]) -> Iterator[Goal]:
    # FastAPI's is given a photo's file, as the raw ensemble is; a client of the other one has decoded it
    for (system, least), ensemble in itertools.product(LEAST_SPEEDUPS.items(), tensors.ENSEMBLES):
        ours = figure(results, Cell(LARGE, ensemble, BUSY), "questions_per_s")
        wanted = f"at least {least:g} x" if least > 1 else "more than"
        text = f"{LARGE}, concurrency {BUSY}: {ensemble} {wanted} the throughput of {system}"
        theirs = figure(results, Cell(LARGE, system, BUSY), "questions_per_s")
        if ours is None or theirs is None:
            yield Goal(text, "", None)
            continue
        ratio = ours / theirs
        yield Goal(text, f"{ours:.2f} / {theirs:.2f} per s = {ratio:.2f} x", ratio >= least if least > 1 else ratio > 1)


def _no_error(results: Mapping[str, Any]) -> Goal:
    failed = sum(errors_of(figures) for figures in results.values())
    return Goal("no error", f"{failed} errors", failed == 0 if results else None)


def _memory(results: Mapping[str, Any]) -> Iterator[Goal]:
    for key, found in results.items():
        if key.endswith(", memory"):
            slope, (lowest, highest) = found["bytes_per_request"], found["bytes_per_request_95"]
            settled, last = found["memory_mb_settled"], found["memory_mb_last"]
            yield Goal(
                f"{key} flat over {found['requests']:,} requests (at most {FLAT_BYTES:g} bytes a request)",
                f"{slope:+.1f} bytes a request (95%: {lowest:+.0f} to {highest:+.0f}); at rest {settled:.1f} MB "
                f"{last - settled:+.1f} MB",
                slope <= FLAT_BYTES,
            )


def figure(results: Mapping[str, Any], cell: Cell, name: str) -> float | None:
    """A figure of ``cell``, or None where there is none."""
    found = results.get(cell.key, {}).get(name)
    return None if found is None else float(found)


def errors_of(figures: Mapping[str, Any]) -> int:
    """Requests that failed in a measurement, or in the parts that it has."""
    parts = [errors_of(part) for part in figures.values() if isinstance(part, dict)]
    return int(figures.get("errors", 0)) + sum(parts)
