"""The command ``vizwiz-client batch``: rows in, answers out, resumable after any crash."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, BinaryIO

from vizwiz_client import Answer, ServerError, VizwizClient, VizwizError
from vizwiz_client.cli import _output
from vizwiz_client.cli._commands import connect
from vizwiz_client.cli._output import STANDARD_INPUT, OutputError, UsageError, print_error
from vizwiz_client.cli._rows import (
    JSON_LINES_SUFFIXES,
    QUESTION_COLUMN,
    Format,
    Row,
    Rows,
    Writer,
    photo_column,
)

COLUMNS = [
    "answer",
    "confidence",
    "declined",
    "answerable",
    "answer_type",
    "candidates",
    "quality",
    "advice",
    "sentence",
    "question_truncated",
    "demo",
    "head_id",
    "request_id",
    "error",
]
JOURNAL_SUFFIX = ".part"


def batch(arguments: argparse.Namespace) -> int:
    """Answer every row, or resume an earlier run, and return the exit code."""
    with ExitStack() as stack:
        rows = stack.enter_context(closing(Rows(arguments.input, COLUMNS)))
        _check_output(arguments, rows)
        total = _count(arguments.input)
        sink: Journal | StandardOutput = (
            Journal(arguments, rows) if arguments.output else StandardOutput(arguments, rows)
        )
        stack.enter_context(closing(sink))
        progress = stack.enter_context(closing(_progress(total, sink.done, arguments.quiet)))
        client = stack.enter_context(connect(arguments))
        code = _output.SOME_FAILED if sink.failed else _output.OK
        try:
            for row, answer in _ask(client, iter(rows), _photo_folder(arguments), arguments.top):
                if isinstance(answer, ServerError) and not arguments.keep_going:
                    raise answer
                sink.add(row, answer)
                code = max(code, _output.exit_code(answer) if isinstance(answer, VizwizError) else _output.OK)
                progress.update()
            sink.finish()
        except (ServerError, UsageError, OutputError, OSError, KeyboardInterrupt) as error:
            progress.close()
            if str(error) or isinstance(error, KeyboardInterrupt):  # else the reader of the output has ended
                print_error(f"Stopped after {sink.done:,} rows; {sink.how_to_resume}")
            raise
        progress.close()
    if not arguments.quiet:
        where = f"; see the column error of {arguments.output or 'the output'}" if sink.failed else ""
        print_error(f"{sink.done - sink.failed:,} of {sink.done:,} rows answered{where}")
    return code


def _ask(
    client: VizwizClient, rows: Iterator[Row], folder: Path, top: int
) -> Iterator[tuple[Row, Answer | VizwizError]]:
    """Rows with their outcomes, in order. An invalid row ends the input; its error follows the last outcome."""
    asked: deque[Row] = deque()  # read ahead by ask_many, and not answered yet
    errors: list[Exception] = []

    def pairs() -> Iterator[tuple[Path, str]]:
        try:
            for row in rows:
                asked.append(row)
                yield folder / row[photo_column(row)], row[QUESTION_COLUMN]
        except (UsageError, OSError) as error:
            errors.append(error)

    for outcome in client.ask_many(pairs(), top=top):
        yield asked.popleft(), outcome
    if errors:
        raise errors[0]


class StandardOutput:
    """Writes each answered row to standard output."""

    how_to_resume = "with -o FILE the same command could resume"

    def __init__(self, arguments: argparse.Namespace, rows: Rows) -> None:
        self.done = self.failed = 0
        self._format, self._columns = _output_format(arguments, rows.format), rows.columns
        self._stack = ExitStack()
        self._stream = self._stack.enter_context(_output.standard_output())
        self._writer: Writer | None = None

    def add(self, row: Row, outcome: Answer | VizwizError) -> None:
        """Write one row. Raises OutputError."""
        with _output.output_errors():
            self._begin(row).write(row | _to_columns(outcome))
            self._stream.flush()
        self.done += 1
        self.failed += isinstance(outcome, VizwizError)

    def _begin(self, columns: Iterable[str]) -> Writer:
        self._writer = self._writer or Writer(self._stream, self._format, [*columns, *COLUMNS])
        return self._writer

    def finish(self) -> None:
        """Write the header where there was no row. Raises OutputError."""
        with _output.output_errors():
            self._begin(self._columns)
            self._stream.flush()

    def close(self) -> None:
        """Leave standard output open."""
        self._stack.close()


class Journal:
    """Answered rows in OUTPUT.part; OUTPUT itself appears when the last row is answered.

    OUTPUT.part is JSON Lines: first the options that answers depend on, then ``[input row, answer]`` for each answered
    row. It is only appended to, one flushed line a row, so a killed run leaves at most one incomplete line. A resumed
    run cuts that line off and skips the input rows that have an answer.

    Raises:
        UsageError: OUTPUT exists, another run holds OUTPUT.part, or OUTPUT.part belongs to other options or rows.
    """

    def __init__(self, arguments: argparse.Namespace, rows: Rows) -> None:
        self.done = self.failed = 0
        self._output, self._path = Path(arguments.output), _journal_path(arguments.output)
        self._format, self._columns = _output_format(arguments, rows.format), rows.columns
        self.how_to_resume = f"the same command resumes from {self._path}"
        try:
            self._file = self._path.open("a+b")
        except OSError as error:
            raise UsageError(f"{self._path}: cannot be written ({error.strerror})") from error
        try:
            fast_decode = {"--fast-decode": True} if arguments.fast_decode else {}
            self._begin({"--top": arguments.top, "--photos": str(_photo_folder(arguments))} | fast_decode)
            self._resume(iter(rows))
        except BaseException:
            self.close()
            raise

    def _begin(self, options: dict[str, Any]) -> None:
        try:
            lock(self._file)
        except (BlockingIOError, PermissionError):  # on Windows the second
            raise UsageError(
                f"{self._path}: another run is writing it; wait for it, or choose another output"
            ) from None
        except OSError:  # a file system without locks: nothing shows whether another run is writing
            pass
        if self._output.exists():
            if not self._path.stat().st_size:  # we created it just now
                self.close()  # Windows deletes no open file
                self._path.unlink()
            raise UsageError(f"{self._output} exists; remove it, or choose another output")
        header = json.dumps(options).encode() + b"\n"
        self._file.seek(0)
        found = self._file.readline()
        if found == header:
            return
        if not header.startswith(found):  # else empty, or killed within the header
            text = found.decode(errors="replace").strip()[:200]
            raise UsageError(
                f"{self._path} begins with {text!r}, expected {header.decode().strip()!r}; resume with the options of "
                "its first run, or remove it"
            )
        self._file.truncate(0)
        try:
            self._append(options)
        except OutputError:
            self.close()
            self._path.unlink()  # nothing was answered
            raise

    def _resume(self, rows: Iterator[Row]) -> None:
        """Skip the rows that have an answer, and cut the journal off at the first incomplete or damaged line."""
        self._file.seek(0)
        size = len(next(self._file))
        for line in self._file:
            try:
                row, answer = json.loads(line if line.endswith(b"\n") else b"")
                failed = answer["error"] is not None
            except (ValueError, TypeError, KeyError, RecursionError):
                break
            if next(rows, None) != row:
                raise UsageError(f"{self._path} was begun with other input; remove it to begin again")
            self.done += 1
            self.failed += failed
            size += len(line)
        self._file.truncate(size)

    def add(self, row: Row, outcome: Answer | VizwizError) -> None:
        """Append one row. Raises OutputError."""
        self._append([row, _to_columns(outcome)])
        self.done += 1
        self.failed += isinstance(outcome, VizwizError)

    def finish(self) -> None:
        """Write OUTPUT completely or not at all, then remove the journal. Raises OutputError."""
        new = self._output.with_name(f".{self._output.name}.new")
        columns = list(dict.fromkeys([*self._columns, *(name for row, _ in self._read() for name in row)]))
        try:
            with new.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
                writer = Writer(stream, self._format, [*columns, *COLUMNS])
                for row, answer in self._read():
                    writer.write(row | answer)
                stream.flush()
                os.fsync(stream.fileno())
            new.replace(self._output)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise _output_error(self._output, error) from error
        _sync_folder(self._output.parent)  # OUTPUT must survive a loss of power before the journal goes
        self.close()
        self._path.unlink()

    def close(self) -> None:
        """Close the file, which releases its lock."""
        with suppress(OSError):  # a full disk, which was reported when the row was appended
            self._file.close()

    def _read(self) -> Iterator[tuple[Row, Row]]:
        with self._path.open("rb") as file:
            next(file)  # the options
            for line in file:
                row, answer = json.loads(line)
                yield row, answer

    def _append(self, value: Any) -> None:
        try:
            self._file.write(json.dumps(value).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise _output_error(self._path, error) from error


def lock(file: BinaryIO) -> None:
    """Lock an open file until it is closed or the process ends. Raises OSError if another process holds the lock."""
    if sys.platform == "win32":
        import msvcrt

        position = file.tell()
        file.seek(1 << 40)  # behind all content: other processes cannot read locked bytes
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(position)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _check_output(arguments: argparse.Namespace, rows: Rows) -> None:
    """Refuse an output that is the input: its answers would be read as questions."""
    if arguments.output and Path(arguments.output).is_dir():
        raise UsageError(f"got -o {arguments.output}, a folder; expected a file")
    try:
        if arguments.output:
            files = (Path(arguments.output), _journal_path(arguments.output))
            same = any(rows.is_same_file(file.stat()) for file in files if file.exists())
        else:
            same = rows.is_same_file(os.fstat(sys.stdout.fileno()))
    except OSError:  # a stream without a file
        return
    if same:
        raise UsageError(f"{rows.name} is also the output; choose another output")


def _count(path: str) -> int | None:
    """Read and so check all rows before anything is asked; return their number. None for pipes: they are read once."""
    if path == STANDARD_INPUT or not Path(path).is_file():
        return None
    with closing(Rows(path, COLUMNS)) as rows:
        return sum(1 for _ in rows)


def _progress(total: int | None, done: int, quiet: bool) -> Any:
    """A progress bar on standard error, if that is a terminal."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit=" rows", mininterval=0.5, leave=False, disable=quiet or None)


def _to_columns(outcome: Answer | VizwizError) -> Row:
    values = {"error": str(outcome)} if isinstance(outcome, VizwizError) else outcome.to_dict()
    return {name: values.get(name) for name in COLUMNS}


def _photo_folder(arguments: argparse.Namespace) -> Path:
    """The folder of the input; the current folder for a stream such as /dev/stdin or /dev/fd/63."""
    is_stream = arguments.input.startswith(("/dev/", "/proc/"))
    return Path(arguments.photos or ("." if is_stream else Path(arguments.input).parent))


def _output_format(arguments: argparse.Namespace, input_format: Format) -> Format:
    suffix = Path(arguments.output or "").suffix.lower()
    if arguments.json or suffix in JSON_LINES_SUFFIXES:
        return "JSON Lines"
    return "CSV" if suffix == ".csv" else input_format


def _journal_path(output: str) -> Path:
    return Path(output).with_name(Path(output).name + JOURNAL_SUFFIX)


def _output_error(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written ({error.strerror}); make room there, and run the same command again")


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # Windows does not open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
