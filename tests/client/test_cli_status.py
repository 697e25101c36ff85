"""``vizwiz-client status``, and ``VizwizClient.status``."""

from __future__ import annotations

import json
import re
import socket

import grpc
import pytest

from tests.client.fake_server import HEAD, MODELS, FakeServer
from vizwiz_client import ModelMissing
from vizwiz_client.cli import _output
from vizwiz_client.contract import tensors

SKIPPED = "not checked, because an earlier check failed"


@pytest.fixture
def status(run):
    """Run ``vizwiz-client status``; return the exit code and the line of each check."""

    def status(url: str, *arguments: str) -> tuple[int, dict[str, str]]:
        code, out, err = run("status", "--url", url, *arguments)
        assert err == []
        return code, dict(line.split(": ", 1) for line in out)

    return status


def test_a_real_server(status, live_server) -> None:
    code, lines = status(live_server.grpc_url, "--max-latency", "60")
    assert code == _output.OK
    assert list(lines) == ["server", "models", "contract", "latency"]
    assert re.fullmatch(f"ok, triton-[^ ]+ 2.51.0 at {live_server.grpc_url}", lines["server"])
    assert lines["models"].startswith(f"ok, {tensors.ENSEMBLE} answers with {tensors.IMAGE_ENCODER_PREFIX}")
    assert lines["contract"].startswith(f"ok, version {tensors.CONTRACT_VERSION}, image size ")
    assert lines["latency"].startswith("ok, an answer takes ")
    assert status(live_server.grpc_url, "--quiet", "--max-latency", "60") == (_output.OK, {})


def test_json(run, fake_server: FakeServer) -> None:
    code, (line,), _ = run("status", "--url", fake_server.url, "--json", "--max-latency", "60")
    found = json.loads(line)
    assert (code, found["ok"], found["head_id"]) == (0, True, HEAD)
    assert 0 < found["latency_s"] < 60
    assert {name: check["ok"] for name, check in found["checks"].items()} == dict.fromkeys(
        ("server", "models", "contract", "latency"), True
    )


def test_too_slow(status, fake_server: FakeServer) -> None:
    code, lines = status(fake_server.url, "--max-latency", "0.000001", "--quiet")
    assert (code, list(lines)) == (_output.SOME_FAILED, ["latency"])
    assert "expected at most 0.001 ms; is the server busy, or its CLIP too large for the machine?" in lines["latency"]


def test_the_model_is_missing(status, fake_server: FakeServer) -> None:
    fake_server.missing = True
    code, lines = status(fake_server.url)
    assert code == _output.WRONG_SERVER
    assert lines["server"].startswith("ok, ")
    assert "does not serve 'vizwiz_vqa'; export a model to its repository" in lines["models"]
    assert lines["contract"] == lines["latency"] == SKIPPED


def test_the_http_port(status, live_server) -> None:
    code, lines = status(live_server.http_url.removeprefix("http://"), "--timeout", "10")
    assert code == _output.TRY_LATER
    assert "give its gRPC port (8001 by default; 8000 is HTTP, 8080 the page)" in lines["server"]


def test_no_server(status) -> None:
    with socket.socket() as reserved:  # bound, but not listening
        reserved.bind(("127.0.0.1", 0))
        code, lines = status(f"127.0.0.1:{reserved.getsockname()[1]}", "--retries", "0")
    assert code == _output.TRY_LATER
    assert lines["server"].startswith("failed, no server is ready at 127.0.0.1")
    assert lines["models"] == lines["contract"] == lines["latency"] == SKIPPED


def test_another_contract(status, fake_server: FakeServer) -> None:
    fake_server.contract_version = "99"
    code, lines = status(fake_server.url)
    assert code == _output.WRONG_SERVER
    assert "contract version 99, this client has 1; install the vizwiz-client that" in lines["contract"]
    assert lines["models"] == lines["latency"] == SKIPPED


def test_a_model_is_not_ready(status, fake_server: FakeServer) -> None:
    fake_server.not_ready = MODELS[1:]
    code, lines = status(fake_server.url)
    assert code == _output.WRONG_SERVER
    assert lines["models"].startswith(f"failed, not ready: {', '.join(MODELS[1:])}; ")


def test_replicas_that_differ(status, fake_server: FakeServer) -> None:
    fake_server.models = (*MODELS[:2], f"{tensors.HEAD_PREFIX}000000000000")
    code, lines = status(fake_server.url)
    assert code == _output.WRONG_SERVER
    assert f"failed, {tensors.HEAD_PREFIX}{HEAD} answered, but " in lines["models"]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        ((grpc.StatusCode.INTERNAL, "out of memory"), _output.WRONG_SERVER),
        ((grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"), _output.TRY_LATER),
    ],
)
def test_it_gives_no_answer(status, fake_server: FakeServer, failure: tuple[grpc.StatusCode, str], code: int) -> None:
    fake_server.failure = failure
    found, lines = status(fake_server.url, "--retries", "0")
    assert found == code
    assert lines["latency"].startswith("failed, ")
    assert failure[1] in lines["latency"]


def test_of_the_library(connect, fake_server: FakeServer) -> None:
    assert connect(fake_server.url).status(max_latency_s=60).ok
    with pytest.raises(ValueError, match="expected a number of seconds over 0"):
        connect(fake_server.url).status(max_latency_s=float("nan"))
    fake_server.not_ready = MODELS[:1]
    status = connect(fake_server.url).status()
    assert (status.ok, status.latency_s, status.head_id) == (False, None, None)
    assert [check.ok for check in status.checks] == [True, False, True, None]
    assert isinstance(status.checks[1].error, ModelMissing)
