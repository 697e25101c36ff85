"""Time of encoding photos to features, against the encoder alone on decoded pixels.

    python -m benchmarks features

ViT-B/32's architecture with random weights; photos of $VIZWIZ_MATERIAL/val, or drawn ones of phone sizes. Expect a
ratio of about 1.05 with one encoder thread, where decoding has a core of its own, and 1.15 with two.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.architectures import random_model
from benchmarks.machine import peak_gb
from benchmarks.report import Section, Settings, Table
from training.backbone import FrozenClip, choose_device, clip, weights_digest
from training.dataset import Record, Split
from training.features import BATCH, default_workers, encode_split

PHONE_SIZES = ((2592, 1936), (1224, 1632), (968, 1296), (768, 1024), (480, 640))  # width, height of VizWiz photos


def random_clip(device: torch.device) -> FrozenClip:
    """ViT-B/32's architecture with random weights; fp16 on a GPU, as ``clip.load`` has it."""
    model = random_model("ViT-B/32").eval().requires_grad_(False).to(device)
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


def run(settings: Settings) -> Section:
    """Encode the same photos by one encoder thread, and by one for each core."""
    count, rounds = (32, 1) if settings.quick else (128, 3)
    model = random_clip(choose_device(settings.device))
    cores, threads_before, rows = default_workers(), torch.get_num_threads(), []
    material = os.environ.get("VIZWIZ_MATERIAL")
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch) / "drawn"
        (drawn / "split").mkdir(parents=True)
        photos = sorted(Path(material, "val").glob("*.jpg")) if material else draw_photos(drawn)
        split = make_split(drawn / "split", photos, count)
        for threads in sorted({1, cores}):
            torch.set_num_threads(threads)
            encoder_alone(model, BATCH)  # warm up
            times = []
            for _ in range(rounds):  # interleaved, to cancel noise
                alone = encoder_alone(model, count)
                times.append((alone, end_to_end(model, split, cores)))
            alone, wall = (1e3 * statistics.median(each) / count for each in zip(*times, strict=True))
            ratio = statistics.median(wall / alone for alone, wall in times)
            rows.append([str(count), str(threads), f"{ratio:.2f}", f"{alone:.1f} ms", f"{wall:.1f} ms"])
    torch.set_num_threads(threads_before)
    header = ("photos", "encoder threads", "wall / encoder alone", "encoder alone, a photo", "wall, a photo")
    text = (
        f"ViT-B/32's architecture. {'Real' if material else 'Drawn'} photos, from JPEG files to features; "
        f"peak memory of the process that encodes {peak_gb():.2f} GB."
    )
    return [Table(header, rows, text)]
