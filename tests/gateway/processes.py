"""``vizwiz-gateway`` as a process."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
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
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self._environment
        )
        with ExitStack() as stack:
            stack.callback(self.kill)
            assert self.process.stdout is not None
            if not (line := self.process.stdout.readline()):
                raise AssertionError(f"the gateway did not start: {self.process.communicate()[1]}")
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
        if self.process.returncode is None:
            self.process.kill()
            self.process.communicate()

    def stop(self) -> str:
        """Stop it as a supervisor does; return its standard error."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=TIMEOUT_S)[1]

    def ask(self, photo: bytes, *questions: str, **options: Any) -> httpx.Response:
        """POST /v1/ask; ``options`` are httpx's, ``data`` holds further fields."""
        data = {"question": list(questions), **options.pop("data", {})}
        return self.http.post("/v1/ask", files={"photo": ("img.jpg", photo)}, data=data, **options)


def draw_photo(width: int = 640, height: int = 480, *, seed: int = 0, format: str = "JPEG") -> bytes:
    """A photo file of smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, format)
    return file.getvalue()
