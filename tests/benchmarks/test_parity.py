"""The benchmark of parity goes on where it was interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import parity
from benchmarks.parity import CLIPS, Errors, finished_clips, measured_by
from benchmarks.report import Settings
from training.artifacts import write_json

FOUND = {
    name: {"portable-fp32": Errors([1e-6, 2e-6, number * 1e-6], number * 1e-12, 1 - number % 2 / 8)}
    for number, name in enumerate(CLIPS)
}


def test_finished_clips_are_not_measured_again(tmp_path: Path) -> None:
    write_json(tmp_path / "parity.json", {"measured": measured_by(), "clips": FOUND})
    table, resumed = parity.run(Settings(tmp_path, "ViT-L/14@336px"))
    lines = str(table).splitlines()
    assert lines[-2:] == ["| 1 - cosine, at most | 1.1e-11 |", "| best answers that are PyTorch's, at least | 87.5% |"]
    assert resumed == "12 of 12 CLIPs were measured before the run was interrupted."
    assert [line.split(" | ")[1] for line in lines[4:-2]] == [
        f"1.0e-06 / 2.0e-06 / {n * 1e-6:.1e} |" for n in range(12)
    ]
    assert not list(tmp_path.iterdir()), "the next run must measure again"


@pytest.mark.parametrize(("measured", "clips"), [(measured_by(), FOUND), ("another", {})])
def test_another_machine_or_package_measures_every_clip(measured: str, clips: object, tmp_path: Path) -> None:
    write_json(tmp_path / "parity.json", {"measured": measured, "clips": FOUND})
    assert finished_clips(tmp_path / "parity.json") == clips
    assert finished_clips(tmp_path / "missing.json") == {}
