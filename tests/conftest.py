"""Fixtures that several folders share. The expensive ones are made once a run."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from demo import DEMO_CLIP, ensure_demo_dataset
from export.publish import export_run
from serving.server import EmbeddedTriton
from training.backbone import FrozenClip, clip, load_clip
from training.dataset import DEMO_MANIFEST, read_split
from training.fit import fit
from training.recipe import Recipe
from training.run import Run, read_run

for _name in ("grpc_proxy", "http_proxy", "https_proxy", "all_proxy"):  # the tests' own requests go to this machine
    os.environ.pop(_name, None)
    os.environ.pop(_name.upper(), None)
os.environ["VIZWIZ_SERVING_CACHE"] = ""  # servers of tests cache nothing in the home folder

ROOT = Path(__file__).parents[1]
REAL_DATA = os.environ.get("VIZWIZ_MATERIAL")  # a VizWiz folder: the project carries no real photos or questions


def pytest_configure() -> None:
    """Refuse a VIZWIZ_MATERIAL that names no folder: its tests would be skipped without a word."""
    if REAL_DATA and not Path(REAL_DATA).is_dir():
        raise pytest.UsageError(f"VIZWIZ_MATERIAL must name a VizWiz folder (docs/data.md), got {REAL_DATA!r}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need real data. Tests of `some_photos` have the mark where the photos may decide."""
    for item in items:
        if "vizwiz" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.material)


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest repository that the client accepts; no test changes it."""
    from tests.client.small_server import write_small_repository  # which imports from folders that import this file

    folder = tmp_path_factory.mktemp("small")
    write_small_repository(folder)
    return folder


@pytest.fixture(scope="session")
def vizwiz() -> Path:
    """The folder of real VizWiz data."""
    if not REAL_DATA:
        pytest.skip("VIZWIZ_MATERIAL does not name a folder of real VizWiz data (docs/data.md)")
    return Path(REAL_DATA).resolve()


@pytest.fixture(scope="session")
def real_photos(vizwiz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VizWiz folder of 50 real photos, as train and as val."""
    records = vizwiz / "Annotations" / "val_images.json"
    if not records.exists():  # the official download
        first = json.loads((vizwiz / "Annotations" / "val.json").read_text(encoding="utf-8"))[:50]
        records = tmp_path_factory.mktemp("records") / "val.json"
        records.write_text(json.dumps(first), encoding="utf-8")
    return as_train_and_val(records, vizwiz / "val", tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="session")
def real_annotations(vizwiz: Path) -> Callable[[str], Path]:
    """The path of an annotation file of the real data; a test of one that is not there is skipped."""

    def find(name: str) -> Path:
        path = vizwiz / "Annotations" / f"{name}.json"
        if not path.exists():
            pytest.skip(f"{path} is not part of the real data here")
        return path

    return find


@pytest.fixture(scope="session")
def some_photos(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 50 real photos, or 50 drawn ones where there are none, for tests that need photos of any kind."""
    if REAL_DATA:
        return Path(request.getfixturevalue("real_photos"))
    drawn = ensure_demo_dataset(tmp_path_factory.mktemp("drawn") / "data", train=1, val=50, test=1)
    return as_train_and_val(drawn / "Annotations" / "val.json", drawn / "val", tmp_path_factory.mktemp("photos"))


def as_train_and_val(records: Path, photos: Path, folder: Path) -> Path:
    """Make ``folder`` a VizWiz folder of the ``records`` about ``photos``, twice."""
    (folder / "Annotations").mkdir()
    for split in ("train", "val"):
        shutil.copy(records, folder / "Annotations" / f"{split}.json")
        (folder / split).symlink_to(photos)
    with suppress(FileNotFoundError):
        shutil.copy(photos.parent / DEMO_MANIFEST, folder)
    return folder


def write_checkpoint(
    path: Path, vision_layers: int | tuple[int, ...], seed: int = 0, *, image_size: int = 64, embed_dim: int = 64
) -> Path:
    """A checkpoint of OpenAI's architecture at small width with random, non-trivial weights."""
    torch.manual_seed(seed)
    patch = 16 if isinstance(vision_layers, int) else None
    model = clip.model.CLIP(embed_dim, image_size, vision_layers, 128 if patch else 16, patch, 77, 49408, 64, 1, 2)
    model.initialize_parameters()
    torch.nn.init.normal_(model.token_embedding.weight, std=0.5)  # so that questions differ enough to tell apart
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:  # as CLIP initialises them, every residual block of the ResNet adds nothing
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = None  # keep the mean statistics
    if norms:
        coarse = torch.randn(16, 3, 8, 8)  # as smooth as photos
        model.visual(torch.nn.functional.interpolate(coarse, image_size, mode="bilinear"))  # leaves its statistics
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="session", params=[3, (1, 1, 1, 1)], ids=["vit", "resnet"])
def tiny_clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FrozenClip:
    """A small random CLIP of either family."""
    return load_clip(write_checkpoint(tmp_path_factory.mktemp("clip") / "tiny.pt", request.param))


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> FrozenClip:
    """A small random vision transformer CLIP."""
    return load_clip(write_checkpoint(tmp_path_factory.mktemp("clip") / "tiny.pt", 3))


def annotation(number: int, **changes: Any) -> dict[str, Any]:
    """A well-formed training record, with changes; a change to None removes the key."""
    mug, cup = {"answer": "mug", "answer_confidence": "yes"}, {"answer": "cup", "answer_confidence": "maybe"}
    record = {
        "image": f"VizWiz_train_{number:08}.jpg",
        "question": "What is this?",
        "answers": [mug] * 8 + [cup] * 2,
        "answer_type": "other",
        "answerable": 1,
    }
    return {key: value for key, value in (record | changes).items() if value is not None}


def write_split(folder: Path, name: str, records: list[dict[str, Any]]) -> None:
    """Write an annotation file, and a small photo for every record that names one."""
    photo = io.BytesIO()
    Image.new("RGB", (64, 48), "gray").save(photo, "JPEG")
    (folder / "Annotations").mkdir(exist_ok=True)
    (folder / "Annotations" / f"{name}.json").write_text(json.dumps(records), encoding="utf-8")
    (folder / name).mkdir(exist_ok=True)
    for record in records:
        if isinstance(record.get("image"), str):
            (folder / name / Path(record["image"]).name).write_bytes(photo.getvalue())


@dataclass(frozen=True)
class LiveServer:
    """A small demo run that a real Triton serves."""

    data: Path
    run: Run
    repository: Path
    head: str  # name of the served head
    image_size: int
    grpc_url: str
    http_url: str


@pytest.fixture(scope="session")
def live_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Fit on a slice of demo data, export, and serve until the tests end."""
    place = tmp_path_factory.mktemp("live")
    data = ensure_demo_dataset(place / "data", train=300, val=40, test=10)
    model = load_clip(DEMO_CLIP)
    train, val = read_split(data, "train"), read_split(data, "val")
    run = read_run(fit(train, val, model, Recipe(epochs=5), place / "runs", place / "cache"))
    names = export_run(run, model, place / "triton_models")
    with EmbeddedTriton(place / "triton_models") as server:
        yield LiveServer(
            data, run, place / "triton_models", names.head, model.image_size, server.grpc_url, server.http_url
        )
