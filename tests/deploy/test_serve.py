"""The container's command, on a real Triton: what it restricts, what it keeps open, and how it stops."""

from __future__ import annotations

import base64
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from deploy import serve
from deploy.watch import stubs
from serving.launch import NO_CORE
from tests.conftest import ROOT, LiveServer
from tests.deploy.conftest import KEY, RAW_ENSEMBLE, START_S, Deployed
from vizwiz_client import VizwizClient
from vizwiz_client.contract.tensors import CONTEXT_LENGTH, ENSEMBLE, IMAGE, IMAGE_BYTES, QUESTION, TOKENS
from vizwiz_client.contract.tokenizer import END_OF_TEXT, START_OF_TEXT

HEADERS = {serve.ADMIN_HEADER: KEY}


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
    @pytest.mark.parametrize("headers", [{}, {serve.ADMIN_HEADER: KEY[:-1]}], ids=["no key", "wrong key"])
    def test_http(self, deployed: Deployed, method: str, path: str, headers: dict[str, str]) -> None:
        assert deployed.http(method, path, headers=headers)[0] == http.client.FORBIDDEN
        assert deployed.http("GET", f"/v2/models/{ENSEMBLE}/ready")[0] == http.client.OK

    def test_http_with_the_key(self, deployed: Deployed) -> None:
        status, index = deployed.http("POST", "/v2/repository/index", headers=HEADERS)
        assert status == http.client.OK
        assert all(ensemble.encode() in index for ensemble in serve.ENSEMBLES)

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
                call(headers={f"triton-grpc-protocol-{serve.ADMIN_HEADER}": KEY})

    @pytest.mark.parametrize("path", ["", f"/models/{ENSEMBLE}", f"/models/{ENSEMBLE}/config", "/models/stats"])
    def test_what_describes_the_server_stays_readable(self, deployed: Deployed, path: str) -> None:
        assert deployed.http("GET", f"/v2{path}")[0] == http.client.OK

    def test_the_key_is_not_in_the_log(self, deployed: Deployed) -> None:
        assert KEY not in deployed.log
        assert "successfully loaded" in deployed.log


@pytest.mark.parametrize("ensemble", serve.ENSEMBLES)
def test_both_ensembles_are_ready(deployed: Deployed, ensemble: str) -> None:
    assert deployed.http("GET", f"/v2/models/{ensemble}/ready")[0] == http.client.OK


def test_it_answers(deployed: Deployed, photo: Path) -> None:
    with VizwizClient(deployed.grpc_url) as client:
        assert 0 <= client.ask(photo, "what is this?").confidence <= 1


class TestKey:
    @pytest.mark.parametrize("text", ["", "guess", "a" * 31, "a" * 40 + ":b=c"], ids=["none", "5", "31", "44"])
    def test_unfit(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "key"
        path.write_text(text, encoding="utf-8")
        expected = rf"key must hold the key .* \(got {len(text)} characters\).*openssl rand -hex 32"
        with pytest.raises(SystemExit, match=expected) as error:
            serve.read_key(path)
        assert not text or text not in str(error.value)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=r"No such file.*openssl rand -hex 32"):
            serve.read_key(tmp_path / "key")


@pytest.fixture
def another(deployed: Deployed, tmp_path: Path) -> Iterator[Deployed]:
    server = Deployed(tmp_path, deployed.repository)
    server.start()
    yield server
    server.stop()


def test_a_stop_drains(another: Deployed, live_server: LiveServer) -> None:
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


def test_a_process_of_the_python_backend_that_dies_is_replaced(another: Deployed, photo: Path) -> None:
    another.wait_until_ready()
    (tritonserver,) = children(another.process.pid)
    (victim,) = [
        pid for pid, (_, model) in stubs(tritonserver, another.repository).items() if model.startswith("preprocess_")
    ]
    assert ask_raw(another, photo)[0] == http.client.OK
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + START_S
    while ask_raw(another, photo)[0] != http.client.OK:
        assert time.monotonic() < deadline, another.log
        time.sleep(0.2)
    assert "is loaded again" in another.log


def test_a_damaged_graph_is_refused_before_triton_starts(deployed: Deployed, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    shutil.copytree(deployed.repository, repository)
    serve.check_digests(repository)
    (head,) = repository.glob("gated_head_*/1/model.onnx")
    (labels,) = repository.glob("gated_head_*/answer.txt")
    whole = head.read_bytes()
    head.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(SystemExit, match=r"model\.onnx has SHA-256 [0-9a-f]{64}, its config\.pbtxt says"):
        serve.check_digests(repository)
    head.unlink()
    with pytest.raises(SystemExit, match="has SHA-256 none"):
        serve.check_digests(repository)
    head.write_bytes(whole)
    labels.write_text("another\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"answer\.txt has SHA-256"):
        serve.check_digests(repository)
    (key := tmp_path / "key").write_text(KEY, encoding="utf-8")
    command = [sys.executable, "-m", "deploy.serve", f"--repository={repository}", f"--admin-key-file={key}"]
    run = subprocess.run(command, cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert re.match(r"serve\.py: \S+answer\.txt has SHA-256", run.stderr), (
        run.stderr
    )  # there is no tritonserver to start


def test_it_dumps_no_core(another: Deployed) -> None:
    another.wait_until_ready()
    (tritonserver,) = children(another.process.pid)
    for pid in (tritonserver, *stubs(tritonserver, another.repository)):
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="utf-8")
        assert re.search(rf"Max core file size +{NO_CORE} +{NO_CORE} ", limits), limits


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()]


def ask_raw(server: Deployed, photo: Path) -> tuple[int, bytes]:
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [data]}
        for name, data in (
            (IMAGE_BYTES.name, base64.b64encode(photo.read_bytes()).decode()),
            (QUESTION.name, "what is this?"),
        )
    ]
    return server.http("POST", f"/v2/models/{RAW_ENSEMBLE}/infer", {"inputs": inputs})


def _request(side: int) -> tuple[InferInput, InferInput]:
    image = InferInput(IMAGE.name, [1, side, side, 3], IMAGE.datatype)
    tokens = InferInput(TOKENS.name, [1, CONTEXT_LENGTH], TOKENS.datatype)
    image.set_data_from_numpy(np.zeros([1, side, side, 3], IMAGE.dtype))
    ids = np.zeros([1, CONTEXT_LENGTH], TOKENS.dtype)
    ids[0, :3] = START_OF_TEXT, 320, END_OF_TEXT
    tokens.set_data_from_numpy(ids)
    return image, tokens
