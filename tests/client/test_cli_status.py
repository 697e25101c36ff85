"""``status``, of the library and of the command: each thing that can be wrong, and what to do about it."""

from __future__ import annotations

import io
import json
import re
import socket
from pathlib import Path

import grpc
import pytest
from PIL import Image

from tests.client.stand_in import HEAD, MODELS, StandIn
from vizwiz_client import ModelMissing, Status, VizwizClient, cli
from vizwiz_client._status import built_in_picture
from vizwiz_client.cli import _exits
from vizwiz_client.contract import tensors

UNCHECKED = "not checked, since what it depends on is wrong"


@pytest.fixture
def status(capsys: pytest.CaptureFixture[str]):
    """Run ``vizwiz-client status``; return exit status and what is said, by what it is about."""

    def run(url: str, *arguments: str) -> tuple[int, dict[str, str]]:
        code = cli.main(["status", "--url", url, *arguments])
        output = capsys.readouterr()
        assert output.err == ""
        lines = dict(line.split(": ", 1) for line in output.out.splitlines())
        return code, lines

    return run


class TestRealServer:
    def test_all_is_right(self, status, live_server) -> None:
        code, lines = status(live_server.grpc_url, "--max-latency", "60")
        assert code == _exits.OK
        assert list(lines) == ["server", "models", "contract", "latency"]
        assert re.fullmatch(f"right, triton-[^ ]+ 2.51.0 at {live_server.grpc_url}", lines["server"])
        assert lines["models"].startswith(f"right, {tensors.ENSEMBLE} answers with {tensors.IMAGE_ENCODER_PREFIX}")
        assert lines["contract"].startswith(f"right, version {tensors.CONTRACT_VERSION}, pictures of ")
        assert lines["latency"].startswith("right, an answer takes ")

    def test_as_json(self, live_server, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["status", "--url", live_server.grpc_url, "--json", "--max-latency", "60"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["ok"] is True
        assert 0 < said["latency_s"] < 60
        assert len(said["head_id"]) == tensors.DIGEST_LENGTH
        assert {name: check["ok"] for name, check in said["checks"].items()} == dict.fromkeys(
            ("server", "models", "contract", "latency"), True
        )

    def test_quiet_says_only_what_is_wrong(self, status, live_server) -> None:
        assert status(live_server.grpc_url, "--quiet", "--max-latency", "60") == (_exits.OK, {})

    def test_too_slow(self, status, live_server) -> None:
        code, lines = status(live_server.grpc_url, "--max-latency", "0.000001", "--quiet")
        assert (code, list(lines)) == (_exits.SOME_FAILED, ["latency"])
        assert "expected at most 0 ms; is the server busy, or its CLIP too large for the machine?" in lines["latency"]

    def test_the_model_is_missing(self, status, live_server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensors, "ENSEMBLE", "another_model")
        code, lines = status(live_server.grpc_url)
        assert code == _exits.WRONG_SERVER
        assert lines["server"].startswith("right, ")
        assert "does not serve 'another_model'; export a model to its repository" in lines["models"]
        assert lines["contract"] == lines["latency"] == UNCHECKED

    def test_the_wrong_port(self, status, live_server) -> None:
        code, lines = status(live_server.http_url.removeprefix("http://"), "--timeout", "10")
        assert code == _exits.WRONG_SERVER
        assert "speaks HTTP, not gRPC; give Triton's gRPC port" in lines["server"]


class TestWhatIsWrong:
    def test_nobody_is_there(self, status) -> None:
        with socket.socket() as reserved:  # bound, and not listening: nobody else can be there
            reserved.bind(("127.0.0.1", 0))
            code, lines = status(f"127.0.0.1:{reserved.getsockname()[1]}", "--retries", "0")
        assert code == _exits.TRY_LATER
        assert lines["server"].startswith("wrong, no server is ready at 127.0.0.1")
        assert lines["models"] == lines["contract"] == lines["latency"] == UNCHECKED

    def test_another_contract(self, status, stand_in: StandIn) -> None:
        stand_in.contract_version = "99"
        code, lines = status(stand_in.url)
        assert code == _exits.WRONG_SERVER
        assert "contract version 99, this client has 1; install the vizwiz-client that" in lines["contract"]
        assert lines["models"] == lines["latency"] == UNCHECKED

    def test_a_model_is_not_ready(self, status, stand_in: StandIn) -> None:
        stand_in.not_ready = MODELS[1:]
        code, lines = status(stand_in.url)
        assert code == _exits.WRONG_SERVER
        assert lines["models"] == (
            f"wrong, not ready: {', '.join(MODELS[1:])}; the server's log says why, load them or export the model again"
        )

    def test_replicas_that_differ(self, status, stand_in: StandIn) -> None:
        stand_in.models = (*MODELS[:2], f"{tensors.HEAD_PREFIX}000000000000")
        code, lines = status(stand_in.url)
        assert code == _exits.WRONG_SERVER
        assert f"wrong, {tensors.HEAD_PREFIX}{HEAD} answered, but " in lines["models"]
        assert "do all replicas serve the same?" in lines["models"]

    @pytest.mark.parametrize(
        ("failure", "code"),
        [
            ((grpc.StatusCode.INTERNAL, "out of memory"), _exits.WRONG_SERVER),
            ((grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"), _exits.TRY_LATER),
        ],
    )
    def test_it_gives_no_answer(
        self, status, stand_in: StandIn, failure: tuple[grpc.StatusCode, str], code: int
    ) -> None:
        stand_in.failure = failure
        found, lines = status(stand_in.url, "--retries", "0")
        assert found == code
        assert lines["latency"].startswith("wrong, ")
        assert failure[1] in lines["latency"]


class TestLibrary:
    def test_what_is_wrong_is_in_the_result(self, connect, stand_in: StandIn) -> None:
        stand_in.not_ready = MODELS[:1]
        status: Status = connect(stand_in.url).status()
        assert (status.ok, status.latency_s, status.head_id) == (False, None, None)
        assert [check.ok for check in status.checks] == [True, False, True, None]
        assert isinstance(status.checks[1].error, ModelMissing)

    def test_all_is_right(self, connect, stand_in: StandIn) -> None:
        status: Status = connect(stand_in.url).status(max_latency_s=60)
        assert (status.ok, status.head_id) == (True, HEAD)

    @pytest.mark.parametrize("seconds", [0, -1, float("nan")])
    def test_a_latency_is_over_zero(self, seconds: float) -> None:
        with VizwizClient() as client, pytest.raises(ValueError, match="expected a number of seconds over 0"):
            client.status(max_latency_s=seconds)

    def test_the_picture(self) -> None:
        picture = built_in_picture()
        assert len(picture) < 5_000
        image = Image.open(io.BytesIO(picture))
        assert (image.size, image.getpixel((160, 120)), image.getpixel((0, 0))) == (
            (320, 240),
            (255, 0, 0),
            (255, 255, 255),
        )


def test_nothing_is_written(status, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status(stand_in.url)
    assert list(tmp_path.iterdir()) == []
