"""The arguments of a client, validated when it is created."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vizwiz_client.contract.errors import WrongServer

MAX_TIMEOUT_S = 4e6  # 46 days; Python's locks raise OverflowError where they should wait longer, on Windows at 4.3e6 s

DEFAULT_URL = "localhost:8001"
DEFAULT_TIMEOUT_S = 60.0  # about what a full batch takes on a large CLIP and a CPU
DEFAULT_RETRIES = 2
DEFAULT_MAX_LATENCY_S = 1.0  # longer breaks a person's train of thought (Nielsen, Usability Engineering, 1993, ch. 5)

# https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md: keys ending in "-bin" carry bytes, "grpc-" is gRPC's
_HEADER_NAME = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)")
_HEADER_VALUE = re.compile(r"[ -~]*")
_ADDRESS = re.compile(r"(?:[^/\s:\[\]@]+|\[[0-9A-Fa-f:.]+(?:%\w+)?\]):([0-9]{1,5})")


@dataclass(frozen=True)
class Tls:
    """Certificates of an encrypted connection, as PEM files.

    The files are read once; a renewed certificate needs a new client. The server's certificate must name the host of
    the client's ``url``.

    Args:
        ca: certificates of the authorities to trust; None for the public ones that gRPC carries.
        cert: this client's certificate chain, for a server that requires one (mutual TLS).
        key: the private key of ``cert``.

    Raises:
        ValueError: one of ``cert`` and ``key`` is missing, or a file cannot be read or is not PEM.
    """

    ca: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            alone = "cert" if self.key is None else "key"
            raise ValueError(f"got Tls({alone}=...) alone, expected cert and key together, or neither")
        _ = self.contents

    @cached_property
    def contents(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Contents of ``ca``, ``key`` and ``cert``, in the order of ``grpc.ssl_channel_credentials``."""
        return _pem("ca", self.ca), _pem("key", self.key), _pem("cert", self.cert)


@dataclass(frozen=True)
class Settings:
    """The arguments of a client; see :class:`vizwiz_client.VizwizClient`.

    Raises:
        WrongServer: ``url`` is not "host:port".
        ValueError: another argument is invalid.
    """

    url: str
    timeout_s: float
    retries: int
    tls: Tls | None
    headers: Mapping[str, str]
    fast_decode: bool

    def __post_init__(self) -> None:
        _check_address(self.url)
        if not 0 < self.timeout_s < MAX_TIMEOUT_S:
            raise ValueError(
                f"got timeout_s={self.timeout_s}, expected a number of seconds over 0, below {MAX_TIMEOUT_S:,.0f}"
            )
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise ValueError(f"got retries={self.retries!r}, expected a whole number, 0 or more")
        object.__setattr__(self, "headers", {name.lower(): value for name, value in self.headers.items()})
        for name, value in self.headers.items():
            _check_header(name, value)


def _check_address(url: str) -> None:
    expected = f"expected host:port without http://, such as {DEFAULT_URL} or [::1]:8001"
    match = _ADDRESS.fullmatch(url)
    if match is None:
        raise WrongServer(f"got the address {url!r}, {expected}")
    if not 1 <= int(match[1]) <= 65_535:
        raise WrongServer(f"got the address {url!r} with port {match[1]}, expected a port from 1 to 65535")


def _check_header(name: str, value: str) -> None:
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError(
            f"got the header {name!r}, expected a name of letters, digits, '_', '-' and '.', which neither starts "
            "with 'grpc-' nor ends in '-bin'"
        )
    if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
        raise ValueError(f"got a value of the header {name!r} that is not printable ASCII on one line; encode it")


def _pem(name: str, path: str | os.PathLike[str] | None) -> bytes | None:
    if path is None:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(
            f"Tls({name}={str(path)!r}): cannot be read ({error.strerror}); expected a PEM file"
        ) from error
    if b"-----BEGIN " not in content:
        raise ValueError(f"Tls({name}={str(path)!r}): not a PEM file; expected one with a line '-----BEGIN ...-----'")
    return content
