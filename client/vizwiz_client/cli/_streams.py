"""The standard streams: closed ones, full disks behind them, readers that left, and terminals."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, TextIO

from vizwiz_client.cli._exits import NotWritten, UsageError
from vizwiz_client.contract.errors import escape_controls


def open_streams() -> None:
    """Prepare standard output and error for what they cannot show, and occupy the descriptors that are closed.

    No file or connection can then get the number of a standard stream. Writing to a closed standard output fails, since
    its answers would be lost; a closed standard error takes everything.
    """
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)  # the lowest free number: 0; standard_input() refuses to read it
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what the terminal cannot show is shown as \\u2026, not a traceback
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
        _discard(sys.stdout)
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
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Let ``stream`` take everything from now on: else Python fails at its exit, when it flushes what is left."""
    with suppress(OSError):  # an object without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
