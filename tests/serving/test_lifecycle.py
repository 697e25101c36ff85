"""``python -m serving`` starts, restarts what dies, and ends without a trace however it is ended."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from serving import ServingError, access, process
from serving import server as server_module
from serving.golden import read_golden
from serving.process import stubs
from serving.server import EmbeddedTriton
from serving.workspace import MAX_SAVED_LOGS, PREFIX, Log, Workspace, remove_stale_workspaces
from tests.serving import malformed
from tests.serving.load import Load
from tests.serving.processes import (
    RECOVERY_TIMEOUT_S,
    SERVE,
    Command,
    eventually,
    is_ready,
    metrics,
    processes_of,
    shared_memory_of,
)
from tests.serving.tiny_repository import HEAD, IMAGE_MODEL, SIDE, TEXT_MODEL, ask, change_config, expected_answer
from vizwiz_client.contract import tensors

IMAGE, TOKENS = np.ones((1, SIDE, SIDE, 3), np.uint8), np.ones((1, 8), np.int32)


def answers(client: InferenceServerClient) -> bool:
    """Whether a good request is answered, and rightly."""
    try:
        result = ask(client, IMAGE, TOKENS)
    except InferenceServerException:
        return False
    np.testing.assert_array_equal(result.as_numpy("answer"), expected_answer(IMAGE, TOKENS))
    return True


@pytest.fixture
def serve(tiny_repository: Path) -> Iterator[Command]:
    with Command(tiny_repository) as served:
        assert len(served.processes()) == 4, "a server and three models: else the tests below prove nothing"
        assert len(served.shared_memory()) == 3
        yield served


# the end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_it_without_a_trace(serve: Command, number: signal.Signals) -> None:
    assert is_ready(serve.addresses["http"])
    os.killpg(serve.process.pid, number)  # the whole group, as a terminal's Ctrl-C
    assert serve.end().splitlines()[-1] == "serving: stopped"
    assert serve.process.returncode == 0
    assert serve.leaves_no_trace()


def test_sigterm_drains_the_requests_in_flight(own_repository: Path) -> None:
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


def test_a_stop_in_the_middle_of_a_start_leaves_no_trace(tiny_repository: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [*SERVE, f"--repository={tiny_repository}"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "waiting for the models to load" in process.stderr.readline()
            assert eventually(lambda: list(tmp_path.glob(f"{PREFIX}*/server.log")))
            (folder,) = tmp_path.glob(f"{PREFIX}*")
            process.terminate()
            assert process.communicate(timeout=30)[1] == "serving: stopped\n"
        finally:
            process.kill()
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []
    assert shared_memory_of(folder) == []


def test_the_server_ends_with_a_killed_parent_and_the_next_start_cleans_up(
    serve: Command, server: EmbeddedTriton
) -> None:
    os.kill(serve.triton(), signal.SIGSTOP)  # it takes its time to end
    serve.process.kill()
    serve.process.wait()
    remove_stale_workspaces()
    assert len(serve.shared_memory()) == 3, "the shared memory of a live server was removed"
    os.kill(serve.triton(), signal.SIGCONT)
    assert eventually(lambda: not serve.processes())
    # the lock goes with the last process; from then on any start cleans up, one in another process of tests too
    assert eventually(lambda: remove_stale_workspaces() or serve.leaves_no_trace())
    assert server.log.exists(), "the workspace of a live server was removed"


def test_the_workspace_of_a_killed_server_is_removed_and_its_log_saved(serve: Command) -> None:
    before = set(Path(tempfile.gettempdir()).glob(f"{PREFIX}*.log"))
    for pid in [serve.process.pid, *serve.processes()]:
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not serve.processes())
    assert eventually(lambda: remove_stale_workspaces() or serve.leaves_no_trace())  # as above
    (copy,) = set(Path(tempfile.gettempdir()).glob(f"{PREFIX}*.log")) - before
    assert "Started GRPCInferenceService" in copy.read_text(encoding="utf-8", errors="replace")
    copy.unlink()


# User 65534, who may read the Python of root's home folder, but not remove others' files. Triton finds its libraries by
# access(2), which grants only what the folders' modes do.
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
NOBODY += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


@pytest.mark.skipif(
    os.getuid() != 0
    or not shutil.which("setpriv")
    or subprocess.run([*NOBODY, "test", "-x", sys.prefix], stderr=subprocess.DEVNULL).returncode != 0,
    reason="acting as another user needs root, setpriv and a checkout that others may read",
)
def test_another_users_shared_memory_stops_neither_restart_nor_clean_up(tiny_repository: Path) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # pytest's own is for its user alone
        repository = Path(shutil.copytree(tiny_repository, folder / "models"))
        for each in (folder, repository):
            each.chmod(0o755)
        served = stack.enter_context(Command(repository, prefix=NOBODY))
        others = Path(f"/dev/shm/{served.folder.name}_others")
        others.touch(0o600)
        stack.callback(others.unlink)
        os.chown(others, 12345, 12345)
        assert served.folder.stat().st_uid == 65534
        os.kill(served.triton(), signal.SIGKILL)  # the supervisor removes the shared memory and restarts it
        assert eventually(lambda: not is_ready(served.addresses["http"]))
        assert eventually(lambda: is_ready(served.addresses["http"]), RECOVERY_TIMEOUT_S)
        for pid in [served.process.pid, *served.processes()]:
            os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: not served.processes())
        script = "import serving.workspace as w; w.remove_stale_workspaces(); w.Workspace().__exit__()"
        assert eventually(
            lambda: subprocess.run([*NOBODY, sys.executable, "-c", script], check=True) and not served.folder.exists()
        )
        assert served.shared_memory() == [others]


# restarts


@pytest.mark.parametrize(
    "victim",
    ["tritonserver", TEXT_MODEL, *(pytest.param(model, marks=pytest.mark.slow) for model in (IMAGE_MODEL, HEAD))],
)
def test_a_killed_process_restarts_the_server(tiny_repository: Path, victim: str) -> None:
    """No request hangs or is answered wrongly, and the same connections recover."""
    said: list[str] = []
    server = EmbeddedTriton(tiny_repository)
    server.start(report=said.append)
    try:
        feed = read_golden(server.repository, HEAD).feed([tensors.ImageInput(tensors.IMAGE.name, SIDE)])
        with Load(server.grpc_url, server.repository, feed) as load:
            load.wait_for(5)
            workspace = server.log.parent
            old = server._process.pid
            (pid,) = processes_of(workspace, victim) if victim != "tritonserver" else [old]
            os.kill(pid, signal.SIGKILL)
            assert eventually(lambda: said and said[-1].startswith("ready again, after "), RECOVERY_TIMEOUT_S)
            load.wait_for(5)
            failed = [reply.sent for reply in load.replies if reply.error]
            assert failed, "no request met the dead process: the test proves nothing"
            assert eventually(lambda: not any(reply.error for reply in load.replies[-5:]), RECOVERY_TIMEOUT_S)
        expected = "tritonserver ended with SIGKILL" if pid == old else f"the backend process of {victim} died"
        assert any(line.startswith(f"{expected}; its log says:\n") for line in said)
        assert not Path(f"/proc/{old}").exists()
        regions = shared_memory_of(workspace)
        assert len(regions) == 3, "the shared memory of dead processes was left"
        assert {path.stat().st_mode & 0o077 for path in regions} == {0}
    finally:
        server.stop()
    assert not workspace.exists()
    assert shared_memory_of(workspace) == []


def test_a_repository_that_is_moved_away_does_not_end_its_server(
    own_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton answers the query of its index with an error then; the loaded models do not need the folder."""
    monkeypatch.setattr(process, "POLLS_PER_INDEX", 1)
    said: list[str] = []
    server = EmbeddedTriton(own_repository)
    server.start(report=said.append)
    try:
        own_repository.rename(own_repository.with_name("elsewhere"))
        assert server._process is not None
        status = server._process._address.request("POST", "repository/index")[0]
        assert status != 200, "Triton reads its index all the same: the test proves nothing"
        time.sleep(3 * server_module.POLL_INTERVAL_S)
        with InferenceServerClient(server.grpc_url) as client:
            assert answers(client)
        assert said == []
    finally:
        server.stop()


