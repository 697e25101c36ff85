"""``vizwiz-client batch``."""

from __future__ import annotations

import argparse
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from vizwiz_client import Answer, ServerError, VizwizClient, VizwizError
from vizwiz_client.cli import _exits
from vizwiz_client.cli._connect import connect
from vizwiz_client.cli._journal import SUFFIX, Journal, journal_path
from vizwiz_client.cli._progress import Progress
from vizwiz_client.cli._rows import (
    JSON_LINES_SUFFIXES,
    QUESTION_COLUMN,
    Format,
    Row,
    Rows,
    Writer,
    photo_column,
)
from vizwiz_client.cli._streams import say, standard_output, writing_output

COLUMNS = [
    "answer",
    "confidence",
    "declined",
    "answerable",
    "answer_type",
    "candidates",
    "question_truncated",
    "head_id",
    "request_id",
    "error",
]


def run(arguments: argparse.Namespace) -> int:
    """Answer every row, or go on where an earlier run ended, and return the exit code."""
    if len(arguments.operands) != 1:
        raise _exits.UsageError(f"got {len(arguments.operands)} inputs, expected one file, or -; see batch --help")
    with ExitStack() as stack:
        rows = stack.enter_context(closing(Rows(arguments.operands[0], COLUMNS)))
        _check_output(arguments, rows)
        total = rows.count()  # a bad row is found before anything is asked, but in a pipe, which can be read once
        batch = _Batch(arguments, rows, stack)
        progress = stack.enter_context(closing(Progress(total, batch.done, quiet=arguments.quiet)))
        client = stack.enter_context(connect(arguments))
        try:
            for row, answer in _answers(client, batch.remaining, _folder(arguments), arguments.top):
                if isinstance(answer, ServerError) and not arguments.keep_going:
                    raise answer
                batch.add(row, answer)
                progress.update(batch.done, batch.failed)
            batch.finish()
        except (ServerError, _exits.UsageError, _exits.NotWritten, OSError, KeyboardInterrupt) as error:
            progress.close()
            if str(error) or isinstance(error, KeyboardInterrupt):  # else the reader of the answers left
                say(batch.interrupted())
            raise
    if not arguments.quiet:
        say(f"{batch.done - batch.failed:,} of {batch.done:,} rows answered" + batch.advice())
    return batch.code


class _Batch:
    """The rows done and those to do, and where the answers go: a journal, or standard output."""

    def __init__(self, arguments: argparse.Namespace, rows: Rows, stack: ExitStack) -> None:
        self.remaining = iter(rows)
        self.done = self.failed = 0
        self.code = _exits.OK
        self._format, self._columns, self._output = _format(arguments, rows.format), rows.columns, arguments.output
        self._stream = None if arguments.output else stack.enter_context(standard_output())
        self._journal: Journal | None = None
        self._writer: Writer | None = None
        if arguments.output:
            settings = {"--top": arguments.top, "--photos": str(_folder(arguments))}
            self._journal = stack.enter_context(closing(Journal(Path(arguments.output), settings)))
            self.done = self._journal.done
            self.failed = self._journal.skip_done(self.remaining)
            self.code = _exits.SOME_FAILED if self.failed else _exits.OK

    def add(self, row: Row, answer: Answer | VizwizError) -> None:
        """Write down the answer to ``row``."""
        error = answer if isinstance(answer, VizwizError) else None
        said = {"error": str(answer)} if isinstance(answer, VizwizError) else answer.to_dict()
        answered = {name: said.get(name) for name in COLUMNS}
        if self._journal is not None:
            self._journal.append(row, answered)
        elif self._stream is not None:
            with writing_output():
                self._writer = self._writer or Writer(self._stream, self._format, [*row, *COLUMNS])
                self._writer.write(row | answered)
                self._stream.flush()
        self.done += 1
        self.failed += error is not None
        self.code = max(self.code, _exits.OK if error is None else _exits.code(error))

    def finish(self) -> None:
        """Publish the answers, when there is a file for them."""
        if self._journal is not None:
            self._journal.publish(self._format, self._columns, COLUMNS)

    def interrupted(self) -> str:
        """What became of the rows, and how to go on."""
        if self._journal is None:
            return f"Stopped after {self.done:,} rows; with -o FILE the same command could go on there"
        return f"Stopped after {self.done:,} rows, kept in {self._output}{SUFFIX}; the same command goes on there"

    def advice(self) -> str:
        """Where to look for what failed."""
        return (
            f"; the column error of {self._output or 'the output'} says why the others were not" if self.failed else ""
        )


def _answers(
    client: VizwizClient, rows: Iterator[Row], folder: Path, top: int
) -> Iterator[tuple[Row, Answer | VizwizError]]:
    asked: deque[Row] = deque()  # as many as the client reads ahead
    mistakes: list[Exception] = []  # of the input; raised when what came before has its answers

    def pairs() -> Iterator[tuple[Path, str]]:
        try:
            for row in rows:
                asked.append(row)
                yield folder / row[photo_column(row) or ""], row[QUESTION_COLUMN]
        except (_exits.UsageError, OSError) as error:
            mistakes.append(error)

    for answer in client.ask_many(pairs(), top=top):
        yield asked.popleft(), answer
    if mistakes:
        raise mistakes[0]


def _check_output(arguments: argparse.Namespace, rows: Rows) -> None:
    """Refuse answers to the file that the questions come from: they would be read as questions, or cut it off."""
    try:
        if arguments.output:
            output = Path(arguments.output)
            same = any(rows.is_file(file.stat()) for file in (output, journal_path(output)) if file.exists())
        else:
            same = rows.is_file(os.fstat(sys.stdout.fileno()))
    except OSError:  # none that can be compared
        return
    if same:
        raise _exits.UsageError(f"{rows.name} is also where answers go; choose another output")


def _folder(arguments: argparse.Namespace) -> Path:
    """Where photos are: beside the input, but for a stream such as /dev/stdin or /dev/fd/63 in the current folder."""
    beside = Path(arguments.operands[0]).parent
    is_device = beside.parts[:2] in (("/", "dev"), ("/", "proc"))
    return Path(arguments.photos or ("." if is_device else beside))


def _format(arguments: argparse.Namespace, of_input: Format) -> Format:
    suffix = Path(arguments.output or "").suffix.lower()
    if arguments.json or suffix in JSON_LINES_SUFFIXES:
        return "JSON Lines"
    return "CSV" if suffix == ".csv" else of_input
