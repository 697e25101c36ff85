"""What a second CLIP costs: each of two alone, and both in one ensemble, which Triton runs at the same time.

python -m benchmarks clips
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from shutil import copytree

import numpy as np

from benchmarks.report import Section, Settings, Table
from benchmarks.serving.load import draw_questions
from benchmarks.serving.servers import Served, drawn_photos, prepare, triton
from export.publish import EXPORT_FORMAT, export_run
from training.artifacts import staged_folder
from training.model import ClipEnsemble, Predictor
from training.run import Run, newest_run, read_run, write_run
from vizwiz_client import AsyncVizwizClient
from vizwiz_client.contract import tensors
from vizwiz_client.contract.prepared import prepare as prepare_photo

PAIRS = (("ViT-B/32", "RN50"), ("ViT-L/14@336px", "RN50x64"))
CONCURRENCY = 16
MIN_QUESTIONS = 5  # timed alone, however long they take


@dataclass(frozen=True)
class Measured:
    """Latency alone, in ms, and throughput at :data:`CONCURRENCY`."""

    p50_ms: float
    per_s: float


def run(settings: Settings) -> Section:
    """Measure each pair."""
    photos = sorted((drawn_photos(settings.cache) / "train").glob("*.jpg"))
    seconds = 2.0 if settings.quick else 15.0
    rows = []
    for pair in PAIRS[:1] if settings.large == PAIRS[0][0] else PAIRS:
        served = [prepare(name, settings.cache) for name in pair]
        alone = [measure(each, photos, seconds) for each in served]
        both = measure(prepare_both(served, settings.cache), photos, seconds)
        for name, found in zip(pair, alone, strict=True):
            rows.append([name, f"{found.p50_ms:.0f} ms", "", f"{found.per_s:.2f}", ""])
        in_turn_ms = sum(found.p50_ms for found in alone)
        in_turn_per_s = 1 / sum(1 / found.per_s for found in alone)
        rows.append(
            [
                " and ".join(pair),
                f"{both.p50_ms:.0f} ms",
                f"{both.p50_ms / in_turn_ms:.2f}",
                f"{both.per_s:.2f}",
                f"{both.per_s / in_turn_per_s:.2f}",
            ]
        )
    header = ("CLIP", "p50 alone", "of both in turn", f"questions/s at {CONCURRENCY}", "of both in turn")
    text = (
        f"Random weights, {served[0].target.name}, photos prepared beforehand. In turn: the sum of both times, and the "
        "rate if each question were asked of one ensemble after the other."
    )
    return [Table(header, rows, text)]


def prepare_both(served: Sequence[Served], cache: Path) -> Served:
    """A run on the CLIPs of ``served``, whose heads it takes from theirs."""
    runs = [read_run(each.run) for each in served]
    folder = cache / "+".join(each.name.replace("/", "-") for each in served)
    repository = folder / f"models-{served[0].target.name}-{EXPORT_FORMAT}"
    if not (repository / tensors.ENSEMBLE).exists():
        run = _merged(runs, folder / "runs")
        for each in served:  # export checks no encoder twice
            for model in each.repository.glob("clip_*"):
                copytree(model, repository / model.name, copy_function=os.link, dirs_exist_ok=True)
        with redirect_stdout(sys.stderr):
            export_run(run, [str(each.checkpoint) for each in served], repository, served[0].target)
    return replace(served[0], name=folder.name, repository=repository)


def _merged(runs: Sequence[Run], folder: Path) -> Run:
    members = [member for run in runs for member in run.load_ensemble().members if isinstance(member, Predictor)]
    config = {key: value for key, value in runs[0].config.items() if key not in ("format", "files")}
    config["clips"] = [clip for run in runs for clip in run.clips]
    with staged_folder(folder / time.strftime("%Y%m%dT%H%M%SZ")) as staging:
        write_run(staging, config, ClipEnsemble(members), runs[0].answers)
    return read_run(newest_run(folder))


def measure(served: Served, photos: Sequence[Path], seconds: float) -> Measured:
    """Serve a model, and ask it one question after the other, then :data:`CONCURRENCY` at once."""
    with triton(served) as server:
        return asyncio.run(_measure(server.url, photos, seconds))


async def _measure(url: str, photos: Sequence[Path], seconds: float) -> Measured:
    async with AsyncVizwizClient(url, timeout_s=600) as client:
        images = (await client.check()).images
        prepared = [prepare_photo(path, images) for path in islice(photos, 20)]
        pairs = zip(itertools.cycle(prepared), draw_questions(0), strict=False)
        for photo, question in islice(pairs, 3):  # warms up
            await client.ask(photo, question)
        times: list[float] = []
        start = time.perf_counter()
        while len(times) < MIN_QUESTIONS or time.perf_counter() - start < seconds:
            asked = time.perf_counter()
            await client.ask(*next(pairs))
            times.append(1e3 * (time.perf_counter() - asked))
        ends: list[float] = []
        end = time.perf_counter() + seconds

        async def worker() -> None:
            while time.perf_counter() < end or len(ends) < 3 * CONCURRENCY:
                await client.ask(*next(pairs))
                ends.append(time.perf_counter())

        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    # from the first full round to the last answer that left all others in flight
    measured = ends[CONCURRENCY - 1 : len(ends) - CONCURRENCY + 1]
    return Measured(float(np.median(times)), (len(measured) - 1) / (measured[-1] - measured[0]))
