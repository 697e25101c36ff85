"""Load on the embedded server, beside the bare encoders and FastAPI with PyTorch; `make bench-serving`.

    python -m benchmarks.serving                                      # everything: 45 minutes on two idle cores
    python -m benchmarks.serving --model demo --concurrency 1 16      # a part of it
    python -m benchmarks.serving --precision int8                     # encoders in int8
    python -m benchmarks.serving --model demo --quick                 # a minute, to see that it runs

Closed loop: a fixed number of requests is always in flight. Models have random weights (except the demo's) and a head
of VizWiz's size; the first run writes them to --cache. Server and load generator share the cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import theilslopes

from benchmarks.serving.load import BARE, Job, Record
from benchmarks.serving.plot import draw
from benchmarks.serving.servers import Generator, Served, Server, drawn_photos, fastapi, prepare, triton, usage
from training.artifacts import write_json
from vizwiz_client.contract import tensors

CONCURRENCIES = (1, 2, 4, 8, 16, 32)
BATCHES = (1, 2, 4, 8)
FASTAPI = ("fastapi fp32", "fastapi bf16")
FASTAPI_CONCURRENCIES = (1, 16)
REPEATED_CONCURRENCY = 16
ROUNDS = 3  # of the systems that are compared one request at a time: interleaved, to cancel noise
BURST = 0.1  # of the median latency: answers that close together may come from one batch
MEMORY_BLOCK, MEMORY_CONCURRENCY = 500, 8  # requests between two measurements of memory
MEMORY_PAUSE_S = 0.3  # before each: photos in flight are of all sizes

Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Pace:
    """Length of a model's measurements."""

    seconds: float
    min_questions: int  # a measurement goes on until so many are answered
    max_rate: float  # requests per second that no system reaches: so many distinct ones are prepared
    batches: Sequence[int] = BATCHES
    repeated: bool = True  # measure repeated questions too: the text encoder is a part of the cost


MODELS = {
    "demo": Pace(4.0, 30, 2_000.0),
    "ViT-B/32": Pace(5.0, 20, 200.0),
    "ViT-L/14@336px": Pace(8.0, 9, 10.0, (1, 8), repeated=False),
}


@dataclass(frozen=True)
class Cell:
    """One row of the table: a closed loop on one system."""

    model: str
    system: str
    concurrency: int = 1
    batch: int = 1
    repeated: bool = False

    @property
    def key(self) -> str:
        """Key of its results."""
        questions = ", repeated questions" if self.repeated else ""
        return f"{self.model}, {self.system}, concurrency {self.concurrency}, batch {self.batch}{questions}"


def matrix(model: str, ensembles: Sequence[str], arguments: argparse.Namespace) -> Iterator[list[Cell]]:
    """The cells of the embedded server and of the bare encoders; those of a list are measured in turn."""
    for batch in arguments.batch:
        if batch in MODELS[model].batches and 1 in arguments.concurrency:
            yield [Cell(model, system, 1, batch) for system in (BARE, *ensembles)]
    for concurrency in arguments.concurrency:
        if concurrency > 1 and 1 in arguments.batch:
            yield [Cell(model, system, concurrency) for system in ensembles]
    if MODELS[model].repeated and REPEATED_CONCURRENCY in arguments.concurrency:
        yield [Cell(model, system, REPEATED_CONCURRENCY, repeated=True) for system in ensembles]


