"""Triton's and gRPC's errors as this package's, and which of them are worth asking again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vizwiz_client._proxy import describe_route
from vizwiz_client._settings import Settings
from vizwiz_client.contract import errors
from vizwiz_client.contract.errors import ServerError

_QUEUE_TEXTS = ("Exceeds maximum queue size", "Request timeout expired")  # Triton's, both with status UNAVAILABLE
_GATEWAY_FAILED = (502, 503, 504)  # what a proxy, which may well speak gRPC too, says of a server that is away
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 4.0


class Failure(Exception):
    """One request that failed: a gRPC status code's name, and what the server or gRPC says."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    @classmethod
    def of(cls, error: Any) -> Failure:
        """What tritonclient's InferenceServerException says."""
        return cls((error.status() or "UNKNOWN").removeprefix("StatusCode."), error.message() or "no message")

    @property
    def queue_full(self) -> bool:
        """Whether Triton refused the request because too many were waiting, or let it wait too long."""
        return self.retryable and any(queue in self.message for queue in _QUEUE_TEXTS)

    @property
    def retryable(self) -> bool:
        """Whether the same request may be answered a moment later; asking twice is safe, an answer changes nothing."""
        return self.status == "UNAVAILABLE"


def backoff_delays(retries: int) -> Iterator[float]:
    """Seconds to wait before each retry: doubling, and spread, so that clients that failed together come apart.

    https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
    """
    import random

    for retry in range(retries):
        yield random.uniform(0.5, 1.0) * min(_FIRST_PAUSE_S * 2**retry, _LONGEST_PAUSE_S)


def to_exception(
    failure: Failure, settings: Settings, model: str, speaks_http: bool, request_id: str | None
) -> ServerError:
    """The error to raise for ``failure``; its text ends with what the server said and the request's id."""
    kind, text = (
        _unavailable(failure, settings, speaks_http) if failure.retryable else _refused(failure, settings, model)
    )
    return kind(f"{text} ({failure.status}: {failure.message})", request_id=request_id)


def closed() -> ServerError:
    """The error of every call on a closed client."""
    return errors.ServerUnavailable("this client is closed; make a new one, and close it after its last answer")


def speaks_http(url: str, timeout_s: float) -> bool:
    """Ask the address itself: gRPC words this differently for each server, and some words fit a failing proxy too."""
    import http.client  # as long to import as the rest of the package

    connection = http.client.HTTPConnection(url, timeout=timeout_s)
    try:
        connection.request("GET", "/v2/health/live")
        response = connection.getresponse()
        response.close()
    except (OSError, UnicodeError, http.client.HTTPException):  # UnicodeError: a host such as 10.0.0..5
        return False
    finally:
        connection.close()
    return response.status not in _GATEWAY_FAILED


def _unavailable(failure: Failure, settings: Settings, speaks_http: bool) -> tuple[type[ServerError], str]:
    url = describe_route(settings.url)
    if failure.queue_full:
        return errors.Overloaded, f"the server at {url} has too many requests waiting; ask again in a moment"
    if speaks_http:
        return errors.WrongServer, (
            f"{settings.url} speaks HTTP, not gRPC; give Triton's gRPC port (8001 by default, 8000 is its HTTP port)"
        )
    if "CERTIFICATE_VERIFY_FAILED" in failure.message:
        return errors.ServerUnavailable, (
            f"the certificate of {url} is not to be trusted; give the authority that signed it, Tls(ca=...), and the "
            "host that it names"
        )
    if settings.tls is None:
        hint = "start it with `python -m serving`, or give its address (and, where it uses TLS, its authority)"
    else:
        hint = "start it, give its address, or check that it uses TLS, and whether it wants a certificate from you, too"
    return errors.ServerUnavailable, f"no server is ready at {url}; {hint}"


def _refused(failure: Failure, settings: Settings, model: str) -> tuple[type[ServerError], str]:
    url = describe_route(settings.url)
    known: dict[str, tuple[type[ServerError], str]] = {
        "DEADLINE_EXCEEDED": (
            errors.DeadlineExceeded,
            f"no answer from {url} within {settings.timeout_s:g} s; allow more time, or send less at once",
        ),
        "CANCELLED": (errors.ServerUnavailable, f"the request to {url} was cut off; ask again"),
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
        "UNAUTHENTICATED": (errors.ServerFault, f"{url} wants to know who asks; give it the headers that it expects"),
        "PERMISSION_DENIED": (errors.ServerFault, f"{url} does not let you ask; give it the headers that it expects"),
    }
    return known.get(failure.status, (errors.ServerFault, f"the server at {url} failed; its log says why"))
