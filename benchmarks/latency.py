"""What a question costs, from the import of the client to the answer, on the repository in triton_models/.

    python -m benchmarks.latency img.jpg

About half a minute. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from serving.server import EmbeddedTriton
from vizwiz_client import VizwizClient

ROUNDS = 300
QUESTION = "what is this?"


def timed(action: Callable[[], object]) -> float:
    """Milliseconds that ``action`` takes."""
    start = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - start)


def row(name: str, milliseconds: list[float]) -> str:
    """A line of the table: median and 95th percentile."""
    ordered = sorted(milliseconds)
    return f"| {name} | {statistics.median(ordered):.2f} ms | {ordered[int(0.95 * len(ordered))]:.2f} ms |"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("photo", type=Path, help="a photo to ask about")
    parser.add_argument("--repository", type=Path, default=Path("triton_models"))
    arguments = parser.parse_args()
    photo = arguments.photo.read_bytes()

    def python(code: str) -> list[float]:
        return [timed(lambda: subprocess.run([sys.executable, "-c", code], check=True)) for _ in range(20)]

    server = EmbeddedTriton(arguments.repository)
    ready = timed(server.start)
    with VizwizClient(server.grpc_url) as client:
        first = timed(lambda: client.ask(photo, QUESTION))
        one = [timed(lambda: client.ask(photo, QUESTION)) for _ in range(ROUNDS)]
        eight = [timed(lambda: client.ask_batch([(photo, QUESTION)] * 8)) / 8 for _ in range(ROUNDS // 8)]
    stop = timed(server.stop)
    print("| what | median | p95 |\n|---|---|---|")
    print(row("start of a Python interpreter", python("")))
    print(row("the same, with `import vizwiz_client`", python("import vizwiz_client")))
    print(row("`ask`, photo decoded, one at a time", one))
    print(row("`ask_batch` of 8, per question", eight))
    print(f"\nready after {ready / 1000:.1f} s, stopped in {stop / 1000:.1f} s; the first question took {first:.0f} ms")


if __name__ == "__main__":
    main()
