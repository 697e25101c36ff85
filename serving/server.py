"""The embedded Triton server as a context manager, supervised by a background thread."""

from __future__ import annotations

import http.client
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn

from serving import ServingError
from serving.access import (
    ALL_INTERFACES,
    KEY_VARIABLE,
    LOOPBACK,
    RunningServer,
    admin_key,
    check_host,
    claim_ports,
    restrictions,
    write_record,
)
from serving.cache_folder import FOLDER_VARIABLE, cache_folder
from serving.process import DRAIN_TIMEOUT_S, EXIT_TIMEOUT_S, Address, TritonProcess
from serving.repository import check_repository
from serving.runtime import STUB, check_stub, find_runtime
from serving.workspace import LOG_FILE, PREFIX, Log, Workspace, remove_stale_workspaces
from vizwiz_client.contract.tensors import ENSEMBLE

_STARTS = 3  # of a server whose start a signal ends
POLL_INTERVAL_S = 0.5  # between two checks of the processes, the shared memory and the log
STOP_TIMEOUT_S = DRAIN_TIMEOUT_S + EXIT_TIMEOUT_S + 10  # for the supervisor to stop the server; then it is killed
STUB_TIMEOUT_S = 600  # for a model to load: a large CLIP's file takes a while to read and optimise
MAX_RESTARTS = 3  # that fail in a row; then the server stays down
CACHE_BYTES = 64 << 20  # of the response cache, which holds text features: a few KB a question


class Backoff:
    """Delay before a restart, which grows with the number of failures in the last minute."""

    DELAYS_S = (0, 1, 3, 7, 15, 30)

    def __init__(self) -> None:
        self._failures: list[float] = []  # time.monotonic()

    def failed(self) -> int:
        """Record a failure; return the delay before the restart, in seconds."""
        now = time.monotonic()
        self._failures = [failure for failure in self._failures if now - failure < 60] + [now]
        return self.DELAYS_S[min(len(self._failures), len(self.DELAYS_S)) - 1]


