"""Photos and questions as a request needs them: pixels and token ids, or the error that refuses them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vizwiz_client._failures import Failure
from vizwiz_client.contract.errors import ContractMismatch, ImageError, QuestionError, VizwizError
from vizwiz_client.contract.image import Photo, load_photo, materialize
from vizwiz_client.contract.prepared import PreparedPhoto, prepare
from vizwiz_client.contract.tensors import ImageInput
from vizwiz_client.contract.tokenizer import Tokens, tokenize

T = TypeVar("T")
AnyPhoto = Photo | PreparedPhoto

_locks = [threading.Lock() for _ in range(64)]  # a file or a lazy image has one position: two threads must not read it


def _renew_locks() -> None:
    """In a forked child, whose parent may have held them."""
    global _locks
    _locks = [threading.Lock() for _ in _locks]


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_locks)


@dataclass(frozen=True, eq=False)
class Item:
    """A photo and its question, ready to send."""

    photo: PreparedPhoto
    tokens: Tokens
    prepare_s: float


def find_refusals(
    photo: AnyPhoto | ImageError, questions: Sequence[str], *, decodes: bool
) -> tuple[AnyPhoto | ImageError, list[VizwizError | None]]:
    """The photo, decoded if ``decodes``, and for each question about it the error that refuses it or the photo."""
    if decodes and not isinstance(photo, ImageError | PreparedPhoto):
        photo = catch(load_photo, photo)
    refusal = photo if isinstance(photo, ImageError) else None
    return photo, [tokens if isinstance(tokens, QuestionError) else refusal for tokens in _tokenize(questions)]


def prepare_timed(
    photo: AnyPhoto | ImageError,
    questions: Sequence[str],
    inputs: Sequence[ImageInput],
    fast_decode: bool,
    deadline: float,
) -> list[Item | VizwizError]:
    """The item of each question about one photo, or its error. Raises Failure, and ContractMismatch."""
    if time.monotonic() >= deadline:
        raise Failure("DEADLINE_EXCEEDED", "the time was up before all photos were decoded")
    start = time.perf_counter()
    tokens = _tokenize(questions)
    refused = [each for each in tokens if isinstance(each, QuestionError)]
    if len(refused) == len(tokens):
        return [*refused]
    prepared = _to_pixels(photo, inputs, fast_decode)
    prepare_s = time.perf_counter() - start
    return [_item(prepared, each, prepare_s) for each in tokens]


def copy_photo(photo: AnyPhoto) -> AnyPhoto | ImageError:
    """A copy that the caller cannot change or close: see ``contract.image.materialize``."""
    if isinstance(photo, PreparedPhoto):
        return photo
    with _locks[id(photo) // 16 % len(_locks)]:  # addresses are multiples of 16
        return catch(materialize, photo)


def _tokenize(questions: Sequence[str]) -> list[Tokens | QuestionError]:
    """Token ids of each question, or its error."""
    tokens: list[Tokens | QuestionError] = []
    for question in questions:
        try:
            tokens.append(tokenize(question))
        except QuestionError as error:
            tokens.append(error)
    return tokens


def _to_pixels(
    photo: AnyPhoto | ImageError, inputs: Sequence[ImageInput], fast_decode: bool
) -> PreparedPhoto | ImageError:
    if isinstance(photo, ImageError):
        return photo
    if not isinstance(photo, PreparedPhoto):
        return catch(lambda photo: prepare(photo, inputs, fast_decode=fast_decode), photo)
    if photo.inputs != tuple(inputs):
        raise ContractMismatch(
            f"the photo was prepared for {_names(photo.inputs)}, the served model takes {_names(inputs)}; "
            "prepare it again"
        )
    return photo


def _item(photo: PreparedPhoto | ImageError, tokens: Tokens | QuestionError, prepare_s: float) -> Item | VizwizError:
    if isinstance(tokens, QuestionError):
        return tokens
    return photo if isinstance(photo, ImageError) else Item(photo, tokens, prepare_s)


def catch(function: Callable[[Photo], T], photo: Photo) -> T | ImageError:
    """The result of ``function``, or the error that refuses the photo."""
    try:
        return function(photo)
    except ImageError as error:
        return error


def _names(inputs: Sequence[ImageInput]) -> str:
    return " and ".join(f"{each.name} [{each.image_size}, {each.image_size}, 3]" for each in inputs)
