"""One run of ``tritonserver``: launch, readiness, dead backend processes, drain, exit."""

from __future__ import annotations

import http
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from serving import ServingError, launch
from serving.access import HTTP_HEADER, hide_key, request_http
from serving.repository import IMMUTABLE_MODEL
from serving.runtime import STUB
from serving.workspace import Log, Workspace
from vizwiz_client.contract.tensors import ENSEMBLE

DRAIN_TIMEOUT_S = 60  # for requests in flight to finish: the default timeout of a client
EXIT_TIMEOUT_S = 10  # for the server to exit after that: its backends take about 2
PROBE_INTERVAL_S = 0.05
REPORT_INTERVAL_S = 5.0
POLLS_PER_INDEX = 10  # polls of `failure` per query of Triton's model index


@dataclass(frozen=True)
class Address:
    """Address, id and admin key of a server."""

    id: str  # unique, reported in its metadata
    http_url: str  # host:port
    key: str  # admin key

    def request(self, method: str, path: str, timeout_s: float = 5) -> tuple[int, bytes]:
        """Send an HTTP request with the admin key: see :func:`serving.access.request_http`."""
        return request_http(self.http_url, method, path, {HTTP_HEADER: self.key}, timeout_s)


class TritonProcess:
    """A ``tritonserver`` process and its children, the stubs: one per model instance of the Python backend.

    The process gets SIGTERM when the thread that made it ends: prctl(2), PR_SET_PDEATHSIG.

    Args:
        command: program and arguments.
        environment: environment variables.
        address: address, id and admin key of the server.
        workspace: working directory of the process; its name begins the names of the shared memory.
        log: file for standard output and error.
        models: the model repository, as in ``command``.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        address: Address,
        workspace: Workspace,
        log: Log,
        models: Path,
    ) -> None:
        self._address = address
        self._log = log
        self._models = models
        self._stubs: dict[str, str] = {}
        self._polls = 0
        with log.open() as file:  # a file never blocks the server, as a full pipe would
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *command],
                env=environment,
                cwd=workspace.folder,  # the stubs look for modules here first
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=[workspace.lock],
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which drains the server
            )
        self.pid = self._process.pid

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def ended_by_signal(self) -> bool:
        """Whether a signal ended the process: it crashed, or was killed."""
        return (self._process.poll() or 0) < 0

    def outcome(self) -> str:
        """Exit status or signal of the process, for messages."""
        code = self._process.poll()
        if code is None:
            return "tritonserver gives no reason"
        return f"tritonserver ended with {signal.Signals(-code).name if code < 0 else f'exit status {code}'}"

    def wait_until_ready(self, stopping: threading.Event, report: Callable[[str], None]) -> bool:
        """Wait until the ensemble is ready; return False if ``stopping`` is set first.

        Args:
            stopping: interrupts the wait.
            report: called every few seconds with the models that are still loading.

        Raises:
            ServingError: the models do not load, or the process ends.
        """
        start = reported = time.monotonic()
        while (status := self._readiness()) != http.HTTPStatus.OK:
            if self._log.size():  # it has parsed its arguments
                hide_key(self.pid, self._address.key)
            if status is not None or not self.is_alive():
                raise ServingError(f"{self._log.first_error() or self.outcome()}\nits log says:\n{self._log.tail()}")
            if time.monotonic() - reported >= REPORT_INTERVAL_S:
                reported = time.monotonic()
                loading = ", ".join(self._log.loading() or ["tritonserver"])
                report(f"waiting for {loading} to load ({reported - start:.0f} s)")
            if stopping.wait(PROBE_INTERVAL_S):
                return False
        if not hide_key(self.pid, self._address.key):
            report("warning: other users of this machine can read the admin key in the list of processes")
        return True

    def failure(self) -> str | None:
        """Why the process has to be restarted: it ended, or a stub died. None if it is healthy.

        Triton 2.51 neither restarts a dead stub nor marks its model as unready.

        Raises:
            OSError, http.client.HTTPException, ValueError: the server does not answer.
        """
        if not self.is_alive():
            return self.outcome()
        running = stubs(self.pid, self._models)
        due = self._polls % POLLS_PER_INDEX == 0  # the index also reveals stubs that died before they were first seen
        self._polls += 1
        if due or not self._stubs.keys() <= running.keys():
            ready = self._ready_models()
            running = stubs(self.pid, self._models)
            ready &= self._ready_models()  # excludes models that were loaded or unloaded in between
            lost = {model for instance, model in self._stubs.items() if instance not in running}
            absent = {model for model in ready if IMMUTABLE_MODEL.fullmatch(model)} - {*running.values()}
            if dead := (lost & ready) | absent:
                return f"the backend process of {', '.join(sorted(dead))} died"
        self._stubs = running
        return None

    def stop(self) -> None:
        """Drain requests in flight, then end the process."""
        if self.is_alive():  # else another server may use its ports by now
            self._drain()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_TIMEOUT_S)

    def kill(self) -> None:
        """Kill the process and its stubs: one process group. The stubs may outlive it for a moment."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def _readiness(self) -> int | None:
        """HTTP status of the ensemble's readiness; None while models load, since Triton listens only after that.

        None too where another server answers, which may have taken the port meanwhile.
        """
        try:
            if json.loads(self._address.request("GET", "")[1]).get("name") != self._address.id:
                return None
            return self._address.request("GET", f"models/{ENSEMBLE}/ready")[0]
        except (OSError, http.client.HTTPException, ValueError):
            return None

    def _ready_models(self) -> set[str]:
        return {model["name"] for model in self._index() if model.get("state") == "READY"}

    def _index(self, timeout_s: float = 5) -> list[dict[str, str]]:
        """Triton's index of models. Raises ValueError for an error response, as while the repository is moved away."""
        status, body = self._address.request("POST", "repository/index", timeout_s)
        if status != http.HTTPStatus.OK:
            raise ValueError(f"the index of models has HTTP status {status}: {body!r:.200}")
        index: list[dict[str, str]] = json.loads(body)
        return index

    def _drain(self) -> None:
        """Accept no new requests and wait for those in flight.

        On SIGTERM alone, Triton 2.51 fails an ensemble's requests that are between two steps.
        """
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        with suppress(OSError, http.client.HTTPException, ValueError):  # the server is gone already, or its repository
            self._address.request("POST", f"repository/models/{ENSEMBLE}/unload", DRAIN_TIMEOUT_S)
            while any(model.get("state") == "UNLOADING" for model in self._index(DRAIN_TIMEOUT_S)):
                if time.monotonic() > deadline:
                    break
                time.sleep(PROBE_INTERVAL_S)


def stubs(server: int, models: Path) -> dict[str, str]:
    """Running stubs among the children of the process ``server``: instance -> model.

    Args:
        server: process id of tritonserver.
        models: the model repository, as in the stubs' command lines.
    """
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # the name of a process, in brackets, may be cut within a character
            if (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1] != str(server):
                continue
            # empty for a zombie; https://github.com/triton-inference-server/python_backend, pb_stub.cc, main()
            command = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:  # it ended meanwhile
            continue
        if command[0].endswith(STUB):
            found[command[8]] = Path(command[1]).relative_to(models).parts[0]
    return found
