"""Addresses and ports: checked before Triton loads its models, so that a taken one is told at once."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack

from serving.errors import ServingError

LOOPBACK = "127.0.0.1"
EVERY_INTERFACE = "0.0.0.0"
EXPOSE_FLAG = "--expose-known-holes"
KNOWN_HOLES = (
    "its Triton is 2.51, whose Python backend lets who can send it requests run code (CVE-2025-23319, -23320, -23334, "
    "fixed in 25.07), and its HTTP has no encryption"
)


def check_host(host: str, expose: bool) -> None:
    """Check that ``host`` is this machine's own, or that the wish to ``expose`` the server was spelt out.

    Raises:
        ServingError: neither, or it is no IPv4 address.
    """
    try:
        private = ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        raise ServingError(
            f"got the address {host!r}, expected an IPv4 address of this machine, such as {LOOPBACK}, or "
            f"{EVERY_INTERFACE} for every interface"
        ) from None
    if not (private or expose):
        raise ServingError(
            f"{host} is reached from other machines, and the embedded server is not fit for that: {KNOWN_HOLES}. Serve "
            "the same repository with NVIDIA's Triton container instead, or, where everybody on that network may run "
            f"code on this machine, add {EXPOSE_FLAG}"
        )


def claim_ports(wanted: Mapping[str, int], hosts: Mapping[str, str]) -> dict[str, int]:
    """Check that every port can be listened on, and put a free one in the place of each 0.

    Args:
        wanted: flag -> port, such as ``{"--http-port": 8000}``.
        hosts: flag -> the address to listen at.

    Raises:
        ServingError: a port is taken, or needs rights that this process lacks.
    """
    with ExitStack() as stack:  # all are held until all are found, so that they differ
        return {
            flag: _listen(stack.enter_context(socket.socket()), flag, hosts[flag], port)
            for flag, port in wanted.items()
        }


def _listen(listener: socket.socket, flag: str, host: str, port: int) -> int:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not make it taken
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        taken = "it is taken, by another `python -m serving` perhaps: stop that"
        cause = taken if error.errno == errno.EADDRINUSE else f"{os.strerror(error.errno or 0)}"
        if error.errno == errno.EADDRNOTAVAIL:
            raise ServingError(f"{host} is no address of this machine: give --host one that is") from error
        raise ServingError(
            f"port {port} ({flag}) cannot be used: {cause}, or give {flag} another port, 0 for any free one"
        ) from error
    return int(listener.getsockname()[1])
