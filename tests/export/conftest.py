"""A run of either CLIP family, and a repository that it was exported into."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export.publish import export_run
from serving.repository import read_config
from training.backbone import FrozenClip
from training.dataset import read_split
from training.fit import fit
from training.recipe import Recipe
from training.run import Run, read_run
from vizwiz_client import VizwizClient


@pytest.fixture(scope="session")
def run(tiny_clip: FrozenClip, some_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of either CLIP family, fitted on the photos."""
    place = tmp_path_factory.mktemp("run")
    train, val = read_split(some_photos, "train"), read_split(some_photos, "val")
    return read_run(fit(train, val, tiny_clip, Recipe(epochs=5), place / "runs", place / "cache"))


@pytest.fixture(scope="session")
def published(run: Run, tiny_clip: FrozenClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that the run was exported into. No test changes it: see :func:`own`."""
    folder = tmp_path_factory.mktemp("export") / "triton_models"
    export_run(run, tiny_clip, folder)
    return folder


@pytest.fixture
def own(published: Path, tmp_path: Path) -> Path:
    """A copy of the repository for a test that changes it."""
    return Path(shutil.copytree(published, tmp_path / "triton_models"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def other_run(tiny_clip: FrozenClip, some_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on the same CLIP with another vocabulary."""
    place = tmp_path_factory.mktemp("other")
    train, val = read_split(some_photos, "train", limit=20), read_split(some_photos, "val")
    return read_run(fit(train, val, tiny_clip, Recipe(epochs=5), place / "runs", place / "cache"))


def ask_golden(grpc_url: str, folder: Path) -> None:
    """Ask a live server the golden request of the head that the repository ``folder`` serves, and compare."""
    config = read_config(folder / "vizwiz_vqa")
    head = folder / config.ensemble_scheduling.step[2].model_name
    golden = json.loads((head / "golden.json").read_text(encoding="utf-8"))
    expected = golden["expected"]
    with VizwizClient(grpc_url) as client:
        answer = client.ask(head / "golden.jpg", golden["question"], top=2 * len(expected["candidates"]))
    got = {candidate.answer: candidate.confidence for candidate in answer.candidates}
    for candidate in expected["candidates"]:
        assert got[candidate["answer"]] == pytest.approx(candidate["confidence"], abs=golden["tolerance"])
    assert answer.answerable == pytest.approx(expected["answerable"], abs=golden["tolerance"])
    likely = [each["answer_type"] for each in expected["answer_types"]]
    assert (answer.answer_type, answer.head_id) == (likely[0], expected["head_id"])
