"""``vizwiz-gateway`` as a process."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

TIMEOUT_S = 60  # of a request: the machine may be busy


class Gateway:
    """As a context manager: a gateway in front of the Triton at ``triton``, which listens.

    Args:
        triton: Triton's gRPC address.
        flags: further flags of the command.
        environment: further environment variables.
    """

    def __init__(self, triton: str, *flags: str, **environment: str) -> None:
        self._command = [sys.executable, "-m", "vizwiz_gateway", "--triton", triton, "--port=0", "--json", *flags]
        self._environment = os.environ | environment

    def __enter__(self) -> Gateway:
        self._log = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would block the gateway once it is full
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=self._log, text=True, env=self._environment
        )
        with ExitStack() as stack:
            stack.callback(self.kill)
            assert self.process.stdout is not None
            if not (line := self.process.stdout.readline()):
                raise AssertionError(f"the gateway did not start: {self._read_log()}")
            self.url = str(json.loads(line)["gateway"])
            self.http = stack.enter_context(httpx.Client(base_url=self.url, timeout=TIMEOUT_S))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()

    def stop(self) -> str:
        """Stop it as a supervisor does; return its standard error."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(TIMEOUT_S)
        return self._read_log()

    def _read_log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def ask(self, photo: bytes, *questions: str, **options: Any) -> httpx.Response:
        """POST /v1/ask; ``options`` are httpx's, ``data`` holds further fields."""
        data = {"question": list(questions), **options.pop("data", {})}
        return self.http.post("/v1/ask", files={"photo": ("img.jpg", photo)}, data=data, **options)

    def metric(self, name: str) -> float:
        """Value of a metric, summed over its labels; 0 where there is none."""
        lines = [line.rpartition(" ") for line in self.http.get("/metrics").text.splitlines()]
        return sum(float(value) for key, _, value in lines if key.partition("{")[0] == name)

    def connect(self) -> socket.socket:
        """A connection of one's own, to send what no HTTP client sends."""
        url = httpx.URL(self.url)
        return socket.create_connection((url.host, url.port), timeout=TIMEOUT_S)

    def files(self) -> list[str]:
        """What the descriptors of the process refer to."""
        links = []
        for path in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                links.append(str(path.readlink()))
        return links

    def memory(self) -> int:
        """Resident memory, bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


BOUNDARY = "0123456789boundary"


def form(photo: bytes, question: str = "what is this?") -> bytes:
    """A multipart body."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="question"\r\n\r\n{question}\r\n'.encode(),
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n'.encode(),
        photo,
        f"\r\n--{BOUNDARY}--\r\n".encode(),
    ]
    return b"".join(parts)


def head(length: int, path: str = "/v1/ask") -> bytes:
    """The request line and headers of a form of ``length`` bytes."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def read_reply(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of the next response."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def draw_photo(width: int = 640, height: int = 480, *, seed: int = 0, format: str = "JPEG") -> bytes:
    """A photo file of smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, format)
    return file.getvalue()
