"""What goes wrong on a real machine: processes die, clients misbehave, too much comes at once. Each wait has an end."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from serving import ports, watch
from serving.admin import ask_http
from serving.errors import ServingError
from serving.golden import read_golden
from serving.repository import ensembles, read_config
from serving.server import EmbeddedTriton
from tests.serving import malformed
from tests.serving.load import Load
from tests.serving.slow_encoder import slow_down
from tests.serving.test_lifecycle import Command, eventually, metrics
from tests.serving.tiny_repository import (
    HEAD,
    IMAGE_MODEL,
    SIDE,
    TEXT_MODEL,
    ask,
    change_config,
    expected_answer,
    write_head,
)
from vizwiz_client.contract import tensors

IMAGE, TOKENS = np.ones((1, SIDE, SIDE, 3), np.uint8), np.ones((1, 8), np.int32)
RECOVERED_WITHIN_S = 60  # on a busy machine; alone it takes a second


def answers(client: InferenceServerClient) -> bool:
    """Whether a good request is answered, and rightly."""
    try:
        result = ask(client, IMAGE, TOKENS)
    except InferenceServerException:
        return False
    np.testing.assert_array_equal(result.as_numpy("answer"), expected_answer(IMAGE, TOKENS))
    return True


def outcome(server: EmbeddedTriton) -> str:
    """What comes back to one request: "answered", or the status of the error."""
    with InferenceServerClient(server.grpc_url) as client:
        try:
            ask(client, IMAGE, TOKENS)
        except InferenceServerException as error:
            return f"{error.status()}: {error.message()}"
        return "answered"


def outcomes(server: EmbeddedTriton, count: int) -> Counter[str]:
    """What comes back to ``count`` requests that are sent at once."""
    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(lambda _: outcome(server), range(count)))


# processes die


@pytest.fixture(scope="module")
def watched(tiny_repository: Path) -> Iterator[tuple[EmbeddedTriton, list[str]]]:
    """A server, and what it has said since it started."""
    said: list[str] = []
    server = EmbeddedTriton(tiny_repository)
    server.start(report=said.append)
    yield server, said
    server.stop()


@pytest.mark.parametrize(
    "model", [TEXT_MODEL, pytest.param(IMAGE_MODEL, marks=pytest.mark.slow), pytest.param(HEAD, marks=pytest.mark.slow)]
)
def test_a_backend_process_that_is_killed_comes_back(watched: tuple[EmbeddedTriton, list[str]], model: str) -> None:
    """Until then no request hangs, and the probe does not say that all is well."""
    server, said = watched
    feed = read_golden(server.repository, HEAD).feed(SIDE, -1)
    with Load(server.grpc_url, server.repository, feed) as load:
        load.wait_for(5)
        stubs = watch.stubs(server._process.pid, server._log.models)
        os.kill(next(pid for pid, (_, name) in stubs.items() if name == model), signal.SIGKILL)
        unready = eventually(lambda: server._readiness() != 200, RECOVERED_WITHIN_S)
        assert unready, "the ensemble was called ready while one of its models was dead"
        assert eventually(lambda: server._readiness() == 200, RECOVERED_WITHIN_S)
        came_back = time.monotonic()
        load.wait_for(5)
    assert said[-2:] == [f"a process of {model} died: loading the model again", f"{model} is loaded again"]
    assert [reply for reply in load.replies if reply.error], "no request met the dead process: the test proves nothing"
    assert not [reply.error for reply in load.replies if reply.error and reply.sent > came_back]


def test_a_process_that_dies_between_an_export_and_its_reload_comes_back(own_repository: Path) -> None:
    """The repository names another head by then; what is served is what has to come back."""
    new = "gated_head_0000000000aa"
    said: list[str] = []
    server = EmbeddedTriton(own_repository)
    server.start(report=said.append)
    try:
        write_head(own_repository / new, ("mug", "cup", "unanswerable"), 2.0)
        for name in ensembles(own_repository):
            config = own_repository / name / "config.pbtxt"
            config.write_text(config.read_text().replace(HEAD, new))
        stubs = watch.stubs(server._process.pid, server._log.models)
        os.kill(next(pid for pid, (_, name) in stubs.items() if name == HEAD), signal.SIGKILL)
        assert eventually(lambda: said[-1:] == [f"{HEAD} is loaded again"], RECOVERED_WITHIN_S), said
        assert eventually(lambda: server._readiness() == 200, RECOVERED_WITHIN_S)
    finally:
        server.stop()


def test_two_servers_on_one_port(tiny_repository: Path) -> None:
    """The second one is not ready because the first one answers there, and does not take its ensembles down."""
    with EmbeddedTriton(tiny_repository) as first:
        second = EmbeddedTriton(tiny_repository)
        claimed, taken = ports.claim_ports, first._ports["--http-port"]
        with pytest.MonkeyPatch.context() as patch:  # as if the first one had not listened yet when that was checked
            patch.setattr(ports, "claim_ports", lambda wanted, hosts: claimed(wanted, hosts) | {"--http-port": taken})
            with pytest.raises(ServingError, match="Triton cannot serve"):
                second.start()
        assert first._readiness() == 200


def test_a_process_with_an_odd_name_hinders_nobody() -> None:
    """The kernel cuts a name at 15 bytes, in the middle of a letter."""
    rename = "ctypes.CDLL(None).prctl(15, 'выдающийся'.encode())"  # PR_SET_NAME, prctl(2)
    script = f"import ctypes, time; {rename}; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(UnicodeDecodeError):
                Path(f"/proc/{process.pid}/stat").read_text()
            assert watch.stubs(os.getpid(), Path("/")) == {}
        finally:
            process.kill()


def test_a_server_that_is_killed_and_started_again_is_found_by_its_clients(tiny_repository: Path) -> None:
    with EmbeddedTriton(tiny_repository) as first, InferenceServerClient(first.grpc_url) as client:
        ports = {f"{name}_port": int(first._ports[f"--{name}-port"]) for name in ("http", "grpc", "metrics")}
        assert answers(client)
        os.killpg(first._process.pid, signal.SIGKILL)
        assert first._process.wait(timeout=30) == -signal.SIGKILL
        assert not answers(client)
        folder = first.log.parent
        assert list(Path("/dev/shm").glob(f"{folder.name}*")), "nothing was left: the test proves nothing"
        first.stop()
        assert not folder.exists()
        assert list(Path("/dev/shm").glob(f"{folder.name}*")) == []
        with EmbeddedTriton(tiny_repository, **ports):  # type: ignore[arg-type]
            assert eventually(lambda: answers(client), RECOVERED_WITHIN_S), "the same connection does not recover"


def test_sigterm_under_load_answers_what_was_taken(own_repository: Path) -> None:
    def delay(config: Any) -> None:
        config.dynamic_batching.max_queue_delay_microseconds = 2_000_000

    change_config(own_repository / TEXT_MODEL, delay)
    pending = f'pending_request_count{{model="{TEXT_MODEL}",version="1"}} 4'
    with (
        Command(own_repository) as served,
        ThreadPoolExecutor(4) as pool,
        InferenceServerClient(served.addresses["grpc"]) as client,
    ):
        metrics_url = served.addresses["metrics"]
        taken = [pool.submit(ask, client, IMAGE, TOKENS) for _ in range(4)]
        assert eventually(lambda: pending in metrics(metrics_url))
        served.process.send_signal(signal.SIGTERM)
        for request in taken:
            answer = request.result(timeout=30).as_numpy("answer")
            np.testing.assert_array_equal(answer, expected_answer(IMAGE, TOKENS))
        assert served.end().splitlines()[-1] == "serving: stopped"
        assert not answers(client)
        assert served.process.returncode == 0


def test_a_request_that_ends_triton_costs_seconds_and_not_the_service(tiny_repository: Path) -> None:
    """Triton 2.51 aborts at a JSON shape that is too large to count; `python -m serving` starts it again."""
    inputs = malformed.good_inputs(SIDE)
    inputs[1]["shape"] = malformed.FATAL_SHAPE
    with Command(tiny_repository) as served, InferenceServerClient(served.addresses["grpc"]) as client:
        assert answers(client)
        assert malformed.send_http(served.addresses["http"], json.dumps({"inputs": inputs}).encode(), {}) == 0
        assert eventually(lambda: answers(client), RECOVERED_WITHIN_S)
        assert len(served.processes()) == 4
        assert len(served.shared_memory()) == 3
        served.process.send_signal(signal.SIGTERM)
        said = served.end()
        assert "serving: tritonserver ended with SIGABRT, unasked; its log says:\n" in said
        assert served.process.returncode == 0
        assert served.leaves_no_trace()


# too much at once


def _time_out(config: Any) -> None:
    """A limit of the time in the queue, which a step that runs beside another may have; one of its length may not."""
    config.dynamic_batching.default_queue_policy.default_timeout_microseconds = 300_000


def _limit_the_queue(config: Any) -> None:
    config.dynamic_batching.default_queue_policy.max_queue_size = 3


def _leave_the_text_out(config: Any) -> None:
    """An ensemble with one first step, as where photos are decoded on the server."""
    del config.ensemble_scheduling.step[1]
    config.ensemble_scheduling.step[1].input_map[tensors.TEXT_FEATURES.name] = tensors.IMAGE_FEATURES.name
    del config.input[1]


@pytest.mark.parametrize(
    ("edit_encoder", "edit_ensemble", "refusal"),
    [
        (_time_out, lambda config: None, "Request timeout expired"),
        pytest.param(_limit_the_queue, _leave_the_text_out, "Exceeds maximum queue size", marks=pytest.mark.slow),
    ],
    ids=["time limit", "length limit"],
)
def test_more_than_can_be_done_is_refused_and_not_kept_waiting(
    own_repository: Path,
    edit_encoder: Callable[[Any], None],
    edit_ensemble: Callable[[Any], None],
    refusal: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow_down(own_repository / IMAGE_MODEL)
    for model in (IMAGE_MODEL, TEXT_MODEL, HEAD, tensors.ENSEMBLE):
        change_config(own_repository / model, lambda config: setattr(config, "max_batch_size", 1))
    change_config(own_repository / IMAGE_MODEL, edit_encoder)
    change_config(own_repository / tensors.ENSEMBLE, edit_ensemble)
    one_input = len(read_config(own_repository / tensors.ENSEMBLE).input) == 1
    with EmbeddedTriton(own_repository) as server:
        monkeypatch.setattr("tests.serving.test_faults.ask", _ask_image if one_input else ask)
        for _ in range(2):
            counted = outcomes(server, 32)
            assert counted["answered"] >= 1
            assert counted.total() - counted["answered"] == sum(
                count for text, count in counted.items() if "UNAVAILABLE" in text and refusal in text
            ), counted
            assert counted["answered"] < 32, "nothing was too much: the test proves nothing"
        assert outcome(server) == "answered"
        assert server._readiness() == 200


def _ask_image(client: InferenceServerClient, image: Any, tokens: Any) -> Any:
    tensor = InferInput("image", list(image.shape), "UINT8").set_data_from_numpy(image)
    return client.infer(tensors.ENSEMBLE, [tensor], client_timeout=20)


# clients misbehave


@pytest.fixture
def still_well(server: EmbeddedTriton, client: InferenceServerClient) -> Iterator[None]:
    """The server lives, and answers, before the test and after it."""
    assert answers(client)
    yield
    assert server._process.poll() is None
    assert server._readiness() == 200
    assert answers(client)


@pytest.mark.usefixtures("still_well")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_malformed_requests_are_refused_each(server: EmbeddedTriton, client: InferenceServerClient, seed: int) -> None:
    """500 of them, half over HTTP, half over gRPC; a good one is answered in between."""
    inputs, message = malformed.good_inputs(SIDE), malformed.good_message(SIDE)
    dice = random.Random(seed)
    statuses: Counter[Any] = Counter()
    for part in range(5):
        statuses += malformed.send_all(100, server.http_url, server.grpc_url, inputs, message, dice)
        assert answers(client), f"after part {part} of seed {seed}"
    malformed.check_refusals(statuses)


def test_the_requests_that_the_malformed_ones_are_made_of_are_good(server: EmbeddedTriton) -> None:
    body = json.dumps({"inputs": malformed.good_inputs(SIDE)}).encode()
    assert malformed.send_http(server.http_url, body, {}) == 200


@pytest.mark.usefixtures("still_well")
def test_clients_that_trickle_or_say_nothing_hold_nobody_up(
    server: EmbeddedTriton, client: InferenceServerClient
) -> None:
    head = f"POST /v2/models/{tensors.ENSEMBLE}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode()
    with ExitStack() as stack:
        slow = []
        for url, opening in ((server.http_url, head), (server.grpc_url, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")):
            host, port = url.split(":")
            for sent in [0, 5, *range(20, 20 + 48), len(opening)]:
                connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
                connection.sendall(opening[:sent])
                slow.append(connection)
        for _ in range(5):
            for connection in slow[1::9]:
                with suppress(OSError):  # the server may hang up
                    connection.sendall(b"{")
            assert answers(client)
            assert ask_http(server.http_url, "GET", f"models/{tensors.ENSEMBLE}/ready")[0] == 200


@pytest.mark.usefixtures("still_well")
def test_too_large_requests_are_refused(server: EmbeddedTriton, client: InferenceServerClient) -> None:
    many = tensors.MAX_BATCH_SIZE + 1
    with pytest.raises(InferenceServerException, match="batch-size must be <= 64"):
        ask(client, np.repeat(IMAGE, many, axis=0), np.repeat(TOKENS, many, axis=0))
    with pytest.raises(InferenceServerException, match="unexpected shape for input 'image'"):
        ask(client, np.zeros((1, 4000, 4000, 3), np.uint8), TOKENS)
    assert malformed.send_http(server.http_url, b" " * 64_000_000, {}) in (0, 400, 500)
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # curl's default, which goes through the stack
    assert malformed.send_http(server.http_url, b" " * 64_000_000, form) in (400, 500)
    assert malformed.send_http(server.http_url, b"", {"X-Large": "a" * 1_000_000}) in (0, 400, 431)
    host, port = server.http_url.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:  # more than any memory, then silence
        connection.sendall(b"POST /v2/models/vizwiz_vqa/infer HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n{")
        assert answers(client)
