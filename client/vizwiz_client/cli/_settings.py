"""The settings that an option or an environment variable gives."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

from vizwiz_client._settings import DEFAULT_RETRIES, DEFAULT_TIMEOUT_S, DEFAULT_URL


def at_least(least: int) -> Callable[[str], int]:
    """A reader of whole numbers from ``least`` on, for argparse."""

    def whole_number(text: str) -> int:
        number = int(text) if text.isdecimal() else least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number, {least} or more")
        return number

    return whole_number


def seconds(text: str) -> float:
    """Read a number of seconds over 0, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of seconds over 0")
    return number


def header(text: str) -> tuple[str, str]:
    """Read "NAME:VALUE", for argparse; what it got is not repeated, since it may be a secret."""
    name, colon, value = text.partition(":")
    if not (colon and name.strip()):
        raise argparse.ArgumentTypeError(
            "expected NAME:VALUE, such as 'authorization:Bearer ...', got no name and colon"
        )
    return name.strip().lower(), value.strip()


def _headers(text: str) -> list[tuple[str, str]]:
    return [header(line) for line in text.splitlines() if line.strip()]


class Setting(NamedTuple):
    """An option that an environment variable can give: the command line wins, then the variable, then the default."""

    flag: str
    variable: str
    read: Callable[[str], Any]
    default: Any
    metavar: str
    help: str

    @property
    def name(self) -> str:
        """The attribute of the parsed arguments that holds its value."""
        return self.flag.lstrip("-").replace("-", "_")


SETTINGS = (
    Setting("--url", "VIZWIZ_URL", str, DEFAULT_URL, "HOST:PORT", "the server's gRPC address"),
    Setting("--timeout", "VIZWIZ_TIMEOUT", seconds, DEFAULT_TIMEOUT_S, "SECONDS", "how long to wait for each request"),
    Setting(
        "--retries", "VIZWIZ_RETRIES", at_least(0), DEFAULT_RETRIES, "N", "how often to try again, within the timeout"
    ),
    Setting("--tls-ca", "VIZWIZ_TLS_CA", str, None, "FILE", "talk TLS; FILE (PEM) names who vouches for the server"),
    Setting("--tls-cert", "VIZWIZ_TLS_CERT", str, None, "FILE", "talk TLS; FILE (PEM) is this client's certificate"),
    Setting("--tls-key", "VIZWIZ_TLS_KEY", str, None, "FILE", "the key (PEM) of --tls-cert"),
)
HEADERS = Setting("--header", "VIZWIZ_HEADERS", _headers, [], "NAME:VALUE", "send this header too; can be repeated")
