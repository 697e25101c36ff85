"""Measure, and write docs/results.md: `make bench`, or `make bench-NAME` for one part.

    python -m benchmarks                       # all speeds: one to three hours on two cores
    python -m benchmarks peers start           # some of them
    python -m benchmarks --quick --no-write    # small models, short measurements, to see that all runs

Each part replaces its section of docs/results.md. Speeds of a busy machine are printed, but not written without --busy.
Models have random weights: speed does not depend on the values. The first run writes them to --cache.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

from benchmarks.architectures import ARCHITECTURES
from benchmarks.machine import reset_peak
from benchmarks.report import MAX_LOAD, SEEDS, Settings, is_busy, render, section_name, write_section

SPEEDS = {  # the module of each part, and what it measures
    "encoders": "CLIP's encoders as graphs, against PyTorch and the matrix rate of this machine",
    "peers": "the server beside LitServe, FastAPI and the bare encoders",
    "infinity": "its image encoder beside infinity",
    "clips": "one CLIP, and two in one ensemble",
    "costs": "an image and a question of CLIPs of each size in docs/clips.md",
    "start": "first and second start of the server, and a restart after a crash",
    "gateway": "what the gateway adds to a question, and its throughput",
    "scale": "gateway workers and Triton replicas",
    "memory": "growth of the server's memory over many requests",
    "growth": "how times and sizes grow with answers, features, batch, pixels and heads",
    "client": "start of the client, and a photo to a tensor",
    "features": "encoding photos, against the encoder alone",
    "fit": "a fit of VizWiz's size",
    "demo": "`make demo` in a fresh clone",
}
SCORES = {  # only where they are named: they take long, and depend little on the machine
    "parity": "errors of exported CLIPs of full size against PyTorch",
    "quality": "photo quality and answers by the demo CLIP",
    "recipes": "every recipe against logistic regression, on the demo's photos",
    "questions": "the same on real questions without photos: needs VIZWIZ_MATERIAL",
}
PARTS = SPEEDS | SCORES
ON_CUDA = ("encoders", "features", "fit")


def main() -> int:
    """Run the parts that are asked for; return 1 if one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {name:<10}{words}" for name, words in PARTS.items()),
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: all but {', '.join(SCORES)}")
    parser.add_argument("--quick", action="store_true", help="small models, few and short measurements")
    parser.add_argument("--no-write", action="store_true", help="print the sections, and leave docs/results.md alone")
    parser.add_argument(
        "--busy", action="store_true", help=f"write even if the load average exceeds {MAX_LOAD} at the start"
    )
    parser.add_argument(
        "--choose", action="store_true", help="of recipes and questions: variants of `best` on a part of train; printed"
    )
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, help="of each recipe, in recipes and questions (default: %(default)s)"
    )
    parser.add_argument("--model", choices=ARCHITECTURES, default="ViT-L/14@336px", help="default: %(default)s")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help=f"of {', '.join(ON_CUDA)} (default: %(default)s); figures of cuda are printed, not written",
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache/benchmarks"), help="default: %(default)s")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"got the parts {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}")
    cuda = arguments.device == "cuda"
    parts = arguments.parts or list(ON_CUDA if cuda else SPEEDS)
    if cuda and (others := set(parts) - set(ON_CUDA)):
        parser.error(f"got --device cuda for {', '.join(sorted(others))}, expected some of {', '.join(ON_CUDA)}")
    if arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {arguments.seeds}")
    load = os.getloadavg()[0]  # of the minute before: the parts themselves load the machine
    write = not arguments.no_write and not arguments.choose and not cuda
    idle = arguments.busy or not is_busy(load)
    settings = Settings(
        arguments.cache,
        arguments.model,
        arguments.quick,
        arguments.device,
        seeds=arguments.seeds,
        choose=arguments.choose,
    )
    settings.cache.mkdir(parents=True, exist_ok=True)
    written = {name: write and (idle or name in SCORES) for name in parts}
    failed = [name for name in parts if not measure(name, replace(settings, write=written[name]), load)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    if write and not all(written.values()):
        print(
            f"not written: the load average was {load:.2f} at the start, expected at most {MAX_LOAD}: wait until the "
            "machine is idle, or give --busy",
            file=sys.stderr,
        )
    return int(bool(failed))


def measure(name: str, settings: Settings, load: float) -> bool:
    """Measure one part, and print or write its section; return whether that succeeded."""
    print(f"== {name}: {PARTS[name]}", file=sys.stderr, flush=True)
    started = time.monotonic()
    reset_peak()
    try:
        section = importlib.import_module(f"benchmarks.{name}").run(settings)
    except (Exception, SystemExit):  # the other parts are measured all the same
        traceback.print_exc()
        return False
    options = [f"--model {settings.model}"] * (settings.model != "ViT-L/14@336px") + ["--quick"] * settings.quick
    options += [f"--device {settings.device}"] * (settings.device != "cpu")
    options += ["--busy"] * (settings.write and is_busy(load) and name in SPEEDS)
    options += [f"--seeds {settings.seeds}"] * (settings.seeds != SEEDS and name in ("recipes", "questions"))
    command = f"python -m benchmarks {' '.join([name, *options])}" if options else f"make bench-{name}"
    text = render(section, command, load, time.monotonic() - started)
    print(f"\n{text}\n", flush=True)
    if settings.write:
        write_section(section_name(name), text)
    return True


if __name__ == "__main__":
    sys.exit(main())
