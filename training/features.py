"""CLIP features of a split, encoded once, memory-mapped, on as many GPUs as there are.

    python -m training.features --data VizWiz --clip ViT-L/14@336px
    torchrun --nproc-per-node 8 -m training.features --data VizWiz --clip ViT-L/14@336px --views 4

A fit encodes what it needs by itself; this command does so beforehand, with several processes or for several views.

Features are encoded in shards of 256 inputs, each named by a digest of CLIP's weights and precision, the preprocessing,
the turn and the inputs themselves. What a shard holds depends on its name alone, down to its batches: a killed job
resumes with the same bytes, and several processes write the same as one. A changed photo re-encodes one shard, and
nothing stale is read.
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
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from training import ranks, shards
from training.artifacts import digest_of, disk_full_names
from training.backbone import ClipError, FrozenClip, check_clip_source, choose_device, load_clip
from training.dataset import DatasetError, Split, read_split, refuse
from training.decoding import TURNS, Decoder, Pixels
from training.digests import photo_digests
from training.shards import SHARD, Features, chunks
from vizwiz_client.contract import streams, tokenizer
from vizwiz_client.contract.errors import QuestionError
from vizwiz_client.contract.image import PREPROCESSING_VERSION
from vizwiz_client.contract.tensors import CONTEXT_LENGTH

BATCH = 32  # inputs per call of an encoder
_BATCHES_AHEAD = 3  # decoded while one is encoded; 11 MB each at 336 pixels
_QUESTION_ENCODING = "clip-tokenizer-77"
_NO_WORDS = np.array([tokenizer.START_OF_TEXT, tokenizer.END_OF_TEXT], np.int32)  # as clip.tokenize("") has it


@dataclass(frozen=True)
class SplitFeatures:
    """Features of each record of a split, all fp32 [N, D]: memory-mapped, copied on write, never written back.

    ``rotated`` holds the photos turned by 90, 180 and 270 degrees, as many of them as were asked for.
    """

    images: Features
    texts: Features
    rotated: tuple[Features, ...] = ()


def encode_split(
    clip: FrozenClip, split: Split, cache: Path, *, views: int = 1, workers: int | None = None
) -> SplitFeatures:
    """Encode a split's photos and its distinct questions, reading from ``cache`` what was encoded before.

    Under ``torchrun`` each process encodes its share, and all of them return the whole.

    Args:
        views: of each photo, 1 to 4: as it was taken, then turned by 90, 180 and 270 degrees before the crop.
        workers: processes that decode photos (default: one for each core that this process may use).

    Raises:
        DatasetError: photos or questions that cannot be read; all of them are named.
    """
    if not 1 <= views <= len(TURNS):
        raise ValueError(f"views must be 1 to {len(TURNS)}, got {views}")
    folder = cache / f"{clip.digest[:12]}-{clip.precision}"
    with disk_full_names(cache, "--cache"):
        upright, *turned = _encode_photos(clip, split, cache, folder, TURNS[:views], workers or default_workers())
        texts = _encode_questions(clip, split, folder)
    return SplitFeatures(upright, texts, tuple(turned))


def default_workers() -> int:
    """One decoding process for each core that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) // ranks.local_world_size())


@dataclass(frozen=True)
class _Chunk:
    """The photos of a shard, and the file of each turn of them that is to be encoded."""

    photos: Sequence[Path]
    files: dict[int, Path]


def _encode_photos(
    clip: FrozenClip, split: Split, cache: Path, folder: Path, turns: Sequence[int], workers: int
) -> list[Features]:
    photos = split.photo_paths()
    digests, problems = photo_digests(photos, cache)
    _refuse(f"{split.name} photos", problems)
    every = [
        _Chunk(part, {turn: folder / f"{_photos_key(clip, turn, part, digests)}.npy" for turn in turns})
        for part in chunks(photos, SHARD)
    ]
    mine = every[ranks.rank() :: ranks.world_size()]
    with _progress(f"encode {split.name} photos", sum(len(chunk.photos) for chunk in mine)) as progress:
        todo = [_missing(chunk, clip.embed_dim) for chunk in mine]
        progress.update(sum(len(chunk.photos) for chunk in todo if not chunk.files))
        problems = _encode_chunks(clip, [chunk for chunk in todo if chunk.files], workers, progress)
    _refuse(f"{split.name} photos", [problem for share in ranks.gather(problems) for problem in share])
    rows = np.arange(len(photos))
    return [_joined(folder, [chunk.files[turn] for chunk in every], rows, clip.embed_dim) for turn in turns]


