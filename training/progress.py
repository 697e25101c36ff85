"""What a fit writes down while it runs: ``metrics.jsonl``, one line an epoch, and the same numbers for TensorBoard.

Every epoch is on disk before the next one begins, so that a killed fit leaves the epochs it finished::

    tensorboard --logdir runs
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

PROGRESS_FILE = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"


class ProgressLog:
    """Appends the scores of each epoch to the files of ``folder``.

    Opened on a folder that has them already, it goes on: a line that a kill cut short is dropped, and an epoch that is
    recorded already is not recorded again, so that a resumed fit may repeat its last epoch.
    """

    def __init__(self, folder: Path) -> None:
        """Open or make the files in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / PROGRESS_FILE
        _drop_torn_line(path)
        self._recorded = {_identity(row) for row in read_progress(folder)}
        self._lines = path.open("a", encoding="utf-8")
        (folder / EVENTS_FOLDER).mkdir(exist_ok=True)
        # SummaryWriter writes in a thread of its own, which prints a traceback when the disk is full.
        events = folder / EVENTS_FOLDER / f"events.out.tfevents.{time.time():.6f}"
        self._events = RecordWriter(events.open("ab"))
        self._record(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def epoch(self, row: dict[str, Any]) -> None:
        """Record one epoch: ``row`` holds its number under ``epoch``, and its scores.

        Other whole numbers and texts, such as ``fold`` or ``clip``, tell rows of an epoch apart. NaN becomes null.

        Raises:
            ValueError: ``row`` has no epoch.
        """
        if not isinstance(row.get("epoch"), int):
            raise ValueError(f"a row of progress needs the whole number 'epoch', got {row.get('epoch')!r}")
        if _identity(row) in self._recorded:
            return
        self._recorded.add(_identity(row))
        self._lines.write(json.dumps({key: _finite(value) for key, value in row.items()}, ensure_ascii=False) + "\n")
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self._write_events(row)

    def close(self) -> None:
        """Close the files; what was recorded is on disk already."""
        self._lines.close()
        self._events.close()

    def __enter__(self) -> ProgressLog:
        """Use it as ``with ProgressLog(folder) as log``."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        self.close()

    def _write_events(self, row: dict[str, Any]) -> None:
        where = "".join(f"{key} {value}/" for key, value in _identity(row) if key != "epoch")
        values = [
            Summary.Value(tag=f"{where}{key}", simple_value=value)
            for key, value in row.items()
            if isinstance(value, float) and math.isfinite(value)
        ]
        self._record(Event(wall_time=time.time(), step=row["epoch"], summary=Summary(value=values)))

    def _record(self, event: Event) -> None:
        self._events.write(event.SerializeToString())
        self._events.flush()


def read_progress(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of ``folder``'s metrics.jsonl, oldest first; none where there is no such file."""
    path = folder / PROGRESS_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _identity(row: dict[str, Any]) -> tuple[tuple[str, int | str], ...]:
    return tuple(sorted((key, value) for key, value in row.items() if isinstance(value, int | str)))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_torn_line(path: Path) -> None:
    if path.exists():
        whole = path.read_bytes().rpartition(b"\n")
        if whole[2]:
            os.truncate(path, len(whole[0]) + len(whole[1]))


def describe(row: dict[str, Any]) -> str:
    """One epoch in one line."""
    row = {key: math.nan if value is None else value for key, value in row.items()}
    where = "".join(f"{key} {row[key]}  " for key in ("clip", "fold") if key in row)
    return (
        f"{where}epoch {row['epoch']:>2}  loss {row['train_loss']:.3f}, val {row['val_loss']:.3f}  "
        f"{describe_metrics(row)}"
    )


def describe_metrics(row: dict[str, Any]) -> str:
    """The scores of a head or a baseline in one line; nan where val is all of one class and a score has no meaning."""
    row = {key: math.nan if value is None else value for key, value in row.items()}
    return (
        f"VQA {row['vqa_accuracy_leave_one_out']:.2f}, min3 {row['vqa_accuracy_min3']:.2f}  "
        f"AP un/answerable {row['unanswerable_ap']:.3f}/{row['answerable_ap']:.3f}  "
        f"F1 {row['unanswerable_f1']:.3f}/{row['answerable_f1']:.3f}  accuracy {row['answerable_accuracy']:.1f}"
    )


def describe_chance(row: dict[str, Any]) -> str:
    """What the average precisions of :func:`describe` would be by chance."""
    return f"AP by chance {row['unanswerable_ap_chance']:.3f}/{row['answerable_ap_chance']:.3f}"
