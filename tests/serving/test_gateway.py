"""``python -m serving`` and its gateway: started, restarted and stopped with Triton."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving.__main__
from serving.repository import ensemble_config
from tests.serving.processes import SERVE, Command, eventually
from tests.serving.tiny_repository import HEAD, change_config, write_head
from vizwiz_client.contract import tensors

TIMEOUT_S = 60


@pytest.fixture
def command(small_repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    monkeypatch.setenv("VIZWIZ_GATEWAY_HOST", "0.0.0.0")  # meant for a gateway of its own: it must not count here
    with Command(small_repository, "--gateway") as command:
        yield command


def status(url: str, path: str = "/readyz") -> int:
    """Status of a GET; 0 if nobody listens."""
    try:
        return httpx.get(f"{url}{path}", timeout=TIMEOUT_S).status_code
    except httpx.TransportError:
        return 0


def gateways(command: Command) -> list[int]:
    """Process ids of gateways that ask the server of ``command``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if b"vizwiz_gateway" in words and command.addresses["grpc"].encode() in words and b"-S" not in words:
            found.append(int(path.parent.name))
    return found


def test_it_starts_restarts_and_stops_with_the_server(command: Command) -> None:
    url = command.addresses["gateway"]
    assert url.startswith("http://127.0.0.1:")
    assert status(url) == 200
    assert "<form" in httpx.get(url, timeout=TIMEOUT_S).text
    (first,) = gateways(command)
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: gateways(command) not in ([], [first]) and status(url) == 200, TIMEOUT_S)
    command.process.send_signal(signal.SIGTERM)
    assert "the gateway ended with SIGKILL; restarting it" in command.end()
    assert command.process.returncode == 0
    assert gateways(command) == []
    assert command.leaves_no_trace()


def test_it_outlives_a_crash_of_triton(command: Command) -> None:
    url, before = command.addresses["gateway"], gateways(command)
    os.kill(command.triton(), signal.SIGKILL)
    assert eventually(lambda: status(url) in (502, 504), TIMEOUT_S)
    assert eventually(lambda: status(url) == 200, 2 * TIMEOUT_S)
    assert gateways(command) == before


def test_messages_that_cannot_be_written_end_nothing(small_repository: Path) -> None:
    with Command(small_repository, "--gateway", prefix=["sh", "-c", 'exec "$@" 2> /dev/full', "sh"]) as command:
        url, (first,) = command.addresses["gateway"], gateways(command)
        os.kill(command.triton(), signal.SIGKILL)
        os.kill(first, signal.SIGKILL)
        assert eventually(lambda: gateways(command) not in ([], [first]) and status(url) == 200, 2 * TIMEOUT_S)
        assert command.process.poll() is None


def test_it_ends_when_the_server_is_killed(command: Command) -> None:
    command.process.kill()
    assert eventually(lambda: gateways(command) == [], TIMEOUT_S)


def test_it_can_be_left_out(small_repository: Path) -> None:
    with Command(small_repository, "--no-gateway") as command:
        assert command.addresses["gateway"] is None
        assert gateways(command) == []


def test_a_port_in_use_is_reported_before_the_models_load(small_repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = ["--gateway", f"--gateway-port={port}", f"--repository={small_repository}"]
        done = subprocess.run([*SERVE, *flags], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 1
    assert f"port {port} (--gateway-port) cannot be used" in done.stderr
    assert "waiting for the models" not in done.stderr


def test_the_gateway_and_triton_have_ports_of_their_own(
    small_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ports = ["--gateway-port=8765", "--http-port=8765", "--grpc-port=0", "--metrics-port=0"]
    assert serving.__main__.main([*ports, f"--repository={small_repository}"]) == 1
    assert capsys.readouterr().err.startswith("serving: error: --http-port and --gateway-port are both 8765: give each")


def test_the_address_of_the_page_comes_first(small_repository: Path) -> None:
    flags = [flag for flag in SERVE if flag not in ("--json", "--no-gateway")]
    with subprocess.Popen(
        [*flags, f"--repository={small_repository}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("Open http://localhost:"), line
            assert status(line.split()[1], "/healthz") == 200
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=TIMEOUT_S)


def test_going_back_to_a_head_of_the_demo_says_so(small_repository: Path, tmp_path: Path) -> None:
    """An ensemble says what its head says, also after a rollout to another head."""
    own = Path(shutil.copytree(small_repository, tmp_path / "models"))
    (own / HEAD).rename(own / "gated_head_00000000beef")
    write_head(own / HEAD, ("red", "green", "blue"), 1.0)

    def mark(config: Any) -> None:
        config.parameters[tensors.DEMO_PARAMETER].string_value = "true"

    change_config(own / HEAD, mark)
    config = ensemble_config(own, HEAD)
    assert config.parameters[tensors.DEMO_PARAMETER].string_value == "true"
    assert tensors.DEMO_PARAMETER not in ensemble_config(own, "gated_head_00000000beef").parameters
