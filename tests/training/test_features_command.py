"""The command, as separate processes: killed at any moment, and several at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, annotation, write_split
from training.backbone import FrozenClip
from training.features import main

PHOTOS = 600  # three shards
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # as torchrun sets it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VizWiz folder of many small photos with few different questions."""
    folder = tmp_path_factory.mktemp("many")
    records = [annotation(number, question=f"What is number {number % 7}?") for number in range(PHOTOS)]
    write_split(folder, "train", records)
    noise = np.random.default_rng(0)
    for record in records:
        Image.fromarray(noise.integers(0, 255, (70, 90, 3), np.uint8)).save(folder / "train" / record["image"])
    return folder


@pytest.fixture(scope="module")
def flags(folder: Path, tiny_vit: FrozenClip) -> list[str]:
    """What the commands of these tests have in common."""
    return [
        "--data",
        str(folder),
        "--clip",
        tiny_vit.source,
        "--splits",
        "train",
        "--device",
        "cpu",
        "--rotations",
        "2",
    ]


@pytest.fixture(scope="module")
def whole(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process that nothing disturbs writes."""
    cache = tmp_path_factory.mktemp("whole")
    run(flags, cache)
    return files_of(cache)


def run(flags: list[str], cache: Path, *launcher: str) -> None:
    command = [sys.executable, "-m", *launcher, *(["-m"] if launcher else []), "training.features", *flags]
    done = subprocess.run([*command, "--cache", str(cache)], cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def files_of(cache: Path) -> dict[str, bytes]:
    finished = [*cache.glob("*/*.npy"), *cache.glob("*/splits/*.npy")]
    return {str(path.relative_to(cache)): path.read_bytes() for path in finished}


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    flags: list[str], whole: dict[str, bytes], tmp_path: Path
) -> None:
    assert len(whole) == 2 * 3 + 1 + 2 + 1  # two rotations of three shards, questions; concatenated: the same
    moments = 0
    for files in (0, 4, 8):  # kill as soon as so many files are there, then go on from them
        command = [sys.executable, "-m", "training.features", *flags, "--cache", str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, env=ONE_THREAD, stderr=subprocess.DEVNULL) as process:
            children: list[int] = []
            deadline = time.monotonic() + 300
            try:
                while process.poll() is None and (len(files_of(tmp_path)) < files or not children):
                    assert time.monotonic() < deadline, f"it does not come to {files} files"
                    children = children or children_of(process.pid)
                    time.sleep(0.001)
            finally:
                process.kill()
        moments += process.returncode == -signal.SIGKILL
        deadline = time.monotonic() + 60
        while any(map(is_alive, children)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(map(is_alive, children)), "decoding processes outlive the killed one"
        assert all(whole[name] == content for name, content in files_of(tmp_path).items())
    assert moments >= 2
    run(flags, tmp_path)
    assert files_of(tmp_path) == whole


def test_two_processes_write_the_same_bytes_as_one(flags: list[str], whole: dict[str, bytes], tmp_path: Path) -> None:
    run(flags, tmp_path, "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert files_of(tmp_path) == whole


@pytest.mark.slow
def test_a_photo_that_one_of_two_processes_cannot_read_ends_both(
    folder: Path, tiny_vit: FrozenClip, tmp_path: Path
) -> None:
    broken = folder / "train" / f"VizWiz_train_{300:08}.jpg"  # in the second shard: the second process's
    kept = broken.read_bytes()
    broken.write_bytes(kept[:1000])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["training.features", "--data", str(folder), "--clip", tiny_vit.source, "--splits", "train"]
    try:
        done = subprocess.run(
            [*command, "--device", "cpu", "--cache", str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        broken.write_bytes(kept)
    assert done.returncode != 0
    assert done.stderr.count(f"error: train photos: 1 cannot be read:\n  {broken}") == 1


def test_the_command_reports_what_it_did(
    flags: list[str], whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--cache", str(tmp_path), "--limit", "5"]) == 0
    announced, found = capsys.readouterr().out.splitlines()
    assert "is read as OpenAI's architecture: QuickGELU, 2 heads" in announced
    assert found.startswith("train: 5 x 64, 2 rotation(s), ")
    assert main([*flags, "--cache", str(tmp_path), "--workers", "0"]) == 2
    assert capsys.readouterr().err == "error: --workers must be at least 1, got 0\n"
