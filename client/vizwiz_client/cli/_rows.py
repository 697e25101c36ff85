"""Rows of a CSV or JSON Lines file, in and out."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TextIO

from vizwiz_client.cli._exits import UsageError

Row = dict[str, Any]
Format = Literal["CSV", "JSON Lines"]

PHOTO_COLUMNS = ("photo", "image")
QUESTION_COLUMN = "question"
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
STANDARD_INPUT = "-"


class Rows:
    """The rows of the file ``path`` ("-" for standard input), read as they are iterated over.

    ``format`` is told from the first character: a JSON object starts with "{". Raises UsageError at the first row that
    is malformed, has no photo or question, or has a column whose name is in ``reserved``.
    """

    def __init__(self, path: str, reserved: Iterable[str]) -> None:
        self.name = "standard input" if path == STANDARD_INPUT else path
        self._reserved = set(reserved)
        self._stream = _open(path)
        try:
            self.format, start = self._begin()
        except BaseException:
            self.close()
            raise
        self._lines = chain([start] if start else [], self._stream)

    def _begin(self) -> tuple[Format, str]:
        """Tell the format from the first line that is not blank; return that too."""
        try:
            start = next((line for line in self._stream if line.strip()), "")
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.name}: {_not_utf8(error)}") from error
        if start.lstrip().startswith("["):
            raise UsageError(
                f"{self.name}: a JSON array, expected JSON Lines, one object a line: jq -c '.[]' makes them"
            )
        return ("JSON Lines" if start.lstrip().startswith("{") else "CSV"), start

    def __iter__(self) -> Iterator[Row]:
        rows = self._csv() if self.format == "CSV" else self._json()
        try:
            for number, row in rows:
                self._check(number, row)
                yield row
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.name}: {_not_utf8(error)}") from error

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _csv(self) -> Iterator[tuple[int, Row]]:
        reader = csv.DictReader(self._lines, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    got = sum(len(value) if key is None else value is not None for key, value in row.items())
                    raise UsageError(
                        f"{self.name}, line {reader.line_num}: got {got} cells, expected "
                        f"{len(reader.fieldnames or ())} as the header has; put a cell that holds a comma in quotes"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise UsageError(f"{self.name}, line {reader.line_num}: not CSV: {error}") from error

    def _json(self) -> Iterator[tuple[int, Row]]:
        for number, line in enumerate(self._lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UsageError(
                    f"{self.name}, line {number}: not JSON ({error}), expected one object a line"
                ) from error
            if not isinstance(row, dict):
                raise UsageError(f"{self.name}, line {number}: got {line.strip()[:40]}, expected a JSON object")
            yield number, row

    def _check(self, number: int, row: Row) -> None:
        where = f"{self.name}, line {number}"
        if (column := photo_column(row)) is None or QUESTION_COLUMN not in row:
            expected = f"{' or '.join(PHOTO_COLUMNS)}, and {QUESTION_COLUMN}"
            raise UsageError(f"{where}: got the columns {', '.join(row)}, expected {expected}")
        for key in (column, QUESTION_COLUMN):
            if not isinstance(row[key], str):
                raise UsageError(f"{where}: {key} is {row[key]!r}, expected a text")
        if taken := self._reserved & set(row):
            raise UsageError(f"{where}: the answers need the column {', '.join(sorted(taken))}; rename it in the input")


def photo_column(row: Row) -> str | None:
    """The name of the column that names the photo."""
    return next((name for name in PHOTO_COLUMNS if name in row), None)


class Writer:
    """Writes rows to ``stream``: CSV of ``columns`` with a header, or JSON Lines."""

    def __init__(self, stream: TextIO, format: Format, columns: Iterable[str]) -> None:
        self._stream = stream
        self._csv = csv.writer(stream) if format == "CSV" else None
        self._columns = list(columns)
        if self._csv is not None:
            self._csv.writerow(self._columns)

    def write(self, row: Row) -> None:
        """Write one row; a value that is no text becomes JSON in a cell, None an empty one."""
        if self._csv is not None:
            self._csv.writerow([_cell(row.get(name)) for name in self._columns])
        else:
            self._stream.write(json.dumps(row, ensure_ascii=False) + "\n")


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


def _open(path: str) -> TextIO:
    if path == STANDARD_INPUT:
        return io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", newline="")
    try:
        return Path(path).open(encoding="utf-8-sig", newline="")  # Excel puts a byte order mark first
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); expected a CSV or JSON Lines file") from error


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"byte {error.object[error.start]:#x} is not UTF-8; save the file as UTF-8 (in Excel: CSV UTF-8)"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
