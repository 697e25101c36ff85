from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import ROOT
from training import artifacts
from training.artifacts import digest_of, file_digest, staged_file, staged_folder, write_json


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), staged_file(path) as staging:
        staging.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "old"
    with staged_file(path) as staging:
        staging.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(ZeroDivisionError), staged_folder(path) as staging:
        (staging / "a").touch()
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []
    with staged_folder(path) as staging:
        (staging / "a").touch()
    assert [entry.name for entry in path.iterdir()] == ["a"]
    with pytest.raises(FileExistsError), staged_folder(path):
        pass
    assert [entry.name for entry in path.iterdir()] == ["a"]


@pytest.mark.parametrize("published", ["folder", "file"])
def test_a_folder_that_another_process_publishes_during_the_flush_is_kept(
    published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    flush = artifacts.flush_folder

    def publish_meanwhile(folder: Path) -> None:
        flush(folder)
        if published == "folder":
            path.mkdir()
            (path / "theirs").touch()
        else:
            path.touch()

    monkeypatch.setattr(artifacts, "flush_folder", publish_meanwhile)
    with pytest.raises(FileExistsError, match="exists already"), staged_folder(path) as staging:
        (staging / "ours").touch()
    assert [entry.name for entry in tmp_path.rglob("*")] == (["run", "theirs"] if published == "folder" else ["run"])


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    script = "import time; from pathlib import Path; from training.artifacts import staged_folder\n"
    script += f"with staged_folder(Path({str(tmp_path / 'run')!r})): time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as killed:
        try:
            while not (leftover := list(tmp_path.iterdir())):
                assert killed.poll() is None
                time.sleep(0.02)
            with staged_folder(tmp_path / "second"):
                assert leftover[0].exists()
        finally:
            killed.kill()
    with staged_folder(tmp_path / "third"):
        assert not leftover[0].exists()


CONTAINER = ["unshare", "--pid", "--fork", "--kill-child"]  # a process in it is number 1, as in a container


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*CONTAINER, "true"], stderr=subprocess.DEVNULL).returncode != 0,
    reason="making a PID namespace needs root",
)
def test_processes_of_the_same_id_on_one_volume_leave_each_others_staging_alone(tmp_path: Path) -> None:
    script = "from pathlib import Path; from training.artifacts import staged_file, staged_folder\n"
    script += f"place = Path({str(tmp_path)!r})\n"
    script += "with staged_folder(place / 'run') as folder, staged_file(place / 'report') as file:\n"
    script += "    (folder / 'a').touch(), file.touch(), print('ready', flush=True), input()"
    command = [*CONTAINER, sys.executable, "-c", script]
    with ExitStack() as stack:
        processes = []
        for _ in range(2):
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        assert len(list(tmp_path.glob(".*.partial"))) == 4
        processes[0].communicate(b"\n")
        assert processes[0].returncode == 0
        assert {path.name for path in tmp_path.glob("[!.]*")} == {"run", "report"}
        assert len(list(tmp_path.glob(".*.partial"))) == 2


def test_others_files_of_a_similar_name_are_left_alone(tmp_path: Path) -> None:
    others = [tmp_path / name for name in (".film.mkv.partial", ".film.123.partial", f".film.{'0' * 16}.partial")]
    for other in others[:2]:
        other.mkdir()
    others[2].touch()  # a file: what is staged lies in a folder
    write_json(tmp_path / "a.json", {})
    assert all(other.exists() for other in others)


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ap": float("nan"), "answer": "café"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ap": None, "answer": "café"}


def test_digests_differ_by_how_parts_are_cut() -> None:
    assert digest_of("ab", "c") != digest_of("a", "bc")
    assert digest_of("ab") == digest_of(b"ab")


def test_a_files_digest_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
