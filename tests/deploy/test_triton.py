"""The manifests' shell lines on a real Triton: what they refuse, what they restrict, and how they stop it."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from tests.conftest import LiveServer
from tests.deploy.conftest import KEY, STOP_S, Deployed
from tests.deploy.manifests import Lines, compose_lines, kubernetes_lines
from vizwiz_client import VizwizClient
from vizwiz_client.contract.tensors import CONTEXT_LENGTH, ENSEMBLE, IMAGE, TOKENS
from vizwiz_client.contract.tokenizer import END_OF_TEXT, START_OF_TEXT

HEADER = "vizwiz-admin-key"
MANIFESTS = pytest.mark.parametrize("lines", [compose_lines(), kubernetes_lines()], ids=["compose", "kubernetes"])


class TestRestrictedAPIs:
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", "/v2/repository/index"),
            ("POST", f"/v2/repository/models/{ENSEMBLE}/unload"),
            ("GET", "/v2/systemsharedmemory/status"),
            ("GET", "/v2/trace/setting"),
            ("GET", "/v2/logging"),
        ],
    )
    @pytest.mark.parametrize("headers", [{}, {HEADER: KEY[:-1]}], ids=["no key", "wrong key"])
    def test_http(self, deployed: Deployed, method: str, path: str, headers: dict[str, str]) -> None:
        assert deployed.http(method, path, headers=headers)[0] == http.client.FORBIDDEN
        assert deployed.http("GET", f"/v2/models/{ENSEMBLE}/ready")[0] == http.client.OK

    def test_grpc(self, deployed: Deployed) -> None:
        with InferenceServerClient(deployed.grpc_url) as client:
            for call in (
                client.get_model_repository_index,
                client.get_system_shared_memory_status,
                client.get_trace_settings,
                client.get_log_settings,
            ):
                with pytest.raises(InferenceServerException, match="restricted"):
                    call()
                call(headers={f"triton-grpc-protocol-{HEADER}": KEY})

    def test_the_key_is_not_in_the_log(self, deployed: Deployed) -> None:
        assert KEY not in deployed.log
        assert "successfully loaded" in deployed.log


def test_it_answers(deployed: Deployed, photo: Path) -> None:
    with VizwizClient(deployed.grpc_url) as client:
        assert 0 <= client.ask(photo, "what is this?").confidence <= 1


def test_no_core_dump_and_a_large_stack(deployed: Deployed) -> None:
    """Triton copies an HTTP body of a form to the stack twice; a core dump would hold photos."""
    limits = Path(f"/proc/{deployed.process.pid}/limits").read_text(encoding="utf-8")
    assert re.search(r"Max core file size +0 +0 ", limits), limits
    assert re.search(rf"Max stack size +{256 << 20} ", limits), limits


def test_triton_takes_the_place_of_the_shell(deployed: Deployed) -> None:
    """Signals reach the container's first process alone."""
    assert Path(f"/proc/{deployed.process.pid}/comm").read_text(encoding="utf-8").strip() == "tritonserver"


@MANIFESTS
@pytest.mark.parametrize("key", [None, "", "guess", "a" * 31, "a" * 40 + ",b:c"])
def test_an_unfit_key_is_refused(lines: Lines, key: str | None, deployed: Deployed, tmp_path: Path) -> None:
    server = Deployed(lines, backends(deployed, tmp_path), deployed.repository, key)
    server.start()
    assert server.process.wait(STOP_S) == 1
    assert server.log.endswith("must hold 32 or more of A-Z a-z 0-9 _ -: write it with openssl rand -hex 32\n")
    assert not key or key not in server.log


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


CHANGES: dict[str, Callable[[Path], None]] = {
    "a changed graph": lambda head: flip(head / "1" / "model.onnx"),
    "no graph": lambda head: (head / "1" / "model.onnx").unlink(),
    "other labels": lambda head: (head / "answer.txt").write_text("another\n"),
    "no digests": lambda head: (head / "SHA256SUMS").unlink(),
    "no digest in the list": lambda head: (head / "SHA256SUMS").write_text(""),
    "a digest that is none": lambda head: (head / "SHA256SUMS").write_text("abc  1/model.onnx\n"),
    "no model": shutil.rmtree,
    "no ensemble": lambda head: (head.parent / ENSEMBLE / "config.pbtxt").unlink(),
}


@MANIFESTS
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_refused(
    lines: Lines, change: str, deployed: Deployed, live_server: LiveServer, tmp_path: Path
) -> None:
    repository = Path(shutil.copytree(deployed.repository, tmp_path / "models"))
    CHANGES[change](repository / live_server.head)
    server = Deployed(lines, backends(deployed, tmp_path), repository)
    server.start()
    assert server.process.wait(STOP_S) == 1
    refused = ENSEMBLE if change == "no ensemble" else live_server.head
    assert server.log.endswith(
        f"{refused} is not what export wrote: publish it again with python -m export.to_onnx\n"
    ), server.log


@pytest.fixture
def another(request: pytest.FixtureRequest, deployed: Deployed, tmp_path: Path) -> Iterator[Deployed]:
    server = Deployed(request.getfixturevalue("lines"), backends(deployed, tmp_path), deployed.repository)
    server.start()
    yield server
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()


@MANIFESTS
def test_a_stop_drains(lines: Lines, another: Deployed, live_server: LiveServer) -> None:
    another.wait_until_ready()
    answered, busy = [0] * 8, threading.Event()
    refusals: list[str] = []

    def ask(number: int) -> None:
        image, tokens = _request(live_server.image_size)
        with InferenceServerClient(another.grpc_url) as client:
            try:
                while True:
                    client.infer(ENSEMBLE, [image, tokens], client_timeout=60)
                    answered[number] += 1
                    if min(answered) >= 5:
                        busy.set()
            except InferenceServerException as error:
                refusals.append(error.message())

    threads = [threading.Thread(target=ask, args=[number]) for number in range(len(answered))]
    for thread in threads:
        thread.start()
    assert busy.wait(60)
    assert another.stop() == 0
    for thread in threads:
        thread.join()
    assert len(refusals) == len(threads)
    for text in refusals:  # turned away at the door, not thrown out half-way
        assert f"Request for unknown model: '{ENSEMBLE}'" in text


def backends(deployed: Deployed, folder: Path) -> Path:
    """A folder for another server, with the backends of ``deployed``: copying them takes a while."""
    (folder / "backends").symlink_to(deployed.folder / "backends")
    return folder


def _request(side: int) -> tuple[InferInput, InferInput]:
    image = InferInput(IMAGE.name, [1, side, side, 3], IMAGE.datatype)
    tokens = InferInput(TOKENS.name, [1, CONTEXT_LENGTH], TOKENS.datatype)
    image.set_data_from_numpy(np.zeros([1, side, side, 3], IMAGE.dtype))
    ids = np.zeros([1, CONTEXT_LENGTH], TOKENS.dtype)
    ids[0, :3] = START_OF_TEXT, 320, END_OF_TEXT
    tokens.set_data_from_numpy(ids)
    return image, tokens
