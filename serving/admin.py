"""Who may change a running server: whoever holds its key.

Model control, shared memory, tracing and logging answer only requests that carry the key in a header; health, metadata,
configurations, statistics and inference need none. Each start makes a key of its own, unless :data:`KEY_VARIABLE` gives
one, and writes it, readable by its user alone, where :func:`find_servers` on the same machine finds it.
https://github.com/triton-inference-server/server/blob/main/docs/customization_guide/inference_protocols.md
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from serving.errors import ServingError
from serving.workspace import live_folders

KEY_VARIABLE = "VIZWIZ_SERVING_ADMIN_KEY"
HTTP_HEADER = "vizwiz-admin-key"
GRPC_HEADER = f"triton-grpc-protocol-{HTTP_HEADER}"  # Triton looks for the key under this prefix
RESTRICTED = ("model-repository", "shared-memory", "trace", "logging")

_RECORD_FILE = "server.json"
_SHORTEST_KEY = 32  # characters, as deploy/serve.py wants it
_HTTP_TIMEOUT_S = 5


@dataclass(frozen=True)
class RunningServer:
    """A server on this machine, as it describes itself to those who may change it."""

    grpc: str  # host:port
    http: str  # host:port
    repository: str
    key: str


def admin_key() -> str:
    """The key in the environment, or a new one.

    Raises:
        ServingError: the one in the environment is too short, or cannot be sent in a header.
    """
    if (key := os.environ.get(KEY_VARIABLE)) is None:
        return secrets.token_urlsafe()
    if len(key) < _SHORTEST_KEY or not all(char.isascii() and (char.isalnum() or char in "-_") for char in key):
        raise ServingError(
            f"{KEY_VARIABLE} holds {len(key)} characters, expected {_SHORTEST_KEY} or more of A-Z a-z 0-9 - _: "
            "give it another one, or unset it and each start makes its own"
        )
    return key


def restrictions(key: str) -> list[str]:
    """Triton's arguments that let only holders of ``key`` change the server."""
    protocols = ",".join(RESTRICTED)
    return [
        f"--http-restricted-api={protocols}:{HTTP_HEADER}={key}",
        f"--grpc-restricted-protocol={protocols}:{HTTP_HEADER}={key}",
    ]


def write_record(folder: Path, server: RunningServer) -> None:
    """Write down in a server's temporary ``folder`` where it listens and what its key is."""
    descriptor = os.open(folder / _RECORD_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(server), file)


def find_servers() -> list[RunningServer]:
    """The embedded servers of this user that run on this machine."""
    servers = []
    for folder in live_folders():
        with suppress(OSError, ValueError, TypeError):  # it is starting, or just ended
            servers.append(RunningServer(**json.loads((folder / _RECORD_FILE).read_text(encoding="utf-8"))))
    return servers


def hide_key(pid: int, key: str) -> bool:
    """Blot ``key`` out of the command line of process ``pid``, a child that has read it; whether that was allowed.

    Any user of a machine can read its command lines: proc_pid_cmdline(5).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, proc_pid_stat(5)
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            line = memory.read(end - start)
            memory.seek(start)
            memory.write(line.replace(key.encode(), b"*" * len(key)))
    except OSError:
        return False
    return True


def ask_http(
    address: str, method: str, path: str, headers: Mapping[str, str] | None = None, timeout_s: float = _HTTP_TIMEOUT_S
) -> tuple[int, bytes]:
    """The status and body of Triton's answer at ``address`` (host:port) to ``method /v2/path``.

    Raises:
        OSError, http.client.HTTPException: there is none.
    """
    connection = http.client.HTTPConnection(address, timeout=timeout_s)  # urllib would ask a configured proxy
    try:
        connection.request(method, f"/v2/{path}".rstrip("/"), headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
