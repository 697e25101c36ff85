"""The load benchmark: its statistics on known times, and a measurement of each system on the live server."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from PIL import Image
from tritonclient.grpc import InferenceServerClient

from benchmarks.serving.load import (
    BARE,
    GATEWAY,
    LENGTH_SHARES,
    LITSERVE,
    MAX_ERRORS,
    Job,
    Record,
    closed_loop,
    draw_questions,
)
from benchmarks.serving.measure import System, measure, summarise
from benchmarks.serving.servers import Generator, Served, fastapi, gateway_of, stopped, triton, usage
from demo import DEMO_CLIP
from export.targets import GraphKind
from serving.rollout import DIRECT_CHANNEL
from tests.conftest import LiveServer
from vizwiz_client import VizwizClient
from vizwiz_client.contract import tensors
from vizwiz_client.contract.tokenizer import tokenize

JOB = Job(tensors.ENSEMBLE, photos="", image_size=96)


@pytest.fixture
def generator() -> Iterator[Generator]:
    with Generator() as generator:
        yield generator


@pytest.fixture
def served(live_server: LiveServer) -> Served:
    target = GraphKind("portable", "fp32")
    return Served("demo", DEMO_CLIP, live_server.run.folder, live_server.repository, target, live_server.image_size)


def test_summary_of_known_times() -> None:
    """A request every 10 ms that takes 1 to 100 ms; the first two, and the one after the stop, do not count."""
    ends = [10.0 + 0.01 * number for number in range(103)]
    latencies = [9.0, 9.0, *(0.001 * number for number in range(1, 101)), 9.0]
    starts = [end - latency for end, latency in zip(ends, latencies, strict=True)]
    record = Record(starts, ends, errors=["late", "later"], stopped=ends[-2])
    found = summarise([record], ramp=2)
    assert found["requests"] == 100
    assert found["p50_ms"] == pytest.approx(50.5)
    assert found["questions_per_s"] == pytest.approx(100)
    assert (found["errors"], found["error"]) == (2, "late")


def test_summary_of_rounds_pools_their_requests() -> None:
    slow, fast = (Record([0, 1, 1 + length], [1, 1 + length, 1 + 2 * length], stopped=9.0) for length in (3.0, 1.0))
    found = summarise([slow, fast], ramp=1)
    assert (found["requests"], found["questions_per_s"], found["p50_ms"]) == (4, 0.5, 2000.0)


def test_summary_counts_bursts_whole() -> None:
    """Eight answers every 2 s, a millisecond apart, to 16 requests: 4 a second, wherever ramp and stop fall."""
    ends = [2.0 * burst + 0.001 * place for burst in range(1, 6) for place in range(8)]
    record = Record([end - 4.0 for end in ends], ends, stopped=ends[-8])  # the first of the last burst stops the loop
    for ramp in (12, 16):
        found = summarise([record], ramp=ramp)
        assert (found["requests"], found["questions_per_s"]) == (24, pytest.approx(4.0))


@pytest.mark.parametrize("concurrency", [1, 5])
def test_closed_loop_keeps_its_concurrency(concurrency: int) -> None:
    in_flight, seen, sent = 0, set(), []

    async def send(number: int) -> None:
        nonlocal in_flight
        in_flight += 1
        seen.add(in_flight)
        sent.append(number)
        await asyncio.sleep(0)
        in_flight -= 1

    record = asyncio.run(closed_loop(send, replace(JOB, concurrency=concurrency, max_requests=40, ramp=0, seconds=1e9)))
    assert max(seen) == concurrency
    assert sorted(sent) == list(range(40))
    assert len(record.starts) == len(record.ends) == 40
    assert record.ends == sorted(record.ends)


def test_closed_loop_stops_after_many_errors() -> None:
    async def send(number: int) -> None:
        raise ValueError("no")

    record = asyncio.run(closed_loop(send, replace(JOB, concurrency=2)))
    assert MAX_ERRORS <= len(record.errors) <= MAX_ERRORS + 2
    assert record.errors[0] == "ValueError: no"


def test_drawn_questions_are_distinct_and_as_long_as_real_ones() -> None:
    questions = list(islice(draw_questions(seed=1), 3_000))
    assert len(set(questions)) == 3_000
    lengths = Counter(len(tokenize(question).ids) for question in questions)
    assert {length: count / 3_000 for length, count in lengths.items()} == pytest.approx(LENGTH_SHARES, abs=0.03)


def test_generator_measures_the_live_server_and_the_bare_encoders(
    live_server: LiveServer, served: Served, generator: Generator
) -> None:
    job = Job(
        tensors.ENSEMBLE, str(live_server.data / "val"), served.image_size, live_server.grpc_url, str(served.repository)
    )
    job = replace(job, target=served.target.name, max_requests=12, ramp=2, concurrency=2)
    for each in (job, replace(job, system=BARE, concurrency=1)):
        record = generator.run(each)
        assert record.errors == []
        assert len(record.ends) == 12
    missing = generator.run(replace(job, system="another"))
    assert missing.ends == []
    assert "'another'" in missing.errors[0]


@pytest.mark.parametrize("system", [GATEWAY, LITSERVE])
def test_each_http_request_has_its_own_question(system: str, live_server: LiveServer, generator: Generator) -> None:
    """A repeated one would be answered from the response cache, and cost less than a user's."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        form = await (request.json() if request.content_type == "application/json" else request.post())
        asked.append(str(form["question"]))
        return web.json_response({"answer": "mug"}, dumps=partial(json.dumps, separators=(",", ":")))

    async def load() -> Record:
        app = web.Application()
        app.router.add_post("/{path:.*}", answer)
        async with TestServer(app) as server:
            url = f"http://127.0.0.1:{server.port}"
            job = Job(system, str(live_server.data / "val"), 96, url, max_requests=120, distinct=120, seconds=1e9)
            return await asyncio.to_thread(generator.run, job)

    assert asyncio.run(load()).errors == []
    assert asked == list(islice(draw_questions(seed=0), 120))


