"""``vizwiz-client batch``."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from vizwiz_client import Answer, ServerError, VizwizClient, VizwizError
from vizwiz_client.cli import _exits
from vizwiz_client.cli._connect import connect
from vizwiz_client.cli._journal import SUFFIX, Journal
from vizwiz_client.cli._progress import Progress
from vizwiz_client.cli._rows import (
    JSON_LINES_SUFFIXES,
    QUESTION_COLUMN,
    STANDARD_INPUT,
    Format,
    Row,
    Rows,
    Writer,
    photo_column,
    standard_output,
)
from vizwiz_client.cli._text import say

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
    path = arguments.operands[0]
    total = (
        None if path == STANDARD_INPUT else _count(path)
    )  # reads it all: a bad row is found before anything is asked
    with ExitStack() as stack:
        rows = stack.enter_context(closing(Rows(path, COLUMNS)))
        batch = _Batch(arguments, rows, _format(arguments, rows.format), stack)
        progress = stack.enter_context(closing(Progress(total, batch.done, quiet=arguments.quiet)))
        client = stack.enter_context(connect(arguments))
        try:
            for row, answer in _answers(client, batch.remaining, _folder(arguments), arguments.top):
                if isinstance(answer, ServerError) and not arguments.keep_going:
                    raise answer
                batch.add(row, answer)
                progress.update(batch.done, batch.failed)
            batch.finish()
        except (ServerError, KeyboardInterrupt):
            progress.close()
            say(batch.interrupted())
            raise
    if not arguments.quiet:
        say(f"{batch.done - batch.failed:,} of {batch.done:,} rows answered" + batch.advice())
    return batch.code


class _Batch:
    """The rows done and those to do, and where the answers go: a journal, or standard output."""

    def __init__(self, arguments: argparse.Namespace, rows: Iterable[Row], format: Format, stack: ExitStack) -> None:
        self.remaining = iter(rows)
        self.done = self.failed = 0
        self.code = _exits.OK
        self._format, self._output = format, arguments.output
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
            self._writer = self._writer or Writer(self._stream, self._format, [*row, *COLUMNS])
            self._writer.write(row | answered)
            self._stream.flush()
        self.done += 1
        self.failed += error is not None
        self.code = max(self.code, _exits.OK if error is None else _exits.code(error))

    def finish(self) -> None:
        """Publish the answers, when there is a file for them."""
        if self._journal is not None:
            self._journal.publish(self._format, COLUMNS)

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

    def pairs() -> Iterator[tuple[Path, str]]:
        for row in rows:
            asked.append(row)
            yield folder / row[photo_column(row) or ""], row[QUESTION_COLUMN]

    for answer in client.ask_many(pairs(), top=top):
        yield asked.popleft(), answer


def _count(path: str) -> int:
    with closing(Rows(path, COLUMNS)) as rows:
        return sum(1 for _ in rows)


def _folder(arguments: argparse.Namespace) -> Path:
    return Path(arguments.photos) if arguments.photos else Path(arguments.operands[0]).parent


def _format(arguments: argparse.Namespace, of_input: Format) -> Format:
    suffix = Path(arguments.output or "").suffix.lower()
    if arguments.json or suffix in JSON_LINES_SUFFIXES:
        return "JSON Lines"
    return "CSV" if suffix == ".csv" else of_input
