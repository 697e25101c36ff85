"""The container's command, run by the tritonserver that the test environment has."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serving.runtime import find_runtime
from tests.conftest import ROOT, LiveServer
from vizwiz_client.contract.tensors import ENSEMBLE, TEXT_ENCODER_PREFIX

RAW_ENSEMBLE = f"{ENSEMBLE}_raw"
DEPLOY = ROOT / "deploy"
KEY = "0123456789abcdef0123456789abcdef"
HOST = "127.0.0.1"
START_S = STOP_S = 120  # far more than it takes: the machine may be busy


@dataclass
class Deployed:
    """A process of deploy/serve.py on loopback."""

    folder: Path  # of its log, backends and key
    repository: Path
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def grpc_url(self) -> str:
        return f"{HOST}:{self.ports['--grpc-port']}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    def start(self) -> None:
        runtime = find_runtime()
        runtime.compose_backends(self.folder / "backends")
        self.ports = free_ports("--http-port", "--grpc-port", "--metrics-port")
        (self.folder / "key").write_text(f"{KEY}\n", encoding="utf-8")
        environment = runtime.environment()
        environment["PATH"] = f"{runtime.server.parent}{os.pathsep}{environment['PATH']}"
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(as_in_the_image(self.folder)), *self._arguments(runtime.triton)],
                env=environment,
                stdout=log,
                stderr=log,
            )

    def _arguments(self, triton: Path) -> list[str]:
        return [
            f"--repository={self.repository}",
            f"--admin-key-file={self.folder / 'key'}",
            "--threads=1",
            *(f"{flag}={port}" for flag, port in self.ports.items()),
            *(f"--{service}-address={HOST}" for service in ("http", "grpc", "metrics")),
            f"--backend-directory={self.folder / 'backends'}",
            f"--cache-directory={triton / 'caches'}",
        ]

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


def as_in_the_image(folder: Path) -> Path:
    """Copy below ``folder`` what the Dockerfile copies beside its command, and nothing else; returns the command."""
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    for sources, target in re.findall(r"^COPY (?:--chmod=\S+ )?([^-\n].*) /(opt/\S+/)$", dockerfile, re.MULTILINE):
        (folder / target).mkdir(parents=True, exist_ok=True)
        for source in sources.split():
            shutil.copy(ROOT / source, folder / target)
    (command,) = folder.glob("opt/*/serve.py")
    return command


@pytest.fixture(scope="session")
def deployed(live_server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The container's command on a repository that export wrote."""
    server = Deployed(tmp_path_factory.mktemp("deployed"), both_ensembles(live_server.repository, tmp_path_factory))
    with ExitStack() as stack:
        server.start()
        stack.callback(server.stop)
        server.wait_until_ready()
        yield server


def both_ensembles(repository: Path, factory: pytest.TempPathFactory) -> Path:
    """A copy of ``repository`` that has both ensembles and caches answers of the text encoder."""
    copy = Path(shutil.copytree(repository, factory.mktemp("repository") / "models"))
    raw = copy / RAW_ENSEMBLE
    if not raw.exists():  # of an export that knew no such thing yet
        shutil.copytree(copy / ENSEMBLE, raw)
        config = (raw / "config.pbtxt").read_text(encoding="utf-8")
        (raw / "config.pbtxt").write_text(config.replace(f'"{ENSEMBLE}"', f'"{RAW_ENSEMBLE}"'), encoding="utf-8")
    (text_encoder,) = copy.glob(f"{TEXT_ENCODER_PREFIX}*")
    config = (text_encoder / "config.pbtxt").read_text(encoding="utf-8")
    if "response_cache" not in config:  # of an export that knew no such thing yet
        (text_encoder / "config.pbtxt").write_text(f"{config}\nresponse_cache {{ enable: true }}\n", encoding="utf-8")
    return copy


@pytest.fixture(scope="session")
def photo(live_server: LiveServer) -> Path:
    return sorted((live_server.data / "val").glob("*.jpg"))[0]


def free_ports(*flags: str) -> dict[str, int]:
    """A free port for each flag."""
    with ExitStack() as stack:  # all are held until all are found, so that they differ
        listeners = [stack.enter_context(socket.create_server((HOST, 0))) for _ in flags]
        return {flag: listener.getsockname()[1] for flag, listener in zip(flags, listeners, strict=True)}
