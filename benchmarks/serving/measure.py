"""Fills in what is missing among the results: starts each server that is needed, and asks it."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving import plan
from benchmarks.serving.job import BARE, Job, Record
from benchmarks.serving.models import Served
from benchmarks.serving.plan import PACES, Cell
from benchmarks.serving.processes import Generator, Server, counters, plain, triton
from benchmarks.serving.statistics import Look, memory_slope, summarise
from benchmarks.serving.watch import Watch, look
from export.publish import EXPORT_FORMAT
from training.artifacts import write_json
from vizwiz_client.contract import tensors

Results = dict[str, Any]  # key of a measurement -> its figures
CONDITIONS = "conditions"  # one more key: what all of them depend on


@dataclass(frozen=True)
class Options:
    """What to measure, of the plan."""

    concurrencies: Sequence[int] = plan.CONCURRENCIES
    batches: Sequence[int] = plan.BATCHES
    systems: Sequence[str] = ()  # names or their first words; all where empty
    seconds: float | None = None  # of each measurement, in the place of the plan's
    memory_requests: int = plan.MEMORY_REQUESTS
    threads: int | None = None  # of each model of the embedded server

    def wants(self, system: str) -> bool:
        """Whether ``system`` is to be measured."""
        return not self.systems or any(f"{system} ".startswith(f"{name} ") for name in self.systems)


@dataclass
class Bench:
    """The measurements of one model, and where they are kept."""

    served: Served
    photos: Path
    options: Options
    path: Path
    report: Callable[[str, Results], None] = lambda key, figures: None
    generator: Generator = field(default_factory=Generator)
    in_process: Generator = field(default_factory=Generator)

    def run(self) -> None:
        """Measure what is not measured yet."""
        self.results: Results = json.loads(self.path.read_text()) if self.path.exists() else {}
        self._check_conditions()
        try:
            self._embedded()
            for system in filter(self.options.wants, plan.PLAIN):
                self._plain(system)
        finally:
            self.generator.close()
            self.in_process.close()

    def _check_conditions(self) -> None:
        """Keep with the results what they depend on beside their keys, or refuse results of something else."""
        conditions: Results = {
            "export format": EXPORT_FORMAT,
            "encoders": self.served.target.name,
            "photos": str(self.photos.resolve()),
            "threads": self.options.threads,
            "seconds": self.options.seconds,
        }
        found = self.results.setdefault(CONDITIONS, conditions)
        others = [f"{name} {found.get(name)}, now {now}" for name, now in conditions.items() if found.get(name) != now]
        if others:
            raise SystemExit(
                f"{self.path} holds what was measured under other conditions ({'; '.join(others)}): delete it, or name "
                "another file with --results"
            )

    def _embedded(self) -> None:
        name, options = self.served.name, self.options
        ensembles = [each for each in served_ensembles(self.served.repository) if options.wants(each)]
        with LazyServer(partial(triton, self.served.repository, options.threads)) as server:
            for ensemble in ensembles:
                self._keep(f"{name}, {ensemble}, first requests", partial(self._first, server, ensemble))
            for cells in plan.groups(name, ensembles, options.concurrencies, options.batches):
                self._group([cell for cell in cells if options.wants(cell.system)], server)
            for ensemble in ensembles if name == plan.MEMORY_MODEL and options.memory_requests else ():
                self._keep(f"{name}, {ensemble}, memory", partial(self._memory, server, ensemble))

    def _plain(self, system: str) -> None:
        cells = plan.plain_cells(self.served.name, system, self.options.concurrencies)
        with LazyServer(partial(plain, self.served, bf16=system.endswith("bf16"))) as server:
            for cell in cells:
                self._group([cell], server)

    def _group(self, cells: Sequence[Cell], server: LazyServer) -> None:
        """Measure ``cells`` in turn, unless all of them are measured."""
        if all(cell.key in self.results for cell in cells):
            return
        for cell in cells:  # compared in turn, or not at all
            self.results.pop(cell.key, None)
        rounds = plan.ROUNDS if cells[0].concurrency == 1 else 1
        jobs = {cell: self._job(cell, server, rounds) for cell in cells}
        records: dict[Cell, list[Record]] = {cell: [] for cell in cells}
        samples: dict[Cell, list[Any]] = {cell: [] for cell in cells}
        counts: dict[Cell, dict[str, float]] = {cell: {} for cell in cells}
        for turn in range(rounds):
            for cell, job in jobs.items():
                generator = self.in_process if cell.system == BARE else self.generator
                before = counters(server())
                with Watch(generator.pid if cell.system == BARE else server().pid) as watch:
                    # other questions each time: the response cache is to know none of them
                    records[cell].append(generator.run(replace(job, seed=zlib.crc32(f"{turn} {cell.key}".encode()))))
                samples[cell] += watch.samples
                for key, value in counters(server()).items():
                    counts[cell][key] = counts[cell].get(key, 0.0) + value - before.get(key, 0.0)
        for cell, job in jobs.items():
            figures = summarise(job, records[cell], samples[cell]) | batching(counts[cell], cell.system)
            self._keep(cell.key, lambda figures=figures: figures)  # type: ignore[misc]

    def _job(self, cell: Cell, server: LazyServer, rounds: int) -> Job:
        pace, bare = PACES[cell.model], cell.system == BARE
        seconds = (self.options.seconds or pace.seconds) / rounds
        least = 1 if self.options.seconds else -(-pace.least // (rounds * cell.batch))
        return self._new_job(
            cell.system,
            url="" if bare else server().url,
            concurrency=cell.concurrency,
            batch=cell.batch,
            repeated=cell.repeated,
            prepared=max(int(pace.fastest * seconds), plan.FIRST_REQUESTS),
            ramp=cell.concurrency,
            seconds=seconds,
            least=max(
                least, 2 * cell.concurrency if cell.concurrency > 1 else 1
            ),  # two bursts, where it comes in bursts
        )

    def _new_job(self, system: str, **changes: Any) -> Job:
        served = self.served
        place = {"repository": str(served.repository), "target": served.target.name, "side": served.side}
        return Job(system, str(self.photos), **{**place, **changes})

    def _first(self, server: LazyServer, ensemble: str) -> Results:
        """Each token length's first request against its tenth, on the fresh server, and a batch's."""
        found = {}
        for length in tensors.TOKEN_LENGTHS:
            found[f"{length} positions"] = self._ask_first(server, ensemble, length=length)
        if self.served.name != plan.LARGE:
            found["batch 8"] = self._ask_first(server, ensemble, length=tensors.TOKEN_LENGTHS[0], batch=8)
        return found

    def _ask_first(self, server: LazyServer, ensemble: str, **changes: Any) -> Results:
        most = plan.FIRST_REQUESTS
        changes |= {"one_photo": True, "seed": zlib.crc32(ensemble.encode()), "ramp": 0, "most": most, "prepared": most}
        record = self.generator.run(self._new_job(ensemble, url=server().url, seconds=1e9, **changes))
        times = [1e3 * (end - start) for start, end in zip(record.starts, record.ends, strict=True)] or [float("nan")]
        return {"first_ms": times[0], "tenth_ms": times[-1], "errors": len(record.errors)}

    def _memory(self, server: LazyServer, ensemble: str) -> Results:
        """The server's memory over many requests, once as many others have filled the response cache.

        It is looked at between blocks of requests, when no photo is under way: those of a moment are of all sizes.
        """
        most = self.options.memory_requests
        block = min(plan.MEMORY_BLOCK, most)
        job = self._new_job(
            ensemble,
            url=server().url,
            concurrency=plan.MEMORY_CONCURRENCY,
            prepared=block,
            most=block,
            seconds=1e9,
            at_most_s=0.05 * block,  # three times what the slower ensemble takes
        )
        filling = replace(job, system=tensors.ENSEMBLE, prepared=most, most=most, at_most_s=0.05 * most)
        self.generator.run(filling)  # by the quicker ensemble for both
        root, looks, errors = psutil.Process(server().pid), [], []
        for number in range(1, most // block + 1):
            with Watch(root.pid) as watch:
                record = self.generator.run(replace(job, seed=job.seed + number))
            time.sleep(plan.MEMORY_REST_S)
            errors += record.errors
            busiest = max(sample.memory for sample in watch.samples)
            looks.append(Look(len(record.ends), look(root).memory, busiest))
        return memory_slope(looks, errors)

    def _keep(self, key: str, measure: Callable[[], Results]) -> None:
        if key in self.results:
            return
        self.results[key] = measure()
        write_json(self.path, self.results)
        self.report(key, self.results[key])


class LazyServer:
    """A server that starts when it is first needed: not at all, where everything is measured already."""

    def __init__(self, start: Callable[[], AbstractContextManager[Server]]) -> None:
        self._start = start
        self._server: Server | None = None
        self._stack = ExitStack()

    def __call__(self) -> Server:
        """The server, started."""
        if self._server is None:
            self._server = self._stack.enter_context(self._start())
        return self._server

    def __enter__(self) -> LazyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def served_ensembles(repository: Path) -> list[str]:
    """The ensembles that ``repository`` has, the one of tensors first."""
    names = (tensors.ENSEMBLE, f"{tensors.ENSEMBLE}_raw")
    return [name for name in names if (repository / name / "config.pbtxt").is_file()]


def batching(counts: Mapping[str, float], system: str) -> Results:
    """How many images and questions the encoders computed at once, on average, and the share the cache answered."""
    if not system.startswith(tensors.ENSEMBLE):
        return {}
    found = {}
    for model in ("clip_image", "clip_text"):
        if runs := counts.get(f"nv_inference_exec_count {model}"):
            found[f"{model}_batch"] = counts[f"nv_inference_count {model}"] / runs
    hits, misses = (counts.get(f"nv_cache_num_{what}_per_model clip_text", 0.0) for what in ("hits", "misses"))
    return found | ({"cache_hits": hits / (hits + misses)} if hits + misses else {})
