"""Is JPEG's scaled decoding harmless? What it saves, and what it changes: pixels, features, answers, on real photos.

    python -m benchmarks.fast_decode --data FOLDER

FOLDER is laid out as VizWiz is. Two CLIPs: the demo's, whose head is fitted on demo data, and one of ViT-B/32's size
with random weights, whose head is fitted on these photos. A few minutes on two idle cores. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.features import random_clip
from demo import DEMO_CLIP, ensure_demo_dataset
from training.backbone import FrozenClip, load_clip
from training.dataset import Split, read_split
from training.fit import fit
from training.predictor import Predictor
from training.recipe import Recipe
from training.run import read_run
from vizwiz_client.contract.image import load_photo, to_pixels
from vizwiz_client.contract.tensors import CONTEXT_LENGTH
from vizwiz_client.contract.tokenizer import pad, tokenize

SIDES = (224, 336)
ROUNDS = 40
PHONE_SIZE = (2592, 1936)
COLUMNS = (
    "CLIP",
    "photos shrunk",
    "greatest change of a pixel",
    "of a feature, relative to the greatest",
    "1 - cosine",
    "of an answer's probability",
    "other answers",
    "of answerable",
    "other verdicts",
)


def decoded(photo: Path, side: int, fast: bool) -> npt.NDArray[np.uint8]:
    """uint8 [side, side, 3], as the client sends it."""
    return to_pixels(load_photo(photo, side if fast else None), side)


def cpu_ms(action: Callable[[], object]) -> float:
    """Milliseconds of processor time, which other programs do not lengthen as they do the wall's."""
    start = time.process_time()
    action()
    return 1000 * (time.process_time() - start)


def print_times(photo: Path) -> None:
    """Table: one photo of PHONE_SIZE to pixels."""
    print("| side | decoding | processor time, median | least |\n|---|---|---|---|")
    for side in SIDES:
        for fast in (False, True):
            taken = sorted(cpu_ms(partial(decoded, photo, side, fast)) for _ in range(ROUNDS))
            name = "scaled" if fast else "exact"
            print(f"| {side} | {name} | {statistics.median(taken):.1f} ms | {taken[0]:.1f} ms |")


def changes(name: str, clip: FrozenClip, predictor: Predictor, split: Split) -> str:
    """A line of the table: the greatest changes over the photos of ``split`` that scaled decoding applies to."""
    exact, fast = (
        np.stack([decoded(photo, clip.image_size, way) for photo in split.photo_paths()]) for way in (False, True)
    )
    touched = np.flatnonzero((exact != fast).any(axis=(1, 2, 3)))
    before, after = clip.encode_images(exact[touched]), clip.encode_images(fast[touched])
    ids = np.stack([pad(tokenize(split.records[row].question).ids, CONTEXT_LENGTH) for row in touched])
    texts = torch.from_numpy(clip.encode_texts(ids))
    with torch.inference_mode():
        first, second = (predictor(texts, torch.from_numpy(features)) for features in (before, after))
    cosine = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    apart = np.abs(exact[touched].astype(int) - fast[touched])
    cells = [
        name,
        f"{len(touched)} of {len(exact)}",
        f"{apart.max()}, mean {apart.mean():.2f}",
        f"{np.abs(before - after).max() / np.abs(before).max():.4f}",
        f"{1 - cosine.min():.1e}",
        f"{(first.answer - second.answer).abs().max():.4f}",
        int((first.answer.argmax(1) != second.answer.argmax(1)).sum()),
        f"{(first.answerable - second.answerable).abs().max():.4f}",
        int(((first.answerable < 0.5) != (second.answerable < 0.5)).sum()),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def fitted(data: Path, clip: FrozenClip, folder: Path) -> Predictor:
    """A head for ``clip``, fitted on the VizWiz folder ``data``."""
    train, val = read_split(data, "train"), read_split(data, "val")
    return read_run(fit(train, val, clip, Recipe(epochs=5), folder / "runs", folder / "cache")).load_predictor()


def real_folder(data: Path, annotations: str, folder: Path) -> Path:
    """A VizWiz folder whose train and val are the photos of ``annotations``."""
    (folder / "Annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (folder / "Annotations" / f"{split}.json").symlink_to((data / "Annotations" / annotations).resolve())
        (folder / split).symlink_to((data / "val").resolve())
    return folder


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fast_decode", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a VizWiz folder")
    parser.add_argument("--annotations", default="val_images.json", help="the file with the records of its val photos")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real = real_folder(arguments.data, arguments.annotations, folder / "real")
        split = read_split(real, "val")
        print_times(next(path for path in split.photo_paths() if Image.open(path).size == PHONE_SIZE))
        demo_clip, random = load_clip(DEMO_CLIP), random_clip(torch.device("cpu"))
        demo_data = ensure_demo_dataset(folder / "demo", train=600, val=60, test=10)
        print(f"\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
        print(changes("demo, side 96", demo_clip, fitted(demo_data, demo_clip, folder / "a"), split))
        print(changes("random ViT-B/32, side 224", random, fitted(real, random, folder / "b"), split))


if __name__ == "__main__":
    main()
