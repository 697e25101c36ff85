"""Exit codes, and standard streams that may be closed, full, or read by a program that has ended."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TextIO

from vizwiz_client.contract.errors import (
    DeadlineExceeded,
    Overloaded,
    ServerError,
    ServerUnavailable,
    escape_controls,
)
from vizwiz_client.contract.streams import OUTPUT_LOST, discard, open_streams

OK = 0
SOME_FAILED = 1
USAGE = 2  # argparse's own
TRY_LATER = 3
WRONG_SERVER = 4
INTERRUPTED = 130  # 128 + SIGINT, as in shells
STANDARD_INPUT = "-"  # in the place of a path

EXIT_CODES = {
    OK: "every question was answered, declined answers included; status: every check passed",
    SOME_FAILED: "some photos or questions were refused, the others were answered; status: the latency is too high",
    USAGE: "the command line or the input file is invalid; rows of a pipe before the mistake were answered",
    TRY_LATER: "the server is unavailable, overloaded or too slow; without --keep-going the rest was not asked",
    WRONG_SERVER: "the server needs repair: another contract, a missing model or a fault",
    OUTPUT_LOST: "output was lost (full disk, closed stream, the reader has ended), or an input became unreadable",
    INTERRUPTED: "interrupted by Ctrl-C",
}


class UsageError(Exception):
    """The command line or an input file is invalid."""


class OutputError(Exception):
    """Output cannot be written; the text is empty if only the reader of a pipe has ended."""


def exit_code(error: BaseException) -> int:
    """The exit code of a command that ends with ``error``."""
    if isinstance(error, UsageError):
        return USAGE
    if isinstance(error, OutputError):
        return OUTPUT_LOST
    if isinstance(error, ServerUnavailable | Overloaded | DeadlineExceeded):
        return TRY_LATER
    return WRONG_SERVER if isinstance(error, ServerError) else SOME_FAILED


def prepare_streams() -> None:
    """Open closed streams, and escape characters that the terminal's encoding lacks, such as \\u2026."""
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def standard_input() -> BinaryIO:
    """Standard input as bytes. Raises UsageError if it is closed."""
    if sys.stdin is None:
        raise UsageError("standard input is closed; give a file, or pipe one in")
    return sys.stdin.buffer


def print_line(line: str) -> None:
    """Print a line to standard output and flush it. Raises OutputError."""
    with output_errors():
        print(line, flush=True)


def print_json(record: Any) -> None:
    """Print ``record`` as JSON on one line; in ASCII if standard output is not UTF-8. Raises OutputError."""
    is_utf8 = (sys.stdout.encoding or "utf-8").lower().replace("_", "-") in ("utf-8", "utf8")
    print_line(json.dumps(record, ensure_ascii=not is_utf8))


def print_error(text: str) -> None:
    """Print an error or a note on one line of standard error, if that is possible."""
    try:
        print(escape_controls(text), file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


@contextmanager
def output_errors() -> Iterator[None]:
    """Turn errors of standard output into OutputError."""
    try:
        yield
    except OSError as error:
        discard(sys.stdout)
        if isinstance(error, BrokenPipeError):  # the reader has ended, such as `head`
            raise OutputError from error
        raise OutputError(
            f"standard output: cannot be written ({error.strerror}); is it closed, or its disk full?"
        ) from error


@contextmanager
def standard_output() -> Iterator[TextIO]:
    """Standard output for a file's content: UTF-8, and line ends as written."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:  # replaced by an object without bytes
        yield sys.stdout
        return
    stream = io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace", newline="")
    try:
        yield stream
    finally:
        stream.detach()  # leaves standard output open
