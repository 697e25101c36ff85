"""Photos and questions as a request needs them: pixels and token ids, or the error that refuses them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vizwiz_client._failures import Failure
from vizwiz_client.contract.errors import ImageError, QuestionError
from vizwiz_client.contract.image import Photo, load_photo, to_pixels
from vizwiz_client.contract.tokenizer import Tokens, tokenize

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Item:
    """A photo and its question, ready to send."""

    pixels: Pixels  # [S, S, 3]
    tokens: Tokens
    prepare_s: float


def to_item_pixels(
    photo: Photo | ImageError, image_size: int, fast_decode: bool, deadline: float
) -> tuple[Pixels | ImageError, float]:
    """Pixels uint8 [image_size, image_size, 3] of ``photo``, or its error, and the seconds taken. Raises Failure."""
    if time.monotonic() >= deadline:
        raise Failure("DEADLINE_EXCEEDED", "the time was up before all photos were decoded")
    start = time.perf_counter()
    if isinstance(photo, ImageError):
        return photo, 0.0
    draft_size = image_size if fast_decode else None
    pixels = catch(lambda photo: to_pixels(load_photo(photo, draft_size), image_size), photo)
    return pixels, time.perf_counter() - start


def decode(photo: Photo | ImageError) -> Photo | ImageError:
    """Decode a photo, unless it was refused already."""
    return photo if isinstance(photo, ImageError) else catch(load_photo, photo)


def tokenize_all(questions: Sequence[str]) -> list[Tokens | QuestionError]:
    """Token ids of each question, or its error."""
    tokens: list[Tokens | QuestionError] = []
    for question in questions:
        try:
            tokens.append(tokenize(question))
        except QuestionError as error:
            tokens.append(error)
    return tokens


def catch(function: Callable[[Photo], T], photo: Photo) -> T | ImageError:
    """The result of ``function``, or the error that refuses the photo."""
    try:
        return function(photo)
    except ImageError as error:
        return error
