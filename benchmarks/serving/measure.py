"""Closed loops on several systems, measured in turn, to cancel noise."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.load import BARE, Job, Record
from benchmarks.serving.servers import Generator, Served, Server, stopped, usage

BURST = 0.1  # of the median latency: answers that close together may come from one batch


@dataclass(frozen=True)
class System:
    """What is measured."""

    label: str
    precision: str  # of the encoders
    name: str  # as Job.system
    served: Served
    server: Server | None = None  # None: within the generator
    url: str | None = None  # default: that of the server
    pids: tuple[int, ...] = ()  # whose usage counts; default: of the server

    @property
    def servers(self) -> tuple[int, ...]:
        """Roots of the processes that answer; none within the generator."""
        return self.pids or ((self.server.pid,) if self.server else ())


@dataclass(frozen=True)
class Measured:
    """Latency, throughput and cost of one closed loop."""

    p50_ms: float
    per_s: float  # questions a second
    cpu_ms: float  # processor time of the server for a question
    memory_gb: float  # of the server at the end
    errors: int


def measure(
    systems: Sequence[System],
    photos: Path,
    concurrency: int,
    seconds: float,
    rounds: int = 1,
    min_requests: int = 3,
    requests: int | None = None,
) -> list[Measured]:
    """Measure each system at ``concurrency``, in turn, ``rounds`` times.

    Args:
        systems: what is measured.
        photos: folder of JPEG files.
        concurrency: requests in flight.
        seconds: length of each measurement.
        rounds: of each system; their requests are pooled.
        min_requests: measured at least, in each round.
        requests: send so many in each round, and measure them all, however long that takes: of a slow system, neither
            ramp nor drain is then lost time.

    Raises:
        SystemExit: nothing was answered.
    """
    records: list[list[Record]] = [[] for _ in systems]
    cpu_s, memory = [0.0] * len(systems), [0] * len(systems)
    ramp = 0 if requests else concurrency
    with ExitStack() as stack:
        remote = stack.enter_context(Generator())
        bare = [system.precision for system in systems if system.name == BARE]
        in_process = {precision: stack.enter_context(Generator()) for precision in bare}  # of its graphs alone
        for number in range(rounds):
            for place, system in enumerate(systems):
                generator = in_process[system.precision] if system.name == BARE else remote
                pids = system.servers or (generator.pid,)
                idle = {pid for other in systems for pid in other.servers} - set(pids)
                job = Job(
                    system.name,
                    str(photos),
                    system.served.image_size,
                    system.url or (system.server.url if system.server else ""),
                    str(system.served.repository),
                    system.served.target.name,
                    concurrency=concurrency,
                    seed=zlib.crc32(f"{number} {system.label} {system.precision} {concurrency}".encode()),
                    distinct=max(round(1_000 * seconds), requests or 0, 10),
                    ramp=ramp,
                    seconds=1e9 if requests else seconds,
                    min_requests=max(min_requests, concurrency if concurrency > 1 else 1),
                    max_requests=requests or 1_000_000,
                )
                if number == 0:  # opens graphs, connects, warms up
                    generator.run(replace(job, seed=job.seed + 1, concurrency=1, max_requests=2, distinct=2))
                with stopped(idle):
                    before = usage(*pids)
                    record = generator.run(job)
                    after = usage(*pids)
                if requests and record.ends:
                    record.stopped = record.ends[-1]
                print(
                    f"{system.label} {system.precision}, {concurrency} at once, round {number + 1} of {rounds}: "
                    f"{len(record.ends)} answered, {len(record.errors)} errors",
                    file=sys.stderr,
                    flush=True,
                )
                records[place].append(record)
                cpu_s[place] += after.cpu_s - before.cpu_s
                memory[place] = after.memory
    found = []
    for place, system in enumerate(systems):
        values = summarise(records[place], ramp)
        answered = sum(len(record.ends) for record in records[place])
        if "p50_ms" not in values:
            raise SystemExit(f"{system.label} in {system.precision} gave no answer: {values['error']}")
        found.append(
            Measured(
                values["p50_ms"],
                values["questions_per_s"],
                1e3 * cpu_s[place] / answered,
                memory[place] / 1e9,
                values["errors"],
            )
        )
    return found


def summarise(records: Sequence[Record], ramp: int) -> dict[str, Any]:
    """Latency and throughput of one or several rounds.

    A round is measured from the end of its ramp until it stops sending: between them, the closed loop neither fills nor
    drains. A server that batches answers in bursts; the window starts and ends with a whole burst.

    Args:
        records: one for each round.
        ramp: completed requests before the measurement starts.
    """
    latencies, seconds = [], 0.0
    for record in records:
        if len(record.ends) > ramp:
            burst = BURST * float(np.median(np.subtract(record.ends, record.starts)))
            ramped = record.ends[ramp - 1] + burst if ramp else 0.0
            start = max((end for end in record.ends if end <= ramped), default=min(record.starts))
            times = zip(record.starts, record.ends, strict=True)
            measured = [(begin, end) for begin, end in times if start < end <= record.stopped + burst]
            latencies += [1e3 * (end - begin) for begin, end in measured]
            seconds += measured[-1][1] - start if measured else 0.0
    errors = [error for record in records for error in record.errors]
    failed: dict[str, Any] = {"errors": len(errors), **({"error": errors[0]} if errors else {})}
    if not latencies:
        return {"errors": 0, "error": "no request ended within the measurement", **failed}
    return {
        "requests": len(latencies),
        "p50_ms": np.median(latencies),
        "questions_per_s": len(latencies) / seconds,
        **failed,
    }
