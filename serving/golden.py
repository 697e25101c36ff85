"""The golden request of a head: a smoke test that a server must pass before it serves the head.

The head's folder holds it (``export/publish.py`` writes it): a photo, a question, PyTorch's answer, and the absolute
tolerance of each probability.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import np_to_triton_dtype

from serving import ServingError
from serving.repository import read_config
from vizwiz_client.contract import tensors
from vizwiz_client.contract.errors import VizwizError
from vizwiz_client.contract.prepared import prepare
from vizwiz_client.contract.tensors import ImageInput, TensorSpec, parse_label
from vizwiz_client.contract.tokenizer import pad, tokenize

PHOTO_FILE = "golden.jpg"
REQUEST_FILE = "golden.json"

Feed = Mapping[str, npt.NDArray[Any]]  # input name -> its tensor, a batch of one


@dataclass(frozen=True)
class GoldenRequest:
    """Request and expected answer of the head named ``head``."""

    head: str
    photo: bytes
    question: str
    candidates: Mapping[str, float]  # answer -> its probability
    answer_types: Mapping[str, float]  # each type -> its probability
    answerable: float
    tolerance: float  # of each probability, absolute
    answers: int  # V; all are requested, because a NaN may be in any of them
    quality: Mapping[str, float]  # each quality issue -> its probability; empty for a head without the output

    def feed(self, images: Sequence[ImageInput]) -> Feed:
        """Inputs of the ensemble, a batch of one: uint8 [1, S, S, 3] for each of ``images``, and tokens int32 [1, 77].

        Raises:
            ServingError: the photo or the question cannot be used.
        """
        try:
            pixels = prepare(self.photo, images).pixels
            tokens = pad(tokenize(self.question).ids, tensors.CONTEXT_LENGTH)
        except VizwizError as error:
            raise ServingError(f"the golden request of {self.head} cannot be used: {error}") from error
        return {**{name: array[None] for name, array in pixels.items()}, tensors.TOKENS.name: tokens[None]}

    def outputs(self) -> list[Any]:
        """The head's outputs: every label of those that have some, values of the others."""
        outputs = [
            InferRequestedOutput(tensors.ANSWER.name, class_count=self.answers),
            InferRequestedOutput(tensors.ANSWER_TYPE.name, class_count=len(self.answer_types)),
            InferRequestedOutput(tensors.ANSWERABLE.name),
            InferRequestedOutput(tensors.HEAD_ID.name),
        ]
        if self.quality:
            outputs.append(InferRequestedOutput(tensors.QUALITY.name, class_count=len(self.quality)))
        return outputs

    def differences(self, result: Any) -> list[str]:
        """Compare ``result`` (tritonclient's ``InferResult``) with the expected answer; return the differences."""
        got, types = (_by_label(result, spec) for spec in (tensors.ANSWER, tensors.ANSWER_TYPE))
        answerable = float(result.as_numpy(tensors.ANSWERABLE.name)[0, 0])
        head = tensors.head_digest(int(result.as_numpy(tensors.HEAD_ID.name)[0, 0]))
        found = self._compare("answer", got, self.candidates)
        if not all(math.isfinite(probability) for probability in got.values()):
            found.append("some probabilities are not finite")
        found += self._compare("answer type", types, self.answer_types)
        if self.quality:
            found += self._compare("quality issue", _by_label(result, tensors.QUALITY), self.quality)
        if not self._is_close(answerable, self.answerable):
            found.append(f"answerable is {answerable:.6f}, expected {self.answerable:.6f}")
        if tensors.HEAD_PREFIX + head != self.head:
            found.append(f"the head that answered is {head}")
        return found

    def _compare(self, what: str, got: Mapping[str, float], expected: Mapping[str, float]) -> list[str]:
        return [
            f"{label!r} has the probability {got[label]:.6f}, expected {probability:.6f}"
            if label in got
            else f"there is no {what} labelled {label!r}"
            for label, probability in expected.items()
            if not self._is_close(got.get(label, math.nan), probability)
        ]

    def _is_close(self, got: float, expected: float) -> bool:
        return abs(got - expected) <= self.tolerance + 1e-6  # Triton prints six decimals beside a label


def read_golden(repository: Path, head: str) -> GoldenRequest:
    """Read the golden request in the folder of ``head``.

    Raises:
        ServingError: it is missing or cannot be read.
    """
    folder = repository / head
    try:
        request = json.loads((folder / REQUEST_FILE).read_text(encoding="utf-8"))
        expected, lengths = request["expected"], _lengths(read_config(folder))
        issues = expected[tensors.QUALITY.name] if tensors.QUALITY.name in lengths else []
        return GoldenRequest(
            head=head,
            photo=(folder / PHOTO_FILE).read_bytes(),
            question=request["question"],
            candidates={item["answer"]: float(item["confidence"]) for item in expected["candidates"]},
            answer_types={item["answer_type"]: float(item["confidence"]) for item in expected["answer_types"]},
            answerable=float(expected["answerable"]),
            tolerance=float(request["tolerance"]),
            answers=lengths[tensors.ANSWER.name],
            quality={item["issue"]: float(item["confidence"]) for item in issues},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServingError(
            f"{head} has no usable golden request ({type(error).__name__}: {error}): publish it again with "
            "`python -m export.to_onnx`"
        ) from error


def input_tensors(config: Any, feed: Feed) -> list[Any]:
    """Select the inputs that a model of this ``config`` takes from ``feed``, as tritonclient's ``InferInput``.

    Raises:
        ServingError: ``feed`` lacks one.
    """
    inputs = []
    for tensor in config.input:
        if tensor.name not in feed:
            raise ServingError(f"{config.name} takes {tensor.name!r}, which the golden request lacks")
        array = feed[tensor.name]
        inputs.append(InferInput(tensor.name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def _lengths(config: Any) -> dict[str, int]:
    """Length of each output of a model, by its name."""
    return {tensor.name: int(tensor.dims[0]) for tensor in config.output}


def _by_label(result: Any, spec: TensorSpec) -> dict[str, float]:
    """Probability of each label of an output."""
    return {label or "": probability for probability, label in map(parse_label, result.as_numpy(spec.name)[0])}
