"""Growth of the embedded server's memory over many requests, once the response cache is full.

python -m benchmarks memory
"""

from __future__ import annotations

import time
from typing import Any

from scipy.stats import theilslopes

from benchmarks.report import Section, Settings, Table
from benchmarks.serving.load import Job
from benchmarks.serving.servers import Generator, drawn_photos, prepare, triton, usage
from vizwiz_client.contract import tensors

REQUESTS, BLOCK, CONCURRENCY = 20_000, 500, 8  # BLOCK: between two measurements
FILLING = 2 * REQUESTS  # distinct questions: about 33,000 fill the cache of 64 MiB
PAUSE_S = 0.3  # before each: requests in flight have ended


def run(settings: Settings) -> Section:
    """The median of the slopes between any two measurements (Theil-Sen): malloc keeps, or returns, a moment's peak.

    The second half of the measurements counts.
    """
    requests = 2_000 if settings.quick else REQUESTS
    served = prepare("demo", settings.cache)
    photos = drawn_photos(settings.cache) / "train"

    def job(count: int, seed: int) -> Job:
        common: dict[str, Any] = {"concurrency": CONCURRENCY, "distinct": count, "max_requests": count, "seed": seed}
        return Job(
            tensors.ENSEMBLE,
            str(photos),
            served.image_size,
            server.url,
            seconds=1e9,
            max_seconds=0.05 * count,
            **common,
        )

    done, memory, errors = [0], [], 0
    with triton(served) as server, Generator() as generator:
        errors += len(generator.run(job(requests if settings.quick else FILLING, 0)).errors)
        memory.append(usage(server.pid).memory)
        for number in range(1, requests // BLOCK + 1):
            record = generator.run(job(BLOCK, number))
            time.sleep(PAUSE_S)
            done.append(done[-1] + len(record.ends))
            memory.append(usage(server.pid).memory)
            errors += len(record.errors)
    settled = slice(len(done) // 2, None)
    slope = theilslopes(memory[settled], done[settled])
    text = f"The demo's CLIP, {CONCURRENCY} at once."
    row = [
        f"{done[-1]:,}",
        f"{slope.slope:+.0f} bytes ({slope.low_slope:+.0f} to {slope.high_slope:+.0f})",
        f"{memory[-1] / 1e9:.2f} GB",
        str(errors),
    ]
    return [Table(("requests", "growth a request (95% interval; goal: at most 100)", "memory", "errors"), [row], text)]
