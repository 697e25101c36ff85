"""Faults on a real Triton: it dies, clients leave, requests are malformed, heads are rolled out."""

from __future__ import annotations

import random
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from serving.rollout import rollout
from serving.server import EmbeddedTriton
from tests.client.small_server import SmallServer
from tests.gateway.conftest import SECOND_HEAD
from tests.gateway.processes import TIMEOUT_S, Gateway, draw_photo, form, head
from tests.serving.tiny_repository import HEAD
from vizwiz_client.contract import tensors

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() resets the connection


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Load:
    """As a context manager: threads that ask ``gateway`` in a closed loop."""

    def __init__(self, gateway: Gateway, photo: bytes, clients: int) -> None:
        self.replies: list[httpx.Response] = []
        self._end = threading.Event()
        self._gateway, self._photo = gateway, photo
        self._pool, self._clients = ThreadPoolExecutor(clients), clients

    def __enter__(self) -> Load:
        self._jobs = [self._pool.submit(self._ask) for _ in range(self._clients)]
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for job in self._jobs:
            job.result()
        self._pool.shutdown()

    def wait_for(self, count: int) -> None:
        """Return when ``count`` more replies have come."""
        target = len(self.replies) + count
        wait_for(lambda: len(self.replies) >= target or any(job.done() for job in self._jobs))

    def statuses(self) -> set[int]:
        return {reply.status_code for reply in self.replies}

    def _ask(self) -> None:
        while not self._end.is_set():
            self.replies.append(self._gateway.ask(self._photo, "what is this?"))


def test_triton_dies_and_comes_back(small_repository: Path, photo: bytes) -> None:
    with SmallServer(small_repository) as triton, Gateway(triton.grpc_url) as gateway:
        assert gateway.ask(photo, "what is this?").status_code == 200
        ports = {
            name: int(url.rpartition(":")[2]) for name, url in (("grpc", triton.grpc_url), ("http", triton.http_url))
        }
        triton.kill()
        refused = gateway.ask(photo, "what is this?", headers={"x-request-id": "while-away"})
        assert (refused.status_code, refused.json()["code"]) == (502, "triton-unavailable")
        assert refused.json()["request_id"] == "while-away"
        assert gateway.http.get("/readyz").status_code == 502
        assert gateway.http.get("/").status_code == 200
        triton.stop()
        with SmallServer(small_repository, grpc_port=ports["grpc"], http_port=ports["http"]):
            wait_for(lambda: gateway.ask(photo, "what is this?").status_code == 200)
            wait_for(lambda: gateway.http.get("/readyz").status_code == 200)  # by a connection of its own
        assert gateway.process.poll() is None


def test_it_starts_before_triton(small_repository: Path, photo: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Gateway(f"127.0.0.1:{port}") as gateway:
        assert gateway.ask(photo, "what is this?").status_code == 502
        with SmallServer(small_repository, grpc_port=port):
            wait_for(lambda: gateway.ask(photo, "what is this?").status_code == 200)


def disconnect(gateway: Gateway, body: bytes, rng: random.Random) -> None:
    """Leave in the middle of an upload, or of an answer; by a reset or an orderly close."""
    with gateway.connect() as connection:
        if rng.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        upload_ends = rng.random() < 0.5
        with suppress(ConnectionError):
            connection.sendall(head(len(body)) + (body if upload_ends else body[: rng.randrange(len(body))]))
        time.sleep(rng.random() * 0.01)  # into decoding, or the call to Triton


def check_disconnects(triton: SmallServer, photo: bytes, count: int) -> None:
    """``count`` clients leave; others are answered, and nothing is left of those that left."""
    body, seeds = form(photo), iter(range(count))
    with Gateway(triton.grpc_url) as gateway:
        gateway.ask(photo, "what is this?")
        before, memory = len(gateway.files()), gateway.memory()
        with Load(gateway, photo, 2) as neighbours, ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda seed: disconnect(gateway, body, random.Random(seed)), seeds))
            neighbours.wait_for(10)
        assert neighbours.statuses() <= {200, 503}, "503: too many at once"
        assert 200 in neighbours.statuses()
        wait_for(lambda: gateway.metric("vizwiz_gateway_admitted") == 0)
        wait_for(lambda: len(gateway.files()) <= before + 10)  # connections of the neighbours that are kept alive
        assert gateway.memory() < memory + (100 << 20)
        assert gateway.ask(photo, "what is this?").status_code == 200
        assert gateway.stop() == ""


