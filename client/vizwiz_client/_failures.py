"""Map errors of Triton and gRPC to this package's exceptions, and decide which requests to retry."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from vizwiz_client._settings import Settings
from vizwiz_client.contract import errors
from vizwiz_client.contract.errors import ServerError

_QUEUE_FULL = ("Exceeds maximum queue size", "Request timeout expired")  # Triton's texts, both with UNAVAILABLE
# Triton 2.51 can crash when a request is cancelled, as gRPC does when its deadline passes. So a client stops waiting at
# its own deadline, and leaves the request to the server: gRPC's deadline is this much later. While a client has
# MAX_ABANDONED such requests, new ones wait for one to end: the server's queue does not grow without limit.
ABANDONED_S = 60.0
MAX_ABANDONED = 16
_FIRST_DELAY_S = 0.25
_MAX_DELAY_S = 4.0
# https://github.com/grpc/grpc/blob/master/doc/environment_variables.md: the first that is set counts
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")


class Failure(Exception):
    """A failed request: the name of a gRPC status code, and the message of the server or of gRPC."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    @classmethod
    def from_triton(cls, error: Any) -> Failure:
        """Convert tritonclient's ``InferenceServerException``."""
        return cls((error.status() or "UNKNOWN").removeprefix("StatusCode."), error.message() or "no message")

    @property
    def retryable(self) -> bool:
        """Whether a retry may succeed. Retries are safe: requests change nothing on the server."""
        return self.status == "UNAVAILABLE"

    @property
    def is_queue_full(self) -> bool:
        """Whether Triton rejected the request because its queue was full, or because it waited there too long."""
        return self.retryable and any(text in self.message for text in _QUEUE_FULL)


def backoff_delays(retries: int) -> Iterator[float]:
    """Seconds to wait before each retry: exponential backoff with jitter.

    https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
    """
    import random

    for retry in range(retries):
        yield random.uniform(0.5, 1.0) * min(_FIRST_DELAY_S * 2 ** min(retry, 10), _MAX_DELAY_S)


def to_exception(failure: Failure, settings: Settings, model: str, request_id: str | None) -> ServerError:
    """The exception to raise for ``failure``; its text ends with the server's message and the request id."""
    kind, text = _unavailable(failure, settings) if failure.retryable else _refused(failure, settings, model)
    return kind(f"{text} ({failure.status}: {failure.message})", request_id=request_id)


def deadline_passed(abandoned: int) -> Failure:
    """The failure of a request that got no reply in time, beside ``abandoned`` earlier ones."""
    have = "request has" if abandoned == 1 else "requests have"
    others = f"; {abandoned} earlier {have} no reply either" if abandoned else ""
    return Failure("DEADLINE_EXCEEDED", f"no reply came in time{others}")


def client_closed() -> ServerError:
    """The exception of every call on a closed client."""
    return errors.ServerUnavailable("this client is closed; make a new one, and close it after its last answer")


def is_loopback(url: str) -> bool:
    """Whether the host of "host:port" is "localhost", in 127.0.0.0/8, or ::1."""
    host = url.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _unavailable(failure: Failure, settings: Settings) -> tuple[type[ServerError], str]:
    url = _describe(settings.url)
    if failure.is_queue_full:
        return errors.Overloaded, f"the server at {url} has too many requests waiting; ask again in a moment"
    if "CERTIFICATE_VERIFY_FAILED" in failure.message:
        return errors.ServerUnavailable, (
            f"the certificate of {url} is not trusted; pass the authority that signed it, --tls-ca (in "
            "Python: Tls(ca=...)), and the host name that it was issued for"
        )
    # gRPC reports an HTTP server only as "Socket closed", so every message names the usual mistake: the HTTP port.
    hint = "start it with `python -m serving`, or give its gRPC port (8001 by default; 8000 is HTTP, 8080 the page)"
    if settings.tls is None and "Connection refused" not in failure.message:
        hint += "; a server with TLS needs --tls-ca (in Python: Tls(ca=...))"
    if settings.tls is not None:
        hint += "; does it use TLS, and does it require a client certificate?"
    return errors.ServerUnavailable, f"no server is ready at {url}; {hint}"


def _refused(failure: Failure, settings: Settings, model: str) -> tuple[type[ServerError], str]:
    url = _describe(settings.url)
    known: dict[str, tuple[type[ServerError], str]] = {
        "DEADLINE_EXCEEDED": (
            errors.DeadlineExceeded,
            f"no answer from {url} within {settings.timeout_s:g} s; allow more time, or send less at once",
        ),
        "CANCELLED": (errors.ServerUnavailable, f"the request to {url} was cancelled; ask again"),
        "UNIMPLEMENTED": (errors.WrongServer, f"the gRPC server at {url} is not Triton; give Triton's address"),
        "NOT_FOUND": (
            errors.ModelMissing,
            f"Triton at {url} does not serve {model!r}; export a model to its repository and load it, or ask again if "
            "the server is just starting or stopping",
        ),
        "INVALID_ARGUMENT": (
            errors.ContractMismatch,
            f"Triton at {url} refused the request; was its model replaced by one of another shape? Ask again",
        ),
        "UNAUTHENTICATED": (errors.ServerFault, f"{url} requires authentication; pass the headers that it expects"),
        "PERMISSION_DENIED": (errors.ServerFault, f"{url} denies access; pass the headers that it expects"),
    }
    return known.get(failure.status, (errors.ServerFault, f"the server at {url} failed; its log says why"))


def _describe(url: str) -> str:
    """``url``, and the variable that names a proxy, where gRPC may take one."""
    variable = next((name for name in _PROXY_VARIABLES if name in os.environ), None)
    if is_loopback(url) or not variable or not os.environ[variable]:
        return url
    return f"{url} (the environment variable {variable} names a proxy; no_proxy lists hosts to reach without it)"
