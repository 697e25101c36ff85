"""Errors as RFC 9457 problem details, and the mapping from the client's exceptions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any

from vizwiz_client import (
    DeadlineExceeded,
    ImageError,
    Overloaded,
    QuestionError,
    ServerFault,
    ServerUnavailable,
    VizwizError,
    WrongServer,
)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2  # sent with 503: a request takes less than this where Triton keeps up


@dataclass(frozen=True)
class Problem:
    """One error, for a program (``code``) and for a person (``detail``).

    Attributes:
        status: HTTP status code.
        code: stable name of the kind of error, such as "not-a-photo".
        title: the kind in words.
        detail: what was found, what was expected, and what to do.
    """

    status: int
    code: str
    title: str
    detail: str

    def to_dict(self, request_id: str) -> dict[str, Any]:
        """Members of the JSON body; ``request_id`` is an extension member."""
        return {"type": "about:blank", **asdict(self), "request_id": request_id}

    @property
    def headers(self) -> dict[str, str]:
        """Extra headers of the response."""
        return {"retry-after": str(RETRY_AFTER_S)} if self.status == HTTPStatus.SERVICE_UNAVAILABLE else {}


class ProblemError(Exception):
    """Raised to answer a request with ``problem``."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.code)  # no detail: it may quote the request, and exceptions may be logged
        self.problem = problem


def problem(status: HTTPStatus, code: str, detail: str) -> ProblemError:
    """A ProblemError whose title is the status's phrase."""
    return ProblemError(Problem(status, code, status.phrase, detail))


_CODES: tuple[tuple[type[VizwizError], HTTPStatus, str], ...] = (  # the first that matches
    (ImageError, HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not-a-photo"),
    (QuestionError, HTTPStatus.UNPROCESSABLE_ENTITY, "no-question"),
    (Overloaded, HTTPStatus.SERVICE_UNAVAILABLE, "busy"),
    (DeadlineExceeded, HTTPStatus.GATEWAY_TIMEOUT, "too-slow"),
    (ServerUnavailable, HTTPStatus.BAD_GATEWAY, "triton-unavailable"),
    (WrongServer, HTTPStatus.BAD_GATEWAY, "triton-unsuitable"),
    (ServerFault, HTTPStatus.BAD_GATEWAY, "triton-failed"),
)


def from_client(error: VizwizError) -> ProblemError:
    """The ProblemError of an exception of ``vizwiz_client``."""
    for kind, status, code in _CODES:
        if isinstance(error, kind):
            return problem(status, code, str(error))
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "the gateway failed; its log names the request")
