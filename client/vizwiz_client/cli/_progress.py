"""How far a batch is, in words on one line that a terminal keeps up to date."""

from __future__ import annotations

import os
import sys
import time

from vizwiz_client.cli._streams import write_error

_EVERY_S = 0.5


class Progress:
    """A line on standard error; nothing at all unless that is a terminal that can move its cursor.

    ``total`` is None where it is not known, ``done`` what earlier runs did.
    """

    def __init__(self, total: int | None, done: int, *, quiet: bool) -> None:
        self._total, self._before = total, done
        self._shown = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._started = time.monotonic()
        self._next = self._started
        self._width = 0

    def update(self, done: int, failed: int) -> None:
        """Show that ``done`` rows are done, ``failed`` of them with an error; twice a second at most."""
        now = time.monotonic()
        if self._shown and now >= self._next:
            self._next = now + _EVERY_S
            self._write(self._line(done, failed, (done - self._before) / max(now - self._started, 1e-9)))

    def close(self) -> None:
        """Clear the line."""
        if self._width:
            self._write("")
            write_error("\r")

    def _line(self, done: int, failed: int, rate: float) -> str:
        parts = [
            f"{done:,} rows" if self._total is None else f"{done / self._total:.0%}, {done:,} of {self._total:,} rows"
        ]
        parts += [f"{failed:,} failed"] if failed else []
        if done > self._before:
            parts.append(f"{rate:.1f} a second")
            if self._total is not None:
                parts.append(f"{(self._total - done) / rate:.0f} s left")
        return ", ".join(parts)

    def _write(self, line: str) -> None:
        write_error("\r" + line.ljust(self._width))
        self._width = len(line)
