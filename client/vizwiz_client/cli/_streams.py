"""The standard streams: closed ones, full disks behind them, readers that left, and terminals."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, TextIO

from vizwiz_client.cli._exits import NotWritten, UsageError
from vizwiz_client.contract.errors import escape_controls
from vizwiz_client.contract.streams import discard, open_streams


def prepare_streams() -> None:
    """Open the streams that are closed; let them show what the terminal cannot as \\u2026, not as a traceback."""
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def standard_input() -> BinaryIO:
    """The bytes of standard input. Raises UsageError where it is closed."""
    if sys.stdin is None:
        raise UsageError("standard input is closed; give a file, or pipe one in")
    return sys.stdin.buffer


def put(line: str) -> None:
    """Write a line to standard output at once. Raises NotWritten."""
    with writing_output():
        print(line, flush=True)


@contextmanager
def writing_output() -> Iterator[None]:
    """Raise NotWritten where standard output fails, without a text if only its reader left, such as ``head``."""
    try:
        yield
    except OSError as error:
        discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise NotWritten from error
        raise NotWritten(
            f"standard output: cannot be written ({error.strerror}); is it closed, or its disk full?"
        ) from error


@contextmanager
def standard_output() -> Iterator[TextIO]:
    """Standard output for files: UTF-8 and line ends as written, whatever the terminal."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:  # replaced by an object that takes text alone
        yield sys.stdout
        return
    stream = io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace", newline="")
    try:
        yield stream
    finally:
        stream.detach()  # leaves standard output open


def say(text: str) -> None:
    """Write an error or a note, on one line, to standard error."""
    write_error(escape_controls(text) + "\n")


def write_error(text: str) -> None:
    """Write ``text`` to standard error; where that is impossible, the exit code alone must do."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)
