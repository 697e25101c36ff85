"""Every error that this package raises on purpose, each with what to do about it.

VizwizError
├── ImageError            (also ValueError)  refused: the photo cannot be used; send another one
├── QuestionError         (also ValueError)  refused: no words, or far too long; ask another way
└── ServerError                              the question was fine, the server gave no answer
    ├── ServerUnavailable                    cannot reach it: start it, or correct the address or the certificates
    ├── DeadlineExceeded                     timed out: allow more time, or send less at once
    ├── Overloaded                           its queue is full: ask again later, or add servers
    ├── WrongServer                          something answers, not what this client asks: correct the address
    │   ├── ContractMismatch                 its model speaks another contract: install the client that goes with it
    │   └── ModelMissing                     Triton without the model: export one and load it
    └── ServerFault                          it failed: its log says why, under the request's id
"""

from __future__ import annotations

_CONTROLS = [
    *range(0x20),  # C0: among them ESC, and the line ends that would forge a line of output
    *range(0x7F, 0xA0),  # DEL and C1
    *(0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),  # change the direction of the text
    *(0x2028, 0x2029),  # line and paragraph separator
    *range(0xD800, 0xE000),  # surrogates: bytes of a file name that are not UTF-8
]
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _CONTROLS}


def escape_controls(text: str) -> str:
    """Write control characters as escapes, such as ``\\x1b``, so that no name acts on a terminal or forges a line."""
    return text.translate(_ESCAPES)


class VizwizError(Exception):
    """The root: catch this to catch all of them. Control characters in its text are escaped.

    ``request_id`` names the request in the server's log; None where no request was sent.
    """

    def __init__(self, text: str = "", *, request_id: str | None = None) -> None:
        super().__init__(escape_controls(f"{text} [request {request_id}]" if request_id else text))
        self.request_id = request_id


class ImageError(VizwizError, ValueError):
    """The photo cannot be used; the text says what is wrong with it and what to do."""


class QuestionError(VizwizError, ValueError):
    """The question cannot be used; the text says what is wrong with it and what to do."""


class ServerError(VizwizError):
    """The server gave no answer to a request that was fine."""


class ServerUnavailable(ServerError):
    """Nothing answers at this address, it proves another identity than expected, or the connection was lost."""


class DeadlineExceeded(ServerError):
    """No answer came within ``timeout_s``."""


class Overloaded(ServerError):
    """The server is there but refused the request because its queue is full."""


class WrongServer(ServerError):
    """The address is none, or something answers there that is not Triton's gRPC service with this package's models."""


class ContractMismatch(WrongServer):
    """The served model takes or gives something else than this client sends and reads; the text names both sides."""


class ModelMissing(WrongServer):
    """Triton answers, but does not serve the model that this client asks."""


class ServerFault(ServerError):
    """The server tried and failed."""
