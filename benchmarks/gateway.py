"""What the gateway costs: time added to a question, throughput beside the ensemble, and its event loop under load.

    python -m benchmarks gateway

The demo's CLIP with a head of VizWiz's size. Gateway, Triton and load generator share the cores. What is compared runs
in turn, in one run, to cancel noise.
"""

from __future__ import annotations

import http.client
import json
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from benchmarks.report import Section, Settings, Table
from benchmarks.serving.load import GATEWAY, Job, draw_questions
from benchmarks.serving.measure import summarise
from benchmarks.serving.servers import Generator, Served, Server, drawn_photos, prepare, triton
from vizwiz_client import VizwizClient
from vizwiz_client.contract import tensors

CONCURRENCY = 16
LARGE = (4_000, 3_000)  # pixels: a phone's photo of 12 megapixels
POLL_INTERVAL_S = 0.02  # between two requests to /healthz
Row = tuple[str, ...]


def run(settings: Settings) -> Section:
    """Measure single questions, loads, and the event loop."""
    served = prepare("demo", settings.cache)
    photos = drawn_photos(settings.cache) / "train"
    large = enlarge(photos, settings.cache / "photos-12-megapixels")
    questions, seconds, rounds = (20, 1, 1) if settings.quick else (200, 10, 3)
    drawn = draw_questions(-1)
    with triton(served, gateway=True) as server, Generator() as generator:
        return [
            "The demo's CLIP, with a head of VizWiz's size.",
            Table(
                ("photo", "added (goal: at most 5 ms)", "of it outside decoding", "client, p50", "gateway, p50"),
                [single(server, folder, drawn, questions) for folder in (photos, large)],
                "One question:",
            ),
            Table(
                ("photo", "gateway / ensemble, which does not decode", "ensemble, decoded photos", "gateway"),
                [throughput(served, server, generator, photos, seconds, rounds)],
                f"Questions a second, {CONCURRENCY} at once:",
            ),
            Table(
                ("requests", "p50", "p99", "largest", "questions a second"),
                [health(served, server, generator, large, seconds)],
                f"`/healthz` while {CONCURRENCY} clients ask about photos of 12 megapixels:",
            ),
        ]


def enlarge(photos: Path, folder: Path) -> Path:
    """Eight of the photos at :data:`LARGE`."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in islice(sorted(photos.glob("*.jpg")), 8):
        if not (folder / path.name).exists():
            Image.open(path).resize(LARGE, Image.Resampling.BICUBIC).save(folder / path.name, quality=90)
    return folder


def single(server: Server, folder: Path, questions: Iterator[str], count: int) -> Row:
    """The median time of a question, through the client and through the gateway in turn, and of their difference.

    Forms are encoded in advance and sent by ``http.client``: httpx would add its own millisecond. Both sides decode by
    the same function, whose time varies by more than what the gateway adds: the difference of the rest is shown too.
    """
    photos = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    times: dict[str, list[tuple[float, float]]] = {"client": [], "gateway": []}  # ms: in all, and of decoding
    connection = http.client.HTTPConnection(httpx.URL(str(server.gateway)).netloc.decode(), timeout=60)
    with VizwizClient(server.url) as client, closing(connection):

        def post(form: httpx.Request) -> float:
            connection.request("POST", "/v1/ask", form.content, {"content-type": form.headers["content-type"]})
            response = connection.getresponse()
            answer = json.load(response)
            assert response.status == httpx.codes.OK, answer
            return float(answer["answers"][0]["timings"]["prepare_s"])

        for number in range(count + 10):
            photo = photos[number % len(photos)]
            order = list(times.items())
            for name, found in order if number % 2 else reversed(order):
                question = next(questions)
                form = httpx.Request("POST", str(server.gateway), files={"photo": photo}, data={"question": question})
                form.read()
                start = time.perf_counter()
                decoding = client.ask(photo, question).timings.prepare_s if name == "client" else post(form)
                found.append((1e3 * (time.perf_counter() - start), 1e3 * decoding))
    client_ms, gateway_ms = (np.array(found)[10:] for found in times.values())  # the first ones warm up
    added = gateway_ms - client_ms
    size = "x".join(map(str, Image.open(next(folder.glob("*.jpg"))).size))
    return (
        size,
        *(f"{np.median(each):+.1f} ms" for each in (added[:, 0], added[:, 0] - added[:, 1])),
        *(f"{np.median(each[:, 0]):.1f} ms" for each in (client_ms, gateway_ms)),
    )


def throughput(served: Served, server: Server, generator: Generator, photos: Path, seconds: float, rounds: int) -> Row:
    """Questions a second of the ensemble, which gets decoded photos, and of the gateway, in turn."""
    rates: dict[str, list[float]] = {tensors.ENSEMBLE: [], GATEWAY: []}
    for seed in range(rounds):
        for system, found in rates.items():
            own = 2 * seed + (system == GATEWAY)  # else the text encoder's cache has the other one's questions
            found.append(rate(served, server, generator, photos, system, seconds, own))
    ensemble, gateway = (statistics.median(found) for found in rates.values())
    return "640x480", f"{gateway / ensemble:.0%}", f"{ensemble:.1f}", f"{gateway:.1f}"


def rate(
    served: Served, server: Server, generator: Generator, photos: Path, system: str, seconds: float, seed: int
) -> float:
    """Questions a second at :data:`CONCURRENCY`."""
    url = str(server.gateway) if system == GATEWAY else server.url
    job = Job(
        system,
        str(photos),
        served.image_size,
        url,
        concurrency=CONCURRENCY,
        ramp=CONCURRENCY,
        seed=seed,
        distinct=round(1_000 * seconds),  # more than it can answer: no cached text features
        seconds=seconds,
    )
    record = generator.run(job)
    if record.errors:
        raise SystemExit(f"{system}: {record.errors[:3]}")
    return float(summarise([record], job.ramp)["questions_per_s"])


def health(served: Served, server: Server, generator: Generator, photos: Path, seconds: float) -> Row:
    """Times of ``/healthz`` during a load of large photos."""
    times: list[float] = []
    end = threading.Event()

    def poll() -> None:
        with httpx.Client(base_url=str(server.gateway), timeout=60) as http:
            while not end.wait(POLL_INTERVAL_S):
                start = time.perf_counter()
                http.get("/healthz").raise_for_status()
                times.append(1e3 * (time.perf_counter() - start))

    poller = threading.Thread(target=poll)
    poller.start()
    try:
        answered = rate(served, server, generator, photos, GATEWAY, seconds, 99)
    finally:
        end.set()
        poller.join()
    times.sort()
    p99 = times[min(len(times) * 99 // 100, len(times) - 1)]
    quantiles = [f"{value:.1f} ms" for value in (statistics.median(times), p99, times[-1])]
    return f"{len(times):,}", *quantiles, f"{answered:.1f}"