def test_fastapi_baseline_gives_the_answers_of_the_server(
    live_server: LiveServer, served: Served, generator: Generator
) -> None:
    photos = (path.read_bytes() for path in sorted((live_server.data / "test").glob("*.jpg")))
    # CLIP's own preprocess ignores EXIF orientation
    photo = next(file for file in photos if not Image.open(io.BytesIO(file)).getexif())
    with fastapi(served, bf16=False) as server, VizwizClient(live_server.grpc_url) as client:
        reply = httpx.post(f"{server.url}/ask", files={"photo": photo}, data={"question": "What is this?"}).json()
        answer = client.ask(photo, "What is this?")
        job = Job("fastapi fp32", str(live_server.data / "val"), served.image_size, server.url, max_requests=3)
        assert len(generator.run(job).ends) == 3
    assert reply["answer"] == answer.answer
    assert reply["probability"] == pytest.approx(answer.confidence, abs=1e-4)
    assert reply["answerable"] == pytest.approx(answer.answerable, abs=1e-4)


def test_a_load_through_gateways_and_replicas_gives_no_error(live_server: LiveServer, served: Served) -> None:
    with triton(served) as second, gateway_of(second.url) as first_gateway, gateway_of(live_server.grpc_url) as other:
        replicas = System(
            "direct", "fp32", tensors.ENSEMBLE, served, second, f"ipv4:{live_server.grpc_url},{second.url}"
        )
        gateways = replace(replicas, name=GATEWAY, url=f"{first_gateway.url} {other.url}")
        before = requests_of(second.url), requests_of(live_server.grpc_url)
        found = measure([replicas, gateways], live_server.data / "val", 2, seconds=0.1, min_requests=8)
        after = requests_of(second.url), requests_of(live_server.grpc_url)
    assert [each.errors for each in found] == [0, 0]
    assert all(each.per_s > 0 and each.cpu_ms > 0 and each.memory_gb > 0 for each in found)
    assert all(late > early + 4 for early, late in zip(before, after, strict=True)), "a replica got no requests"


def requests_of(url: str) -> int:
    with InferenceServerClient(url, channel_args=DIRECT_CHANNEL) as client:
        [model] = client.get_inference_statistics(tensors.ENSEMBLE, as_json=True)["model_stats"]
        return int(model["inference_stats"]["success"].get("count", 0))


def test_servers_that_are_not_measured_are_stopped(live_server: LiveServer, served: Served) -> None:
    """Two servers in turn: both answer after each stop, and neither computes while the other one is measured."""
    with triton(served) as one, triton(served) as two:
        systems = [System("direct", "fp32", tensors.ENSEMBLE, served, each) for each in (one, two)]
        found = measure(systems, live_server.data / "val", 1, seconds=0.1, rounds=2)
        assert [each.errors for each in found] == [0, 0]
        with stopped([one.pid]):
            before = usage(one.pid).cpu_s
            assert measure(systems[1:], live_server.data / "val", 1, seconds=0.1)[0].errors == 0
            assert usage(one.pid).cpu_s == before
