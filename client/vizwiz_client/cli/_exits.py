"""Exit codes: what they mean, and which error ends with which."""

from __future__ import annotations

from vizwiz_client.contract.errors import DeadlineExceeded, Overloaded, ServerError, ServerUnavailable
from vizwiz_client.contract.streams import OUTPUT_LOST

OK = 0
SOME_FAILED = 1
USAGE = 2  # argparse's own
TRY_LATER = 3
WRONG_SERVER = 4
NOT_WRITTEN = OUTPUT_LOST
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

MEANINGS = {
    OK: "everything that was asked was answered; a declined answer is an answer",
    SOME_FAILED: "some photos or questions could not be used, the others were answered; or status: answers come slowly",
    USAGE: "the command line, or the file it names, is wrong; of a stream, what came before the mistake is answered",
    TRY_LATER: "the server cannot be reached, is overloaded or too slow; what remains was not asked: try again later",
    WRONG_SERVER: "the server is not right: another contract, a missing model or a fault; somebody has to repair it",
    NOT_WRITTEN: "output is lost (a full disk, a closed stream, a reader that left), or a file cannot be read any more",
    INTERRUPTED: "interrupted by Ctrl-C",
}


class UsageError(Exception):
    """The command line, or a file it names, cannot be used; the text says what to do."""


class NotWritten(Exception):
    """An answer, or another output, cannot be written; the text says where, and is empty where the reader left."""


def code(error: BaseException) -> int:
    """The exit code of a command that ``error`` ended."""
    if isinstance(error, UsageError):
        return USAGE
    if isinstance(error, NotWritten):
        return NOT_WRITTEN
    if isinstance(error, ServerUnavailable | Overloaded | DeadlineExceeded):
        return TRY_LATER
    return WRONG_SERVER if isinstance(error, ServerError) else SOME_FAILED
