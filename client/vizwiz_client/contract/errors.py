"""Every error that this package raises on purpose.

VizwizError
├── ImageError         (also ValueError)  the photo cannot be used: not a picture, truncated, too large, too thin ...
├── QuestionError      (also ValueError)  the question has no words, or is far too long
└── ServerError                           the question was fine, the server gave no answer
    ├── ServerUnavailable                 nothing answers at this address, or the connection was lost
    ├── WrongServer                       something answers, but not with this package's contract
    ├── Overloaded                        the server's queue is full: ask again later
    └── DeadlineExceeded                  no answer within ``timeout_s``
"""

from __future__ import annotations


class VizwizError(Exception):
    """The root: catch this to catch all of them."""


class ImageError(VizwizError, ValueError):
    """The photo cannot be used; the text says what is wrong with it and what to do."""


class QuestionError(VizwizError, ValueError):
    """The question cannot be used; the text says what is wrong with it and what to do."""


class ServerError(VizwizError):
    """The server gave no answer to a request that was fine."""


class ServerUnavailable(ServerError):
    """Nothing answers at this address, or the connection was lost."""


class WrongServer(ServerError):
    """Something answers at this address, but not with the contract of this package."""


class Overloaded(ServerError):
    """The server is there but refused the request because its queue is full."""


class DeadlineExceeded(ServerError):
    """No answer came within ``timeout_s``."""