def test_clients_that_leave(small_repository: Path, photo: bytes) -> None:
    with SmallServer(small_repository) as triton:
        process = triton._process.pid
        check_disconnects(triton, photo, 300)
        assert triton._process.pid == process, "Triton was restarted"


@pytest.mark.slow
def test_ten_thousand_clients_that_leave(small_repository: Path, photo: bytes) -> None:
    with SmallServer(small_repository) as triton:
        process = triton._process.pid
        check_disconnects(triton, photo, 10_000)
        assert triton._process.pid == process, "Triton was restarted"


def malformed(rng: random.Random, sound: bytes) -> bytes:
    """A request with some of its bytes changed, removed, repeated or inserted; the head more often than the body."""
    data = bytearray(sound)
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(min(len(data), 500) if rng.random() < 0.8 else len(data))
        size = rng.choice((1, 1, 2, 8, 50))
        kind = rng.randrange(4)
        if kind == 0:
            data[place : place + size] = rng.randbytes(size)
        elif kind == 1:
            del data[place : place + size]
        elif kind == 2:
            data[place:place] = data[place : place + size] * rng.randrange(1, 20)
        else:
            data[place:place] = rng.choice((b"\r\n", b"\0", b"--", b'"', b";", b":", b"\xff" * 4, b"9" * 20))
    return bytes(data)


def test_malformed_requests(gateway: Gateway, photo: bytes) -> None:
    body, statuses = form(photo[:2_000]), set()
    for seed in range(500):
        with gateway.connect() as connection, suppress(ConnectionError):
            connection.sendall(malformed(random.Random(seed), head(len(body)) + body))
            connection.shutdown(socket.SHUT_WR)
            reply = connection.recv(1 << 12)
            statuses.add(int(reply.split()[1]) if reply else 0)
    assert statuses >= {400, 415, 404, 421}, "most kinds of fault are met"
    assert max(statuses) < 500, f"{statuses}: an internal error"
    wait_for(lambda: gateway.metric("vizwiz_gateway_admitted") == 0)
    assert gateway.ask(photo, "what is this?").status_code == 200


def test_rollouts_under_load_fail_no_request(small_repository: Path, photo: bytes, tmp_path: Path) -> None:
    check_rollouts(small_repository, photo, tmp_path, 3)


@pytest.mark.slow
def test_twenty_rollouts_under_load_fail_no_request(small_repository: Path, photo: bytes, tmp_path: Path) -> None:
    check_rollouts(small_repository, photo, tmp_path, 20)


def check_rollouts(small_repository: Path, photo: bytes, tmp_path: Path, rollouts: int) -> None:
    repository = Path(shutil.copytree(small_repository, tmp_path / "models"))
    with EmbeddedTriton(repository) as triton, Gateway(triton.grpc_url) as gateway, Load(gateway, photo, 4) as load:
        for number in range(rollouts):
            load.wait_for(20)
            name = (SECOND_HEAD, HEAD)[number % 2]
            rollout(triton.grpc_url, to=name.removeprefix(tensors.HEAD_PREFIX))
        load.wait_for(20)
    assert load.statuses() == {200}, [reply.text for reply in load.replies if reply.status_code != 200][:3]
    answers = [reply.json()["answers"][0] for reply in load.replies]
    assert {tensors.HEAD_PREFIX + answer["head_id"] for answer in answers} == {HEAD, SECOND_HEAD}


@pytest.mark.slow
def test_memory_stays_flat(triton: SmallServer) -> None:
    """20,000 requests with photos of many sizes."""
    photos = [draw_photo(300 + 37 * seed, 300 + 53 * seed, seed=seed) for seed in range(20)]
    with Gateway(triton.grpc_url, MALLOC_ARENA_MAX="2") as gateway, ThreadPoolExecutor(8) as pool:
        sizes = []
        for _ in range(10):
            replies = pool.map(lambda n: gateway.ask(photos[n % 20], f"what is {n}?").status_code, range(2_000))
            assert set(replies) == {200}
            sizes.append(gateway.memory() >> 20)
        print(f"resident MiB after each 2,000 requests: {sizes}")
        assert max(sizes[5:]) <= max(sizes[:5]) + 20
