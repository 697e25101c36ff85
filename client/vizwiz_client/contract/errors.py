"""The exceptions of this package.

VizwizError
├── ImageError            (also ValueError)  photo refused: send another one
├── QuestionError         (also ValueError)  question refused, empty or too long: ask another way
└── ServerError                              the server did not answer
    ├── ServerUnavailable                    not reachable: start it, or correct address or certificates
    ├── DeadlineExceeded                     timeout: allow more time, or send less at once
    ├── Overloaded                           queue full: retry later, or add servers
    ├── WrongServer                          not the expected server: correct the address
    │   ├── ContractMismatch                 other inputs or outputs: install the client that goes with it
    │   └── ModelMissing                     Triton without the model: export and load one
    └── ServerFault                          internal error: see the server's log, under the request id
"""

from __future__ import annotations

_CONTROLS = [
    *range(0x20),  # C0: among them ESC, and the line ends that would forge a line of output
    *range(0x7F, 0xA0),  # DEL and C1
    *(0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),  # direction of text
    *(0x2028, 0x2029),  # line and paragraph separator
    *range(0xD800, 0xE000),  # surrogates: bytes of a file name that are not UTF-8
]
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _CONTROLS}


def escape_controls(text: str) -> str:
    """Escape control characters, such as ``\\x1b``, so that no name controls a terminal or forges a line of output."""
    return text.translate(_ESCAPES)


class VizwizError(Exception):
    """Base class of all exceptions of this package. Control characters in the text are escaped.

    Attributes:
        request_id: the request's id in the server's log; None if no request was sent.
    """

    def __init__(self, text: str = "", *, request_id: str | None = None) -> None:
        super().__init__(escape_controls(f"{text} [request {request_id}]" if request_id else text))
        self.request_id = request_id


class ImageError(VizwizError, ValueError):
    """The photo was refused; the text says why and what to do."""


class QuestionError(VizwizError, ValueError):
    """The question was refused; the text says why and what to do."""


class ServerError(VizwizError):
    """The server did not answer a valid request."""


class ServerUnavailable(ServerError):
    """No server at the address, an untrusted certificate, a lost connection, or a closed client."""


class DeadlineExceeded(ServerError):
    """No answer came within ``timeout_s``."""


class Overloaded(ServerError):
    """The server rejected the request because its queue is full."""


class WrongServer(ServerError):
    """The address is invalid, or its server is not Triton with this package's models."""


class ContractMismatch(WrongServer):
    """The served model has other inputs or outputs than this client; the text names both."""


class ModelMissing(WrongServer):
    """Triton does not serve the model."""


class ServerFault(ServerError):
    """The server failed while it processed the request."""
