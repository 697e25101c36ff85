"""The gateway (REST endpoint and web page) as a supervised process. Its package is not imported here."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from serving import ServingError, launch
from serving.access import KEY_VARIABLE, LOOPBACK
from serving.server import Backoff

PORT = 8080
_PACKAGES = ("vizwiz_gateway", "fastapi", "uvicorn", "python_multipart", "prometheus_client", "jinja2")


def missing_packages() -> list[str]:
    """The gateway's packages that are not installed."""
    return [name for name in _PACKAGES if importlib.util.find_spec(name) is None]


class Gateway:
    """``python -m vizwiz_gateway`` on loopback, supervised by a background thread, which restarts it when it dies.

    Args:
        triton: Triton's gRPC address.
        port: TCP port.
        report: called from the supervisor's thread with every restart.
    """

    def __init__(self, triton: str, port: int, report: Callable[[str], None]) -> None:
        self.url = ""
        """Address of the page, once it has started."""
        flags = ["--triton", triton, "--host", LOOPBACK, "--port", str(port), "--json"]  # whatever the environment says
        program = [sys.executable, "-m", "vizwiz_gateway", *flags]
        self._command = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *program]
        # photos of many sizes fragment malloc's arenas; with an arena per thread, memory keeps growing
        self._environment = {"MALLOC_ARENA_MAX": "2", **os.environ}
        self._environment.pop(KEY_VARIABLE, None)
        self._report = report
        self._lock = threading.Lock()  # of the process: none starts once `_stopping` is set
        self._process: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._settled = threading.Event()  # it listens, or did not start
        self._ended = threading.Event()  # no supervisor runs
        self._ended.set()

    def start(self) -> None:
        """Start the process; return when it listens.

        Raises:
            ServingError: the process ended before it listened.
        """
        self._ended.clear()
        threading.Thread(target=self._run, name="gateway supervisor", daemon=True).start()
        self._settled.wait()
        if not self.url:
            raise ServingError("the gateway did not start, for the reason above; --no-gateway leaves it out")

    def stop(self) -> None:
        """Let the process answer the requests in progress, then end it. Kill it on a second interrupt."""
        try:
            with self._lock:
                self._stopping.set()
                self._signal(signal.SIGTERM)
            self._ended.wait()  # bounded by the gateway's own timeouts
        finally:
            self._signal(signal.SIGKILL)

    def _run(self) -> None:
        """Start the process, and restart it when it ends, always in this thread: launch.py ends it with its thread."""
        backoff = Backoff()
        try:
            while outcome := self._run_once():
                backoff_s = backoff.failed()
                self._report(
                    f"the gateway ended with {outcome}; restarting it{f' in {backoff_s} s' if backoff_s else ''}"
                )
                if self._stopping.wait(backoff_s):
                    return
        finally:
            self._settled.set()
            self._ended.set()

    def _run_once(self) -> str | None:
        """Run the process until it ends; return its signal or exit status, or None if it must not be restarted."""
        with self._lock:
            if self._stopping.is_set():
                return None
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops the gateway before Triton
            )
        assert self._process.stdout is not None
        with self._process.stdout as output:
            if line := output.readline():  # it listens
                self.url = json.loads(line)["gateway"]
                self._settled.set()
            code = self._process.wait()
        if self._stopping.is_set() or not self.url:
            return None
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)  # does nothing once the process has been waited for
