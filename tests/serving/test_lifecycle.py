"""``python -m serving`` as a process: it starts, says where, and ends without a trace however it is ended."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from serving import __main__ as command
from serving.admin import ask_http
from serving.errors import ServingError
from serving.runtime import find_runtime
from serving.server import EmbeddedTriton
from serving.workspace import KEPT_LOGS, PREFIX, Workspace, remove_leftovers
from tests.serving.tiny_repository import SIDE, TEXT_MODEL, ask, change_config, expected_answer
from vizwiz_client.contract import tensors

READY_WITHIN_S = 90  # on a busy machine; alone it takes a few seconds
SERVE = [sys.executable, "-m", "serving", *(f"--{name}-port=0" for name in ("http", "grpc", "metrics")), "--json"]


class Command:
    """As a context manager: a ``python -m serving`` that is ready, and where its traces are; it outlives no test."""

    def __init__(self, repository: Path, *flags: str, prefix: Sequence[str] = ()) -> None:
        self._command = [*prefix, *SERVE, f"--repository={repository}", *flags]

    def __enter__(self) -> Command:
        start = time.monotonic()
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        with ExitStack() as stack:
            stack.callback(self._kill)
            assert self.process.stdout is not None
            if not (line := self.process.stdout.readline()):
                raise AssertionError(f"the server did not start: {self.process.communicate()[1]}")
            self.addresses: dict[str, Any] = json.loads(line)
            self.seconds = time.monotonic() - start
            self.folder = Path(self.addresses["log"]).parent
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        processes = self.processes()
        self._kill()
        for pid in processes:  # a server ends with its parent, but one that was stopped (SIGSTOP) does not
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: remove_leftovers() or self.leaves_no_trace())

    def _kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> str:
        """Wait for the end and return what was said on standard error."""
        return self.process.communicate(timeout=30)[1]

    def processes(self) -> list[int]:
        """The server and its stubs, recognised by the folder in their command lines."""
        lines = {path.parent.name: _read(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
        return [int(pid) for pid, line in lines.items() if os.fsencode(self.folder) in line]

    def triton(self) -> int:
        return next(pid for pid in self.processes() if b"bin/tritonserver" in _read(Path(f"/proc/{pid}/cmdline")))

    def shared_memory(self) -> list[Path]:
        return list(Path("/dev/shm").glob(f"{self.folder.name}*"))

    def leaves_no_trace(self) -> bool:
        return not (self.processes() or self.shared_memory() or self.folder.exists())


@pytest.fixture
def serve(tiny_repository: Path) -> Iterator[Command]:
    with Command(tiny_repository) as served:
        assert len(served.processes()) == 4, "a server and three models: else the tests below prove nothing"
        assert len(served.shared_memory()) == 3
        yield served


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_it_without_a_trace(serve: Command, number: signal.Signals) -> None:
    assert serve.seconds <= READY_WITHIN_S
    with InferenceServerClient(serve.addresses["grpc"]) as client:
        assert client.is_model_ready(tensors.ENSEMBLE)
    os.killpg(serve.process.pid, number)  # the whole group, as a terminal's Ctrl-C
    assert serve.end().splitlines()[-1] == "serving: stopped"
    assert serve.process.returncode == 0
    assert serve.leaves_no_trace()


def test_the_server_ends_with_a_parent_that_is_killed_and_the_next_start_tidies_up(
    serve: Command, server: EmbeddedTriton
) -> None:
    os.kill(serve.triton(), signal.SIGSTOP)  # it takes its time to end
    serve.process.kill()
    serve.process.wait()
    remove_leftovers()
    assert len(serve.shared_memory()) == 3, "the shared memory of a server that lives was removed"
    os.kill(serve.triton(), signal.SIGCONT)
    assert eventually(lambda: not serve.processes())
    # the lock goes with the last process; from then on any start tidies up, one in another process of tests too
    assert eventually(lambda: remove_leftovers() or serve.leaves_no_trace())
    assert server.log.exists(), "the folder of a server that lives was removed"


def test_what_a_killed_server_left_is_removed_and_its_log_copied(serve: Command) -> None:
    before = set(Path(tempfile.gettempdir()).glob(f"{PREFIX}*.log"))
    for pid in [serve.process.pid, *serve.processes()]:
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not serve.processes())
    assert eventually(lambda: remove_leftovers() or serve.leaves_no_trace())  # as above
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
def test_another_users_files_in_shared_memory_stop_neither_server_nor_start(tiny_repository: Path) -> None:
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
        os.kill(served.triton(), signal.SIGKILL)  # the supervisor removes the shared memory, and starts it again
        assert eventually(lambda: not answers_http(served.addresses["http"]))
        assert eventually(lambda: answers_http(served.addresses["http"]), 120)
        for pid in [served.process.pid, *served.processes()]:
            os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: not served.processes())
        script = "import serving.workspace as w; w.remove_leftovers(); w.Workspace().__exit__()"
        assert eventually(
            lambda: subprocess.run([*NOBODY, sys.executable, "-c", script], check=True) and not served.folder.exists()
        )
        assert served.shared_memory() == [others]


def test_a_server_that_ends_by_itself_is_told_and_started_again_as_often_as_it_was_ready(serve: Command) -> None:
    address, log = serve.addresses["http"], Path(serve.addresses["log"])
    before = log.read_bytes()
    for _ in range(3):
        os.kill(serve.triton(), signal.SIGKILL)
        assert eventually(lambda: not answers_http(address))
        assert eventually(lambda: answers_http(address), 120)
    assert log.read_bytes().startswith(before)
    assert log.read_bytes().count(b"Started GRPCInferenceService") == 4
    serve.process.send_signal(signal.SIGTERM)
    said = serve.end()
    assert said.count("tritonserver ended with SIGKILL, unasked") == 3
    assert said.count(f"\nserver log: {log}\n") == 3
    assert re.findall(r"\nstarting it again(.*)\n", said) == ["", " in 1 s", " in 3 s"]
    assert serve.process.returncode == 0
    assert eventually(serve.leaves_no_trace)


def test_a_server_that_cannot_start_again_stays_down(serve: Command) -> None:
    address = serve.addresses["http"]
    (serve.folder / "backends" / "python" / "libtriton_python.so").write_bytes(b"no library")
    os.kill(serve.triton(), signal.SIGKILL)
    said = serve.end()
    assert "starting it again\n" in said
    assert "Triton cannot serve" in said.rpartition("serving: error: ")[2]
    kept = Path(said.rpartition("\nserver log: ")[2].strip())
    text = kept.read_text()
    kept.unlink()
    assert "Started GRPCInferenceService" in text, "what came before the restart is not in it"
    assert "libtriton_python.so" in text
    assert serve.process.returncode == 1
    assert not answers_http(address)
    assert eventually(serve.leaves_no_trace)


def test_a_server_that_does_not_start_leaves_its_log(own_repository: Path) -> None:
    (own_repository / TEXT_MODEL / "1" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ServingError) as caught:
        EmbeddedTriton(own_repository).start()
    kept = Path(str(caught.value).rpartition("\nserver log: ")[2])
    assert kept.stat().st_mode & 0o777 == 0o600
    assert TEXT_MODEL in kept.read_text()
    kept.unlink()


def test_logs_of_failed_servers_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "server.log").write_text("why")
    for _ in range(KEPT_LOGS + 2):
        with Workspace() as workspace:
            kept = workspace.keep_log(tmp_path / "server.log.1", tmp_path / "server.log")
    remove_leftovers()
    logs = list(tmp_path.glob(f"{PREFIX}*"))
    assert len(logs) == KEPT_LOGS
    assert kept.read_text() == "why"


def test_the_log_is_bounded(tiny_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.log.MAX_BYTES", 10_000)
    image, tokens = np.ones((1, SIDE, SIDE, 3), np.uint8), np.ones((1, 8), np.int32)
    with EmbeddedTriton(tiny_repository, verbose=True) as server, InferenceServerClient(server.grpc_url) as client:
        older = server.log.with_name("server.log.1")

        def rotated() -> bool:
            ask(client, image, tokens)
            return before != older.stat().st_mtime_ns and server.log.stat().st_size <= 10_000

        for _ in range(2):  # each request writes some lines, which the log takes from its beginning again
            before = older.stat().st_mtime_ns
            assert eventually(rotated, 60)
        ask(client, image, tokens)
        assert eventually(lambda: server.log.read_bytes()[:1] not in (b"", b"\0"))


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
    assert list(Path("/dev/shm").glob(f"{folder.name}*")) == []


def test_a_stop_just_before_the_process_starts_is_a_stop(
    tiny_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(EmbeddedTriton, "_launch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        EmbeddedTriton(tiny_repository).start()


def test_a_request_in_flight_is_answered_before_the_server_stops(own_repository: Path) -> None:
    def delay(config: Any) -> None:
        config.dynamic_batching.max_queue_delay_microseconds = 1_000_000

    change_config(own_repository / TEXT_MODEL, delay)
    image, tokens = np.ones((1, SIDE, SIDE, 3), np.uint8), np.ones((1, 8), np.int32)
    pending = f'pending_request_count{{model="{TEXT_MODEL}",version="1"}} 1'
    with (
        EmbeddedTriton(own_repository) as server,
        ThreadPoolExecutor() as pool,
        InferenceServerClient(server.grpc_url) as client,
    ):
        answer = pool.submit(ask, client, image, tokens)
        assert eventually(lambda: pending in metrics(server.metrics_url))
        server.stop()
        np.testing.assert_array_equal(answer.result().as_numpy("answer"), expected_answer(image, tokens))


def test_it_says_where_it_listens_and_what_to_type(server: EmbeddedTriton) -> None:
    text = command._addresses(server, 1.25)
    assert text.startswith("vizwiz_vqa is ready, after 1.2 s:\n")
    for address in (server.grpc_url, f"http://{server.http_url}/", server.metrics_url, str(server.log)):
        assert address in text
    assert f'\n  vizwiz-client ask img.jpg "what is this?" --url {server.grpc_url}\n' in text


def answers_http(address: str) -> bool:
    """Whether the ensemble at ``address`` is ready."""
    try:
        return ask_http(address, "GET", f"models/{tensors.ENSEMBLE}/ready")[0] == 200
    except OSError:
        return False


def metrics(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return str(response.read(), "utf-8")
    except OSError:  # Triton opens this port last, after the ensemble is ready
        return ""


def eventually(condition: Callable[[], object], within_s: float = 10) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process ended meanwhile
        return b""


def test_onnx_runtimes_telemetry_is_off(tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left on, it keeps a device id in the home folder and reports to its maker."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CI", "ORT_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    with EmbeddedTriton(tiny_repository):
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_mallocs_arenas_are_few_unless_the_user_says_otherwise(serve: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert b"\0MALLOC_ARENA_MAX=2\0" in b"\0" + _read(Path(f"/proc/{serve.triton()}/environ"))
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")
    assert find_runtime().environment()["MALLOC_ARENA_MAX"] == "8"
