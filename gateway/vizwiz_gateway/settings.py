"""Settings of the gateway: one typed class, read from flags and environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

PREFIX = "VIZWIZ_GATEWAY_"  # of environment variables, such as VIZWIZ_GATEWAY_TRITON


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
        token: secret that ``/v1`` (Bearer) and the page (HTTP Basic, any user name) require; None asks for none.
        max_photo_bytes: size of the largest photo file, bytes.
        max_requests: requests admitted at once: uploading, waiting, decoding or at Triton. Others get 503.
        decode_threads: photos decoded at once.
        upload_timeout_s: for one request's body to arrive, seconds.
        answer_timeout_s: from the complete upload until the gateway gives up with 504, seconds. The call to Triton
            itself continues.
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
        if not 0 <= self.port <= 65_535:
            raise SettingsError(f"got port {self.port}, expected 0 to 65535")
        for name in ("max_photo_bytes", "max_requests", "decode_threads", "upload_timeout_s", "answer_timeout_s"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"got {name} {getattr(self, name)}, expected a number over 0")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], **flags: Any) -> Settings:
        """Settings from flags; where a flag is None, from ``VIZWIZ_GATEWAY_<NAME>``; else the default.

        Lists are separated by commas.

        Raises:
            SettingsError: a value is invalid.
        """
        values: dict[str, Any] = {}
        for entry in fields(cls):
            text = environment.get(PREFIX + entry.name.upper())
            if flags.get(entry.name) is not None:
                values[entry.name] = flags[entry.name]
            elif text:
                values[entry.name] = _parse(entry.name, str(entry.type), text)
        return cls(**values)


def _parse(name: str, kind: str, text: str) -> Any:
    try:
        if kind.startswith("tuple"):
            return tuple(part.strip() for part in text.split(",") if part.strip())
        return {"int": int, "float": float}.get(kind, str)(text)
    except ValueError:
        raise SettingsError(f"got {PREFIX}{name.upper()}={text!r}, expected {kind}") from None
