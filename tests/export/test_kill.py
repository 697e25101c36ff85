"""``kill -9`` at any moment of an export: what was published before stays whole, and the next export succeeds."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export import publish, repository
from export.inventory import check_repository, list_models
from export.publish import export_run
from serving.server import EmbeddedTriton
from tests.conftest import ROOT
from tests.export.conftest import ask_golden, snapshot
from training.backbone import FrozenClip
from training.run import Run

SCRIPT = Path(__file__).with_name("killed_export.py")
NEVER = "0"

pytestmark = pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)


def start(run: Run, folder: Path, kill_at: str = NEVER, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), kill_at, str(run.folder), str(folder)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def copy(folder: Path, place: Path) -> Path:
    place.mkdir()
    return Path(shutil.copytree(folder, place / "triton_models"))


def assert_whole(folder: Path, *runs: Run) -> None:
    """The repository serves one of ``runs``, and every model that it names is as it was published."""
    assert any(check_repository(folder, run) == [] for run in runs)


@pytest.mark.parametrize(
    "kill_at", ["/1/model.onnx", "triton_models/gated_head_", "triton_models/vizwiz_vqa/config.pbtxt"]
)
def test_a_killed_export_changes_nothing(
    kill_at: str, run: Run, other_run: Run, tiny_clip: FrozenClip, published: Path, tmp_path: Path
) -> None:
    folder = copy(published, tmp_path / "place")
    before = snapshot(folder)
    export = start(other_run, folder, kill_at)
    export.communicate()
    assert export.returncode == -signal.SIGKILL
    assert before.items() <= snapshot(folder).items()
    assert_whole(folder, run)
    export_run(other_run, tiny_clip, folder)
    assert_whole(folder, other_run)
    assert [path.name for path in folder.parent.iterdir()] == ["triton_models"]
    assert not list(folder.rglob("*.partial"))


@pytest.mark.slow
def test_twenty_random_kills(
    run: Run,
    other_run: Run,
    tiny_clip: FrozenClip,
    published: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of an export that writes three new models: ten kills at random times, ten before random changes of files."""
    rng = random.Random(0)
    begin = time.monotonic()
    whole = start(other_run, copy(published, tmp_path / "whole"), EXPORT_FORMAT="killed")
    changes = int(re.search(r"changes: (\d+)", whole.communicate()[0])[1])  # type: ignore[index]
    duration = time.monotonic() - begin
    assert changes > 30
    times: list[float | None] = [rng.uniform(0, duration) for _ in range(10)]
    numbers = [str(number) for number in rng.sample(range(1, changes + 1), 10)]
    for number, (delay, kill_at) in enumerate([(t, NEVER) for t in times] + [(None, n) for n in numbers]):
        folder = copy(published, tmp_path / str(number))
        export = start(other_run, folder, kill_at, EXPORT_FORMAT="killed")
        if delay is not None:
            time.sleep(delay)
            export.kill()
        export.communicate()
        with monkeypatch.context() as patch:
            patch.setattr(publish, "EXPORT_FORMAT", "killed")
            finished = check_repository(folder, other_run) == []  # before it was killed
        if not finished:
            assert_whole(folder, run)
        if number % 5 == 4:
            with EmbeddedTriton(folder) as server:
                ask_golden(server.grpc_url, folder)
        export_run(other_run, tiny_clip, folder)
        assert_whole(folder, other_run)
        assert [path.name for path in folder.parent.iterdir()] == ["triton_models"]
        assert all(repository.is_published(folder, entry.name) for entry in list_models(folder) if entry.referenced)
    with EmbeddedTriton(folder) as server:
        ask_golden(server.grpc_url, folder)
