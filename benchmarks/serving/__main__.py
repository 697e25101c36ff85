"""Load on the embedded server, beside the bare encoders and a plain FastAPI + PyTorch server; `make bench-serving`.

    python -m benchmarks.serving                                      # everything: 45 minutes on two idle cores
    python -m benchmarks.serving --model demo --concurrency 1 16      # a part of it
    python -m benchmarks.serving --precision int8                     # encoders in 8 bits
    python -m benchmarks.serving --model demo --quick                 # a minute: does it run?

A closed loop: so many requests are always under way. Models have random weights (the demo's own apart) and a head of
VizWiz's size; they are made by the first run and kept in --cache. What was measured is kept in --results and not
measured again: delete that file to start afresh. Server and load generator share this machine's cores; both columns of
cores say how.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.serving import plan
from benchmarks.serving.goals import goals
from benchmarks.serving.measure import Bench, Options, Results
from benchmarks.serving.models import MODELS, demo_photos, prepare
from benchmarks.serving.plot import draw
from benchmarks.serving.tables import tables

QUICK = Options(concurrencies=(1, 4), batches=(1, 8), seconds=1.0, memory_requests=1_000)


def main() -> None:
    """Measure what is missing, and print everything."""
    arguments = _parser().parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    kind = "-".join(filter(None, ("quick" if arguments.quick else "results", arguments.precision)))
    results = arguments.results or arguments.cache / f"{kind}.json"
    photos = arguments.photos or demo_photos(arguments.cache) / "train"
    print(_conditions(photos), flush=True)
    started = time.monotonic()
    for name in arguments.model:
        served = prepare(name, arguments.cache, arguments.precision)
        Bench(served, photos, _options(arguments), results, _progress).run()
    found = json.loads(results.read_text()) if results.exists() else {}
    draw(found, results.with_suffix(".png"))
    for table in tables(found):
        print(f"\n{table}")
    print("\n| goal | measured | |\n|---|---|---|", *goals(found), sep="\n")
    print(f"\nin {time.monotonic() - started:.0f} s; figures: {results}, plot: {results.with_suffix('.png')}")


def _progress(key: str, figures: Results) -> None:
    shown = {name: round(value, 2) for name, value in figures.items() if isinstance(value, int | float)}
    print(f"{key}: {json.dumps(shown or figures)}", flush=True)


def _conditions(photos: Path) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "openvino", "onnxruntime-gpu", "fastapi"))
    return (
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, which server and load generator share; load "
        f"average {os.getloadavg()[0]:.1f} when it began; {versions}; photos of {photos}"
    )


def _options(arguments: argparse.Namespace) -> Options:
    base = QUICK if arguments.quick else Options()
    given: dict[str, Any] = {
        "concurrencies": arguments.concurrency,
        "batches": arguments.batch,
        "systems": arguments.system,
        "seconds": arguments.seconds,
        "memory_requests": arguments.requests,
        "threads": arguments.threads,
    }
    return Options(**{**vars(base), **{name: value for name, value in given.items() if value is not None}})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "int8"), help="of the encoders (default: as export recommends)"
    )
    parser.add_argument("--system", nargs="+", help='names or their first words: vizwiz_vqa_raw, bare, "fastapi bf16"')
    parser.add_argument("--concurrency", nargs="+", type=int, choices=plan.CONCURRENCIES)
    parser.add_argument("--batch", nargs="+", type=int, choices=plan.BATCHES)
    parser.add_argument("--seconds", type=float, help="length of each measurement (default: by model)")
    parser.add_argument("--requests", type=int, help="of the memory's measurement; 0 leaves it out (default: 40,000)")
    parser.add_argument("--threads", type=int, help="threads of each model of the embedded server (default: its own)")
    parser.add_argument("--quick", action="store_true", help="short measurements, few of them, kept in quick.json")
    parser.add_argument("--photos", type=Path, help="folder of JPEG files to send (default: drawn ones)")
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench-serving"), help="where models are kept")
    parser.add_argument("--results", type=Path, help="what was measured (default: results.json in --cache)")
    return parser


if __name__ == "__main__":
    main()
