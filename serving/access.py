"""Addresses, ports and admin key of the embedded server.

Model control, shared memory, tracing and logging answer only requests that carry the admin key in a header. Health,
metadata, configurations, statistics and inference are open. Each start generates a key, unless :data:`KEY_VARIABLE`
gives one, and saves it in its workspace, readable by its user alone, where :func:`find_server` finds it.
https://github.com/triton-inference-server/server/blob/main/docs/customization_guide/inference_protocols.md
"""

from __future__ import annotations

import errno
import http.client
import ipaddress
import json
import os
import secrets
import socket
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from serving import ServingError
from serving.repository import DEFAULT_REPOSITORY
from serving.workspace import live_workspaces

LOOPBACK = "127.0.0.1"
ALL_INTERFACES = "0.0.0.0"
EXPOSE_FLAG = "--expose-known-holes"
KNOWN_HOLES = (
    "its Triton 2.51 lets anyone who can send it requests run code (Python backend: CVE-2025-23319, -23320, -23334, "
    "fixed in 25.07), and its HTTP has no encryption"
)

KEY_VARIABLE = "VIZWIZ_SERVING_ADMIN_KEY"
HTTP_HEADER = "vizwiz-admin-key"
GRPC_HEADER = f"triton-grpc-protocol-{HTTP_HEADER}"  # Triton adds this prefix
RESTRICTED_APIS = ("model-repository", "shared-memory", "trace", "logging")
MIN_KEY_LENGTH = 32  # characters, as deploy/ requires

_RECORD_FILE = "server.json"
_HTTP_TIMEOUT_S = 5


# addresses


def check_host(host: str, expose: bool) -> None:
    """Check that ``host`` is a loopback address, or that ``expose`` is set.

    Raises:
        ServingError: other machines can reach ``host`` and ``expose`` is not set, or ``host`` is no IPv4 address.
    """
    try:
        loopback = ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        raise ServingError(
            f"got the address {host!r}, expected an IPv4 address of this machine, such as {LOOPBACK}, or "
            f"{ALL_INTERFACES} for all interfaces"
        ) from None
    if not (loopback or expose):
        raise ServingError(
            f"other machines can reach {host}, and the embedded server is not safe for that: {KNOWN_HOLES}. Serve the "
            "same repository with NVIDIA's Triton container instead. If everyone on that network may run code on this "
            f"machine, add {EXPOSE_FLAG}"
        )


def claim_ports(wanted: Mapping[str, int], hosts: Mapping[str, str]) -> dict[str, int]:
    """Check that every port is free, and replace each 0 by a free port.

    Checked before Triton loads its models, so that a port in use is reported at once.

    Args:
        wanted: flag -> port, such as ``{"--http-port": 8000}``.
        hosts: flag -> IPv4 address to listen at.

    Raises:
        ServingError: a port is given twice, in use, or needs privileges that this process lacks.
    """
    for port in wanted.values():
        same = [other for other, number in wanted.items() if number == port != 0]
        if len(same) > 1:
            raise ServingError(f"{' and '.join(same)} are both {port}: give each its own port, or 0 for any free one")
    with ExitStack() as stack:  # keeps all sockets open until the last is bound, so that the ports differ
        return {
            flag: _listen(stack.enter_context(socket.socket()), flag, hosts[flag], port)
            for flag, port in wanted.items()
        }


def _listen(listener: socket.socket, flag: str, host: str, port: int) -> int:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not count
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise ServingError(f"{host} is not an address of this machine: correct --host") from error
        causes = {
            errno.EADDRINUSE: "it is in use, perhaps by another `python -m serving`: stop that, or",
            errno.EACCES: "this user may not listen at ports that low:",
        }
        cause = causes.get(error.errno or 0, f"{error.strerror}:")
        raise ServingError(
            f"port {port} ({flag}) cannot be used: {cause} give {flag} another port, 0 for any free one"
        ) from error
    return int(listener.getsockname()[1])


# admin key


def admin_key() -> str:
    """Return the admin key of the environment, or a new random one.

    Raises:
        ServingError: the key of the environment is too short, or has characters that a header cannot carry.
    """
    if (key := os.environ.get(KEY_VARIABLE)) is None:
        return secrets.token_urlsafe()
    if len(key) < MIN_KEY_LENGTH or not all(char.isascii() and (char.isalnum() or char in "-_") for char in key):
        raise ServingError(
            f"{KEY_VARIABLE} holds {len(key)} characters, expected {MIN_KEY_LENGTH} or more of A-Z a-z 0-9 - _: "
            "set another key, or unset it and each start generates one"
        )
    return key


def restrictions(key: str) -> list[str]:
    """Arguments of ``tritonserver`` that restrict its admin APIs to requests with ``key``."""
    apis = ",".join(RESTRICTED_APIS)
    return [
        f"--http-restricted-api={apis}:{HTTP_HEADER}={key}",
        f"--grpc-restricted-protocol={apis}:{HTTP_HEADER}={key}",
    ]


def hide_key(pid: int, key: str) -> bool:
    """Overwrite ``key`` in the command line of the child process ``pid``, after the process has parsed it.

    Every user of a machine can read the command lines of all processes: proc_pid_cmdline(5).

    Returns:
        Whether the kernel allowed it.
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


# running servers


@dataclass(frozen=True)
class RunningServer:
    """An embedded server on this machine."""

    grpc: str  # host:port
    http: str  # host:port
    repository: str
    key: str


def write_record(workspace: Path, server: RunningServer) -> None:
    """Save the addresses and the key of ``server`` in its ``workspace``, with mode 0600."""
    descriptor = os.open(workspace / _RECORD_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(server), file)


def find_servers() -> list[RunningServer]:
    """The running embedded servers of this user on this machine."""
    servers = []
    for folder in live_workspaces():
        with suppress(OSError, ValueError, TypeError):  # it is starting, or has just ended
            servers.append(RunningServer(**json.loads((folder / _RECORD_FILE).read_text(encoding="utf-8"))))
    return servers


def find_server(url: str | None = None, repository: Path | None = None) -> RunningServer | None:
    """Find the running server that matches ``url`` and ``repository``; None matches any.

    If several match, the one that serves ./triton_models is taken. Returns None if no server, or more than one, is
    left.
    """
    matching = [
        server
        for server in find_servers()
        if (url is None or url.replace("localhost:", f"{LOOPBACK}:") == server.grpc)
        and (repository is None or Path(server.repository) == repository.resolve())
    ]
    local = [server for server in matching if Path(server.repository) == DEFAULT_REPOSITORY.resolve()]
    found = matching if len(matching) == 1 else local
    return found[0] if len(found) == 1 else None


def request_http(
    address: str, method: str, path: str, headers: Mapping[str, str] | None = None, timeout_s: float = _HTTP_TIMEOUT_S
) -> tuple[int, bytes]:
    """Send ``method /v2/path`` to the Triton at ``address`` (host:port); return the status and body of its response.

    Raises:
        OSError, http.client.HTTPException: there is no response.
    """
    connection = http.client.HTTPConnection(address, timeout=timeout_s)  # urllib would use a configured proxy
    try:
        connection.request(method, f"/v2/{path}".rstrip("/"), headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
