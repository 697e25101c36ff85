"""The client against a real Triton that is stopped, killed, restarted, frozen and overloaded."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.client.conftest import KINDS, Connect
from tests.client.small_server import SmallServer, write_small_repository
from tests.serving.tiny_repository import HEAD, SIDE, change_config
from vizwiz_client import Answer, DeadlineExceeded, Overloaded, ServerUnavailable

WAIT_TIMEOUT_S = 60.0
GREEN = Image.new("RGB", (40, 30), (0, 200, 0))
QUESTION = "what colour is it?"


@pytest.fixture(scope="module")
def server(small_repository: Path) -> Iterator[SmallServer]:
    with SmallServer(small_repository) as server:
        yield server


@pytest.fixture(scope="module")
def busy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallServer]:
    """One whose head keeps a request waiting for a second, and refuses others meanwhile.

    Not an encoder: where one of two steps that start together refuses, Triton 2.51 hangs or crashes
    (https://github.com/triton-inference-server/core/pull/470).
    """
    repository = tmp_path_factory.mktemp("models")
    write_small_repository(repository)

    def short_queue(config: Any) -> None:
        config.dynamic_batching.max_queue_delay_microseconds = 1_000_000
        config.dynamic_batching.default_queue_policy.max_queue_size = 1

    change_config(repository / HEAD, short_queue)
    with SmallServer(repository) as server:
        yield server


def test_its_answer(connect: Connect, server: SmallServer) -> None:
    client = connect(server.grpc_url)
    assert ([image.image_size for image in client.check().images], client.check().max_batch_size) == ([SIDE], 64)
    answer = client.ask(GREEN, QUESTION, top=3)
    assert {candidate.answer for candidate in answer.candidates} == {"red", "blue: dark", "green"}
    assert answer.head_id == "000000000007"
    assert client.ask_batch([(GREEN, QUESTION)] * 3, top=3) == [answer] * 3


def test_frozen(connect: Connect, server: SmallServer) -> None:
    client = connect(server.grpc_url, timeout_s=0.5)
    other = connect(server.grpc_url, timeout_s=WAIT_TIMEOUT_S)
    expected = client.ask(GREEN, QUESTION)
    with server.frozen():
        with pytest.raises(DeadlineExceeded, match=r"no answer from .* within 0\.5 s"):
            client.ask(GREEN, QUESTION)
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded):  # one that was never connected
            connect(server.grpc_url, timeout_s=0.5).ask(GREEN, QUESTION)
        assert time.monotonic() - start < 20  # not gRPC's own timeout
    assert other.ask(GREEN, QUESTION) == expected
    assert until_answered(client) == expected


def test_overloaded(connect: Connect, busy_server: SmallServer) -> None:
    impatient = connect(busy_server.grpc_url, retries=0, timeout_s=WAIT_TIMEOUT_S)
    patient = connect(busy_server.grpc_url, retries=1_000, timeout_s=WAIT_TIMEOUT_S)
    impatient.check()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(impatient.ask, GREEN, QUESTION)
        assert eventually(lambda: pending(busy_server))
        with pytest.raises(Overloaded, match="has too many requests waiting; ask again in a moment") as refused:
            impatient.ask(GREEN, QUESTION)
        assert refused.value.request_id
        retried = patient.ask(GREEN, QUESTION)
        assert waiting.result() == retried
    assert retried.timings.total_s > retried.timings.request_s + 0.1  # it was refused, too, at first


def test_killed_and_restarted_on_the_same_port(server: SmallServer) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        clients = [stack.enter_context(kind(server.grpc_url, retries=0)) for kind in KINDS]
        patient = [stack.enter_context(kind(server.grpc_url, retries=1_000)) for kind in KINDS]
        expected = {client.ask(GREEN, QUESTION) for client in clients + patient}
        assert len(expected) == 1
        with server.frozen():
            lost = [pool.submit(client.ask, GREEN, QUESTION) for client in clients]
            streams = [pool.submit(many, client, 200) for client in patient]
            time.sleep(0.5)
            server.kill()
        for client, answer in zip(clients, lost, strict=True):
            with pytest.raises(ServerUnavailable, match=r"no server is ready at .*; start it with `python -m serving`"):
                answer.result()
            with pytest.raises(ServerUnavailable):
                client.ask(GREEN, QUESTION)
        server.stop()  # removes its workspace
        server.start()
        assert [set(stream.result()) for stream in streams] == [expected] * 2
        assert {until_answered(client) for client in clients} == expected


def test_stopped_in_order(busy_server: SmallServer) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(kind(busy_server.grpc_url)) for kind in KINDS]
        for client in clients:
            client.check()
        busy_server.stop()
        for client in clients:
            with pytest.raises(ServerUnavailable):
                client.ask(GREEN, QUESTION)


def many(client: Any, count: int) -> list[Any]:
    return list(client.ask_many((GREEN, QUESTION) for _ in range(count)))


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def pending(server: SmallServer) -> bool:
    """Whether a request waits for the head."""
    with urllib.request.urlopen(server.metrics_url) as response:
        return f'pending_request_count{{model="{HEAD}",version="1"}} 1' in str(response.read(), "utf-8")


def until_answered(client: Any) -> Answer:
    """Ask until the server is back; gRPC itself waits a moment before it connects again."""
    deadline = time.monotonic() + WAIT_TIMEOUT_S
    while True:
        try:
            return client.ask(GREEN, QUESTION)
        except (ServerUnavailable, DeadlineExceeded):
            if time.monotonic() > deadline:
                raise
