"""From a photo and a question to the two tensors; nothing here knows of a server. Errors are returned, not raised."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vizwiz_client.contract.errors import ImageError, QuestionError
from vizwiz_client.contract.image import Photo, load_photo, materialize, to_pixels
from vizwiz_client.contract.tensors import CONTEXT_LENGTH
from vizwiz_client.contract.tokenizer import Tokens, pad, tokenize

Pixels = npt.NDArray[np.uint8]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Item:
    """One question, ready to be sent."""

    pixels: Pixels  # [S, S, 3]
    tokens: Tokens
    prepare_s: float


@dataclass(frozen=True, eq=False)
class Timed:
    """What became of a photo, and the seconds that it took."""

    result: Pixels | ImageError
    seconds: float


def materialized(photo: Photo) -> Photo | ImageError:
    """``photo`` as it can be read later and in another thread: see :func:`vizwiz_client.contract.image.materialize`."""
    return _outcome(lambda: materialize(photo))


def loaded(photo: Photo | ImageError) -> Photo | ImageError:
    """``photo`` decoded."""
    return photo if isinstance(photo, ImageError) else _outcome(lambda: load_photo(photo))


def pixels(photo: Photo | ImageError, side: int, fast: bool) -> Timed:
    """``photo`` as uint8 [side, side, 3]."""
    start = time.perf_counter()
    if isinstance(photo, ImageError):
        return Timed(photo, 0.0)
    result = _outcome(lambda: to_pixels(load_photo(photo, side if fast else None), side))
    return Timed(result, time.perf_counter() - start)


def tokens(questions: Sequence[str]) -> list[Tokens | QuestionError]:
    """The token ids of each question."""
    return [_tokens(question) for question in questions]


def item(photo: Timed, ids: Tokens | QuestionError, token_s: float) -> Item | ImageError | QuestionError:
    """A photo and a question together, or what is wrong with one of them: the question first."""
    if isinstance(ids, QuestionError):
        return ids
    if isinstance(photo.result, ImageError):
        return photo.result
    return Item(photo.result, ids, photo.seconds + token_s)


def stack(items: Sequence[Item]) -> tuple[Pixels, npt.NDArray[np.int32]]:
    """One batch: uint8 [B, S, S, 3] and int32 [B, 77]."""
    ids = [pad(item.tokens.ids, CONTEXT_LENGTH) for item in items]
    return np.stack([item.pixels for item in items]), np.stack(ids)


def _tokens(question: str) -> Tokens | QuestionError:
    try:
        return tokenize(question)
    except QuestionError as error:
        return error


def _outcome(action: Callable[[], T]) -> T | ImageError:
    try:
        return action()
    except ImageError as error:
        return error
