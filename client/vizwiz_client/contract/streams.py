"""Standard streams that are closed or on a full disk, handled the same way in every command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

OUTPUT_LOST = 5  # the exit code


def open_streams() -> None:
    """Open the descriptors of closed standard streams, so that no file or connection gets their numbers.

    A closed standard output fails on writes, because output would be lost. A closed standard error discards everything.
    A closed standard input stays None.
    """
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)  # takes the lowest free number, 0
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def discard(stream: TextIO) -> None:
    """Discard all further output of ``stream``; otherwise Python fails at exit, when it flushes the rest."""
    with suppress(OSError):  # an object without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run(main: Callable[[], int]) -> int | str | None:
    """Run the command ``main``.

    Returns:
        Its exit code; OUTPUT_LOST if standard output is closed or full; 1 after another OSError.
    """
    is_closed = sys.stdout is None
    open_streams()
    if is_closed:
        print("error: standard output is closed; send it to a file, or to /dev/null", file=sys.stderr)
        return OUTPUT_LOST
    code: int | str | None
    try:
        code = main()
    except SystemExit as ended:  # of argparse
        code = ended.code
    except OSError as error:
        with suppress(OSError):
            if not isinstance(error, BrokenPipeError):  # else the reader has ended, such as `head`
                print(f"error: {error}", file=sys.stderr)
        code = OUTPUT_LOST if error.filename is None else 1
    try:
        sys.stdout.flush()
    except OSError as error:
        discard(sys.stdout)
        with suppress(OSError):
            if not code:
                print(f"error: standard output cannot be written ({error.strerror})", file=sys.stderr)
        return code or OUTPUT_LOST
    return code
