"""A run of either CLIP family, and a repository that it was exported into."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from export.publish import export_run
from export.repository import finish_model
from serving.repository import read_config
from training.artifacts import file_digest
from training.backbone import FrozenClip
from training.dataset import read_split
from training.fit import fit
from training.model import QualityHead
from training.recipe import Recipe
from training.run import Run, read_run, write_run
from vizwiz_client import VizwizClient

ISSUES = ["blur", "framing", "dark", "bright", "obstruction", "rotation", "unrecognizable"]
WORDING = {"sure_from": 0.43, "advise_from": {"blur": 0.61, "framing": 0.55}}


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


@pytest.fixture(scope="session")
def quality_run(other_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The other run, with quality heads: three, of random weights."""
    folder = tmp_path_factory.mktemp("quality")
    heads = [QualityHead(other_run.clips[0]["embed_dim"], len(ISSUES)) for _ in range(3)]
    randomize(torch.nn.ModuleList(heads))
    ensemble = other_run.load_ensemble()
    ensemble.members[0].quality.extend(heads)
    quality = {"issues": ISSUES, "heads": len(heads)}
    write_run(folder, {**other_run.config, "quality": quality, "wording": WORDING}, ensemble, other_run.answers)
    return read_run(folder)


def randomize(heads: torch.nn.Module) -> None:
    """Draw weights under which every part of a quality head matters: LayerNorm's too, which begin as ones and zeros."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in heads.named_parameters():
        mean = 1.0 if name.endswith("norm.weight") else 0.0
        torch.nn.init.normal_(parameter, mean, std=0.3, generator=generator)


@pytest.fixture(scope="session")
def both(run: Run, quality_run: Run, published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the heads of both runs, whose ensemble references the one with quality. No test changes it."""
    folder = Path(shutil.copytree(published, tmp_path_factory.mktemp("both") / "triton_models"))
    export_run(quality_run, "no/such/clip.pt", folder)
    return folder


def ask_golden(grpc_url: str, folder: Path) -> None:
    """Ask a live server the golden request of the head that the repository ``folder`` serves, and compare."""
    config = read_config(folder / "vizwiz_vqa")
    head = folder / config.ensemble_scheduling.step[-1].model_name
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


def reverse_labels(head: Path) -> None:
    """Reverse the labels of ``quality``, with right digests."""
    labels = head / "quality.txt"
    labels.write_text("".join(f"{issue}\n" for issue in reversed(ISSUES)), encoding="utf-8")
    finish_again(head)


def finish_again(head: Path) -> None:
    """Record the digests of the files as they are now."""
    config = read_config(head)
    config.parameters["labels_sha256_quality.txt"].string_value = file_digest(head / "quality.txt")
    for name in ("config.pbtxt", "SHA256SUMS"):
        (head / name).unlink()
    finish_model(head, config)
