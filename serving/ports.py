"""Ports on loopback: checked before Triton loads its models, so that a taken one is told at once."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack

from serving.errors import ServingError

HOST = "127.0.0.1"  # the embedded server has known holes and no TLS on HTTP: it never faces a network


def claim_ports(wanted: Mapping[str, int]) -> dict[str, int]:
    """Check that every port can be listened on, and put a free one in the place of each 0.

    Args:
        wanted: flag -> port, such as ``{"--http-port": 8000}``.

    Raises:
        ServingError: a port is taken, or needs rights that this process lacks.
    """
    with ExitStack() as stack:  # all are held until all are found, so that they differ
        return {flag: _listen(stack.enter_context(socket.socket()), flag, port) for flag, port in wanted.items()}


def _listen(listener: socket.socket, flag: str, port: int) -> int:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not make it taken
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        taken = "it is taken, by another `python -m serving` perhaps: stop that"
        cause = taken if error.errno == errno.EADDRINUSE else f"{os.strerror(error.errno or 0)}"
        raise ServingError(
            f"port {port} ({flag}) cannot be used: {cause}, or give {flag} another port, 0 for any free one"
        ) from error
    return int(listener.getsockname()[1])
