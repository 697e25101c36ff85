"""The processes of a benchmark: a server under test, and the generator of its load."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from benchmarks.serving.job import Job, Record
from benchmarks.serving.models import Served
from serving import launch
from serving.access import LOOPBACK, claim_ports

READY_WITHIN_S = 300
STOP_WITHIN_S = 60


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str
    pid: int  # of the root of its processes
    metrics_url: str = ""


class Generator:
    """The process that generates load; it is started with the first job, and keeps what it has opened."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, job: Job) -> Record:
        """Do ``job`` there."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(asdict(job)), file=process.stdin, flush=True)
        if not (line := process.stdout.readline()):
            raise SystemExit(f"the load generator ended with exit status {process.wait()}; it says why above")
        return Record(**json.loads(line))

    @property
    def pid(self) -> int:
        """Its process's id."""
        return self._started().pid

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = _start(["-m", "benchmarks.serving.generate"], stdin=subprocess.PIPE, text=True)
        return self._process

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.communicate(timeout=STOP_WITHIN_S)
            self._process = None


@contextmanager
def triton(repository: Path, threads: int | None = None) -> Iterator[Server]:
    """This project's embedded server, by its own command."""
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    options = [f"--repository={repository}", "--json", *ports, *([f"--threads={threads}"] if threads else [])]
    process = _start(["-m", "serving", *options], text=True)
    with _stopping(process):
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"`python -m serving` ended with exit status {process.wait()}; it says why above")
        addresses = json.loads(line)
        _wait_for(addresses["metrics"], process)  # Triton listens there last
        yield Server(addresses["grpc"], process.pid, addresses["metrics"])


@contextmanager
def plain(served: Served, *, bf16: bool) -> Iterator[Server]:
    """The plain FastAPI server (plain.py)."""
    [port] = claim_ports({"--port": 0}, {"--port": LOOPBACK}).values()
    options = [f"--checkpoint={served.checkpoint}", f"--run={served.run}", f"--port={port}", *["--bf16"] * bf16]
    process = _start(["-m", "benchmarks.serving.plain", *options])
    with _stopping(process):
        url = f"http://{LOOPBACK}:{port}"
        _wait_for(f"{url}/health", process)
        yield Server(url, process.pid)


def counters(server: Server) -> dict[str, float]:
    """Triton's own counts of each model's requests: metric and model, as ``nv_inference_count clip_image``."""
    if not server.metrics_url:
        return {}
    text = _open(server.metrics_url).decode()
    found = re.findall(r'^(\w+)\{model="(\w+?)(?:_[0-9a-f]{12})?",.*\} (\S+)$', text, re.MULTILINE)
    return {f"{metric} {model}": float(value) for metric, model, value in found}


def _start(
    arguments: list[str], stdin: int | IO[bytes] = subprocess.DEVNULL, text: bool = False
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, launch.__file__, str(os.getpid()), sys.executable, *arguments],  # it ends when we do
        stdin=stdin,
        stdout=subprocess.PIPE if text else None,
        text=True,
        # Linux shares cores between sessions first (sched_autogroup), and Triton has one of its own: so has everybody
        start_new_session=True,
    )


@contextmanager
def _stopping(process: subprocess.Popen[str]) -> Iterator[None]:
    with process:
        try:
            yield
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_WITHIN_S)
            process.kill()


def _wait_for(url: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{url} does not answer; its server says why above")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    with suppress(OSError):
        return bool(_open(url))
    return False


def _open(url: str) -> bytes:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a configured proxy knows no loopback
    return bytes(direct.open(url, timeout=10).read())
