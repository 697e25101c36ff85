"""Settings of the gateway: one typed class, which checks them. ``cli`` reads them from flags and the environment."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field

_TOKEN = re.compile(r"[!-~]+")
_HOST = re.compile(r"[0-9A-Za-z._-]+")
_ORIGIN = re.compile(r"[a-z][0-9a-z+.-]*://[^\s/*A-Z]+")  # as browsers send it: in lower case, without a path


class SettingsError(ValueError):
    """A setting is invalid; the message names it, and what was expected."""


@dataclass(frozen=True)
class Settings:
    """Settings of one gateway process; see ``vizwiz-gateway --help``.

    Attributes:
        triton: gRPC address of Triton, "host:port".
        host: address to listen at.
        port: TCP port to listen at; 0 takes any free one.
        allowed_hosts: names accepted in the ``Host`` header, beside localhost, IP addresses and ``host``.
        allowed_origins: origins of other web sites that may call ``/v1``, such as "https://example.org".
        token: secret that ``/v1`` (Bearer) and the page (HTTP Basic, any user name) require; None lets everybody in.
        max_photo_bytes: size of the largest photo file, bytes.
        max_requests: requests admitted at once: uploading, waiting, decoding or at Triton. Others get 503.
        decode_threads: photos decoded at once.
        upload_timeout_s: for one request's body to arrive, seconds.
        answer_timeout_s: from the complete upload until the gateway gives up with 504, seconds. The call to Triton
            itself continues.

    Raises:
        SettingsError: a value is invalid. The message never repeats the token.
    """

    triton: str = "localhost:8001"
    host: str = "127.0.0.1"
    port: int = 8080
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)
    max_photo_bytes: int = 25_000_000
    max_requests: int = 64
    decode_threads: int = field(default_factory=lambda: min(os.cpu_count() or 1, 8))
    upload_timeout_s: float = 60.0
    answer_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.host:
            raise SettingsError("got an empty host, expected an address to listen at, such as 127.0.0.1")
        if not 0 <= self.port <= 65_535:
            raise SettingsError(f"got port {self.port}, expected 0 to 65535")
        for name in self.allowed_hosts:
            if not _HOST.fullmatch(name):
                raise SettingsError(f"got the allowed host {name!r}, expected a name without port, such as example.org")
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin):
                raise SettingsError(
                    f"got the allowed origin {origin!r}, expected one such as https://example.org, in lower case and "
                    "without a path; name every origin, there is no wildcard"
                )
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise SettingsError(
                "got a token that is empty or has other characters than printable ASCII without spaces, which HTTP "
                "headers cannot carry; generate one: openssl rand -hex 32"
            )
        for name in ("max_photo_bytes", "max_requests", "decode_threads", "upload_timeout_s", "answer_timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"got {name} {getattr(self, name)}, expected a number over 0")
