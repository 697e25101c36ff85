"""A client in a forked child, on a real server: it works, or says why not; and the parent's goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.client import forks
from tests.conftest import LiveServer

ROOT = Path(__file__).parents[2]
REFUSED = (
    r"ServerUnavailable: process \d+ was forked from one that had already used a client, or gRPC.*'spawn' method.*"
)
CLOSED = "ServerUnavailable: this client is closed; make a new one.*"

pytestmark = pytest.mark.parametrize("kind", ["threads", "tasks"])


def outcomes(scenario: str, kind: str, server: LiveServer) -> dict[str, str]:
    """What came of a scenario of :mod:`tests.client.forks`; the parent is answered as before."""
    command = [sys.executable, "-m", forks.__name__, scenario, kind, server.grpc_url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            output, _ = process.communicate(timeout=6 * forks.LIMIT_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # children that hang
    assert process.returncode == 0
    told = dict(json.loads(output))
    assert told.pop("parent") == "fine"
    return told


def test_a_client_that_was_never_asked_works_in_children(live_server: LiveServer, kind: str) -> None:
    told = outcomes("unused", kind, live_server)
    assert told == dict.fromkeys([*forks.METHODS, "process", "grandchild"], "fine")


@pytest.mark.parametrize("scenario", ["used", "in_flight", "foreign"])
def test_a_child_reports_that_grpc_was_used_before(live_server: LiveServer, kind: str, scenario: str) -> None:
    told = outcomes(scenario, kind, live_server)
    assert len(told) >= len(forks.METHODS)
    assert {name: text for name, text in told.items() if not re.fullmatch(REFUSED, text)} == {}


def test_a_stream_does_not_go_on_in_a_child(live_server: LiveServer, kind: str) -> None:
    told = outcomes("stream", kind, live_server)
    assert re.fullmatch(REFUSED, told["rest"])
    assert told["closed"] == "fine"


def test_children_end_without_disturbing_the_parent(live_server: LiveServer, kind: str) -> None:
    assert set(outcomes("left", kind, live_server).values()) == {"fine"}