def test_a_start_that_crashes_is_tried_once_more(tiny_repository: Path) -> None:
    said: list[str] = []
    server = EmbeddedTriton(tiny_repository)

    def crash() -> None:
        assert eventually(lambda: server._started and bool(processes_of(server.log.parent, HEAD)))
        os.kill(server._process.pid, signal.SIGABRT)

    with ThreadPoolExecutor() as pool:
        crashed = pool.submit(crash)
        server.start(report=said.append)
    crashed.result()
    assert len(shared_memory_of(server.log.parent)) == 3
    server.stop()
    line = said[0]  # on a busy machine Triton's own abort may follow
    assert line.startswith(f"Triton cannot serve {tiny_repository}: tritonserver ended with SIGABRT\n")
    assert line.endswith("\nstarting it once more")


def test_restarts_pause_longer_each_time_and_the_log_survives(serve: Command) -> None:
    address, log = serve.addresses["http"], Path(serve.addresses["log"])
    before = log.read_bytes()
    for _ in range(3):
        os.kill(serve.triton(), signal.SIGKILL)
        assert eventually(lambda: not is_ready(address))
        assert eventually(lambda: is_ready(address), RECOVERY_TIMEOUT_S)
    assert log.read_bytes().startswith(before)
    assert log.read_bytes().count(b"Started GRPCInferenceService") == 4
    serve.process.send_signal(signal.SIGTERM)
    said = serve.end()
    assert said.count("tritonserver ended with SIGKILL") == 3
    assert said.count(f"\nserver log: {log}\n") == 3
    assert re.findall(r"\nrestarting it(.*)\n", said) == ["", " in 1 s", " in 3 s"]
    assert serve.process.returncode == 0
    assert eventually(serve.leaves_no_trace)


