"""Time and peak memory of `python -m export.to_onnx` for a CLIP at full size: everything, and the head alone.

    python -m benchmarks.export_cost                                    # ViT-L/14@336px and RN50x64, every CPU target
    python -m benchmarks.export_cost --only RN50x64 --precision bf16

Random weights; the head is fitted on a few demo photos. Everything runs as its user runs it, in processes of its own:
parity gate included, publication included. Then another head is fitted, which is all that the second export writes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.architectures import ARCHITECTURES, write_full_size
from export.targets import TARGETS

LARGEST = ("ViT-L/14@336px", "RN50x64")
ON_CPU = [target for target in TARGETS if target.precision != "fp16"]


class Cost(NamedTuple):
    """What a command took."""

    seconds: float
    peak_gb: float


def cost(*command: str) -> Cost:
    """Run a Python module as a command.

    Raises:
        SystemExit: it failed; with what it said.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)  # the usage of this child alone
        if status:
            said.seek(0)
            raise SystemExit(said.read().decode())
    return Cost(time.perf_counter() - started, usage.ru_maxrss / 1e6)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, default=list(LARGEST), help="which CLIPs")
    parser.add_argument("--precision", nargs="+", choices=[t.precision for t in ON_CPU], help="default: all on a CPU")
    parser.add_argument("--limit", type=int, default=24, help="photos to fit on, and to prove on (default: 24)")
    arguments = parser.parse_args()
    targets = [target for target in ON_CPU if target.precision in (arguments.precision or target.precision)]
    print(f"{'':<16}{'target':<16}{'whole':>8}{'peak':>9}{'head alone':>14}{'peak':>9}")
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            clip = str(write_full_size(name, place / "clip.pt"))
            fit = ["training.fit", "--clip", clip, "--limit", str(arguments.limit), "--cache", str(place / "cache")]
            for target in targets:
                flags = ["--variant", target.variant, "--precision", target.precision]
                export = ["export.to_onnx", "--repository", str(place / target.name), *flags]
                cost(*fit, "--epochs", "2", "--runs", str(place / "first"))
                cost(*fit, "--epochs", "2", "--seed", "1", "--runs", str(place / "second"))
                whole = cost(*export, "--runs", str(place / "first"))
                head = cost(*export, "--runs", str(place / "second"))
                print(
                    f"{name:<16}{target.name:<16}{whole.seconds:>6.0f} s{whole.peak_gb:>6.1f} GB"
                    f"{head.seconds:>12.1f} s{head.peak_gb:>6.1f} GB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
