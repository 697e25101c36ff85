from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.progress import ProgressLog, read_progress

ROOT = Path(__file__).parents[2]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: per tag, step and value."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: sorted((event.step, event.value) for event in events.Scalars(tag)) for tag in events.Tags()["scalars"]}


def test_rows_are_kept_as_json_lines_and_as_events(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "val_loss": 2.5, "answerable_ap": float("nan")}, {"epoch": 2, "val_loss": 1.25}]
    with ProgressLog(tmp_path) as log:
        for row in rows:
            log.epoch(row)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 1, "val_loss": 2.5, "answerable_ap": None}, rows[1]]
    assert scalars(tmp_path) == {"val_loss": [(1, 2.5), (2, 1.25)]}


def test_folds_are_curves_of_their_own(tmp_path: Path) -> None:
    with ProgressLog(tmp_path) as log:
        for fold in (0, 1):
            log.epoch({"fold": fold, "epoch": 1, "val_loss": float(fold)})
    assert scalars(tmp_path) == {"fold 0/val_loss": [(1, 0.0)], "fold 1/val_loss": [(1, 1.0)]}
    assert len(read_progress(tmp_path)) == 2


def test_a_row_without_its_epoch_is_refused(tmp_path: Path) -> None:
    with ProgressLog(tmp_path) as log, pytest.raises(ValueError, match="needs the whole number 'epoch', got None"):
        log.epoch({"val_loss": 1.0})


def test_a_killed_fit_leaves_its_epochs_and_goes_on(tmp_path: Path) -> None:
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, signal, sys\nfrom pathlib import Path\nfrom training.progress import ProgressLog\n"
            "log = ProgressLog(Path(sys.argv[1]))\n"
            "for epoch in (1, 2): log.epoch({'epoch': epoch, 'val_loss': epoch / 2})\n"
            "os.kill(os.getpid(), signal.SIGKILL)",
            str(tmp_path),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert [row["epoch"] for row in read_progress(tmp_path)] == [1, 2]
    assert scalars(tmp_path) == {"val_loss": [(1, 0.5), (2, 1.0)]}

    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "val_')  # what a kill in the middle of a write may leave
    with ProgressLog(tmp_path) as log:
        log.epoch({"epoch": 2, "val_loss": 1.0})  # repeated after a resume
        log.epoch({"epoch": 3, "val_loss": 1.5})
    assert read_progress(tmp_path) == [{"epoch": n, "val_loss": n / 2} for n in (1, 2, 3)]
    assert scalars(tmp_path) == {"val_loss": [(1, 0.5), (2, 1.0), (3, 1.5)]}


def test_no_progress_is_no_rows(tmp_path: Path) -> None:
    assert read_progress(tmp_path) == []