def test_a_request_that_crashes_triton_costs_a_restart(serve: Command) -> None:
    """Triton 2.51 aborts at a JSON shape that is too large to count."""
    inputs = malformed.good_inputs(SIDE)
    inputs[1]["shape"] = malformed.FATAL_SHAPE
    with InferenceServerClient(serve.addresses["grpc"]) as client:
        assert malformed.send_http(serve.addresses["http"], json.dumps({"inputs": inputs}).encode(), {}) == 0
        assert eventually(lambda: answers(client), RECOVERY_TIMEOUT_S)
    serve.process.send_signal(signal.SIGTERM)
    assert "serving: tritonserver ended with SIGABRT; its log says:\n" in serve.end()
    assert serve.process.returncode == 0
    assert serve.leaves_no_trace()


def test_a_server_that_cannot_restart_stays_down(serve: Command) -> None:
    (serve.folder / "backends" / "python" / "libtriton_python.so").write_bytes(b"no library")
    os.kill(serve.triton(), signal.SIGKILL)
    said = serve.end()
    assert "restarting it\n" in said
    assert "Triton cannot serve" in said.rpartition("serving: error: ")[2]
    saved = Path(said.rpartition("\nserver log: ")[2].strip())
    text = saved.read_text()
    saved.unlink()
    assert "Started GRPCInferenceService" in text, "the part before the restart is missing"
    assert "libtriton_python.so" in text
    assert serve.process.returncode == 1
    assert not is_ready(serve.addresses["http"])
    assert eventually(serve.leaves_no_trace)


