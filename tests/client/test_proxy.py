"""Proxies of the environment: not for this machine, and named where a server is not reached through one."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.conftest import Connect
from tests.client.fake_server import FakeServer
from vizwiz_client import ServerUnavailable
from vizwiz_client._failures import is_loopback

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
TRITON = "triton.invalid:8001"


class Proxy:
    """One that closes every connection, and counts them."""

    def __init__(self, listener: socket.socket) -> None:
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self.connections = 0
        self._listener = listener
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # the test is over
                return
            self.connections += 1
            connection.close()


@pytest.fixture(autouse=True)
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name in (*VARIABLES, "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Proxy(listener)
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_this_machine_is_reached_without(
    connect: Connect,
    fake_server: FakeServer,
    photos: list[Path],
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    host: str,
) -> None:
    monkeypatch.setenv(variable, f"http://{proxy.address}")
    client = connect(fake_server.url.replace("127.0.0.1", host), retries=0)
    assert len(client.ask_batch([(photo, "what?") for photo in photos])) == len(photos)
    assert proxy.connections == 0


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("localhost:1", True),
        ("LOCALHOST.:1", True),
        ("127.9.8.7:1", True),
        ("[::1]:1", True),
        ("[::ffff:127.0.0.1]:1", True),
        ("localhost.example:1", False),
        ("127.0.0.1.example:1", False),
        ("128.0.0.1:1", False),
        ("[fe80::1%lo]:1", False),
    ],
)
def test_loopback(url: str, expected: bool) -> None:
    assert is_loopback(url) == expected


@pytest.mark.parametrize("variable", VARIABLES)
def test_the_variable_is_named_without_its_password(
    connect: Connect, photos: list[Path], proxy: Proxy, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, f"http://me:secret@{proxy.address}")
    text = f"no server is ready at {TRITON} (the environment variable {variable} names a proxy;"
    with pytest.raises(ServerUnavailable, match=re.escape(text)) as raised:
        connect(TRITON, retries=0).ask(photos[0], "what?")
    assert "secret" not in str(raised.value)
    assert proxy.connections > 0
