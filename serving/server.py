"""The embedded Triton as a context manager: start it, know when it answers, stop it without a trace."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn

from serving import launch, ports
from serving.errors import ServingError
from serving.ports import HOST
from serving.runtime import STUB, Runtime, check_stub, find_runtime
from serving.workspace import Workspace, remove_leftovers
from vizwiz_client.contract.tensors import ENSEMBLE, ENSEMBLES

DRAIN_S = 10  # how long requests in flight may take to finish once the server is to stop
EXIT_S = 10  # how long the server may then take to end: its backends take about 2
STUB_TIMEOUT_S = 600  # a model may load that long: a large CLIP's file takes a while to read and optimise
PROBE_INTERVAL_S = 0.05
REPORT_INTERVAL_S = 5.0
CACHE_BYTES = 64 << 20  # of the response cache, which holds text features: a few KB a question

_LOG_TAIL = 12  # lines
_LINE_LENGTH = 400  # characters: an error repeats itself in each line that follows from it


class EmbeddedTriton:
    """A ``tritonserver`` on loopback that serves the ensemble of a model repository.

        with EmbeddedTriton("triton_models") as server:
            client = VizwizClient(server.grpc_url)

    The server ends with the thread that started it, whatever ends that (prctl(2), PR_SET_PDEATHSIG): start it from one
    that lives as long as the server is needed.

    Args:
        repository: the model repository that ``python -m export.to_onnx`` writes.
        http_port, grpc_port, metrics_port: 0 takes any free port.
        threads: threads that each model may compute with; by default one for each core of this process.
        verbose: let Triton log each step of each request, but no tensor's content.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.repository = Path(repository)
        self._ports = {"--http-port": http_port, "--grpc-port": grpc_port, "--metrics-port": metrics_port}
        self._threads = threads
        self._verbose = verbose
        self._resources = ExitStack()

    @property
    def grpc_url(self) -> str:
        """Address for gRPC clients, as ``tritonclient.grpc`` takes it."""
        return f"{HOST}:{self._ports['--grpc-port']}"

    @property
    def http_url(self) -> str:
        """Address for HTTP clients, as ``tritonclient.http`` takes it."""
        return f"{HOST}:{self._ports['--http-port']}"

    @property
    def metrics_url(self) -> str:
        """URL of the metrics in Prometheus's format."""
        return f"http://{HOST}:{self._ports['--metrics-port']}/metrics"

    def start(self, report: Callable[[str], None] = lambda line: None) -> None:
        """Start the server and return when the ensemble is ready.

        Args:
            report: told what is being waited for, every few seconds.

        Raises:
            ServingError: something is missing, a port is taken, or the models do not load.
        """
        runtime = find_runtime()
        check_repository(self.repository)
        self._ports = ports.claim_ports(self._ports)
        remove_leftovers()
        with ExitStack() as stack:
            workspace = stack.enter_context(Workspace())
            self.log = workspace.folder / "server.log"
            self._process = self._launch(runtime, workspace)
            stack.callback(_kill, self._process)
            self._wait_until_ready(report)
            self._resources = stack.pop_all()

    def stop(self) -> None:
        """Let requests in flight finish, end the server, and remove what it left; at once if interrupted again."""
        with self._resources:
            self._drain()
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_S)

    def wait(self) -> NoReturn:
        """Return never, as long as the server lives.

        Raises:
            ServingError: the server ended by itself.
        """
        self._process.wait()
        raise ServingError(f"tritonserver {self._outcome()}, unasked; its log says:\n{self._complaints()}")

    def __enter__(self) -> EmbeddedTriton:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch(self, runtime: Runtime, workspace: Workspace) -> subprocess.Popen[bytes]:
        backends = workspace.folder / "backends"
        runtime.compose_backends(backends)
        models = workspace.folder / "models"
        models.symlink_to(self.repository.resolve())  # the stub's command line is split at spaces; this name has none
        threads = self._threads or len(os.sched_getaffinity(0))
        environment = runtime.environment() | {"VIZWIZ_SERVING_THREADS": str(threads)}
        check_stub(backends / "python" / STUB, environment)
        arguments = self._arguments(models, backends, runtime.caches, workspace.shared_memory_prefix)
        with self.log.open("wb") as log:  # a file never blocks the server, as a full pipe would
            return subprocess.Popen(
                [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), str(runtime.server), *arguments],
                env=environment,
                cwd=workspace.folder,  # where the stubs would find modules first
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[workspace.lock],
                start_new_session=True,  # Ctrl-C comes to us, and we stop the server in order
            )

    def _ensembles(self) -> list[str]:
        """Those that the repository has: an older one has no raw ensemble."""
        return [name for name in ENSEMBLES if (self.repository / name / "config.pbtxt").is_file()]

    def _arguments(self, models: Path, backends: Path, caches: Path, shared_memory_prefix: str) -> list[str]:
        addresses = [f"--{service}-address={HOST}" for service in ("http", "grpc", "metrics")]
        return [
            f"--model-repository={models}",
            f"--backend-directory={backends}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self._ensembles()),  # and their steps with them
            "--exit-on-error=false",  # it would unload what did load first: seconds, before an error can be told
            "--disable-auto-complete-config",  # what is served is what config.pbtxt says
            *addresses,
            *(f"{flag}={port}" for flag, port in self._ports.items()),
            f"--cache-directory={caches}",
            f"--cache-config=local,size={CACHE_BYTES}",  # for the models whose config enables it
            f"--exit-timeout-secs={EXIT_S}",
            f"--log-verbose={int(self._verbose)}",
            # backends written in Python take the settings of the backend `python`
            f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
            f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_S}",
        ]

    def _wait_until_ready(self, report: Callable[[str], None]) -> None:
        start = reported = time.monotonic()
        while (status := self._readiness()) != http.HTTPStatus.OK:
            if status is not None or self._process.poll() is not None:
                raise ServingError(
                    f"Triton cannot serve {self.repository}: {self._cause()}\nits log says:\n{self._complaints()}"
                )
            now = time.monotonic()
            if now - reported >= REPORT_INTERVAL_S:
                report(f"waiting for {', '.join(self._loading())} to load ({now - start:.0f} s)")
                reported = now
            time.sleep(PROBE_INTERVAL_S)

    def _readiness(self) -> int | None:
        """The HTTP status of the ensembles; None while models load, because nothing listens before that is done."""
        try:
            return max(self._ask_http("GET", f"models/{name}/ready")[0] for name in self._ensembles())
        except OSError:
            return None

    def _drain(self) -> None:
        """Take no new request and wait for those in flight.

        Triton's own way, at SIGTERM, fails an ensemble's request that is between two steps (measured on 2.51).
        """
        deadline = time.monotonic() + DRAIN_S
        with suppress(OSError, http.client.HTTPException):  # the server is gone already
            for name in self._ensembles():
                self._ask_http("POST", f"repository/models/{name}/unload")
            while b"UNLOADING" in self._ask_http("POST", "repository/index")[1] and time.monotonic() < deadline:
                time.sleep(PROBE_INTERVAL_S)

    def _ask_http(self, method: str, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.http_url, timeout=5)  # urllib would ask a configured proxy
        try:
            connection.request(method, f"/v2/{path}")
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _log_text(self) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return text.replace(str(self.log.parent / "models"), str(self.repository.resolve()))  # as the user knows it

    def _loading(self) -> list[str]:
        text = self._log_text()
        loading = re.findall(r'"loading: (\S+):\d+"', text)
        return [name for name in loading if f"successfully loaded '{name}'" not in text] or ["tritonserver"]

    def _cause(self) -> str:
        """The first error about a model: those that follow are its consequences."""
        error = re.search(
            r'^E.* model_(?:lifecycle|repository_manager)\.cc:\d+\] "(.+)"$', self._log_text(), re.MULTILINE
        )
        return error[1].partition(r"\n")[0] if error else f"tritonserver {self._outcome()}"

    def _complaints(self) -> str:
        """The last lines of the log that are neither information nor tables."""
        lines = [line for line in self._log_text().splitlines() if line and line[0] not in "I+|"]
        return "\n".join(f"  {line[:_LINE_LENGTH]}" for line in lines[-_LOG_TAIL:])

    def _outcome(self) -> str:
        code = self._process.poll()
        if code is None:
            return "gives no reason"
        return f"ended with {signal.Signals(-code).name if code < 0 else f'exit status {code}'}"


def check_repository(repository: Path) -> None:
    """Check that ``repository`` has an ensemble to serve.

    Raises:
        ServingError: it does not.
    """
    if (repository / ENSEMBLE / "config.pbtxt").is_file():
        return
    got = "does not exist" if not repository.exists() else f"has no model {ENSEMBLE}"
    raise ServingError(
        f"the model repository {repository} {got}: publish one with `python -m export.to_onnx`, or name another one "
        f"with --repository"
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the server and its stubs, one process group, unless it ended by itself (then its stubs end too)."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
