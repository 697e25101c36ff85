"""A full disk under each folder that a command writes to: one line names the folder, and nothing is half-written."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from export import repository, to_onnx
from export.publish import export_run
from tests.training.test_fit import scalars
from training import evaluate, features, fit
from training.backbone import FrozenClip
from training.run import Run, newest_run, read_epochs, read_run

ANNOUNCED = "cannot be written (No space left on device): make room there, or name another folder with"
FIT = ["--epochs", "2"]


@contextmanager
def disk(kib: int) -> Iterator[Path]:
    """Mount a disk of this size and yield its path.

    It is not in pytest's own folders: a killed test leaves it mounted, and pytest could not delete it later.
    """
    place = Path(tempfile.mkdtemp(prefix="vizwiz-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
    try:
        if os.geteuid() != 0 or subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0:
            pytest.skip("mounting a small disk needs root")
        try:
            yield place
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
    finally:
        place.rmdir()


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str],
) -> Callable[[Callable[[list[str]], int | None], Sequence[str], str, int], list[Path]]:
    """Run a command whose ``option`` names a folder on a disk that is too small; returns the files that it left."""

    def run(command: Callable[[list[str]], int | None], arguments: Sequence[str], option: str, kib: int) -> list[Path]:
        with disk(kib) as place:
            assert command([*arguments, option, str(place / "folder")]) == 2
            error = capsys.readouterr().err
            assert error == f"error: {place / 'folder'} {ANNOUNCED} {option}\n"
            left = [path for path in place.rglob("*") if path.is_file()]
            assert not list(place.rglob("*.partial"))
            for path in left:
                if path.suffix == ".npy":
                    np.load(path)  # whole
        return left

    return run


@pytest.fixture(scope="module")
def options(some_photos: Path, tiny_vit: FrozenClip) -> list[str]:
    """Data and CLIP, as the command line names them."""
    return ["--data", str(some_photos), "--clip", tiny_vit.source]


@pytest.fixture(scope="module")
def fitted(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run, beside the cache of its features."""
    place = tmp_path_factory.mktemp("fitted")
    assert fit.main([*options, *FIT, "--runs", str(place / "runs"), "--cache", str(place / "cache")]) == 0
    return read_run(newest_run(place / "runs"))


def cache_of(run: Run) -> list[str]:
    return ["--cache", str(run.folder.parents[1] / "cache")]


@pytest.mark.parametrize("kib", [4, 200])
def test_under_the_runs(kib: int, options: list[str], fitted: Run, refused: Callable[..., list[Path]]) -> None:
    assert refused(fit.main, [*options, *FIT, *cache_of(fitted)], "--runs", kib) == []


def test_under_the_runs_finished_heads_are_kept(
    options: list[str], fitted: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with disk(20_000) as place:
        arguments = [*options, *FIT, *cache_of(fitted), "--runs", str(place / "runs")]
        filler = place / "filler"
        original = fit.write_result

        def fill_then_write(*values: object) -> None:
            with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            original(*values)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fit, "write_result", fill_then_write)
            assert fit.main(arguments) == 2
        assert capsys.readouterr().err.endswith(f"error: {place / 'runs'} {ANNOUNCED} --runs\n")  # after warnings
        assert [path.name for path in (place / "runs").iterdir()] == [".unfinished"]
        filler.unlink()
        assert fit.main(arguments) == 0
        run = newest_run(place / "runs")
        assert len(read_epochs(run)) == 2
        assert [step for step, _ in scalars(run)["val_loss"]] == [1, 2]
        assert not list(place.rglob("*.pt"))


@pytest.mark.parametrize("kib", [4, 12, 20, 28, 36, 44])
def test_under_the_cache(kib: int, options: list[str], refused: Callable[..., list[Path]]) -> None:
    """Small steps: the index of photos, shards and joined matrices are each the one that has no room."""
    refused(features.main, options, "--cache", kib)


def test_under_the_cache_of_a_fit(options: list[str], tmp_path: Path, refused: Callable[..., list[Path]]) -> None:
    assert refused(fit.main, [*options, "--runs", str(tmp_path / "runs")], "--cache", 4) == []


@pytest.mark.parametrize("kib", [4, 16, 200])
def test_under_the_results_of_an_evaluation(kib: int, fitted: Run, refused: Callable[..., list[Path]]) -> None:
    assert refused(evaluate.main, ["--run", str(fitted.folder), *cache_of(fitted)], "--out", kib) == []


@pytest.mark.parametrize("kib", [40, 4000])
def test_under_the_repository(
    kib: int, fitted: Run, refused: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "check_free_space", lambda *_: None)  # there was room; another process took it
    arguments = ["--run", str(fitted.folder), "--variant", "portable", "--precision", "fp32"]
    assert refused(to_onnx.main, arguments, "--repository", kib) == []


def test_every_file_follows_the_umask(
    options: list[str], tiny_vit: FrozenClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.umask(0o022)
    try:
        runs, cache = tmp_path / "runs", tmp_path / "cache"
        assert fit.main([*options, *FIT, "--runs", str(runs), "--cache", str(cache)]) == 0
        assert evaluate.main(["--runs", str(runs), "--cache", str(cache)]) == 0
        export_run(read_run(newest_run(runs)), tiny_vit, tmp_path / "triton_models")
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert {path.name: oct(mode) for path, mode in modes.items() if mode != (0o755 if path.is_dir() else 0o644)} == {}