class EmbeddedTriton:
    """Triton on loopback, serving the ensemble ``vizwiz_vqa`` of a model repository.

    Use as a context manager, or call :meth:`start` and :meth:`stop`:

        with EmbeddedTriton("triton_models") as server:
            client = VizwizClient(server.grpc_url)

    A background thread supervises the server. When ``tritonserver`` or a backend process dies, it restarts the server
    at the same ports, with what the repository names then. The server ends with this process, however that ends.

    Args:
        repository: model repository, as ``python -m export.to_onnx`` writes it.
        http_port: TCP port for HTTP/REST. 0, the default, takes any free port.
        grpc_port: TCP port for gRPC. 0, the default, takes any free port.
        metrics_port: TCP port for Prometheus metrics, always on loopback. 0, the default, takes any free port.
        host: IPv4 address for HTTP and gRPC (default: ``127.0.0.1``).
        expose: allow a ``host`` that other machines can reach, in spite of :data:`serving.access.KNOWN_HOLES`.
        threads: compute threads per model (default: one per core of this process).
        verbose: let Triton log every step of every request, without tensor contents.

    Attributes:
        repository: the model repository.
        log: path of Triton's log; valid after :meth:`start`.
        grpc_url: ``host:port`` for gRPC clients; valid after :meth:`start`.
        http_url: ``host:port`` for HTTP clients; valid after :meth:`start`.
        metrics_url: URL of the Prometheus metrics; valid after :meth:`start`.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        host: str = LOOPBACK,
        expose: bool = False,
        threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.repository = Path(repository)
        self._ports = {"--http-port": http_port, "--grpc-port": grpc_port, "--metrics-port": metrics_port}
        self._host = host
        self._expose = expose
        self._threads = threads or len(os.sched_getaffinity(0))
        self._verbose = verbose
        self._resources = ExitStack()
        self._process: TritonProcess | None = None
        self._started = False
        self._stopping = threading.Event()
        self._settled = threading.Event()  # ready, or failed
        self._ended = threading.Event()  # no supervisor runs
        self._ended.set()
        self._error: BaseException | None = None

    @property
    def log(self) -> Path:
        """Triton's log. Beyond 16 MiB it is rotated to ``server.log.1`` beside it."""
        self._require_start()
        return self._log.path

    @property
    def grpc_url(self) -> str:
        """``host:port`` for gRPC clients."""
        self._require_start()
        return self._address_of("--grpc-port")

    @property
    def http_url(self) -> str:
        """``host:port`` for HTTP clients."""
        self._require_start()
        return self._address_of("--http-port")

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        self._require_start()
        return f"http://{LOOPBACK}:{self._ports['--metrics-port']}/metrics"

    def start(self, report: Callable[[str], None] = lambda line: None) -> None:
        """Start the server and its supervisor; return when the ensemble is ready.

        After :meth:`stop`, it may be called again; the server then gets the same ports.

        Args:
            report: called from the supervisor's thread with progress of the start, and later with every restart.

        Raises:
            ServingError: the platform is not supported, a package is missing, the repository has no ``vizwiz_vqa``,
                ``host`` is not allowed, a port is in use, or the models do not load.
            OSError: the temporary folder cannot be written.
        """
        self._runtime = find_runtime()
        check_repository(self.repository)
        check_host(self._host, self._expose)
        self._ports = claim_ports(self._ports, self._hosts())
        key = admin_key()
        remove_stale_workspaces()
        with ExitStack() as stack:
            self._workspace = stack.enter_context(Workspace())
            self._models = self._workspace.folder / "models"
            self._models.symlink_to(self.repository.resolve())  # no spaces: Triton splits a stub's arguments there
            self._log = Log(self._workspace.folder / LOG_FILE, self._models, self.repository)
            self._environment = self._prepare_backends()
            identity = f"triton-{self._workspace.folder.name.removeprefix(PREFIX)}"
            self._address = Address(identity, self._address_of("--http-port"), key)
            self._resources = stack.pop_all()
        self._started = True
        self._resources.callback(self._kill)
        self._error = None
        for event in (self._stopping, self._settled, self._ended):
            event.clear()
        try:
            threading.Thread(target=self._run, args=(report,), name="triton supervisor", daemon=True).start()
            self._settled.wait()
            if self._error:
                raise self._error
            record = RunningServer(self.grpc_url, self.http_url, str(self.repository.resolve()), key)
            write_record(self._workspace.folder, record)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Drain requests in flight, end the server, and remove its workspace. A second interrupt kills the server.

        Takes some seconds, and at most 80: requests in flight get 60 s to finish. Does nothing to a stopped server.
        """
        with self._resources:
            self._stopping.set()
            # not Thread.join(): once interrupted, it takes the thread for ended (Python 3.10 to 3.12)
            self._ended.wait(STOP_TIMEOUT_S)

    def wait(self) -> NoReturn:
        """Block until the server ends.

        Raises:
            ServingError: the server died and cannot be restarted, or was stopped, or was never started.
        """
        self._ended.wait()
        self._require_start()
        raise self._error or ServingError("the server was stopped")

    def __enter__(self) -> EmbeddedTriton:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _require_start(self) -> None:
        if not self._started:
            raise ServingError("the server has no address, no log and no process yet: call start() first")

    # The supervisor's thread alone starts, restarts and stops the process.

    def _launch_or_retry(self, report: Callable[[str], None]) -> bool:
        """Launch; on a busy machine Triton 2.51 aborts rarely while its Python backend starts (lock_exception)."""
        for _ in range(_STARTS - 1):
            try:
                return self._launch(report)
            except ServingError as error:
                if not (self._process and self._process.ended_by_signal()):
                    raise
                self._kill()
                report(f"{error}\nstarting it once more")
        return self._launch(report)

    def _run(self, report: Callable[[str], None]) -> None:
        try:
            if self._launch_or_retry(report):
                self._settled.set()
                self._supervise(report)
        except ServingError as error:
            self._error = self._with_log(error)
        except BaseException as error:  # start() or wait() raises it
            self._error = error
        finally:
            self._kill()
            self._settled.set()
            self._ended.set()

    def _supervise(self, report: Callable[[str], None]) -> None:
        """Check the server until it is to stop, then stop it."""
        backoff, failed_restarts = Backoff(), 0
        while not self._stopping.wait(POLL_INTERVAL_S):
            if (cause := self._check()) is None:
                continue
            cause = f"{cause}; its log says:\n{self._log.tail()}"
            if failed_restarts == MAX_RESTARTS:
                raise ServingError(f"{cause}\n{MAX_RESTARTS} restarts have failed in a row")
            start = time.monotonic()
            backoff_s = backoff.failed()
            report(f"{cause}\nserver log: {self.log}\nrestarting it{f' in {backoff_s} s' if backoff_s else ''}")
            self._kill()
            if self._stopping.wait(backoff_s):
                return
            try:
                if self._launch(report):
                    report(f"ready again, after {time.monotonic() - start:.1f} s")
                    failed_restarts = 0
            except ServingError:
                if self._process and self._process.is_alive():
                    raise  # the models do not load: another restart would not help
                failed_restarts += 1
        if self._process:
            self._process.stop()

    def _check(self) -> str | None:
        """Restrict new shared memory and rotate the log; return why the server has to be restarted, or None."""
        with suppress(OSError):  # a full disk, for example
            self._workspace.restrict_shared_memory()  # of models that a rollout has loaded
            self._log.rotate()
        with suppress(OSError, http.client.HTTPException, ValueError):  # no answer: Triton is busy; poll again
            return self._process.failure() if self._process else None
        return None

    def _launch(self, report: Callable[[str], None]) -> bool:
        """Start the process and wait until it is ready; return False if :meth:`stop` was called first."""
        self._workspace.remove_shared_memory()  # of an earlier process
        self._process = TritonProcess(
            [str(self._runtime.server), *self._arguments()],
            self._environment,
            self._address,
            self._workspace,
            self._log,
            self._models,
        )
        try:
            ready = self._process.wait_until_ready(self._stopping, report)
        except ServingError as error:
            raise ServingError(f"Triton cannot serve {self.repository}: {error}") from error
        self._workspace.restrict_shared_memory()
        return ready

    def _kill(self) -> None:
        if self._process:
            self._process.kill()

    def _with_log(self, error: ServingError) -> ServingError:
        """``error``, with the path of a copy of the log, since the log is removed with the workspace."""
        try:
            return ServingError(f"{error}\nserver log: {self._log.save()}")
        except OSError as reason:  # a full disk, for example
            return ServingError(f"{error}\nserver log: it cannot be saved ({reason})")

    def _prepare_backends(self) -> dict[str, str]:
        """Compose the backends folder and return the environment for its programs."""
        backends = self._workspace.folder / "backends"
        self._runtime.compose_backends(backends)
        settings = {"VIZWIZ_SERVING_THREADS": str(self._threads), FOLDER_VARIABLE: str(cache_folder() or "")}
        environment = self._runtime.environment() | settings
        environment.pop(KEY_VARIABLE, None)  # the stubs do not need it
        check_stub(backends / "python" / STUB, environment)
        return environment

    def _arguments(self) -> list[str]:
        return [
            f"--id={self._address.id}",
            f"--model-repository={self._models}",
            f"--backend-directory={self._workspace.folder / 'backends'}",
            "--model-control-mode=explicit",
            f"--load-model={ENSEMBLE}",  # and the models that it references
            "--exit-on-error=false",  # else it first unloads what did load, which delays the error by seconds
            "--disable-auto-complete-config",  # serve exactly what config.pbtxt says
            *(f"{flag.replace('port', 'address')}={host}" for flag, host in self._hosts().items()),
            *(f"{flag}={port}" for flag, port in self._ports.items()),
            *restrictions(self._address.key),
            f"--cache-directory={self._runtime.caches}",
            f"--cache-config=local,size={CACHE_BYTES}",  # for the models whose config enables it
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            f"--log-verbose={int(self._verbose)}",
            # backends written in Python take the settings of the backend `python`
            f"--backend-config=python,shm-region-prefix-name={self._workspace.shared_memory_prefix}",
            f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_S}",
        ]

    def _hosts(self) -> dict[str, str]:
        return {"--http-port": self._host, "--grpc-port": self._host, "--metrics-port": LOOPBACK}

    def _address_of(self, flag: str) -> str:
        """``host:port`` at which this machine reaches the service whose port ``flag`` sets."""
        return f"{LOOPBACK if self._host == ALL_INTERFACES else self._host}:{self._ports[flag]}"
