"""Rows of a CSV or JSON Lines file, in and out."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

from vizwiz_client.cli._exits import UsageError
from vizwiz_client.cli._streams import standard_input

Row = dict[str, Any]
Format = Literal["CSV", "JSON Lines"]

PHOTO_COLUMNS = ("photo", "image")
QUESTION_COLUMN = "question"
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
STANDARD_INPUT = "-"
LINE_LIMIT = 10_000_000  # characters: /dev/zero, say, is one line without an end
JSON_DEPTH = 100
NUMBER_DIGITS = 1_000

_AS_UTF8 = "save it as UTF-8 (in Excel: CSV UTF-8; in PowerShell: -Encoding utf8)"


class Rows:
    """The rows of the file ``path`` ("-" for standard input), read as they are iterated over.

    The first character tells ``format``: a JSON object starts with "{". ``columns`` are those of a CSV header. Raises
    UsageError at a malformed header or row, at one without photo or question, and at a column named in ``reserved``.
    """

    def __init__(self, path: str, reserved: Iterable[str]) -> None:
        self.name = "standard input" if path == STANDARD_INPUT else path
        self._reserved = set(reserved)
        self._file = _open(path)
        try:
            self._start = self._file.tell() if self._file.seekable() else None
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        """Read up to the first line that is not blank, and the header that it begins if it is CSV."""
        self._stream = io.TextIOWrapper(self._file, encoding="utf-8-sig", newline="")  # Excel puts a BOM first
        self._line = 0  # the number of the last line that was read
        self._lines = self._read_lines()
        first = next((line for line in self._lines if line.strip()), "")
        if not first and not self.name.lower().endswith(JSON_LINES_SUFFIXES):
            raise UsageError(f"{self.name} is empty, expected a CSV header, or JSON Lines; did what writes it fail?")
        if "\0" in first:
            raise UsageError(f"{self.name}: holds NUL, as UTF-16 and binary files do; {_AS_UTF8}")
        if first.lstrip().startswith("["):
            raise UsageError(
                f"{self.name}: a JSON array, expected JSON Lines, one object a line: jq -c '.[]' makes them"
            )
        self.format: Format = "JSON Lines" if not first or first.lstrip().startswith("{") else "CSV"
        self.columns: list[str] = []
        self._line -= 1  # `first` is read again
        self._lines = chain(self._numbered([first]), self._lines)
        if self.format == "CSV":
            self._check_separator(first)
            self._records = self._read_records()
            where, self.columns = next(self._records)
            if twice := sorted({name for name in self.columns if self.columns.count(name) > 1}):
                raise UsageError(f"{where}: more than one column named {_names(twice)}; rename or remove all but one")
            self._check_columns(where, self.columns)

    def count(self) -> int | None:
        """Read, and so check, every row; return their number, and be at the first again. None where that cannot be."""
        if self._start is None:
            return None
        count = sum(1 for _ in self)
        self._stream.detach()
        self._file.seek(self._start)
        self._begin()
        return count

    def __iter__(self) -> Iterator[Row]:
        return self._csv() if self.format == "CSV" else self._json()

    def is_file(self, other: os.stat_result) -> bool:
        """Whether the rows come from the regular file ``other``."""
        return stat.S_ISREG(other.st_mode) and os.path.samestat(os.fstat(self._file.fileno()), other)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_lines(self) -> Iterator[str]:
        try:
            yield from self._numbered(iter(lambda: self._stream.readline(LINE_LIMIT), ""))
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            if not self._line and error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise UsageError(f"{self.name}: UTF-16, expected UTF-8; {_AS_UTF8}") from error
            number = self._line + len((before + b".").splitlines())
            byte = error.object[error.start]
            raise UsageError(f"{self.name}, line {number}: byte {byte:#x} is not UTF-8; {_AS_UTF8}") from error
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from error

    def _numbered(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            self._line += 1
            if len(line) == LINE_LIMIT:
                raise UsageError(f"{self.name}, line {self._line}: longer than {LINE_LIMIT:,} characters; is it text?")
            yield line

    def _read_records(self) -> Iterator[tuple[str, list[str]]]:
        """The records of a CSV file, with the place of each: a quoted cell can span lines."""
        reader = csv.reader(self._lines, strict=True)
        while True:
            first = self._line + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise UsageError(f"{self._where(first)}: not CSV: {error}") from error
            if cells is None:
                return
            if cells:  # none in a blank line
                yield self._where(first), cells

    def _where(self, first: int) -> str:
        lines = f"lines {first} to {self._line}" if self._line > first else f"line {first}"
        return f"{self.name}, {lines}"

    def _check_separator(self, header: str) -> None:
        for separator, name in (("\t", "tabs"), (";", "semicolons")):
            columns = [cell.strip(' "\r\n') for cell in header.split(separator)]
            if photo_column(columns) and QUESTION_COLUMN in columns:
                raise UsageError(
                    f"{self.name}, line {self._line + 1}: {name} between the columns, expected commas; save it with "
                    "commas (LibreOffice: Edit filter settings; Excel: the system's list separator), or as JSON Lines"
                )

    def _csv(self) -> Iterator[Row]:
        for where, cells in self._records:
            if len(cells) != len(self.columns):
                raise UsageError(
                    f"{where}: got {len(cells)} cells, expected {len(self.columns)} as the header has; put a cell that "
                    "holds a comma in quotes"
                )
            yield dict(zip(self.columns, cells, strict=True))

    def _json(self) -> Iterator[Row]:
        for line in self._lines:
            if not line.strip():
                continue
            where = f"{self.name}, line {self._line}"
            try:
                row = json.loads(line, object_pairs_hook=_unique, parse_int=_whole, parse_float=_finite)
                if isinstance(row, dict) and _is_deep(row):
                    raise RecursionError
            except ValueError as error:
                raise UsageError(f"{where}: not JSON ({error}), expected one object a line") from error
            except RecursionError:
                raise UsageError(f"{where}: nested deeper than {JSON_DEPTH} levels, expected fewer") from None
            if not isinstance(row, dict):
                raise UsageError(f"{where}: got {line.strip()[:40]}, expected a JSON object")
            self._check_columns(where, row)
            for key in (photo_column(row) or "", QUESTION_COLUMN):
                if not isinstance(row[key], str):
                    raise UsageError(f"{where}: {key} is {str(row[key])[:40]}, expected a text")
            yield row

    def _check_columns(self, where: str, columns: Collection[str]) -> None:
        if photo_column(columns) is None or QUESTION_COLUMN not in columns:
            expected = f"{' or '.join(PHOTO_COLUMNS)}, and {QUESTION_COLUMN}"
            raise UsageError(f"{where}: got the columns {_names(columns)}, expected {expected}")
        if taken := self._reserved & set(columns):
            raise UsageError(f"{where}: the answers need the column {', '.join(sorted(taken))}; rename it in the input")


def photo_column(columns: Collection[str]) -> str | None:
    """The name of the column that names the photo."""
    return next((name for name in PHOTO_COLUMNS if name in columns), None)


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


def _open(path: str) -> BinaryIO:
    if path == STANDARD_INPUT:
        return standard_input()
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); expected a CSV or JSON Lines file") from error


def _names(columns: Iterable[str]) -> str:
    return ", ".join(map(repr, columns))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"more than one key {next(name for name in names if names.count(name) > 1)!r}")
    return found


def _whole(digits: str) -> int:
    if len(digits) > NUMBER_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits, expected at most {NUMBER_DIGITS:,}")
    return int(digits)


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _is_deep(row: Row) -> bool:
    """Whether lists and objects are nested deeper than JSON_DEPTH: they could be read, but perhaps not written."""
    level: list[Any] = [row]
    for _ in range(JSON_DEPTH):
        children = (child for item in level for child in (item.values() if isinstance(item, dict) else item))
        level = [child for child in children if isinstance(child, dict | list)]
    return bool(level)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
