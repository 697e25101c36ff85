"""The tuning benchmark: what it changes in a copy of a repository, and the table it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from benchmarks.serving import tuning
from benchmarks.serving.tuning import Column, Setting, copy_changed, settings
from export.triton_config import CONFIG_FILE
from serving.repository import check_repository
from tests.conftest import LiveServer


def _configs(repository: Path) -> dict[str, Any]:
    """The configuration of each model."""
    return {
        folder.name: text_format.Parse((folder / CONFIG_FILE).read_text(), pb.ModelConfig())
        for folder in repository.iterdir()
        if (folder / CONFIG_FILE).is_file()
    }


@pytest.mark.parametrize("setting", settings(4), ids=lambda setting: setting.name)
def test_a_setting_changes_the_encoders_of_a_copy(setting: Setting, live_server: LiveServer, tmp_path: Path) -> None:
    before = _configs(live_server.repository)
    copy_changed(live_server.repository, tmp_path / "copy", setting)
    check_repository(tmp_path / "copy")
    assert _configs(live_server.repository) == before
    after = _configs(tmp_path / "copy")
    changed = {name for name in before if after[name] != before[name]}
    only_threads = setting.name in ("as published", "half the threads for each model")
    changing = tuning.ENCODERS[1:] if setting.name == "equal shares of the cores" else tuning.ENCODERS
    encoders = {name for name in before if name.startswith(changing)}
    assert changed == (set() if only_threads else encoders)


def test_the_settings_of_a_machine() -> None:
    assert [each.name for each in settings(1)][:2] == ["as published", "2 instances, threads each: 1"]
    assert {each.threads for each in settings(8)} == {None, 1, 4}


def test_the_settings_are_served_and_compared(
    live_server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "settings", lambda cores: settings(2)[:2])
    arguments = [str(live_server.repository), "--rounds=1", "--seconds=0.2", "--concurrency", "2"]
    monkeypatch.setattr("sys.argv", ["tuning", *arguments, "--photos", str(live_server.data / "val")])
    tuning.main()
    heads, _, published, other = capsys.readouterr().out.splitlines()
    assert heads == "| encoders | p50 ms at 2 | questions/s at 2 |"
    assert published.startswith("| as published | ")
    assert published.count("(1.00 x)") == 2
    assert other.startswith("| 2 instances, threads each: 1 | ")


def test_a_ratio_is_of_the_same_round() -> None:
    """The machine was half as fast in the second round: the setting is still the faster one by a quarter."""
    published, other = Setting("as published"), Setting("other")
    measured = {("as published", 1): Column([10, 20], [100, 50]), ("other", 1): Column([8, 16], [125, 62.5])}
    lines = tuning.table([published, other], [1], measured)
    assert lines[-1] == "| other | 12 (0.80 x) | 93.8 (1.25 x) |"


def test_a_repository_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["tuning", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match=r"does not exist: publish one with"):
        tuning.main()
