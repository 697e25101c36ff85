"""What is asked: photos from a folder, and questions as long as VizWiz's are."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt

from vizwiz_client.contract import tensors
from vizwiz_client.contract.image import load_photo, to_pixels
from vizwiz_client.contract.tokenizer import pad, tokenize

# Of the 8,000 questions of VizWiz's test split, how many need each of the lengths in which they are sent.
LENGTH_SHARES = dict(zip(tensors.TOKEN_LENGTHS, (0.557, 0.354, 0.072, 0.017), strict=True))
REPEATED = 20  # different questions when they are repeated
PHOTOS = 50  # at most: they are decoded before anything is measured

_WORDS = """what is this the in my hand color does say on label can you tell me how much of how many are there which
side up read please would bottle box shirt food brand kind flavor screen number money bill date front back picture
see look left right open closed green red blue black white dog door key phone remote soup tea coffee bag""".split()


def draw_questions(seed: int, *, repeated: bool = False, length: int = 0) -> Iterator[str]:
    """Draw questions without end, of VizWiz's lengths or all of ``length`` positions.

    All are distinct, or :data:`REPEATED` of them come again and again.
    """
    rng = Random(seed)
    questions = _distinct(rng, length)
    few = list(islice(questions, REPEATED)) if repeated else []
    while few:
        yield rng.choice(few)
    yield from questions


def _distinct(rng: Random, length: int) -> Iterator[str]:
    seen = set()
    while True:
        if (question := _draw(rng, length)) not in seen:
            seen.add(question)
            yield question


def _draw(rng: Random, length: int) -> str:
    if not length:
        [length] = rng.choices(list(LENGTH_SHARES), list(LENGTH_SHARES.values()))
    shorter = max((other for other in tensors.TOKEN_LENGTHS if other < length), default=4)
    words = rng.randint(shorter - 1, length - 2)  # start and end of text are tokens too; every word here is one
    return " ".join(rng.choices(_WORDS, k=words))


def stacked_tokens(questions: list[str]) -> npt.NDArray[np.int32]:
    """The tokens of a batch, int32 [B, T]: T is the contract's, and where that is open the longest's."""
    ids = [tokenize(question).ids for question in questions]
    length = max(*map(len, ids), *tensors.TOKENS.shape)
    return np.stack([pad(each, length) for each in ids])


def pixels(files: list[bytes], side: int) -> npt.NDArray[np.uint8]:
    """The pixels of a batch of photos, uint8 [B, side, side, 3]."""
    return np.stack([_pixels(file, side) for file in files])


@lru_cache(2 * PHOTOS)  # the same photos are sent in every measurement
def _pixels(file: bytes, side: int) -> npt.NDArray[np.uint8]:
    return to_pixels(load_photo(file), side)


def photo_files(folder: Path) -> list[bytes]:
    """The first :data:`PHOTOS` JPEG files of ``folder``."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise SystemExit(f"{folder} has no JPEG file: give --photos a folder of photos")
    return [path.read_bytes() for path in paths[:PHOTOS]]
