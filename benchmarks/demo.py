"""`make demo` from nothing: what takes the time, what is downloaded, and how good its head is.

    python -m benchmarks demo

Clones the last commit and installs it, beside 15 GB of free disk. All wheels are downloaded again for their sizes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import Section, Settings, Table
from training.report import CARD_ROWS
from training.run import newest_run, read_scores

ROOT = Path(__file__).parents[1]
MB_PER_S = 20  # of a package index
GROUPS = {  # of wheels, by the beginning of a file's name: the first that fits
    "OpenVINO, PyTriton": ("openvino", "nvidia_pytriton"),
    "PyTorch's CUDA libraries": ("nvidia_", "cuda_", "triton-"),
    "PyTorch itself": ("torch-",),
    "onnxruntime-gpu": ("onnxruntime_gpu",),
    "all others": ("",),
}


def run(settings: Settings) -> Section:
    """Run `make demo` in a fresh clone with an empty environment; ``settings`` change nothing."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        steps = list(timed_steps(clone))
        metrics = read_scores(newest_run(clone / "runs"))
        wheels = download(clone, Path(folder, "wheels"))
    seconds = sum(seconds for _, seconds in steps)
    installed = [[name, f"{taken:.0f} s", f"{taken / seconds:.0%}"] for name, taken in steps]
    sizes = dict.fromkeys(GROUPS, 0.0)
    for wheel, megabytes in wheels.items():
        sizes[next(name for name, begins in GROUPS.items() if wheel.startswith(begins))] += megabytes
    whole = sum(sizes.values())
    listed = [*sorted(sizes.items(), key=lambda row: -row[1]), ("in all", whole)]
    best, majority = metrics["best"], metrics["majority_baseline"]
    scores = [[label, f"{best[key]:.{digits}f}"] for label, key, digits in CARD_ROWS if key in best]
    always = [f'always "{majority["answer"]}"', f"{majority['vqa_accuracy_leave_one_out']:.2f}"]
    return [
        Table(("step of `make demo`", "time", "share"), installed, f"From nothing: {seconds:.0f} s."),
        Table(
            ("wheels", "MB", f"at {MB_PER_S} MB/s"),
            [[name, f"{size:,.0f}", f"{size / MB_PER_S:.0f} s"] for name, size in listed],
            f"What it downloads, {len(wheels)} wheels; the time is computed.",
        ),
        Table(("the demo's val", "its head"), [*scores, always]),
    ]


def timed_steps(clone: Path) -> Iterator[tuple[str, float]]:
    """Run `make demo`; yields each step and its seconds."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("VIRTUAL_ENV", "PYTHON"))}
    environment |= {"PIP_NO_CACHE_DIR": "1", "PYTHONUNBUFFERED": "1"}
    name, started = "install", time.monotonic()
    with subprocess.Popen(["make", "demo"], cwd=clone, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            if line.startswith("$ python "):
                yield name, time.monotonic() - started
                name, started = f"`{line[2:].strip()}`", time.monotonic()
    yield f"{name} and asking", time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"make demo ended with {process.returncode}")


def download(clone: Path, folder: Path) -> dict[str, float]:
    """Each wheel of the installation and its size in MB."""
    pip = [str(clone / ".venv/bin/python"), "-m", "pip", "download", "--quiet", "--no-cache-dir"]
    subprocess.run([*pip, "-c", "constraints.txt", "-d", str(folder), ".[all]"], cwd=clone, check=True)
    return {file.name: file.stat().st_size / 1e6 for file in folder.glob("*.whl")}
