"""A run of either CLIP family, and a repository that it was exported into."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.publication import export_run
from training.clip_models import FrozenClip
from training.data import read_split
from training.fit import fit
from training.recipe import Recipe
from training.runs import Run, read_run


@pytest.fixture(scope="session")
def run(tiny_clip: FrozenClip, real_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of either CLIP family, fitted on the real photos."""
    place = tmp_path_factory.mktemp("run")
    train, val = read_split(real_photos, "train"), read_split(real_photos, "val")
    return read_run(fit(train, val, tiny_clip, Recipe(epochs=5), place / "runs", place / "cache"))


@pytest.fixture(scope="session")
def published(run: Run, tiny_clip: FrozenClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that the run was exported into; a test that spoils it restores it."""
    repository = tmp_path_factory.mktemp("export") / "triton_models"
    export_run(run, tiny_clip, repository)
    return repository


def snapshot(repository: Path) -> dict[str, bytes]:
    return {str(path.relative_to(repository)): path.read_bytes() for path in repository.rglob("*") if path.is_file()}
