"""``python -m serving`` as a process, and what it leaves on the machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from serving.access import request_http
from serving.workspace import remove_stale_workspaces
from vizwiz_client.contract import tensors

RECOVERY_TIMEOUT_S = 120  # of a restart on a busy machine; alone it takes two seconds
PORTS = ("gateway", "http", "grpc", "metrics")
SERVE = [sys.executable, "-m", "serving", *(f"--{name}-port=0" for name in PORTS), "--json", "--no-gateway"]


class Command:
    """As a context manager: a ``python -m serving`` that is ready; it outlives no test."""

    def __init__(self, repository: Path, *flags: str, prefix: Sequence[str] = ()) -> None:
        self._command = [*prefix, *SERVE, f"--repository={repository}", *flags]

    def __enter__(self) -> Command:
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        with ExitStack() as stack:
            stack.callback(self._kill)
            assert self.process.stdout is not None
            if not (line := self.process.stdout.readline()):
                raise AssertionError(f"the server did not start: {self.process.communicate()[1]}")
            self.addresses: dict[str, Any] = json.loads(line)
            self.folder = Path(self.addresses["log"]).parent
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        processes = self.processes()
        self._kill()
        for pid in processes:  # a server ends with its parent, but one that was stopped (SIGSTOP) does not
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: remove_stale_workspaces() or self.leaves_no_trace())

    def _kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> str:
        """Wait for the end and return its standard error."""
        return self.process.communicate(timeout=30)[1]

    def processes(self) -> list[int]:
        """Process ids of tritonserver and its stubs."""
        return processes_of(self.folder)

    def triton(self) -> int:
        return next(pid for pid in self.processes() if b"bin/tritonserver" in _command_line(pid))

    def shared_memory(self) -> list[Path]:
        return shared_memory_of(self.folder)

    def leaves_no_trace(self) -> bool:
        return not (self.processes() or self.shared_memory() or self.folder.exists())


def processes_of(workspace: Path, model: str = "") -> list[int]:
    """Process ids of a server and its stubs, or of the stubs of one ``model``."""
    needle = os.fsencode(workspace / "models" / model if model else workspace)
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if needle in _command_line(pid)]


def shared_memory_of(workspace: Path) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{workspace.name}_*"))


def is_ready(http_url: str) -> bool:
    """Whether the ensemble is ready."""
    try:
        return request_http(http_url, "GET", f"models/{tensors.ENSEMBLE}/ready")[0] == 200
    except OSError:
        return False


def metrics(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return str(response.read(), "utf-8")
    except OSError:  # Triton opens this port last, after the ensemble is ready
        return ""


def eventually(condition: Callable[[], object], timeout_s: float = 10) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # the process ended meanwhile
        return b""