def test_three_failed_restarts_end_the_server(serve: Command) -> None:
    port = int(serve.addresses["grpc"].rpartition(":")[2])
    with socket.socket() as other:  # Triton cannot listen any more, and exits
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def takes_the_port() -> bool:
            try:
                other.bind(("127.0.0.1", port))
            except OSError:
                if is_ready(serve.addresses["http"]):  # a restart took it first
                    os.kill(serve.triton(), signal.SIGKILL)
                return False
            return True

        assert eventually(takes_the_port, RECOVERY_TIMEOUT_S)
        other.listen()
        said = serve.process.communicate(timeout=RECOVERY_TIMEOUT_S)[1]
    Path(said.rpartition("\nserver log: ")[2].strip()).unlink()
    assert "\n3 restarts have failed in a row\n" in said
    assert said.count("restarting it") == 3
    assert serve.process.returncode == 1
    assert eventually(serve.leaves_no_trace)


def test_a_process_with_a_name_that_is_no_utf8_is_skipped() -> None:
    """The kernel cuts a name at 15 bytes, in the middle of a letter."""
    rename = "ctypes.CDLL(None).prctl(15, 'выдающийся'.encode())"  # PR_SET_NAME, prctl(2)
    script = f"import ctypes, time; {rename}; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(UnicodeDecodeError):
                Path(f"/proc/{process.pid}/stat").read_text()
            assert stubs(os.getpid(), Path("/")) == {}
        finally:
            process.kill()


def test_two_servers_on_one_port(tiny_repository: Path) -> None:
    """The second is not ready because the first answers there, and does not unload the first one's ensemble."""
    with EmbeddedTriton(tiny_repository) as first:
        taken = int(first.http_url.rpartition(":")[2])
        claim = access.claim_ports
        with pytest.MonkeyPatch.context() as patch:  # as if the first had not listened yet when that was checked
            patch.setattr(
                server_module, "claim_ports", lambda wanted, hosts: claim(wanted, hosts) | {"--http-port": taken}
            )
            with pytest.raises(ServingError, match="Triton cannot serve"):
                EmbeddedTriton(tiny_repository).start()
        assert is_ready(first.http_url)


def test_a_stopped_server_starts_again_at_the_same_ports(tiny_repository: Path) -> None:
    server = EmbeddedTriton(tiny_repository)
    server.start()
    address = server.http_url
    server.stop()
    with pytest.raises(ServingError, match="the server was stopped"):
        server.wait()
    with server:
        assert server.http_url == address
        assert is_ready(address)
    assert not is_ready(address)


# the log


def test_a_server_that_does_not_start_saves_its_log(own_repository: Path) -> None:
    (own_repository / TEXT_MODEL / "1" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ServingError) as caught:
        EmbeddedTriton(own_repository).start()
    saved = Path(str(caught.value).rpartition("\nserver log: ")[2])
    assert saved.stat().st_mode & 0o777 == 0o600
    assert TEXT_MODEL in saved.read_text()
    saved.unlink()


def test_saved_logs_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "server.log").write_text("why")
    for _ in range(MAX_SAVED_LOGS + 2):
        with Workspace():
            saved = Log(tmp_path / "server.log", tmp_path, tmp_path).save()
    remove_stale_workspaces()
    logs = list(tmp_path.glob(f"{PREFIX}*"))
    assert len(logs) == MAX_SAVED_LOGS
    assert saved.read_text() == "why"


def test_the_log_is_bounded(tiny_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.workspace.MAX_LOG_BYTES", 10_000)
    with EmbeddedTriton(tiny_repository, verbose=True) as server, InferenceServerClient(server.grpc_url) as client:
        older = server.log.with_name("server.log.1")

        def rotated() -> bool:
            ask(client, IMAGE, TOKENS)
            return (not before or before != older.stat().st_mtime_ns) and server.log.stat().st_size <= 10_000

        for _ in range(2):  # each request writes some lines, which the log takes from its beginning again
            assert eventually(older.exists)
            before = older.stat().st_mtime_ns
            assert eventually(rotated, 60)
        ask(client, IMAGE, TOKENS)
        assert eventually(lambda: server.log.read_bytes()[:1] not in (b"", b"\0"))


def test_onnx_runtimes_telemetry_is_off(tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left on, it keeps a device id in the home folder and reports to its maker."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CI", "ORT_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    with EmbeddedTriton(tiny_repository):
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