def _photos_key(clip: FrozenClip, turn: int, photos: Sequence[Path], digests: dict[Path, str]) -> str:
    return digest_of(
        f"photos {PREPROCESSING_VERSION} {clip.image_size} {turn} {BATCH}", *(digests[photo] for photo in photos)
    )


def _missing(chunk: _Chunk, width: int) -> _Chunk:
    rows = len(chunk.photos)
    return _Chunk(
        chunk.photos, {turn: file for turn, file in chunk.files.items() if not shards.is_whole(file, rows, width)}
    )


def _encode_chunks(clip: FrozenClip, todo: Sequence[_Chunk], workers: int, progress: Any) -> list[str]:
    """Write the shards of ``todo``; return the problems of photos that cannot be read, whose shards are left out."""
    if not todo:
        return []
    problems: list[str] = []
    with Decoder(min(workers, sum(len(chunk.photos) for chunk in todo))) as decoder:
        batches = _decoded(todo, clip.image_size, decoder)
        for chunk in todo:
            unreadable: list[str] = []
            encoded: list[list[Features]] = []
            for pixels, found in islice(batches, -(-len(chunk.photos) // BATCH)):
                unreadable += found
                if not unreadable:
                    views = range(len(chunk.files))
                    encoded.append([clip.encode_images(np.ascontiguousarray(pixels[:, view])) for view in views])
                progress.update(len(pixels))
            if not unreadable:
                for file, parts in zip(chunk.files.values(), zip(*encoded, strict=True), strict=True):
                    shards.write(file, np.concatenate(parts))
            problems += unreadable  # go on: the other shards are kept, and every problem is told at once
    return problems


def _decoded(todo: Sequence[_Chunk], side: int, decoder: Decoder) -> Iterator[tuple[Pixels, list[str]]]:
    """Yield batches, uint8 [B, views, S, S, 3], and the problems of their photos.

    The next batches are decoded while the caller encodes this one, across the borders of chunks too.
    """
    ahead: deque[tuple[Pixels, list[Future[str | None]]]] = deque()
    for chunk in todo:
        for photos in chunks(chunk.photos, BATCH):
            pixels = np.zeros((len(photos), len(chunk.files), side, side, 3), np.uint8)
            turns = tuple(chunk.files)
            ahead.append((pixels, [decoder.submit(*job) for job in zip(photos, repeat(turns), pixels)]))
            if len(ahead) > _BATCHES_AHEAD:
                yield _finished(*ahead.popleft())
    while ahead:
        yield _finished(*ahead.popleft())


def _finished(pixels: Pixels, jobs: list[Future[str | None]]) -> tuple[Pixels, list[str]]:
    return pixels, [problem for job in jobs if (problem := job.result())]


def _encode_questions(clip: FrozenClip, split: Split, folder: Path) -> Features:
    questions = list(dict.fromkeys(record.question for record in split.records))
    number_of = {question: number for number, question in enumerate(questions)}
    ids, problems = _token_ids(questions)
    _refuse(f"{split.name} questions", problems)
    parts = list(chunks(questions, SHARD))
    files = [folder / f"{digest_of(f'{_QUESTION_ENCODING} {BATCH}', *part)}.npy" for part in parts]
    with _progress(f"encode {split.name} questions", len(questions)) as progress:
        for number, (file, part) in enumerate(zip(files, parts, strict=True)):
            if number % ranks.world_size() == ranks.rank() and not shards.is_whole(file, len(part), clip.embed_dim):
                rows = list(ids[number * SHARD : number * SHARD + len(part)])
                shards.write(file, np.concatenate([clip.encode_texts(np.stack(some)) for some in chunks(rows, BATCH)]))
            progress.update(len(part))
    ranks.gather(None)
    rows_of_records = np.array([number_of[record.question] for record in split.records])
    return _joined(folder, files, rows_of_records, clip.embed_dim)


def _token_ids(questions: Sequence[str]) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Token ids int32 [N, 77], and the problems of questions that have none."""
    ids = np.zeros((len(questions), CONTEXT_LENGTH), np.int32)
    problems = []
    for row, question in zip(ids, questions, strict=True):
        try:
            found = tokenizer.tokenize(question).ids if question.strip() else _NO_WORDS
            row[:] = tokenizer.pad(found, CONTEXT_LENGTH)
        except QuestionError as error:
            problems.append(f"{question[:40]!r}: {error}")
    return ids, problems


def _joined(folder: Path, files: Sequence[Path], rows: npt.NDArray[np.intp], width: int) -> Features:
    if ranks.rank() == 0:
        shards.joined(folder, files, rows, width)
    ranks.gather(None)
    return shards.joined(folder, files, rows, width)


def _progress(label: str, total: int) -> Any:
    return tqdm(total=total, desc=label, unit="", disable=True if ranks.rank() > 0 else None)


def _refuse(label: str, problems: Sequence[str]) -> None:
    refuse(f"{label}: {len(problems)} cannot be read", problems)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.features",
        description="Encode the photos and questions of a VizWiz folder with a frozen CLIP and cache the features, as "
        "a fit does by itself. Under torchrun, each process encodes its share on a GPU of its own.",
        epilog="Next: python -m training.fit, with the same --data, --clip and --cache",
    )
    parser.add_argument("--data", type=Path, required=True, help="VizWiz folder: Annotations/, train/, val/")
    parser.add_argument(
        "--clip", required=True, help="OpenAI's name, such as ViT-L/14@336px or RN50x64, or a checkpoint file"
    )
    parser.add_argument("--splits", nargs="+", default=["train", "val"], help="which to encode (default: train val)")
    parser.add_argument(
        "--views",
        type=int,
        default=1,
        choices=range(1, 5),
        help="of each photo: 4 adds turns by 90, 180 and 270 degrees",
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/features"), help="encoded features (default: .cache/features)"
    )
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that decode photos (default: one a core)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N records of each split, for a trial")
    return parser.parse_args(argv)


def run_command(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    for flag in ("workers", "limit"):
        if (value := getattr(arguments, flag)) is not None and value < 1:
            raise DatasetError(f"--{flag} must be at least 1, got {value}")
    check_clip_source(arguments.clip)
    splits = [
        read_split(arguments.data, name, labelled=name != "test", limit=arguments.limit) for name in arguments.splits
    ]
    if ranks.rank() > 0:
        ranks.gather(None)  # the first process may have to download it
    clip = load_clip(arguments.clip, _device(arguments.device))
    if ranks.rank() == 0:
        ranks.gather(None)
    for split in splits:
        start = time.perf_counter()
        features = encode_split(clip, split, arguments.cache, views=arguments.views, workers=arguments.workers)
        if ranks.rank() == 0:
            rows, width = features.images.shape
            print(f"{split.name}: {rows} x {width}, {arguments.views} view(s), {time.perf_counter() - start:.1f} s")


def _device(asked: str) -> torch.device:
    device = choose_device(asked)
    if device.type == "cuda" and device.index is None and ranks.world_size() > 1:
        return choose_device(f"cuda:{ranks.local_rank()}")  # there may be more processes than GPUs
    return device


def main(argv: list[str] | None = None) -> int:
    """Run the command; errors that have a remedy are one line and exit code 2."""
    try:
        run_command(parse_arguments(argv))
    except DatasetError as error:  # of the data: every process has the same one
        if ranks.rank() == 0:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except (ClipError, OSError) as error:  # of a device, a download or a disk: one process may have it alone
        process = f"rank {ranks.rank()}: " if ranks.world_size() > 1 else ""
        print(f"{process}error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if ranks.rank() == 0:
            print("stopped; what was encoded is kept", file=sys.stderr)
        return 130
    finally:
        ranks.leave()
    return 0


if __name__ == "__main__":
    sys.exit(streams.run(main))
