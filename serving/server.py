"""The embedded Triton as a context manager: start it, know when it answers, stop it without a trace."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn

from serving import launch, ports
from serving.admin import (
    HTTP_HEADER,
    KEY_VARIABLE,
    RunningServer,
    admin_key,
    ask_http,
    hide_key,
    restrictions,
    write_record,
)
from serving.errors import ServingError
from serving.log import Log
from serving.ports import EVERY_INTERFACE, LOOPBACK
from serving.repository import CONFIG_FILE, check_repository, ensembles
from serving.runtime import Runtime, check_stub, find_runtime
from serving.watch import STUB, Served, Watch
from serving.workspace import LOG_FILE, PREFIX, Workspace, remove_leftovers
from vizwiz_client.contract.tensors import ENSEMBLE, ENSEMBLES

DRAIN_S = 60  # how long requests in flight may take to finish once the server is to stop: a client's default patience
EXIT_S = 10  # how long the server may then take to end: its backends take about 2
CONTROL_S = 600  # a model may take that long to load again
STUB_TIMEOUT_S = 600  # a model may load that long: a large CLIP's file takes a while to read and optimise
STARTS = 3  # of a server that ended by itself: if none of so many is ready, it stays down
RECENT_S, MOST_PAUSE_S = 60, 30  # each end in that time doubles the pause before the next start, up to that
PROBE_INTERVAL_S = 0.05
REPORT_INTERVAL_S = 5.0
CACHE_BYTES = 64 << 20  # of the response cache, which holds text features: a few KB a question


class EmbeddedTriton:
    """A ``tritonserver`` on loopback that serves the ensemble of a model repository.

        with EmbeddedTriton("triton_models") as server:
            client = VizwizClient(server.grpc_url)

    The server ends with the thread that started it, whatever ends that (prctl(2), PR_SET_PDEATHSIG): start it from one
    that lives as long as the server is needed.

    Args:
        repository: the model repository that ``python -m export.to_onnx`` writes.
        http_port, grpc_port, metrics_port: 0 takes any free port.
        host: the IPv4 address at which HTTP and gRPC listen; metrics stay on loopback.
        expose: let ``host`` be one that other machines reach, in spite of :data:`serving.ports.KNOWN_HOLES`.
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
        host: str = LOOPBACK,
        expose: bool = False,
        threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.repository = Path(repository)
        self._ports = {"--http-port": http_port, "--grpc-port": grpc_port, "--metrics-port": metrics_port}
        self._host = host
        self._expose = expose
        self._threads = threads
        self._verbose = verbose
        self._resources = ExitStack()

    @property
    def log(self) -> Path:
        """Triton's log; where it grows beyond 16 MiB, the part before is beside it, in ``server.log.1``."""
        return self._log.path

    @property
    def grpc_url(self) -> str:
        """Address for gRPC clients, as ``tritonclient.grpc`` takes it."""
        return f"{self._near}:{self._ports['--grpc-port']}"

    @property
    def http_url(self) -> str:
        """Address for HTTP clients, as ``tritonclient.http`` takes it."""
        return f"{self._near}:{self._ports['--http-port']}"

    @property
    def metrics_url(self) -> str:
        """URL of the metrics in Prometheus's format."""
        return f"http://{LOOPBACK}:{self._ports['--metrics-port']}/metrics"

    @property
    def _id(self) -> str:
        """What the server calls itself, and no other one does."""
        return f"triton-{self._workspace.folder.name.removeprefix(PREFIX)}"

    @property
    def _near(self) -> str:
        """The address at which this machine reaches the server."""
        return LOOPBACK if self._host == EVERY_INTERFACE else self._host

    def start(self, report: Callable[[str], None] = lambda line: None) -> None:
        """Start the server and return when the ensemble is ready.

        Args:
            report: told what is being waited for, every few seconds, and later what has to be repaired.

        Raises:
            ServingError: something is missing, a port is taken, or the models do not load.
        """
        runtime = find_runtime()
        check_repository(self.repository)
        ports.check_host(self._host, self._expose)
        self._ports = ports.claim_ports(self._ports, self._hosts())
        self._key = admin_key()
        remove_leftovers()
        with ExitStack() as stack:
            self._workspace = stack.enter_context(Workspace())
            models = self._workspace.folder / "models"
            models.symlink_to(self.repository.resolve())  # a stub's command line is split at spaces; this has none
            self._log = Log(self._workspace.folder / LOG_FILE, models, self.repository)
            self._environment = self._prepare(runtime)
            self._command = [str(runtime.server), *self._arguments(runtime)]
            stack.callback(lambda: _kill(vars(self).get("_process")))  # none yet, if stopped just before it starts
            try:
                self._launch(report)
            except ServingError as error:
                raise self._with_log(error) from error
            address = RunningServer(self.grpc_url, self.http_url, str(self.repository.resolve()), self._key)
            write_record(self._workspace.folder, address)
            self._resources = stack.pop_all()

    def stop(self) -> None:
        """Let requests in flight finish, end the server, and remove what it left; at once if interrupted again."""
        with self._resources:
            self._watch.stop()
            if self._process.poll() is None:  # else another server may have its ports by now
                self._drain()
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_S)

    def wait(self, report: Callable[[str], None] = lambda line: None) -> NoReturn:
        """Return never; a server that ends by itself is started again, in the same place.

        Args:
            report: told of each such end.

        Raises:
            ServingError: it cannot be started again.
        """
        ends: list[float] = []
        failed = 0
        while True:
            self._process.wait()
            ends = [end for end in ends if time.monotonic() - end < RECENT_S] + [time.monotonic()]
            told = f"tritonserver {self._outcome()}, unasked; its log says:\n{self._log.complaints()}"
            if failed == STARTS:
                raise self._with_log(ServingError(f"{told}\n{STARTS} starts have failed, one after the other"))
            pause = min(2 ** (len(ends) - 1) - 1, MOST_PAUSE_S)
            report(f"{told}\nserver log: {self.log}\nstarting it again{f' in {pause} s' if pause else ''}")
            self._clean_up()
            time.sleep(pause)
            try:
                self._launch(report)
                failed = 0
            except ServingError as error:
                if self._process.poll() is None:
                    raise self._with_log(error) from error  # it lives, but cannot serve
                failed += 1

    def __enter__(self) -> EmbeddedTriton:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _prepare(self, runtime: Runtime) -> dict[str, str]:
        """Put the backends together and return the environment in which they run."""
        backends = self._workspace.folder / "backends"
        runtime.compose_backends(backends)
        threads = self._threads or len(os.sched_getaffinity(0))
        environment = runtime.environment() | {"VIZWIZ_SERVING_THREADS": str(threads)}
        environment.pop(KEY_VARIABLE, None)  # the stubs need not know
        check_stub(backends / "python" / STUB, environment)
        return environment

    def _launch(self, report: Callable[[str], None]) -> None:
        """Start the process, wait until it is ready, and watch over it."""
        with self._log.open() as log:  # a file never blocks the server, as a full pipe would
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *self._command],
                env=self._environment,
                cwd=self._workspace.folder,  # where the stubs would find modules first
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[self._workspace.lock],
                start_new_session=True,  # Ctrl-C comes to us, and we stop the server in order
            )
        self._wait_until_ready(report)
        if not hide_key(self._process.pid, self._key):
            report("other users of this machine can read the admin key in the list of processes")
        served = Served(self._control, self._ensembles)
        with suppress(OSError, http.client.HTTPException):  # it ended just now: that is noticed elsewhere
            served()
        self._tidy()
        self._watch = Watch(self._process.pid, self._log.models, served, self._tidy, self._control, report)
        self._watch.start()

    def _tidy(self) -> None:
        self._workspace.close_shared_memory()
        self._log.rotate()

    def _with_log(self, error: ServingError) -> ServingError:
        """``error``, with the place of a copy of the log: the log itself goes with the server."""
        try:
            return ServingError(f"{error}\nserver log: {self._workspace.keep_log(self._log.older, self.log)}")
        except OSError as reason:  # the disk is full, for example
            return ServingError(f"{error}\nserver log: it cannot be kept ({reason})")

    def _clean_up(self) -> None:
        """Remove what a server that ended by itself left: its watch, its stubs, its shared memory."""
        self._watch.stop()
        _kill(self._process)
        self._workspace.remove_shared_memory()

    def _arguments(self, runtime: Runtime) -> list[str]:
        return [
            f"--id={self._id}",
            f"--model-repository={self._log.models}",
            f"--backend-directory={self._workspace.folder / 'backends'}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self._ensembles()),  # and their steps with them
            "--exit-on-error=false",  # it would unload what did load first: seconds, before an error can be told
            "--disable-auto-complete-config",  # what is served is what config.pbtxt says
            *(f"{flag.replace('port', 'address')}={host}" for flag, host in self._hosts().items()),
            *(f"{flag}={port}" for flag, port in self._ports.items()),
            *restrictions(self._key),
            f"--cache-directory={runtime.caches}",
            f"--cache-config=local,size={CACHE_BYTES}",  # for the models whose config enables it
            f"--exit-timeout-secs={EXIT_S}",
            f"--log-verbose={int(self._verbose)}",
            # backends written in Python take the settings of the backend `python`
            f"--backend-config=python,shm-region-prefix-name={self._workspace.shared_memory_prefix}",
            f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_S}",
        ]

    def _wait_until_ready(self, report: Callable[[str], None]) -> None:
        start = reported = time.monotonic()
        while (status := self._readiness()) != http.HTTPStatus.OK:
            if self._log.size():  # it has read its arguments
                hide_key(self._process.pid, self._key)
            if status is not None or self._process.poll() is not None:
                cause = self._log.cause() or f"tritonserver {self._outcome()}"
                raise ServingError(
                    f"Triton cannot serve {self.repository}: {cause}\nits log says:\n{self._log.complaints()}"
                )
            now = time.monotonic()
            if now - reported >= REPORT_INTERVAL_S:
                report(
                    f"waiting for {', '.join(self._log.loading() or ['tritonserver'])} to load ({now - start:.0f} s)"
                )
                reported = now
            time.sleep(PROBE_INTERVAL_S)

    def _readiness(self) -> int | None:
        """The HTTP status of the ensembles; None as long as models load: nothing listens before that is done.

        Nothing of ours: whoever started meanwhile may have taken the port.
        """
        try:
            if json.loads(ask_http(self.http_url, "GET", "")[1]).get("name") != self._id:
                return None
            statuses = [ask_http(self.http_url, "GET", f"models/{name}/ready")[0] for name in self._ensembles()]
        except (OSError, http.client.HTTPException, ValueError):
            return None
        return next((status for status in statuses if status != http.HTTPStatus.OK), http.HTTPStatus.OK)

    def _drain(self) -> None:
        """Take no new request and wait for those in flight.

        Triton's own way, at SIGTERM, fails an ensemble's request that is between two steps (measured on 2.51).
        """
        deadline = time.monotonic() + DRAIN_S
        with suppress(OSError, http.client.HTTPException):  # the server is gone already
            for name in self._ensembles():
                self._control("POST", f"repository/models/{name}/unload", DRAIN_S)
            while b"UNLOADING" in self._control("POST", "repository/index", DRAIN_S)[1] and time.monotonic() < deadline:
                time.sleep(PROBE_INTERVAL_S)

    def _control(self, method: str, path: str, timeout_s: float = CONTROL_S) -> tuple[int, bytes]:
        return ask_http(self.http_url, method, path, {HTTP_HEADER: self._key}, timeout_s)

    def _ensembles(self) -> list[str]:
        """The ensembles to serve; the one that clients ask also where Triton will have to say what is wrong with it."""
        repository = self._log.models  # as it was at the start, whatever the working directory is now
        ours = [name for name in ENSEMBLES if (repository / name / CONFIG_FILE).is_file()]
        return list(dict.fromkeys([ENSEMBLE, *ours, *ensembles(repository)]))

    def _hosts(self) -> dict[str, str]:
        return {"--http-port": self._host, "--grpc-port": self._host, "--metrics-port": LOOPBACK}

    def _outcome(self) -> str:
        code = self._process.poll()
        if code is None:
            return "gives no reason"
        return f"ended with {signal.Signals(-code).name if code < 0 else f'exit status {code}'}"


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    """Kill the server, where there is one, and its stubs: one process group. They may outlive it for a moment."""
    if process is not None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
