"""The manifests' own shell lines, run by the tritonserver that the test environment has."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serving.runtime import find_runtime
from tests.conftest import LiveServer
from tests.deploy.manifests import Lines, compose_lines
from vizwiz_client.contract.tensors import ENSEMBLE

KEY = "0123456789abcdef0123456789abcdef"
HOST = "127.0.0.1"
START_S = STOP_S = 120  # far more than it takes: the machine may be busy


@dataclass
class Deployed:
    """Triton as a manifest starts and stops it, on loopback."""

    lines: Lines
    folder: Path  # of its log, backends and key
    repository: Path
    key: str | None = KEY
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def grpc_url(self) -> str:
        return f"{HOST}:{self.ports['--grpc-port']}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    def start(self) -> None:
        runtime = find_runtime()
        if not (self.folder / "backends").exists():
            runtime.compose_backends(self.folder / "backends")
        self.ports = free_ports("--http-port", "--grpc-port", "--metrics-port")
        if self.key is not None:
            (self.folder / "key").write_text(f"{self.key}\n", encoding="utf-8")
        self.environment = runtime.environment() | self.lines.environment
        self.environment["PATH"] = f"{runtime.server.parent}{os.pathsep}{self.environment['PATH']}"
        self.environment["VIZWIZ_SERVING_THREADS"] = "1"
        flags = [
            *(f"{flag}={port}" for flag, port in self.ports.items()),
            *(f"--{service}-address={HOST}" for service in ("http", "grpc", "metrics")),
            f"--backend-directory={self.folder / 'backends'}",
            f"--cache-directory={runtime.caches}",
        ]
        with (self.folder / "log").open("wb") as log:
            command = [*self._here(self.lines.start), *flags]
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                assert self.http("GET", f"/v2/models/{ENSEMBLE}/ready")[0] == http.HTTPStatus.OK, self.log
                return
            except OSError:
                assert self.process.poll() is None, self.log
                assert time.monotonic() < deadline, self.log
            time.sleep(0.1)

    def stop(self) -> int:
        """Stop it as the manifest does: first its preStop, then SIGTERM."""
        if self.process.poll() is None:
            subprocess.run(self._here(self.lines.stop), env=self.environment, check=True, timeout=STOP_S)
            self.process.terminate()
        return self.process.wait(STOP_S)

    def http(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, service: str = "http"
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self.ports[f"--{service}-port"], timeout=60)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _here(self, command: Sequence[str]) -> list[str]:
        """``command`` with the container's paths and port replaced, and without the wait for Kubernetes' endpoints."""
        places = {
            r"(?<=[ =])/models\b": str(self.repository),
            "/run/secrets/admin_key": str(self.folder / "key"),
            "localhost:8000": f"{HOST}:{self.ports['--http-port']}",
            r"\Asleep 10\n": "",
        }
        for there, here in places.items():
            command = [re.sub(there, lambda _, here=here: here, word) for word in command]  # type: ignore[misc]
        return list(command)


@pytest.fixture(scope="session")
def deployed(live_server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Compose's Triton on a repository that export wrote."""
    repository = Path(shutil.copytree(live_server.repository, tmp_path_factory.mktemp("repository") / "models"))
    server = Deployed(compose_lines(), tmp_path_factory.mktemp("deployed"), repository)
    with ExitStack() as stack:
        server.start()
        stack.callback(server.stop)
        server.wait_until_ready()
        yield server


@pytest.fixture(scope="session")
def photo(live_server: LiveServer) -> Path:
    return sorted((live_server.data / "val").glob("*.jpg"))[0]


def free_ports(*flags: str) -> dict[str, int]:
    """A free port for each flag."""
    with ExitStack() as stack:  # all are held until all are found, so that they differ
        listeners = [stack.enter_context(socket.create_server((HOST, 0))) for _ in flags]
        return {flag: listener.getsockname()[1] for flag, listener in zip(flags, listeners, strict=True)}
