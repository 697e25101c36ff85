"""CLIP features of a split, encoded once and kept in content-addressed shards.

A shard holds the features of 256 photos or questions and is named by a digest of CLIP's weights and precision, the
geometry and the inputs themselves: a changed photo re-encodes one shard, a killed job resumes where it was, and nothing
stale is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from training.clip_models import FrozenClip
from training.data import DatasetError, Split
from training.storage import digest_of, staged_file
from vizwiz_client.contract import geometry, tokens
from vizwiz_client.contract.errors import ImageError
from vizwiz_client.contract.tensors import CONTEXT_LENGTH

SHARD = 256  # inputs: half a minute of ViT-L/14@336px on a slow CPU is lost at most
_BATCH = 32  # inputs per call of an encoder
_DECODERS = 4  # threads: Pillow releases the interpreter's lock while it decodes and resizes
_QUESTION_ENCODING = "clip-tokenizer-77"

Features = npt.NDArray[np.float32]
_T = TypeVar("_T")


@dataclass(frozen=True)
class SplitFeatures:
    """Features of each record of a split: ``images`` and ``texts``, both fp32 [N, D]."""

    images: Features
    texts: Features


def encode_split(clip: FrozenClip, split: Split, cache: Path) -> SplitFeatures:
    """Encode a split's photos and its distinct questions, reading from ``cache`` what was encoded before.

    Raises:
        DatasetError: photos that cannot be read; all of them are named.
    """
    folder = cache / f"{clip.digest[:12]}-{clip.precision}"
    images = _encode_photos(clip, split, folder)
    questions = list(dict.fromkeys(record.question for record in split.records))
    texts = _encode_questions(clip, questions, split.name, folder)
    row = {question: number for number, question in enumerate(questions)}
    return SplitFeatures(images, texts[[row[record.question] for record in split.records]])


def _encode_photos(clip: FrozenClip, split: Split, folder: Path) -> Features:
    def encode(chunk: Sequence[Path]) -> Features:
        return np.concatenate([clip.encode_images(pixels) for pixels in _decoded(chunk, clip.side)])

    def digest(chunk: Sequence[Path]) -> str:
        return digest_of(f"photos {geometry.GEOMETRY_VERSION} {clip.side}", *(path.read_bytes() for path in chunk))

    return _encode_in_shards(split.photo_paths(), f"{split.name} photos", folder, digest, encode)


def _encode_questions(clip: FrozenClip, questions: Sequence[str], name: str, folder: Path) -> Features:
    def encode(chunk: Sequence[str]) -> Features:
        rows = [tokens.pad(tokens.tokenize(question).ids, CONTEXT_LENGTH) for question in chunk]
        return np.concatenate([clip.encode_texts(np.stack(part)) for part in _chunks(rows, _BATCH)])

    def digest(chunk: Sequence[str]) -> str:
        return digest_of(_QUESTION_ENCODING, *chunk)

    return _encode_in_shards(questions, f"{name} questions", folder, digest, encode)


def _encode_in_shards(
    inputs: Sequence[_T],
    label: str,
    folder: Path,
    digest: Callable[[Sequence[_T]], str],
    encode: Callable[[Sequence[_T]], Features],
) -> Features:
    shards = []
    problems = []
    with tqdm(total=len(inputs), desc=f"encode {label}", unit="") as progress:
        for chunk in _chunks(inputs, SHARD):
            path = folder / f"{digest(chunk)}.npy"
            try:
                if not path.exists():
                    with staged_file(path) as staging, staging.open("wb") as file:
                        np.save(file, encode(chunk))
                shards.append(np.load(path))
            except DatasetError as error:  # go on: the other shards are kept, and every problem is told at once
                problems.append(str(error))
            progress.update(len(chunk))
    if problems:
        raise DatasetError(f"{label} that cannot be read:\n" + "\n".join(problems))
    return np.concatenate(shards)


def _decoded(paths: Sequence[Path], side: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield batches of pixels; the next ones are decoded while the caller encodes the last."""
    problems: list[str] = []

    def decode(path: Path) -> npt.NDArray[np.uint8]:
        try:
            return geometry.to_pixels(geometry.load_photo(path), side)
        except ImageError as error:
            problems.append(f"{path}: {error}")
            return np.zeros((side, side, 3), np.uint8)

    with ThreadPoolExecutor(_DECODERS) as pool:
        pixels = pool.map(decode, paths)
        while batch := list(islice(pixels, _BATCH)):
            yield np.stack(batch)
    if problems:
        raise DatasetError("\n".join(f"  {problem}" for problem in problems))


def _chunks(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
