from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.checkpoints import Checkpoints


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


def test_without_resume_a_fit_starts_over(tmp_path: Path) -> None:
    Checkpoints(tmp_path, {}, resume=False).save("head", {})
    assert Checkpoints(tmp_path, {}, resume=False).load("head") is None


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
    checkpoints = Checkpoints(tmp_path, {}, resume=False)
    checkpoints.save("head", {})
    checkpoints.clear()
    assert not list(tmp_path.iterdir())
