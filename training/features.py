"""Encode the photos and questions of a split with CLIP, once, on as many GPUs as there are.

    python -m training.features --data VizWiz --clip ViT-L/14@336px
    torchrun --nproc-per-node 8 -m training.features --data VizWiz --clip ViT-L/14@336px --rotations 4

A fit encodes what it needs; this command does so beforehand, with several processes or for several rotations.

Features are encoded in shards of 256 inputs. A shard is named by a digest of CLIP's weights and precision, the image
preprocessing, the rotation and the inputs. Its content depends on nothing else, including the batches it is encoded in:
a killed job resumes with the same bytes, and several processes write the same bytes as one.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from tqdm import tqdm

from training.artifacts import digest_of, explain_full_disk
from training.backbone import ClipError, FrozenClip, check_clip_source, choose_device, describe_reading, load_clip
from training.dataset import DatasetError, Split, read_split, refuse
from training.decoding import ROTATIONS, Decoder, Pixels
from training.feature_cache import (
    SHARD,
    Features,
    chunks,
    concatenate,
    gather,
    is_complete,
    photo_digests,
    rank,
    world_size,
    write_shard,
)
from vizwiz_client.contract import streams, tokenizer
from vizwiz_client.contract.errors import QuestionError
from vizwiz_client.contract.image import PREPROCESSING_VERSION
from vizwiz_client.contract.tensors import CONTEXT_LENGTH

BATCH = 32  # inputs per call of an encoder
_PREFETCH = 3  # decoded batches ahead of the encoder, 11 MB each at 336 pixels
_QUESTION_ENCODING = "clip-tokenizer-77"  # part of the digest of a shard of questions
_NO_WORDS = np.array([tokenizer.START_OF_TEXT, tokenizer.END_OF_TEXT], np.int32)  # clip.tokenize("")


@dataclass(frozen=True)
class SplitFeatures:
    """CLIP features of N records: memory-mapped copy-on-write, fp32 [N, D] each."""

    images: Features
    texts: Features
    rotated: tuple[Features, ...] = ()  # of the photos rotated by 90, 180 and 270 degrees, as many as requested


def encode_split(
    clip: FrozenClip, split: Split, cache: Path, *, rotations: int = 1, workers: int | None = None
) -> SplitFeatures:
    """Encode a split's photos and its distinct questions, or read them from the cache.

    Under ``torchrun`` each process encodes its share, and all return the features of the whole split.

    Args:
        clip: the encoder.
        split: the records to encode.
        cache: folder of encoded features.
        rotations: the first N of 0, 90, 180 and 270 degrees, by which each photo is rotated before the crop.
        workers: processes that decode photos (default: one for each available core).

    Raises:
        DatasetError: photos or questions cannot be read; all of them are listed.
    """
    if not 1 <= rotations <= len(ROTATIONS):
        raise ValueError(f"rotations must be 1 to {len(ROTATIONS)}, got {rotations}")
    folder = cache / f"{clip.digest[:12]}-{clip.precision}"
    with explain_full_disk(cache, "--cache"):
        degrees = ROTATIONS[:rotations]
        upright, *rotated = _encode_photos(clip, split, cache, folder, degrees, workers or default_workers())
        texts = _encode_questions(clip, split, folder)
    return SplitFeatures(upright, texts, tuple(rotated))


def default_workers() -> int:
    """One decoding process for each core that this process may use."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun on this machine
    return max(1, len(os.sched_getaffinity(0)) // processes)


@dataclass(frozen=True)
class _Chunk:
    """Up to SHARD photos, and the shard to write for each rotation in degrees."""

    photos: Sequence[Path]
    shards: dict[int, Path]


def _encode_photos(
    clip: FrozenClip, split: Split, cache: Path, folder: Path, degrees: Sequence[int], workers: int
) -> list[Features]:
    photos = split.photo_paths()
    digests, errors = photo_digests(photos, cache)
    _refuse(f"{split.name} photos", errors)
    all_chunks = [
        _Chunk(part, {rotation: folder / f"{_photos_key(clip, rotation, part, digests)}.npy" for rotation in degrees})
        for part in chunks(photos, SHARD)
    ]
    share = all_chunks[rank() :: world_size()]
    with _progress(f"encode {split.name} photos", sum(len(chunk.photos) for chunk in share)) as progress:
        missing = [_missing(chunk, clip.embed_dim) for chunk in share]
        progress.update(sum(len(chunk.photos) for chunk in missing if not chunk.shards))
        errors = _encode_chunks(clip, [chunk for chunk in missing if chunk.shards], workers, progress)
    _refuse(f"{split.name} photos", [error for found in gather(errors) for error in found])
    rows = np.arange(len(photos))
    return [
        _concatenate(folder, [chunk.shards[rotation] for chunk in all_chunks], rows, clip.embed_dim)
        for rotation in degrees
    ]


def _photos_key(clip: FrozenClip, rotation: int, photos: Sequence[Path], digests: dict[Path, str]) -> str:
    settings = f"photos {PREPROCESSING_VERSION} {clip.image_size} {rotation} {BATCH}" + " squash" * clip.squash
    return digest_of(settings, *(digests[photo] for photo in photos))


def _missing(chunk: _Chunk, embed_dim: int) -> _Chunk:
    rows = len(chunk.photos)
    shards = {rotation: path for rotation, path in chunk.shards.items() if not is_complete(path, rows, embed_dim)}
    return _Chunk(chunk.photos, shards)


def _encode_chunks(clip: FrozenClip, missing: Sequence[_Chunk], workers: int, progress: Any) -> list[str]:
    """Write the shards of ``missing``; returns the errors of unreadable photos, whose shards are left out."""
    if not missing:
        return []
    errors: list[str] = []
    with Decoder(min(workers, sum(len(chunk.photos) for chunk in missing)), squash=clip.squash) as decoder:
        batches = _decoded(missing, clip.image_size, decoder)
        for chunk in missing:
            chunk_errors: list[str] = []
            encoded: list[list[Features]] = []
            for pixels, batch_errors in islice(batches, -(-len(chunk.photos) // BATCH)):
                chunk_errors += batch_errors
                if not chunk_errors:
                    indices = range(len(chunk.shards))
                    encoded.append([clip.encode_images(np.ascontiguousarray(pixels[:, index])) for index in indices])
                progress.update(len(pixels))
            if not chunk_errors:
                for shard, parts in zip(chunk.shards.values(), zip(*encoded, strict=True), strict=True):
                    write_shard(shard, np.concatenate(parts))
            errors += chunk_errors  # go on: the other shards are written, and all errors are reported at once
    return errors


def _decoded(missing: Sequence[_Chunk], image_size: int, decoder: Decoder) -> Iterator[tuple[Pixels, list[str]]]:
    """Yield batches, uint8 [B, rotations, S, S, 3], and the errors of their photos.

    The next batches, also those of the next chunk, are decoded while the caller encodes this one.
    """
    prefetched: deque[tuple[Pixels, list[Future[str | None]]]] = deque()
    for chunk in missing:
        degrees = tuple(chunk.shards)
        for photos in chunks(chunk.photos, BATCH):
            pixels = np.zeros((len(photos), len(degrees), image_size, image_size, 3), np.uint8)
            jobs = [decoder.submit(photo, degrees, out) for photo, out in zip(photos, pixels, strict=True)]
            prefetched.append((pixels, jobs))
            if len(prefetched) > _PREFETCH:
                yield _finished(*prefetched.popleft())
    while prefetched:
        yield _finished(*prefetched.popleft())


def _finished(pixels: Pixels, jobs: list[Future[str | None]]) -> tuple[Pixels, list[str]]:
    return pixels, [error for job in jobs if (error := job.result())]


def _encode_questions(clip: FrozenClip, split: Split, folder: Path) -> Features:
    questions = list(dict.fromkeys(record.question for record in split.records))
    row_of = {question: row for row, question in enumerate(questions)}
    ids, errors = _token_ids(questions)
    _refuse(f"{split.name} questions", errors)
    parts = list(chunks(questions, SHARD))
    shards = [folder / f"{digest_of(f'{_QUESTION_ENCODING} {BATCH}', *part)}.npy" for part in parts]
    with _progress(f"encode {split.name} questions", len(questions)) as progress:
        for number, (shard, part) in enumerate(zip(shards, parts, strict=True)):
            if number % world_size() == rank() and not is_complete(shard, len(part), clip.embed_dim):
                rows = ids[number * SHARD : number * SHARD + len(part)]
                batches = [clip.encode_texts(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
                write_shard(shard, np.concatenate(batches))
            progress.update(len(part))
    gather(None)
    rows_of_records = np.array([row_of[record.question] for record in split.records])
    return _concatenate(folder, shards, rows_of_records, clip.embed_dim)


def _token_ids(questions: Sequence[str]) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Token ids int32 [N, 77], and the errors of questions that have none."""
    ids = np.zeros((len(questions), CONTEXT_LENGTH), np.int32)
    errors = []
    for row, question in zip(ids, questions, strict=True):
        try:
            found = tokenizer.tokenize(question).ids
        except QuestionError as error:
            if len(question) > tokenizer.MAX_CHARACTERS and question.strip():
                errors.append(f"{question[:40]!r}: {error}")
                continue
            found = _NO_WORDS  # the other reason to refuse it: white space alone, such as "&nbsp;"
        row[:] = tokenizer.pad(found, CONTEXT_LENGTH)
    return ids, errors


def _concatenate(folder: Path, shards: Sequence[Path], rows: npt.NDArray[np.intp], embed_dim: int) -> Features:
    if rank() == 0:
        concatenate(folder, shards, rows, embed_dim)
    gather(None)
    return concatenate(folder, shards, rows, embed_dim)


def _progress(label: str, total: int) -> Any:
    return tqdm(total=total, desc=label, unit="", disable=True if rank() > 0 else None)


def _refuse(label: str, errors: Sequence[str]) -> None:
    refuse(f"{label}: {len(errors)} cannot be read", errors)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.features",
        description="Encode the photos and questions of a VizWiz folder with a frozen CLIP and cache the features, as "
        "a fit does. Under torchrun, each process encodes its share on a GPU of its own.",
        epilog="Next: python -m training.fit, with the same --data, --clip and --cache",
    )
    parser.add_argument("--data", type=Path, required=True, help="VizWiz folder: Annotations/, train/, val/")
    parser.add_argument(
        "--clip",
        required=True,
        help="OpenAI's name, such as ViT-L/14@336px, a FILE of OpenAI's architecture, open_clip:ARCHITECTURE/TAG, or "
        "open_clip:ARCHITECTURE@FILE for a file of open_clip's (docs/clips.md)",
    )
    parser.add_argument("--splits", nargs="+", default=["train", "val"], help="splits to encode (default: train val)")
    parser.add_argument(
        "--rotations",
        type=int,
        default=1,
        choices=range(1, 5),
        help="the first N of 0, 90, 180 and 270 degrees, by which each photo is rotated (default: 1)",
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/features"), help="encoded features (default: .cache/features)"
    )
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that decode photos (default: one a core)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N records of each split, for a trial")
    return parser.parse_args(argv)


def run_command(arguments: argparse.Namespace) -> None:
    """Run the command."""
    for flag in ("workers", "limit"):
        if (value := getattr(arguments, flag)) is not None and value < 1:
            raise DatasetError(f"--{flag} must be at least 1, got {value}")
    check_clip_source(arguments.clip)
    splits = [
        read_split(arguments.data, name, labelled=name != "test", limit=arguments.limit) for name in arguments.splits
    ]
    if rank() > 0:
        gather(None)  # wait for the first process, which downloads the CLIP
    clip = load_clip(arguments.clip, _device(arguments.device))
    if rank() == 0:
        gather(None)
        if reading := describe_reading(clip):
            print(reading)
    for split in splits:
        start = time.perf_counter()
        features = encode_split(clip, split, arguments.cache, rotations=arguments.rotations, workers=arguments.workers)
        if rank() == 0:
            rows, dim = features.images.shape
            print(
                f"{split.name}: {rows} x {dim}, {arguments.rotations} rotation(s), {time.perf_counter() - start:.1f} s"
            )


def _device(requested: str) -> torch.device:
    device = choose_device(requested)
    if device.type == "cuda" and device.index is None and world_size() > 1:
        return choose_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")  # refused if there are fewer GPUs
    return device


def main(argv: list[str] | None = None) -> int:
    """Run the command; an expected error prints one line and exits with 2."""
    try:
        run_command(parse_arguments(argv))
    except DatasetError as error:  # the same in every process
        if rank() == 0:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except (ClipError, OSError) as error:  # may occur in one process only
        process = f"rank {rank()}: " if world_size() > 1 else ""
        print(f"{process}error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if rank() == 0:
            print("interrupted; encoded features are kept", file=sys.stderr)
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(streams.run(main))
