"""Time of encoding photos to features, against the encoder alone on decoded pixels.

    python benchmarks/features.py --photos VizWiz/val

ViT-B/32's architecture with random weights; about five minutes on two idle cores. Expect a ratio of about 1.05 with one
encoder thread, where decoding has a core of its own, and 1.15 with two, where both share the cores.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from training.backbone import FrozenClip, choose_device, clip, weights_digest
from training.dataset import Record, Split
from training.features import BATCH, default_workers, encode_split

PHONE_SIZES = ((2592, 1936), (1224, 1632), (968, 1296), (768, 1024), (480, 640))  # width, height of VizWiz photos


def random_clip(device: torch.device) -> FrozenClip:
    """ViT-B/32's architecture with random weights; fp16 on a GPU, as ``clip.load`` has it."""
    torch.manual_seed(0)
    model = clip.model.CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12)
    model.initialize_parameters()
    model.eval().requires_grad_(False).to(device)
    if device.type != "cpu":
        clip.model.convert_weights(model)
    return FrozenClip(model, "ViT-B/32 with random weights", weights_digest(model), device)


def draw_photos(folder: Path) -> list[Path]:
    """Photos of phone sizes: smooth noise, whose JPEGs are as large as real ones."""
    noise = np.random.default_rng(0)
    paths = []
    for number, (width, height) in enumerate(PHONE_SIZES):
        coarse = noise.integers(0, 255, (height // 8, width // 8, 3), np.uint8)
        paths.append(folder / f"drawn_{number}.jpg")
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1], quality=85)
    return paths


def make_split(folder: Path, photos: list[Path], count: int) -> Split:
    """``count`` records that use ``photos`` in turn."""
    records = []
    for number in range(count):
        source = photos[number % len(photos)]
        (folder / f"{number}.jpg").symlink_to(source.resolve())
        records.append(Record(f"{number}.jpg", "what is this?"))
    return Split("bench", tuple(records), folder, "")


def encoder_alone(model: FrozenClip, count: int) -> float:
    """Seconds that the encoder takes for ``count`` photos whose pixels are ready."""
    pixels = np.random.default_rng(0).integers(0, 255, (BATCH, model.image_size, model.image_size, 3), np.uint8)
    start = time.perf_counter()
    for first in range(0, count, BATCH):
        model.encode_images(pixels[: min(BATCH, count - first)])
    return time.perf_counter() - start


def end_to_end(model: FrozenClip, split: Split, workers: int) -> float:
    """Seconds from photo files to features on disk."""
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        encode_split(model, split, Path(cache), workers=workers)
        return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of JPEG photos (default: drawn ones of phone sizes)")
    parser.add_argument("--count", type=int, default=256, help="photos to encode (default: 256)")
    parser.add_argument("--rounds", type=int, default=3, help="of measurements; the median is printed (default: 3)")
    parser.add_argument("--threads", type=int, nargs="+", help="of the encoder (default: 1, and one for each core)")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    model = random_clip(choose_device(arguments.device))
    cores = default_workers()
    print(f"{model.source}, {model.precision}, on {model.device}; {cores} cores ({platform.machine()}); {date.today()}")
    print(f"{'encoder threads':>15} {'workers':>8} {'alone':>12} {'wall':>12} {'wall / alone':>13}")
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch) / "drawn"
        (drawn / "split").mkdir(parents=True)
        photos = sorted(arguments.photos.glob("*.jpg")) if arguments.photos else draw_photos(drawn)
        split = make_split(drawn / "split", photos, arguments.count)
        for threads in arguments.threads or sorted({1, cores}):
            torch.set_num_threads(threads)
            encoder_alone(model, BATCH)  # warm up
            rounds = []
            for _ in range(arguments.rounds):  # interleaved, to cancel noise
                alone = encoder_alone(model, arguments.count)
                rounds.append((alone, end_to_end(model, split, cores)))
            alone, wall = (1e3 * statistics.median(times) / arguments.count for times in zip(*rounds, strict=True))
            ratio = statistics.median(wall / alone for alone, wall in rounds)
            print(f"{threads:>15} {cores:>8} {alone:>7.1f} ms/ph {wall:>7.1f} ms/ph {ratio:>13.2f}")
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory of the encoding process: {peak_kb / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