class Bench:
    """The measurements of one model.

    Args:
        served: the model.
        photos: folder of JPEG files to send.
        arguments: the command line.
        keep: called with the key and the results of each measurement.
    """

    def __init__(
        self, served: Served, photos: Path, arguments: argparse.Namespace, keep: Callable[[str, dict[str, Any]], None]
    ) -> None:
        self._served = served
        self._photos = photos
        self._arguments = arguments
        self._keep = keep

    def run(self) -> None:
        """Measure every system that is asked for."""
        ensembles = [name for name in (tensors.ENSEMBLE,) if self._wanted(name)]
        self._measure(
            partial(triton, self._served, self._arguments.threads),
            list(matrix(self._served.name, ensembles, self._arguments)),
            ensembles if self._served.name == "demo" else [],
        )
        for system in filter(self._wanted, FASTAPI):
            concurrencies = [c for c in FASTAPI_CONCURRENCIES if c in self._arguments.concurrency]
            cells = [[Cell(self._served.name, system, concurrency)] for concurrency in concurrencies]
            self._measure(partial(fastapi, self._served, bf16=system.endswith("bf16")), cells, [])

    def _wanted(self, system: str) -> bool:
        return not self._arguments.system or any(f"{system} ".startswith(f"{name} ") for name in self._arguments.system)

    def _measure(
        self,
        start: Callable[[], AbstractContextManager[Server]],
        groups: Sequence[Sequence[Cell]],
        with_memory: Sequence[str],
    ) -> None:
        with start() as server, Generator() as remote, Generator() as in_process:
            for group in groups:
                cells = [cell for cell in group if self._wanted(cell.system)]
                rounds = ROUNDS if len(cells) > 1 and cells[0].concurrency == 1 else 1
                records: dict[Cell, list[Record]] = {cell: [] for cell in cells}
                cpu_s = dict.fromkeys(cells, 0.0)
                memory = dict.fromkeys(cells, 0)
                for number in range(rounds):
                    for cell in cells:
                        generator, pid = (in_process, in_process.pid) if cell.system == BARE else (remote, server.pid)
                        before = usage(pid)
                        records[cell].append(generator.run(self._job(cell, server.url, rounds, number)))
                        after = usage(pid)
                        cpu_s[cell] += after.cpu_s - before.cpu_s
                        memory[cell] = after.memory
                for cell in cells:
                    found = summarise(records[cell], cell.batch, cell.concurrency)
                    answered = cell.batch * sum(len(record.ends) for record in records[cell])
                    if answered:
                        found["cpu_ms"] = 1e3 * cpu_s[cell] / answered
                    self._keep(cell.key, found | {"memory_mb": memory[cell] / 1e6})
            for ensemble in with_memory if self._arguments.requests else ():
                self._keep(f"{self._served.name}, {ensemble}, memory", self._memory(remote, server, ensemble))

    def _job(self, cell: Cell, url: str, rounds: int, number: int) -> Job:
        pace = MODELS[cell.model]
        seconds = (self._arguments.seconds or pace.seconds) / rounds
        bursts = 2 * cell.concurrency if cell.concurrency > 1 else 1  # a server that batches answers in bursts
        least = 1 if self._arguments.seconds else -(-pace.min_questions // (rounds * cell.batch))
        return replace(
            self._new_job(cell.system, url),
            concurrency=cell.concurrency,
            batch=cell.batch,
            repeated=cell.repeated,
            seed=zlib.crc32(f"{number} {cell.key}".encode()),  # new questions, which the response cache does not know
            distinct=max(int(pace.max_rate * seconds), 10),
            ramp=cell.concurrency,
            seconds=seconds,
            min_requests=max(least, bursts),
        )

    def _new_job(self, system: str, url: str) -> Job:
        served = self._served
        return Job(system, str(self._photos), served.image_size, url, str(served.repository), served.target.name)

    def _memory(self, generator: Generator, server: Server, ensemble: str) -> dict[str, Any]:
        """Growth of the server's memory, once as many requests have filled the response cache."""
        requests = self._arguments.requests
        block = min(MEMORY_BLOCK, requests)
        job = replace(
            self._new_job(ensemble, server.url),
            concurrency=MEMORY_CONCURRENCY,
            distinct=block,
            max_requests=block,
            seconds=1e9,
            max_seconds=0.05 * block,
        )
        filling = replace(job, system=tensors.ENSEMBLE, distinct=requests, max_requests=requests)
        generator.run(replace(filling, max_seconds=0.05 * requests))
        done, memory, errors = [0], [usage(server.pid).memory], 0
        for number in range(1, requests // block + 1):
            record = generator.run(replace(job, seed=number))
            time.sleep(MEMORY_PAUSE_S)
            done.append(done[-1] + len(record.ends))
            memory.append(usage(server.pid).memory)
            errors += len(record.errors)
        # median of the slopes between any two (Theil-Sen): malloc keeps, or returns, the largest photo of a moment
        settled = slice(len(done) // 2, None)
        slope = theilslopes(memory[settled], done[settled])
        return {
            "requests": done[-1],
            "errors": errors,
            "bytes_per_request": slope.slope,
            "bytes_per_request_95": [slope.low_slope, slope.high_slope],
            "memory_mb": memory[-1] / 1e6,
        }


def summarise(records: Sequence[Record], batch: int, ramp: int) -> dict[str, Any]:
    """Latency and throughput of one or several rounds.

    A round is measured from the end of its ramp until it stops sending: between them, the closed loop neither fills nor
    drains. A server that batches answers in bursts; the window starts and ends with a whole burst.

    Args:
        records: one for each round.
        batch: questions in a request.
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
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99))
    return {
        "requests": len(latencies),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99 if len(latencies) >= 100 else None,  # of fewer, it would be the slowest
        "questions_per_s": len(latencies) * batch / seconds,
        **failed,
    }


def main() -> None:
    """Measure, and print every row as it comes."""
    arguments = _parser().parse_args()
    if arguments.quick:
        arguments.concurrency, arguments.batch, arguments.seconds, arguments.requests = [1, 4], [1, 8], 1.0, 1_000
    arguments.cache.mkdir(parents=True, exist_ok=True)
    photos = arguments.photos or drawn_photos(arguments.cache) / "train"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "openvino", "onnxruntime-gpu", "fastapi"))
    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores; load average {os.getloadavg()[0]:.1f} at the "
        f"start; {versions}; photos of {photos}"
    )
    results: Results = {}
    path = arguments.results or arguments.cache / f"results-{arguments.precision or 'recommended'}.json"

    def keep(key: str, found: dict[str, Any]) -> None:
        results[key] = found
        write_json(path, results)
        shown = {name: f"{value:,.4g}" for name, value in found.items() if isinstance(value, int | float)}
        print(f"| {key} | {' | '.join(f'{name} {value}' for name, value in (shown or found).items())} |", flush=True)

    started = time.monotonic()
    for name in arguments.model:
        Bench(prepare(name, arguments.cache, arguments.precision), photos, arguments, keep).run()
    draw(results, path.with_suffix(".png"))
    print(f"in {time.monotonic() - started:.0f} s; results: {path}, plot: {path.with_suffix('.png')}")
    if failed := sum(found["errors"] for found in results.values()):
        raise SystemExit(f"{failed} requests failed")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "int8"), help="of the encoders (default: as export recommends)"
    )
    parser.add_argument("--system", nargs="+", help='names or their first words: vizwiz_vqa, bare, "fastapi bf16"')
    parser.add_argument("--concurrency", nargs="+", type=int, choices=CONCURRENCIES, default=list(CONCURRENCIES))
    parser.add_argument("--batch", nargs="+", type=int, choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--seconds", type=float, help="length of each measurement (default: by model)")
    parser.add_argument(
        "--requests", type=int, default=20_000, help="of the memory's measurement; 0 omits it (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="threads of each model of the embedded server (default: its own)")
    parser.add_argument("--quick", action="store_true", help="few and short measurements")
    parser.add_argument("--photos", type=Path, help="folder of JPEG files to send (default: drawn ones)")
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench-serving"), help="folder of the models")
    parser.add_argument("--results", type=Path, help="JSON file of the results (default: in --cache)")
    return parser


if __name__ == "__main__":
    main()
