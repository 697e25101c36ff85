"""Read and write rows of CSV and JSON Lines files."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

from vizwiz_client.cli._output import STANDARD_INPUT, UsageError, standard_input

Row = dict[str, Any]
Format = Literal["CSV", "JSON Lines"]

PHOTO_COLUMNS = ("photo", "image")
QUESTION_COLUMN = "question"
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
MAX_LINE_BYTES = 10_000_000  # /dev/zero is one line without an end

_SAVE_AS_UTF8 = "save it as UTF-8 (in Excel: CSV UTF-8; in PowerShell: -Encoding utf8)"


class Rows:
    """An iterator over the rows of a CSV or JSON Lines file, read as they are requested.

    Args:
        path: the file, "-" for standard input. The first character decides on the format: "{" begins JSON Lines.
        reserved: columns that the input must not have.

    Attributes:
        format: "CSV" or "JSON Lines".
        columns: the columns of a CSV header; empty for JSON Lines.

    Raises:
        UsageError: the file is malformed, not UTF-8, or lacks photo or question. The message names the line. Raised at
            once, or during iteration.
    """

    def __init__(self, path: str, reserved: Iterable[str]) -> None:
        self.name = "standard input" if path == STANDARD_INPUT else path
        self._reserved = set(reserved)
        self._line = 0  # number of the last line read
        self._file = _open(path)
        try:
            self._read_start()
        except BaseException:
            self.close()
            raise

    def _read_start(self) -> None:
        lines = self._read_lines()
        first = next((line for line in lines if line.strip()), "")
        if not first and not self.name.lower().endswith(JSON_LINES_SUFFIXES):
            raise UsageError(f"{self.name} is empty, expected a CSV header or JSON Lines; did its writer fail?")
        if "\0" in first:
            raise UsageError(f"{self.name}: contains NUL, as UTF-16 and binary files do; {_SAVE_AS_UTF8}")
        if first.lstrip().startswith("["):
            raise UsageError(f"{self.name}: a JSON array, expected one object a line: jq -c '.[]' converts it")
        self.columns: list[str] = []
        if not first or first.lstrip().startswith("{"):
            self.format: Format = "JSON Lines"
            self._rows = self._read_json(chain([first] if first else [], lines))
        else:
            self.format = "CSV"
            self._rows = self._read_csv(csv.reader(chain([first], lines), strict=True))

    def __iter__(self) -> Iterator[Row]:
        return self._rows

    def is_same_file(self, status: os.stat_result) -> bool:
        """Whether the rows come from the regular file of ``status``."""
        return stat.S_ISREG(status.st_mode) and os.path.samestat(os.fstat(self._file.fileno()), status)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_lines(self) -> Iterator[str]:
        try:
            while line := self._file.readline(MAX_LINE_BYTES):
                self._line += 1
                if len(line) == MAX_LINE_BYTES:
                    raise self._error(f"longer than {MAX_LINE_BYTES:,} bytes; is it text?")
                yield line.decode("utf-8-sig" if self._line == 1 else "utf-8")  # Excel begins files with a BOM
        except UnicodeDecodeError as error:
            raise self._error(f"byte {error.object[error.start]:#x} is not UTF-8; {_SAVE_AS_UTF8}") from error
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from error

    def _read_csv(self, reader: Any) -> Iterator[Row]:
        """Read the header at once; return an iterator over the rows."""

        def records() -> Iterator[list[str]]:
            try:
                yield from filter(None, reader)  # a blank line has no cells
            except csv.Error as error:
                raise self._error(f"not CSV: {error}") from error

        cells = records()
        self.columns = next(cells)
        if repeated := sorted({name for name in self.columns if self.columns.count(name) > 1}):
            raise self._error(f"more than one column {', '.join(map(repr, repeated))}; rename or remove all but one")
        self._check_columns(self.columns, "separated by commas")

        def rows() -> Iterator[Row]:
            for row in cells:
                if len(row) != len(self.columns):
                    raise self._error(
                        f"got {len(row)} cells, expected {len(self.columns)} as in the header; put quotes around "
                        "a cell that contains a comma"
                    )
                yield dict(zip(self.columns, row, strict=True))

        return rows()

    def _read_json(self, lines: Iterable[str]) -> Iterator[Row]:
        for line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise self._error(f"not JSON ({error}), expected one object a line") from error
            if not isinstance(row, dict):
                raise self._error(f"got {line.strip()[:40]}, expected a JSON object")
            self._check_columns(row, "as keys")
            for key in (photo_column(row), QUESTION_COLUMN):
                if not isinstance(row[key], str):
                    raise self._error(f"{key} is {str(row[key])[:40]}, expected text")
            yield row

    def _check_columns(self, columns: Collection[str], how: str) -> None:
        if not set(PHOTO_COLUMNS) & set(columns) or QUESTION_COLUMN not in columns:
            got = ", ".join(map(repr, columns))
            raise self._error(f"got the columns {got}, expected photo or image, and question, {how}")
        if taken := self._reserved & set(columns):
            raise self._error(f"the answers need the column {', '.join(sorted(taken))}; rename it in the input")

    def _error(self, text: str) -> UsageError:
        return UsageError(f"{self.name}, line {self._line}: {text}")


class Writer:
    """Writes rows to ``stream`` as CSV with a header of ``columns``, or as JSON Lines."""

    def __init__(self, stream: TextIO, format: Format, columns: Iterable[str]) -> None:
        self._stream = stream
        self._csv = csv.writer(stream) if format == "CSV" else None
        self._columns = list(columns)
        if self._csv is not None:
            self._csv.writerow(self._columns)

    def write(self, row: Row) -> None:
        """Write one row. In CSV, values other than text are JSON; what is None or empty is an empty cell."""
        if self._csv is not None:
            self._csv.writerow([_to_cell(row.get(name)) for name in self._columns])
        else:
            self._stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def photo_column(columns: Collection[str]) -> str:
    """The column of the photo's path: the first of PHOTO_COLUMNS that is there."""
    return next(name for name in PHOTO_COLUMNS if name in columns)


def _open(path: str) -> BinaryIO:
    if path == STANDARD_INPUT:
        return standard_input()
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); expected a CSV or JSON Lines file") from error


def _to_cell(value: Any) -> str:
    if value is None or value == {} or value == []:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
