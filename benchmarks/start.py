"""Seconds until the embedded server is ready: on a first start, which compiles graphs, on a second, after a crash.

    python -m benchmarks start

The graphs' files are read once before, so all starts find them in memory. A CPU that does not multiply int8 computes
int8 graphs in fp32; they are compiled and kept all the same. Triton is ready after an image and a question of each
length have warmed the encoders up; as an image takes all cores, starts are measured without it, too.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from benchmarks.report import Section, Settings, Table, kinds_here
from benchmarks.serving.servers import READY_TIMEOUT_S, Served, prepare, triton
from export.targets import GraphKind
from serving.cache_folder import FOLDER_VARIABLE
from serving.repository import CONFIG_FILE, read_config, write_config
from vizwiz_client.contract.tensors import ENSEMBLE

GOAL = 0.4  # of a first start


def run(settings: Settings) -> Section:
    """Start each kind of repository with an empty cache, and then again."""
    rows = []
    for kind in dict.fromkeys([*kinds_here(), GraphKind("portable", "int8")]):
        served = prepare(settings.large, settings.cache, kind)
        for file in served.repository.rglob("model.onnx"):
            file.read_bytes()
        with tempfile.TemporaryDirectory(dir=settings.cache) as folder:
            cold = replace(served, repository=_without_warmup(served.repository, Path(folder, "models")))
            for each, warmed in ((served, "yes"), (cold, "no")):
                cache = Path(folder, f"compiled-{warmed}")
                cache.mkdir(0o700)
                first, *later = (_ready_s(each, cache) for _ in range(2 if settings.quick else 4))
                second = statistics.median(later)
                times = (f"{seconds:.1f} s" for seconds in (first, second, _restart_s(each, cache)))
                size = sum(file.stat().st_size for file in cache.iterdir()) / 1e6
                rows.append([kind.name, warmed, f"{second / first:.0%}", *times, f"{size:,.0f} MB"])
                print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    header = (
        *("graphs", "warm-up", f"second / first (goal: at most {GOAL:.0%})"),
        *("first start", "second start", "after a crash", "kept in the cache"),
    )
    text = f"{settings.large} size, without the gateway; the second start is the median of three."
    return [Table(header, rows, text)]


def _without_warmup(repository: Path, copy: Path) -> Path:
    """A copy of ``repository``, whose models are ready when they are loaded; graphs are hard links."""
    shutil.copytree(repository, copy, copy_function=os.link)
    for file in copy.glob(f"*/{CONFIG_FILE}"):
        config = read_config(file.parent)
        del config.model_warmup[:]
        write_config(file.parent, config)
    return copy


def _ready_s(served: Served, cache: Path) -> float:
    started = time.monotonic()
    with triton(served, environment={FOLDER_VARIABLE: str(cache)}):
        return time.monotonic() - started


def _restart_s(served: Served, cache: Path) -> float:
    """Seconds from the death of ``tritonserver`` until the ensemble is ready again."""
    with triton(served, environment={FOLDER_VARIABLE: str(cache)}) as server:
        [process] = [
            each for each in psutil.Process(server.pid).children(recursive=True) if each.name() == "tritonserver"
        ]
        process.kill()
        started = time.monotonic()
        while time.monotonic() - started < READY_TIMEOUT_S:
            time.sleep(0.1)
            with suppress(InferenceServerException), InferenceServerClient(server.url) as client:
                if client.is_model_ready(ENSEMBLE):
                    return time.monotonic() - started
        raise SystemExit(f"the server is not ready {READY_TIMEOUT_S} s after a crash; its messages are above")
