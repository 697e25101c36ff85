"""Photos and questions as a request needs them: pixels and token ids, or the error that refuses them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vizwiz_client._failures import Failure
from vizwiz_client.contract.errors import ContractMismatch, ImageError, QuestionError
from vizwiz_client.contract.image import Photo, load_photo, materialize
from vizwiz_client.contract.prepared import PreparedPhoto, prepare
from vizwiz_client.contract.tensors import ImageInput
from vizwiz_client.contract.tokenizer import Tokens, tokenize

T = TypeVar("T")
AnyPhoto = Photo | PreparedPhoto


@dataclass(frozen=True, eq=False)
class Item:
    """A photo and its question, ready to send."""

    photo: PreparedPhoto
    tokens: Tokens
    prepare_s: float


def prepare_timed(
    photo: AnyPhoto | ImageError, inputs: Sequence[ImageInput], fast_decode: bool, deadline: float
) -> tuple[PreparedPhoto | ImageError, float]:
    """The prepared photo, or its error, and the seconds taken. Raises Failure, and ContractMismatch."""
    if time.monotonic() >= deadline:
        raise Failure("DEADLINE_EXCEEDED", "the time was up before all photos were decoded")
    if isinstance(photo, ImageError):
        return photo, 0.0
    if isinstance(photo, PreparedPhoto):
        if photo.inputs != tuple(inputs):
            raise ContractMismatch(
                f"the photo was prepared for {_names(photo.inputs)}, the served model takes {_names(inputs)}; prepare "
                "it again"
            )
        return photo, 0.0
    start = time.perf_counter()
    prepared = catch(lambda photo: prepare(photo, inputs, fast_decode=fast_decode), photo)
    return prepared, time.perf_counter() - start


def decode(photo: AnyPhoto | ImageError) -> AnyPhoto | ImageError:
    """Decode a photo, unless it was refused or prepared already."""
    return photo if isinstance(photo, ImageError | PreparedPhoto) else catch(load_photo, photo)


def copy_photo(photo: AnyPhoto) -> AnyPhoto | ImageError:
    """A copy that the caller cannot change or close: see ``contract.image.materialize``."""
    return photo if isinstance(photo, PreparedPhoto) else catch(materialize, photo)


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


def _names(inputs: Sequence[ImageInput]) -> str:
    return " and ".join(f"{each.name} [{each.image_size}, {each.image_size}, 3]" for each in inputs)
