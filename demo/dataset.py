"""Make the demo data set: a VizWiz folder of generated photos, questions and answers.

    python -m demo.dataset                  # data/demo: 3,000 train, 600 val and 300 test records

Takes 45 to 60 s on 2 cores, and 150 MB. The same seed gives the same files on any number of workers.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image
from tqdm import tqdm

from demo.answers import annotate
from demo.photo import take_photo
from demo.quality import draw_votes
from demo.questions import draw_question_kind, phrase
from demo.scene import draw_scene
from training.artifacts import explain_full_disk, staged_folder, write_json
from training.dataset import DEMO_MANIFEST, DatasetError
from vizwiz_client.contract import streams

GENERATOR_VERSION = 2  # raise it when the same seed gives other records: older data is then refused
DEFAULT_FOLDER = Path("data/demo")
TRAIN, VAL, TEST = 3000, 600, 300  # records

_SIZES = ((480, 640), (480, 640), (640, 480))  # pixels, upright: two in three photos are taken in portrait
_UNUSABLE_SHARE = 0.165  # of photos
_MISPLACED_SHARE = 0.025  # of questions about objects that the photo cannot answer
_EXIF_SHARE = 0.12  # of photos that are stored rotated, with an EXIF orientation
_ORIENTATION = 0x0112  # EXIF tag
_STORED_AS = {  # EXIF orientation -> transformation of the upright photo
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def ensure_demo_dataset(
    folder: Path = DEFAULT_FOLDER,
    *,
    train: int = TRAIN,
    val: int = VAL,
    test: int = TEST,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Draw the demo data into ``folder`` unless it exists; return ``folder``. It appears complete or not at all.

    Args:
        folder: the VizWiz folder to create.
        train: number of records in train.
        val: number of records in val.
        test: number of records in test.
        seed: random seed.
        workers: number of processes (default: one per available core).

    Raises:
        DatasetError: ``folder`` exists with other data.
    """
    counts = {"train": train, "val": val, "test": test}
    manifest = {"generator_version": GENERATOR_VERSION, **counts, "seed": seed}
    if folder.exists():
        _check_manifest(folder, manifest)
        return folder
    print(f"drawing the demo data into {folder}: {train} train, {val} val and {test} test records")
    try:
        with staged_folder(folder) as staging:
            _draw(staging, counts, seed, workers)
            write_json(staging / DEMO_MANIFEST, manifest)
    except FileExistsError:
        if not folder.exists():  # a file is in the place of its parent
            raise
        _check_manifest(folder, manifest)  # another process has drawn it meanwhile
    return folder


def _draw(folder: Path, counts: dict[str, int], seed: int, workers: int | None) -> None:
    # spawn: the process may have threads by now (PyTorch's), and a fork copies the locks that they hold
    pool = ProcessPoolExecutor(
        workers or len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn"), _leave_interrupts_to_the_parent
    )
    with pool:
        for split, count in counts.items():
            (folder / split).mkdir()
            records = pool.map(partial(_make_record, folder, split, seed), range(count), chunksize=25)
            drawn = list(tqdm(records, desc=f"draw {split}", total=count, unit="photo", disable=None))
            write_json(folder / "Annotations" / f"{split}.json", [record for record, _ in drawn])
            if split != "test":
                write_json(folder / "Quality" / f"{split}.json", [votes for _, votes in drawn])


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_manifest(folder: Path, expected: dict[str, int]) -> None:
    try:
        found = json.loads((folder / DEMO_MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = "no readable " + DEMO_MANIFEST
    if found != expected:
        raise DatasetError(
            f"{folder} holds other data: found {found}, expected {expected}; delete it or name another folder"
        )


def _make_record(folder: Path, split: str, seed: int, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw one record from its own random numbers and save its photo; return its annotation and quality votes."""
    rng = Random(f"dataset/{seed}/{split}/{number}")
    scene = draw_scene(rng, _UNUSABLE_SHARE)
    kind = draw_question_kind(scene, rng, _MISPLACED_SHARE)
    name = f"VizWiz_{split}_{number:08}.jpg"
    record = {"image": name, "question": phrase(kind, scene, rng), **annotate(kind, scene, rng)}
    _save(take_photo(scene, rng.choice(_SIZES), rng), folder / split / name, rng)
    votes = {"image": name, **draw_votes(scene, Random(f"quality/{seed}/{split}/{number}"))}
    return ({key: record[key] for key in ("image", "question")} if split == "test" else record), votes


def _save(photo: Image.Image, path: Path, rng: Random) -> None:
    exif = Image.Exif()
    if rng.random() < _EXIF_SHARE:
        orientation = rng.choices((6, 8, 3), (70, 15, 15))[0]
        photo = photo.transpose(_STORED_AS[orientation])
        exif[_ORIENTATION] = orientation
    photo.save(path, quality=rng.randint(70, 92), exif=exif)


def _check_counts(arguments: dict[str, Any]) -> None:
    counts = {name: arguments[name] for name in ("train", "val", "test", "workers")}
    wrong = [f"--{name} must be at least 1, got {n}" for name, n in counts.items() if n is not None and n < 1]
    if wrong:
        raise DatasetError("; ".join(wrong))


def main(argv: list[str] | None = None) -> int:
    """Draw the data set. Errors are one line, with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m demo.dataset", description="Make the demo data set.")
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help=f"folder to make (default: {DEFAULT_FOLDER})")
    for split, default in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        parser.add_argument(f"--{split}", type=int, default=default, help=f"records of {split} (default: {default})")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    parser.add_argument("--workers", type=int, help="processes that draw (default: one per core)")
    arguments = vars(parser.parse_args(argv))
    try:
        _check_counts(arguments)
        out = arguments.pop("out")
        with explain_full_disk(out, "--out"):
            print(ensure_demo_dataset(out, **arguments))
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(streams.run(main))
