"""Throughput by the number of gateway processes and of Triton replicas, with the demo's model.

    python -m benchmarks scale

Clients of gRPC spread their requests over the replicas (round robin); each gateway has one of the replicas, and the
clients take the gateways in turn. All share this machine's cores with the load generator, so the figures show what a
question costs, and that nothing gets lost; more machines are needed for more throughput.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace

from benchmarks.report import Section, Settings, Table
from benchmarks.serving.load import GATEWAY
from benchmarks.serving.measure import Measured, System, measure
from benchmarks.serving.servers import drawn_photos, gateway_of, prepare, triton
from vizwiz_client.contract import tensors

GATEWAYS, REPLICAS, CONCURRENCY = (1, 2, 4, 8), (1, 2), 16
UTILISATION = 0.6  # as in docs/operations.md


def run(settings: Settings) -> Section:
    """Measure each number of gateways with each number of replicas."""
    served = prepare("demo", settings.cache)
    photos = drawn_photos(settings.cache) / "train"
    seconds, cores = 1.0 if settings.quick else 8.0, len(os.sched_getaffinity(0))
    rows: list[list[str]] = []

    def add(gateways: int, replicas: int, found: Measured) -> None:
        core_s = found.cpu_ms / 1e3
        rows.append(
            [
                str(gateways or "none"),
                str(replicas),
                f"{core_s * 1e3:.1f} ms",
                f"{UTILISATION / core_s:.0f}",
                f"{found.per_s:.0f}",
                f"{found.p50_ms:.1f} ms",
                str(found.errors),
            ]
        )

    for replicas in REPLICAS:
        with ExitStack() as stack:
            used = [stack.enter_context(triton(served)) for _ in range(replicas)]
            url = f"ipv4:{','.join(each.url for each in used)}"
            pids = tuple(each.pid for each in used)
            system = System("direct", served.target.precision, tensors.ENSEMBLE, served, None, url, pids)
            add(0, replicas, measure([system], photos, CONCURRENCY, seconds)[0])
            for count in (each for each in GATEWAYS if each >= replicas):  # each gateway asks one replica
                with ExitStack() as gateways:
                    started = [
                        gateways.enter_context(gateway_of(used[number % replicas].url)) for number in range(count)
                    ]
                    urls = " ".join(each.url for each in started)
                    label = f"{count} gateways"  # the questions are drawn by it: none is in the cache already
                    through = replace(
                        system, label=label, name=GATEWAY, url=urls, pids=(*pids, *(each.pid for each in started))
                    )
                    add(count, replicas, measure([through], photos, CONCURRENCY, seconds)[0])
    header = (
        *("gateways", "Triton replicas", "core seconds of a question", f"questions/s a core at {UTILISATION:.0%}"),
        *("questions/s", "p50", "errors"),
    )
    text = (
        f"The demo's CLIP, {CONCURRENCY} at once, {cores} cores, photos of 640 x 480. Without a gateway, the client "
        "decodes them; each gateway asks one of the replicas."
    )
    return [Table(header, rows, text)]
