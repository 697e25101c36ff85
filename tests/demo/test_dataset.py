"""The demo data set: a VizWiz folder, the same for the same seed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from demo.dataset import ensure_demo_dataset, main
from training.dataset import DEMO_MANIFEST, read_split
from training.labels import majority_answer
from vizwiz_client.contract.image import load_photo

COUNTS = {"train": 60, "val": 20, "test": 5}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo data set."""
    return ensure_demo_dataset(tmp_path_factory.mktemp("demo") / "data", **COUNTS, workers=2)


def test_it_is_a_vizwiz_folder(demo: Path) -> None:
    assert sorted(path.name for path in demo.iterdir()) == sorted(["Annotations", "Quality", DEMO_MANIFEST, *COUNTS])
    for split, count in COUNTS.items():
        records = read_split(demo, split, labelled=split != "test").records
        assert [record.image for record in records] == [f"VizWiz_{split}_{number:08}.jpg" for number in range(count)]
        assert sorted(path.name for path in (demo / split).iterdir()) == [record.image for record in records]
    assert set(json.loads((demo / "Annotations" / "test.json").read_text())[0]) == {"image", "question"}
    train = read_split(demo, "train").records
    assert len({majority_answer(record) for record in train}) > 20


def test_it_has_votes_on_the_photos_as_vizwiz_has(demo: Path) -> None:
    assert sorted(path.name for path in (demo / "Quality").iterdir()) == ["train.json", "val.json"]
    for split in ("train", "val"):
        entries = json.loads((demo / "Quality" / f"{split}.json").read_text())
        assert [entry["image"] for entry in entries] == [record.image for record in read_split(demo, split).records]
        for entry in entries:
            assert set(entry) == {"image", "flaws", "unrecognizable"}
            assert set(entry["flaws"]) == {"FRM", "BLR", "DRK", "BRT", "OBS", "ROT", "OTH", "NON"}
            assert set(entry["flaws"].values()) | {entry["unrecognizable"]} <= set(range(6))


def test_photos_are_a_phones(demo: Path) -> None:
    orientations = set()
    for path in sorted((demo / "train").iterdir()):
        with Image.open(path) as photo:
            assert photo.format == "JPEG"
            assert sorted(photo.size) == [480, 640]
            orientations.add(photo.getexif().get(ExifTags.Base.Orientation, 1))
        assert sorted(load_photo(path).size) == [480, 640]
    assert 1 in orientations
    assert len(orientations) > 1


def test_the_number_of_workers_changes_nothing(demo: Path, tmp_path: Path) -> None:
    other = ensure_demo_dataset(tmp_path / "other", **COUNTS, workers=1)
    for path in sorted(demo.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (other / path.relative_to(demo)).read_bytes(), path


def test_another_seed_gives_other_records(demo: Path, tmp_path: Path) -> None:
    other = ensure_demo_dataset(tmp_path / "other", train=5, val=0, test=0, seed=1, workers=1)
    assert (other / "Annotations" / "train.json").read_text() != (demo / "Annotations" / "train.json").read_text()


def test_a_complete_folder_is_used_again(demo: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    assert ensure_demo_dataset(demo, **COUNTS) == demo
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before


def test_two_that_draw_at_once_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with ThreadPoolExecutor(2) as executor:
        drawn = [executor.submit(ensure_demo_dataset, folder, train=5, val=2, test=0, workers=1) for _ in range(2)]
    assert [each.result() for each in drawn] == [folder] * 2
    assert list(tmp_path.iterdir()) == [folder]


def test_bad_input_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "data"), "--train", "0", "--workers", "-1"]) == 2
    expected = "error: --train must be at least 1, got 0; --workers must be at least 1, got -1\n"
    assert capsys.readouterr().err == expected
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file" / "data")]) == 2
    assert capsys.readouterr().err.startswith("error: [Errno 17] File exists: ")


def test_a_folder_with_other_data_is_refused(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"--{split}={count}" for split, count in COUNTS.items()]
    assert main(["--out", str(demo), *arguments, "--seed=7"]) == 2
    error = capsys.readouterr().err
    assert f"error: {demo} holds other data: found" in error
    assert "'seed': 0}, expected" in error
    assert "'seed': 7}; delete it or name another folder" in error
    assert main(["--out", str(tmp_path), *arguments]) == 2
    assert f"{tmp_path} holds other data: found no readable demo.json" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
