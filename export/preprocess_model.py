"""Triton's model ``preprocess``: a photo's file and a question to what the encoders take.

Export copies this file into the repository, where Triton's Python backend runs it, in NVIDIA's container as in the
embedded server. The work is done by the contract's own code, so ``vizwiz-client`` must be installed in the Python that
the backend runs; a load is refused where it is missing or of another contract.

An item that is refused, a damaged photo or an empty question, carries the reason in ``error`` and a neutral picture, so
that it does not cost its batch the answers. Input is never taken for a path or an address.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import string
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as triton

# A photo in one block, not in many of 16 MB: https://pillow.readthedocs.io/en/stable/reference/block_allocator.html
# What malloc keeps of it for the next photo, up to 32 MB a thread, saves a fifth of the time (docs/results.md).
os.environ["PILLOW_BLOCK_SIZE"] = "128m"

try:
    from vizwiz_client.contract import errors, tensors, tokenizer
    from vizwiz_client.contract.image import load_photo, to_pixels
except ImportError as error:
    raise ImportError(
        f"the model needs the package vizwiz-client in the Python that Triton's Python backend runs ({error}): "
        "`pip install vizwiz-client` there, in the version that the repository was exported with"
    ) from error

MAX_THREADS = 4  # each may hold a photo of MAX_PIXELS, decoded; load_photo decodes such one at a time

_GREY = 128  # of the picture in the place of a refused one
_NO_WORDS = np.array([tokenizer.START_OF_TEXT, tokenizer.END_OF_TEXT], np.int32)
_BASE64 = (string.ascii_letters + string.digits + "+/=").encode()
_START = 12  # bytes: see `read_file`


class LoadError(Exception):
    """The model cannot be served as its config says."""


class Ask(NamedTuple):
    """A photo and a question, as they came."""

    image_bytes: bytes
    question: bytes
    request_id: str  # "" where the client gave none


class Item(NamedTuple):
    """What the encoders get for one photo and question, and why they were refused."""

    image: npt.NDArray[np.uint8]  # [S, S, 3]
    tokens: npt.NDArray[np.int32]  # [77]
    error: bytes  # UTF-8; empty when all is well


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Make ready, as Triton's ``args`` describe it.

        Raises:
            LoadError: this file, or the installed package, is not the one that the config was written for.
        """
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        check_file(Path(args["model_repository"], args["model_version"], "model.py"), parameters)
        check_contract(parameters)
        (dims,) = (output["dims"] for output in config["output"] if output["name"] == tensors.IMAGE.name)
        self._side = int(dims[0])
        # Pillow decodes and resizes without the interpreter's lock
        self._pool = ThreadPoolExecutor(min(MAX_THREADS, threads()))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer ``requests``, in their order; their items are worked on together."""
        groups = [_asks(request) for request in requests]
        items = self._pool.map(lambda ask: prepare(ask, self._side), chain(*groups))
        return [_response(list(islice(items, len(group)))) for group in groups]

    def finalize(self) -> None:
        """Let the threads end."""
        self._pool.shutdown()


def prepare(ask: Ask, side: int) -> Item:
    """Make pixels and token ids of a photo and a question; what cannot be used gives an item with its error."""
    try:
        photo = load_photo(read_file(ask.image_bytes))
        return Item(to_pixels(photo, side), pad(tokenizer.tokenize(read_text(ask.question)).ids), b"")
    except (errors.ImageError, errors.QuestionError) as error:
        return refused(str(error), side)
    except Exception as error:  # whatever one photo does to a decoder, the other items have their answers
        # the error's text may tell of the photo
        triton.Logger.log_error(
            f"preprocess: {type(error).__name__} of an item of request {ask.request_id or '<no id>'}"
        )
        return refused(f"the photo or the question cannot be processed ({type(error).__name__}); send another", side)


def refused(reason: str, side: int) -> Item:
    """An item whose answer is to be ignored."""
    return Item(np.full((side, side, 3), _GREY, np.uint8), pad(_NO_WORDS), reason.encode())


def pad(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """``ids`` at the length that the text encoder takes."""
    return tokenizer.pad(ids, tensors.CONTEXT_LENGTH)


def read_file(data: bytes) -> bytes:
    """The photo's file: ``data`` itself, or what it holds as base64, which JSON needs.

    No accepted picture starts with 12 characters of base64: JPEG and PNG start with a byte that is none; after RIFF
    (WebP) and BM comes a size, whose highest byte would make it 721 MB; after GIF89a come width and height, which would
    be 11,051 or more.

    Raises:
        ImageError: the file is too large, or the base64 is damaged.
    """
    if data and not data[:_START].translate(None, _BASE64):
        try:
            data = base64.b64decode(b"".join(data.split()), validate=True)
        except binascii.Error as error:
            raise errors.ImageError(
                f"the photo: got text that is not base64 ({error}), expected the bytes of a picture's file, or base64 "
                "of them; paths and addresses are not opened"
            ) from None
    if len(data) > tensors.MAX_IMAGE_BYTES:
        raise errors.ImageError(
            f"the photo: the file has {len(data):,} bytes, expected at most {tensors.MAX_IMAGE_BYTES:,}; make it "
            "smaller before sending it"
        )
    return data


def read_text(question: bytes) -> str:
    """The question as text.

    Raises:
        QuestionError: it is not UTF-8.
    """
    try:
        return question.decode()
    except UnicodeDecodeError as error:
        raise errors.QuestionError(
            f"the question is not UTF-8 (at byte {error.start}); send text in that encoding"
        ) from None


def check_file(path: Path, parameters: Mapping[str, str]) -> None:
    """Check that the file ``path``, this one, is the one that was published.

    Raises:
        LoadError: it is another.
    """
    expected, got = parameters.get("model_sha256"), hashlib.sha256(path.read_bytes()).hexdigest()
    if got != expected:
        raise LoadError(
            f"{path} has SHA-256 {got}, its config.pbtxt says {expected}: the file is damaged or another one; publish "
            "it again with `python -m export.to_onnx`"
        )


def check_contract(parameters: Mapping[str, str]) -> None:
    """Check that the installed package makes the pixels and tokens that the encoders were exported for.

    Raises:
        LoadError: it is of another contract.
    """
    expected, got = parameters.get("contract_version"), str(tensors.CONTRACT_VERSION)
    if got != expected:
        raise LoadError(
            f"the model was exported for contract version {expected}, the installed vizwiz-client has {got} "
            f"({Path(tensors.__file__).parents[1]}): install the one that the repository was exported with, or export "
            "again"
        )


def threads() -> int:
    """Threads that a model may compute with: as for the other models, or one for each core."""
    return int(os.environ.get("VIZWIZ_SERVING_THREADS", "0")) or len(os.sched_getaffinity(0))


def _asks(request: Any) -> list[Ask]:
    image_bytes, question = (
        triton.get_input_tensor_by_name(request, spec.name).as_numpy()[:, 0]
        for spec in (tensors.IMAGE_BYTES, tensors.QUESTION)
    )
    return [Ask(*pair, request.request_id()) for pair in zip(image_bytes, question, strict=True)]


def _response(items: Sequence[Item]) -> Any:
    error = np.array([item.error for item in items], dtype=np.object_)[:, None]
    return triton.InferenceResponse(
        [
            triton.Tensor(tensors.IMAGE.name, np.stack([item.image for item in items])),
            triton.Tensor(tensors.TOKENS.name, np.stack([item.tokens for item in items])),
            triton.Tensor(tensors.ERROR.name, error),
        ]
    )
