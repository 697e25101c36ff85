"""Closing a client in the middle of a call: whatever it waits for, it ends with ServerUnavailable."""

from __future__ import annotations

import socket
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.client.conftest import Connect
from tests.client.fake_server import FakeServer
from vizwiz_client import ServerUnavailable, Status, _core

LIMIT_S = 60  # what takes longer hangs
CLOSED = r"this client is closed; make a new one"
LONG_S = 100 * LIMIT_S


class Call:
    """A call in another thread."""

    def __init__(self, task: Callable[[], Any]) -> None:
        self._task = task
        self._result: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._task()
        except BaseException as error:
            self._result = error

    def result(self) -> Any:
        """What it returned or raised."""
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "it hangs"
        return self._result


def assert_closed(error: Any) -> None:
    assert isinstance(error, ServerUnavailable), repr(error)
    assert CLOSED in str(error)
    printed = "".join(traceback.format_exception(error))
    assert printed.count("Traceback") == 1, printed


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(client: Any, method: str, photo: Path) -> Any:
    """Call ``method``; of a status, return the first check's error, if any."""
    if method == "status":
        status: Status = client.status()
        return next((check.error for check in status.checks if check.error), None)
    if method == "check":
        return client.check()
    if method == "ask":
        return client.ask(photo, "what?")
    outcomes = list(getattr(client, method)([(photo, "what?")] * 3))
    return outcomes[-1]


METHODS = ("ask", "ask_batch", "ask_many", "check", "status")


@pytest.mark.parametrize("method", METHODS)
def test_connecting(connect: Connect, photos: list[Path], method: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # it accepts, and says nothing
        client = connect(f"127.0.0.1:{listener.getsockname()[1]}", timeout_s=LONG_S)
        call = Call(lambda: ask(client, method, photos[0]))
        connection, _ = listener.accept()
        with connection:
            client.close()
            assert_closed(call.result())


@pytest.mark.parametrize("method", ["ask", "ask_batch", "ask_many", "status"])
def test_in_flight(connect: Connect, fake_server: FakeServer, photos: list[Path], method: str) -> None:
    client = connect(fake_server.url, timeout_s=LONG_S)
    fake_server.gate.clear()
    call = Call(lambda: ask(client, method, photos[0]))
    wait_until(lambda: bool(fake_server.request_ids))
    client.close()
    assert_closed(call.result())


@pytest.mark.parametrize("method", ["ask", "ask_batch", "ask_many", "status"])
def test_in_the_pause_before_a_retry(
    connect: Connect, fake_server: FakeServer, photos: list[Path], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(_core, "backoff_delays", lambda retries: [LIMIT_S * 10.0] * retries)
    client = connect(fake_server.url, timeout_s=LONG_S)
    fake_server.failure = (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
    call = Call(lambda: ask(client, method, photos[0]))
    wait_until(lambda: bool(fake_server.over))
    client.close()
    assert_closed(call.result())


@pytest.mark.parametrize("method", ["ask_batch", "ask_many"])
def test_waiting_for_photos_to_be_decoded(
    connect: Connect, fake_server: FakeServer, photos: list[Path], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    started, go_on, real = threading.Semaphore(0), threading.Event(), _core.prepare_timed

    def slow(*arguments: Any) -> Any:
        started.release()
        go_on.wait(LIMIT_S)
        return real(*arguments)

    monkeypatch.setattr(_core, "prepare_timed", slow)
    fake_server.gate.clear()  # should all be decoded before the client is closed
    client = connect(fake_server.url, timeout_s=LONG_S)
    many = [(photos[0].read_bytes(), "what?") for _ in range(16)]
    call = Call(lambda: list(getattr(client, method)(many))[-1])
    assert started.acquire(timeout=LIMIT_S)
    closing = Call(client.close)
    time.sleep(0.1)
    go_on.set()
    assert closing.result() is None
    assert_closed(call.result())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("was_used", [True, False])
def test_after_it(connect: Connect, fake_server: FakeServer, photos: list[Path], method: str, was_used: bool) -> None:
    client = connect(fake_server.url, timeout_s=LONG_S)
    if was_used:
        client.ask(photos[0], "what?")
    client.close()
    client.close()
    assert_closed(Call(lambda: ask(client, method, photos[0])).result())


def test_many_threads_at_any_moment(connect: Connect, fake_server: FakeServer, photos: list[Path]) -> None:
    for moment in range(10):
        client = connect(fake_server.url, timeout_s=LONG_S)

        def go_on(method: str, client: Any = client) -> Any:
            while not isinstance(outcome := ask(client, method, photos[0]), Exception):
                pass
            return outcome

        calls = [Call(lambda method=method: go_on(method)) for method in METHODS * 2]
        time.sleep(0.02 * moment)
        client.close()
        for call in calls:
            assert_closed(call.result())
