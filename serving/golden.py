"""The golden request of a head: the question that decides whether a server that has loaded it may answer with it.

It travels in the head's folder (``export/golden.py`` writes and describes it): a photo, a question, the answer that
PyTorch gives, and how far each probability may be from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import np_to_triton_dtype

from serving.errors import ServingError
from serving.repository import read_config
from vizwiz_client.contract import tensors
from vizwiz_client.contract.errors import VizwizError
from vizwiz_client.contract.image import load_photo, to_pixels
from vizwiz_client.contract.tokenizer import pad, tokenize

PHOTO_FILE = "golden.jpg"
REQUEST_FILE = "golden.json"

IMAGE_BYTES, QUESTION = "image_bytes", "question"  # the inputs of an ensemble that decodes for its clients

Feed = Mapping[str, npt.NDArray[Any]]  # input name -> its tensor, a batch of one


@dataclass(frozen=True)
class GoldenRequest:
    """What to ask about the head named ``head``, and what has to come back."""

    head: str
    photo: bytes
    question: str
    candidates: Mapping[str, float]  # answer -> its probability
    answer_types: Mapping[str, float]  # each type -> its probability
    answerable: float
    tolerance: float  # of each probability, absolute
    answers: int  # V, all of which are asked for: NaN hides among those that are not

    def feed(self, side: int, length: int) -> Feed:
        """The request as input of any model of the chain.

        Args:
            side: S, where the image encoder takes [S, S, 3].
            length: T, where the text encoder takes [T]; -1 where it takes any, and gets the question's own.

        Raises:
            ServingError: photo or question cannot be used.
        """
        try:
            pixels, tokens = to_pixels(load_photo(self.photo), side), tokenize(self.question).ids
            tokens = tokens if length < 0 else pad(tokens, length)
        except VizwizError as error:
            raise ServingError(f"the golden request of {self.head} cannot be asked: {error}") from error
        return {
            tensors.IMAGE.name: pixels[None],
            tensors.TOKENS.name: np.asarray(tokens, np.int32)[None],
            IMAGE_BYTES: np.array([[self.photo]], object),
            QUESTION: np.array([[self.question.encode()]], object),
        }

    def outputs(self) -> list[Any]:
        """What to ask a model for that gives the head's outputs: every label, and the two that have none."""
        return [
            InferRequestedOutput(tensors.ANSWER.name, class_count=self.answers),
            InferRequestedOutput(tensors.ANSWER_TYPE.name, class_count=len(self.answer_types)),
            InferRequestedOutput(tensors.ANSWERABLE.name),
            InferRequestedOutput(tensors.HEAD_ID.name),
        ]

    def problems(self, result: Any) -> list[str]:
        """How the reply ``result`` (tritonclient's ``InferResult``) is not the answer that is expected."""
        got = _labelled(result.as_numpy(tensors.ANSWER.name)[0])
        types = _labelled(result.as_numpy(tensors.ANSWER_TYPE.name)[0])
        answerable = float(result.as_numpy(tensors.ANSWERABLE.name)[0, 0])
        head = tensors.head_digest(int(result.as_numpy(tensors.HEAD_ID.name)[0, 0]))
        found = self._differences("answer", got, self.candidates)
        if not all(math.isfinite(probability) for probability in got.values()):
            found.append("some probabilities are not numbers")
        found += self._differences("answer type", types, self.answer_types)
        if not self._near(answerable, self.answerable):
            found.append(f"answerable is {answerable:.6f}, expected {self.answerable:.6f}")
        if tensors.HEAD_PREFIX + head != self.head:
            found.append(f"the head that answered is {head}")
        return found

    def _differences(self, what: str, got: Mapping[str, float], expected: Mapping[str, float]) -> list[str]:
        return [
            f"{label!r} has the probability {got[label]:.6f}, expected {probability:.6f}"
            if label in got
            else f"there is no {what} labelled {label!r}"
            for label, probability in expected.items()
            if not self._near(got.get(label, math.nan), probability)
        ]

    def _near(self, got: float, expected: float) -> bool:
        return abs(got - expected) <= self.tolerance + 1e-6  # Triton prints six decimals beside a label


def read_golden(repository: Path, head: str) -> GoldenRequest:
    """Read the golden request that travels with ``head``.

    Raises:
        ServingError: it has none, or one that cannot be read.
    """
    folder = repository / head
    try:
        request = json.loads((folder / REQUEST_FILE).read_text(encoding="utf-8"))
        expected = request["expected"]
        return GoldenRequest(
            head=head,
            photo=(folder / PHOTO_FILE).read_bytes(),
            question=request["question"],
            candidates={item["answer"]: float(item["confidence"]) for item in expected["candidates"]},
            answer_types={item["answer_type"]: float(item["confidence"]) for item in expected["answer_types"]},
            answerable=float(expected["answerable"]),
            tolerance=float(request["tolerance"]),
            answers=_length(read_config(folder), tensors.ANSWER.name),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServingError(
            f"{head} has no golden request that can be asked ({type(error).__name__}: {error}): publish it again with "
            "`python -m export.to_onnx`"
        ) from error


def input_tensors(config: Any, feed: Feed) -> list[Any]:
    """The inputs that a model of this ``config`` takes, out of ``feed``.

    Raises:
        ServingError: it takes one that is not there.
    """
    inputs = []
    for tensor in config.input:
        if tensor.name not in feed:
            raise ServingError(f"{config.name} takes {tensor.name!r}, which the golden request has not")
        array = feed[tensor.name]
        inputs.append(InferInput(tensor.name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def _labelled(values: Any) -> dict[str, float]:
    """Label -> value, from ``b"value:index:label"``; the label may hold colons."""
    parts = [value.decode(errors="replace").split(":", 2) for value in values]
    return {part[2] if len(part) == 3 else "": float(part[0]) for part in parts}


def _length(config: Any, output: str) -> int:
    return int(next(tensor.dims[0] for tensor in config.output if tensor.name == output))
