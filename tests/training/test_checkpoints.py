from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from training import checkpoints as module
from training.checkpoints import Checkpoints, FitRunningError, locked_checkpoints

HOLD = """
import sys, time
from pathlib import Path
from training.checkpoints import locked_checkpoints
with locked_checkpoints(Path(sys.argv[1]), {}, resume=False) as checkpoints:
    checkpoints.save("head", {"history": [{"epoch": 1}]})
    print("held", flush=True)
    time.sleep(60)
"""


def epochs_of(checkpoints: Checkpoints) -> list[int]:
    """The epochs in the state ``head``."""
    state = checkpoints.load("head")
    return [] if state is None else [row["epoch"] for row in state["history"]]


def interrupted(place: Path, *epochs: int) -> None:
    """A fit that was interrupted after these epochs."""
    with locked_checkpoints(place, {}, resume=False) as checkpoints:
        checkpoints.save("head", {"history": [{"epoch": epoch} for epoch in epochs]})


def test_a_state_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {"epochs": 3}, resume=False)
    assert checkpoints.load("head") is None
    checkpoints.save("head", {"weights": {"a": torch.ones(2)}, "history": [{"epoch": 1, "loss": 0.5}], "average": None})
    state = Checkpoints(tmp_path, {"epochs": 3}, resume=True).load("head")
    assert state is not None
    assert torch.equal(state["weights"]["a"], torch.ones(2))
    assert state["history"] == [{"epoch": 1, "loss": 0.5}]


def test_other_settings_have_other_states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Checkpoints(tmp_path, {"epochs": 3}, resume=False).save("head", {})
    assert Checkpoints(tmp_path, {"epochs": 4}, resume=True).load("head") is None
    assert "nothing to resume: no fit of these settings and this data was interrupted" in capsys.readouterr().out


def test_without_resume_a_fit_starts_over_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = Checkpoints(tmp_path, {}, resume=False)
    first.save("fold1", {"history": [{}, {}]})
    first.save("fold2", {"history": [{}]})
    (first.folder / "fold3.pt").write_bytes(b"not a checkpoint")
    assert capsys.readouterr().err == ""
    assert Checkpoints(tmp_path, {}, resume=False).load("fold1") is None
    said = capsys.readouterr().err
    assert said.startswith("not going on from an interrupted fit of the same (heads begun: 3, epochs finished: 3)")
    assert "--resume would go on from it" in said
    assert said.count("\n") == 1


def test_what_was_interrupted_is_kept_until_the_next_fit_has_an_epoch(tmp_path: Path) -> None:
    interrupted(tmp_path, 1, 2)
    for _ in range(2):  # started over by mistake, and stopped before an epoch was finished
        with locked_checkpoints(tmp_path, {}, resume=False) as checkpoints:
            assert epochs_of(checkpoints) == []
    with locked_checkpoints(tmp_path, {}, resume=True) as checkpoints:
        assert epochs_of(checkpoints) == [1, 2]
    interrupted(tmp_path, 1)
    assert list((tmp_path / ".unfinished").iterdir()) == [checkpoints.folder]
    with locked_checkpoints(tmp_path, {}, resume=True) as checkpoints:
        assert epochs_of(checkpoints) == [1]


def test_a_kill_between_an_epoch_and_the_end_of_what_it_replaces(tmp_path: Path) -> None:
    """Both are there: the newer one counts."""
    interrupted(tmp_path, 1, 2)
    [folder] = (tmp_path / ".unfinished").iterdir()
    folder.rename(folder.with_suffix(".earlier"))
    folder.mkdir()
    torch.save({"history": [{"epoch": 1}]}, folder / "head.pt")
    assert epochs_of(Checkpoints(tmp_path, {}, resume=True)) == [1]
    assert list((tmp_path / ".unfinished").iterdir()) == [folder]


def test_a_damaged_state_is_told_and_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(tmp_path, {}, resume=False)
    (checkpoints.folder / "head.pt").write_bytes(b"not a checkpoint")
    assert checkpoints.load("head") is None
    assert "head.pt cannot be read" in capsys.readouterr().out


def test_nothing_but_tensors_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(tmp_path, {}, resume=False)
    torch.save({"path": tmp_path}, checkpoints.folder / "head.pt")
    assert checkpoints.load("head") is None
    assert "cannot be read" in capsys.readouterr().out


def test_a_finished_fit_leaves_nothing(tmp_path: Path) -> None:
    with locked_checkpoints(tmp_path / "runs", {}, resume=False) as checkpoints:
        checkpoints.save("head", {})
        checkpoints.clear()
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_fit_of_the_same_is_refused_and_the_first_loses_nothing(tmp_path: Path, resume: bool) -> None:
    with locked_checkpoints(tmp_path, {}, resume=False) as first:
        first.save("head", {"history": [{"epoch": 1}]})
        message = (
            r"^a fit of the same settings and data is running \(it holds .*\.lock\): wait for it to end, or give .* "
        )
        with pytest.raises(FitRunningError, match=message), locked_checkpoints(tmp_path, {}, resume=resume):
            pass
        with locked_checkpoints(tmp_path, {"other": 1}, resume=False):
            pass
        assert epochs_of(first) == [1]
        with pytest.raises(FitRunningError), locked_checkpoints(tmp_path, {}, resume=resume):
            pass
    with locked_checkpoints(tmp_path, {}, resume=True) as second:
        assert epochs_of(second) == [1]


def test_a_killed_fit_holds_nothing(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(FitRunningError), locked_checkpoints(tmp_path, {}, resume=True):
            pass
        os.kill(process.pid, signal.SIGKILL)
    with locked_checkpoints(tmp_path, {}, resume=True) as checkpoints:
        assert epochs_of(checkpoints) == [1]
        checkpoints.clear()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_was_given_up_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another fit ends between the opening of the file and its lock, and takes file and folder away."""
    given_up = []
    original = module.fcntl.flock

    def late(descriptor: int, how: int) -> None:
        if not given_up:
            [lock] = (tmp_path / ".unfinished").iterdir()
            lock.unlink()
            lock.parent.rmdir()
            given_up.append(lock)
        original(descriptor, how)

    monkeypatch.setattr(module.fcntl, "flock", late)
    with locked_checkpoints(tmp_path, {}, resume=False):
        assert given_up[0].exists()
        with pytest.raises(FitRunningError), locked_checkpoints(tmp_path, {}, resume=False):
            pass


@pytest.mark.parametrize("how", ["begins", "ends"])
def test_fits_of_other_settings_that_end_together(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One begins, or another one ends, just before this one removes the folder that they share."""
    original = Path.rmdir

    def late(path: Path) -> None:
        if path.name == ".unfinished":
            (path / "another.lock").touch() if how == "begins" else original(path)
        original(path)

    monkeypatch.setattr(Path, "rmdir", late)
    with locked_checkpoints(tmp_path, {}, resume=False) as checkpoints:
        checkpoints.clear()
    assert (tmp_path / ".unfinished").exists() == (how == "begins")
