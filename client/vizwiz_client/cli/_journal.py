"""What a batch has done so far, kept so that a run that was killed at any moment goes on where it was."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from vizwiz_client.cli._exits import NotWritten, UsageError
from vizwiz_client.cli._rows import Format, Row, Writer

SUFFIX = ".part"


class Journal:
    """The file OUTPUT.part: a line of ``settings``, then one for each row done, [input, output]; JSON, unlike OUTPUT.

    A line counts when it is whole; what a kill left of the last one is cut off. ``done`` is how many rows there are.
    Raises UsageError where OUTPUT exists, or OUTPUT.part was made by a run with other settings.
    """

    def __init__(self, output: Path, settings: dict[str, Any]) -> None:
        self._output, self._path = output, journal_path(output)
        try:
            self._file = self._path.open("a+b")
        except OSError as error:
            raise UsageError(f"{self._path}: cannot be written ({error.strerror})") from error
        try:
            lock(self._file)
        except OSError:
            self.close()
            raise UsageError(f"{self._path}: another run is writing it; wait for it, or choose another name") from None
        if output.exists():
            if not self._path.stat().st_size:
                self._path.unlink()
            self.close()
            raise UsageError(f"{output} is there already; remove it, or choose another name")
        self.done = self._cut_torn_line(settings)

    def _cut_torn_line(self, settings: dict[str, Any]) -> int:
        """Return how many whole rows there are; what follows the last of them is removed."""
        self._file.seek(0)
        if not b'{"--'.startswith(self._file.read(4)):  # the settings line, or its beginning
            self.close()
            raise UsageError(f"{self._path} was not made by batch; move it away, or choose another output")
        self._file.seek(0)
        lines, size = 0, 0
        begun: Any = None
        for line in self._file:
            value = _parsed(line)
            if value is None:
                break
            begun = begun if lines else value
            lines, size = lines + 1, size + len(line)
        if begun != settings:
            if lines > 1:
                self.close()
                raise UsageError(
                    f"{self._path} was begun with {_said(begun)}, now it is {_said(settings)}; go on with the same "
                    "options, or remove the file to begin again"
                )
            lines = size = 0  # no row is done, so nothing is lost
        self._file.truncate(size)
        if not lines:
            try:
                self._append(settings)
            except NotWritten:
                self.close()
                self._path.unlink()
                raise
        return max(0, lines - 1)

    def skip_done(self, rows: Iterator[Row]) -> int:
        """Step over the ``rows`` that are done; return how many of them have an error.

        Raises UsageError where they are not the rows that these answers belong to.
        """
        failed = 0
        for done, answered in self.rows():
            if next(rows, None) != done:
                raise UsageError(f"{self._path} was begun with other input; remove it to begin again")
            failed += answered["error"] is not None
        return failed

    def rows(self) -> Iterator[tuple[Row, Row]]:
        """The rows done, (input, output)."""
        with self._path.open("rb") as file:
            next(file)  # the settings
            for line in file:
                row, answered = json.loads(line)
                yield row, answered

    def append(self, row: Row, answered: Row) -> None:
        """Note a row as done."""
        self._append([row, answered])

    def publish(self, format: Format, inputs: list[str], answers: list[str]) -> None:
        """Write OUTPUT, whole or not at all, and remove the journal; columns not in ``inputs`` stand after those."""
        new = self._output.with_name(f".{self._output.name}.new")
        columns = list(dict.fromkeys([*inputs, *(name for row, _ in self.rows() for name in row)]))
        try:
            with new.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
                writer = Writer(stream, format, [*columns, *answers])
                for row, answered in self.rows():
                    writer.write(row | answered)
                stream.flush()
                os.fsync(stream.fileno())
            new.replace(self._output)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise _not_written(self._output, error) from error
        flush_folder(self._output.parent)  # the new name outlasts a loss of power: only then may the journal go
        self.close()
        self._path.unlink()

    def close(self) -> None:
        """Close the file; what was noted is in it already, or cannot be."""
        with suppress(OSError):
            self._file.close()

    def _append(self, value: Any) -> None:
        try:
            self._file.write(json.dumps(value).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise _not_written(self._path, error) from error


def journal_path(output: Path) -> Path:
    """The path of the journal of ``output``."""
    return output.with_name(output.name + SUFFIX)


def _not_written(path: Path, error: OSError) -> NotWritten:
    return NotWritten(f"{path}: cannot be written ({error.strerror}); make room there, and run the same command again")


def lock(file: BinaryIO) -> None:
    """Lock an open file until it is closed, or its process ends. Raises OSError where another has it."""
    if sys.platform == "win32":
        import msvcrt

        place = file.tell()
        file.seek(1 << 40)  # past all content: there, others may not read what is locked
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(place)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def flush_folder(folder: Path) -> None:
    """Write a folder's list of names to disk, where the system opens folders (Windows does not)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _parsed(line: bytes) -> Any:
    """The value in ``line``, or None where a kill or a loss of power left it incomplete."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _said(settings: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items()) if isinstance(settings, dict) else "others"
