"""From the times of requests and the samples of a server to the figures of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import theilslopes

from benchmarks.serving.job import BARE, Job, Record
from benchmarks.serving.watch import Sample

SETTLED = 0.5  # share of the requests, the first, that the slope of the memory leaves out: caches and pools fill
BURST = 0.1  # of the median latency: answers that far apart may have been computed together


def summarise(job: Job, records: Sequence[Record], samples: Sequence[Sample] = ()) -> dict[str, Any]:
    """The figures of a measurement that was made in one or several rounds.

    A round is measured from the end of its ramp to the end of its sending: between them, a closed loop is neither
    filling nor draining. A server that computes in batches answers in bursts; the window begins and ends with a whole
    one, or a part of the last would be missing. ``samples`` are the server's.
    """
    latencies, requests, seconds, cpu_s = [], 0, 0.0, 0.0
    for record in records:
        start, measured = _window(job, record)
        if not measured:
            continue
        stop = measured[-1][1]
        latencies += [1e3 * (end - begun) for begun, end in measured]
        requests, seconds = requests + len(measured), seconds + stop - start
        cpu_s += cpu_between(samples, start, stop)
    errors = [error for record in records for error in record.errors]
    if not requests or seconds <= 0:
        return {"errors": len(errors), "error": errors[0] if errors else "no request ended while it was measured"}
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99))
    return {
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99 if requests >= 100 else None,  # of fewer, it would be the slowest
        "requests": requests,
        "seconds": seconds,
        "requests_per_s": requests / seconds,
        "questions_per_s": requests * job.batch / seconds,
        "server_cores": cpu_s / seconds if samples else None,
        "server_cpu_ms": 1e3 * cpu_s / (requests * job.batch) if samples else None,  # a question's
        "generator_cores": None
        if job.system == BARE
        else sum(record.cpu_s for record in records) / sum(map(_length, records)),
        "memory_mb": max(sample.memory for sample in samples) / 1e6 if samples else None,
        "errors": len(errors),
        **({"error": errors[0]} if errors else {}),
    }


def _window(job: Job, record: Record) -> tuple[float, list[tuple[float, float]]]:
    """When the measuring began, and start and end of each request in it."""
    if len(record.ends) <= job.ramp:
        return 0.0, []
    together = BURST * float(np.median(np.subtract(record.ends, record.starts)))
    ramped = record.ends[job.ramp - 1] + together if job.ramp else 0.0
    start = max((end for end in record.ends if end <= ramped), default=min(record.starts))
    times = zip(record.starts, record.ends, strict=True)
    return start, [(begun, end) for begun, end in times if start < end <= record.stopped + together]


def cpu_between(samples: Sequence[Sample], start: float, stop: float) -> float:
    """Seconds computed between two times, by linear interpolation between the samples."""
    if not samples:
        return 0.0
    first, last = np.interp([start, stop], [s.at for s in samples], [s.cpu_s for s in samples])
    return float(last - first)


class Look(NamedTuple):
    """The server's memory after a block of requests, in bytes."""

    requests: int  # answered in the block
    at_rest: int  # after it
    busiest: int  # the most while it was answered


def memory_slope(looks: Sequence[Look], errors: Sequence[str]) -> dict[str, Any]:
    """Growth of the server's memory at rest in bytes a request, over all but the first requests.

    The median of the slopes between any two looks (Theil-Sen), with its 95% interval: malloc keeps, or gives back, the
    largest photo of a moment, and a few such looks would turn a line by least squares.
    """
    done = np.cumsum([look.requests for look in looks])
    at_rest = np.array([look.at_rest for look in looks], float)
    settled = done >= SETTLED * done[-1]
    slope, lowest, highest = _slope(done[settled], at_rest[settled])
    return {
        "requests": int(done[-1]),
        "errors": len(errors),
        **({"error": errors[0]} if errors else {}),
        "bytes_per_request": slope,
        "bytes_per_request_95": [lowest, highest],
        "memory_mb_first": at_rest[0] / 1e6,
        "memory_mb_settled": at_rest[settled][0] / 1e6,
        "memory_mb_last": at_rest[-1] / 1e6,
        "memory_mb_busiest": max(look.busiest for look in looks) / 1e6,
        "curve": [[int(count), look.at_rest, look.busiest] for count, look in zip(done, looks, strict=True)],
    }


def _slope(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> tuple[float, float, float]:
    if not np.ptp(x):
        return float("nan"), float("nan"), float("nan")
    found = theilslopes(y, x)
    return float(found.slope), float(found.low_slope), float(found.high_slope)


def _length(record: Record) -> float:
    return max(record.ends, default=record.stopped) - min(record.starts, default=record.stopped) or float("inf")
