"""The gate before publication: the graphs must give what PyTorch gives, tensor by tensor and along the whole chain.

The references are the ``clip`` package's own modules, tokenizer and preprocessing, and the head as it was fitted; none
of the code under test takes part in them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch.nn import functional

from training.clip_models import PIXEL_MEAN, PIXEL_STD, FrozenClip, clip_preprocess, clip_tokenize
from training.predictor import Predictor
from vizwiz_client.contract import geometry, tensors, tokens

# Measured on OpenAI's architectures with random weights: 3e-6 (image) and 4e-6 (text). A matrix that is off by 1% shows
# as 1e-2; rounding in another order never reaches 1e-4.
MAX_RELATIVE_ERROR = 1e-4  # max |difference| / max |reference|
MAX_COSINE_ERROR = 1e-6  # 1 - cosine of the worst row: blind to scale, sharp on direction

_RANDOM_INPUTS = 8
_BATCHES = (1, 3)  # one alone and some together: the batch axis must be free

Array = npt.NDArray[Any]


class ParityError(Exception):
    """Graphs that differ from PyTorch by more than the tolerances."""


@dataclass(frozen=True)
class Comparison:
    """How far one output is from its reference on some inputs."""

    inputs: str  # "random" or "photos"
    tensor: str
    relative_error: float
    cosine_error: float
    top1_disagreements: int  # rows whose highest entry is another; 0 for tensors that rank nothing

    @property
    def passed(self) -> bool:
        """Whether every measure is within its tolerance; NaN is not."""
        within = self.relative_error <= MAX_RELATIVE_ERROR and self.cosine_error <= MAX_COSINE_ERROR
        return within and self.top1_disagreements == 0


@dataclass(frozen=True)
class Graphs:
    """The three ONNX files that are compared."""

    image: Path
    text: Path
    head: Path


def check_parity(
    graphs: Graphs, model: FrozenClip, predictor: Predictor, asked: Sequence[tuple[Path, str]]
) -> list[Any]:
    """Compare ``graphs`` with ``model`` and ``predictor`` on random input and on ``asked`` photos and questions.

    Returns:
        The comparisons, as dictionaries that JSON can hold.

    Raises:
        ParityError: at least one is out of tolerance; the message is the table of all of them.
    """
    image, text, joined = (_Session(path) for path in (graphs.image, graphs.text, graphs.head))
    comparisons = []
    for name, inputs in (("random", _random_inputs(model.side)), ("photos", _photo_inputs(model.side, asked))):
        reference_image, reference_text = _reference_features(model, inputs)
        image_features = image(image=inputs.pixels)
        text_features = text(tokens=inputs.tokens)
        outputs = joined(image_features=image_features, text_features=text_features)
        reference_outputs = _reference_head(predictor, reference_image, reference_text)
        comparisons += [
            compare(name, tensors.IMAGE_FEATURES.name, image_features, reference_image),
            compare(name, tensors.TEXT_FEATURES.name, text_features, reference_text),
            *(
                compare(name, spec.name, output, reference, ranks=spec is not tensors.ANSWERABLE)
                for spec, output, reference in zip(tensors.HEAD_OUTPUTS[:3], outputs, reference_outputs, strict=False)
            ),
        ]
    print(table(comparisons))
    if not all(comparison.passed for comparison in comparisons):
        raise ParityError(
            "the graphs do not give what PyTorch gives, so nothing was published (tolerances: max abs "
            f"{MAX_RELATIVE_ERROR:g} of the reference's largest value, 1 - cosine {MAX_COSINE_ERROR:g}, equal top-1)"
        )
    return [asdict(comparison) for comparison in comparisons]


def compare(inputs: str, tensor: str, got: Array, reference: Array, *, ranks: bool = False) -> Comparison:
    """Measure ``got`` against ``reference``, both [B, N]; ``ranks``: their highest entries must be the same."""
    a, b = got.astype(np.float64), reference.astype(np.float64)
    cosine = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return Comparison(
        inputs,
        tensor,
        relative_error=float(np.abs(a - b).max() / np.abs(b).max()),
        cosine_error=float((1 - cosine).max()),
        top1_disagreements=int((a.argmax(axis=1) != b.argmax(axis=1)).sum()) if ranks else 0,
    )


def table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as a table for people."""
    lines = [
        f"{'parity with PyTorch':<20}{'inputs':<9}{'max abs / max |ref|':>20}{'1 - cosine':>13}{'top-1 differ':>14}"
    ]
    for row in comparisons:
        verdict = "" if row.passed else "  FAILED"
        lines.append(
            f"{row.tensor:<20}{row.inputs:<9}{row.relative_error:>20.1e}{max(row.cosine_error, 0):>13.1e}"
            f"{row.top1_disagreements:>14}{verdict}"
        )
    return "\n".join(lines)


class _Session:
    """An ONNX graph that runs its inputs in batches of 1 and 3 and returns the rows together."""

    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def __call__(self, **inputs: Array) -> Any:
        rows = len(next(iter(inputs.values())))
        edges = [0, *_BATCHES, rows]
        parts = [
            self._session.run(None, {name: array[start:end] for name, array in inputs.items()})
            for start, end in pairwise(edges)
            if start < rows
        ]
        outputs = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return outputs if len(outputs) > 1 else outputs[0]


@dataclass(frozen=True)
class _Inputs:
    """What the graphs take, and the same as the reference takes it."""

    pixels: Array  # uint8 [B, S, S, 3]
    tokens: Array  # int32 [B, T]
    reference_pixels: torch.Tensor  # fp32 [B, 3, S, S], by clip's own preprocessing or its definition
    reference_tokens: torch.Tensor  # int [B, 77]


def _random_inputs(side: int) -> _Inputs:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (_RANDOM_INPUTS, side, side, 3), dtype=np.uint8)
    ids = np.zeros((_RANDOM_INPUTS, tensors.CONTEXT_LENGTH), np.int32)
    for row, length in zip(ids, (2, 3, 8, 16, 31, 32, 76, 77), strict=True):
        row[:length] = random.integers(0, tokens.START_OF_TEXT, length)
        row[0], row[length - 1] = tokens.START_OF_TEXT, tokens.END_OF_TEXT
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    reference = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
    return _Inputs(pixels, ids, reference, torch.from_numpy(ids))


def _photo_inputs(side: int, asked: Sequence[tuple[Path, str]]) -> _Inputs:
    photos = [geometry.load_photo(path) for path, _ in asked]
    questions = [tokens.tokenize(question).ids for _, question in asked]
    length = max(len(ids) for ids in questions)
    preprocess = clip_preprocess(side)
    return _Inputs(
        np.stack([geometry.to_pixels(photo, side) for photo in photos]),
        np.stack([tokens.pad(ids, length) for ids in questions]),
        torch.stack([preprocess(photo) for photo in photos]),
        clip_tokenize([question for _, question in asked]),
    )


@torch.inference_mode()
def _reference_features(model: FrozenClip, inputs: _Inputs) -> tuple[Array, Array]:
    image = model.model.encode_image(inputs.reference_pixels)
    text = model.model.encode_text(inputs.reference_tokens)
    return image.numpy(), text.numpy()


@torch.inference_mode()
def _reference_head(predictor: Predictor, image_features: Array, text_features: Array) -> tuple[Array, ...]:
    """The heads as they were fitted, one by one; their mean and its calibration are written out here once more."""
    logits = [head(torch.from_numpy(text_features), torch.from_numpy(image_features)) for head in predictor.heads]
    scale, offset = predictor.calibration.line.tolist()
    mean = torch.stack([torch.sigmoid(each.answerable.double()) for each in logits]).mean(dim=0)
    odds = (mean / (1 - mean)) ** scale * math.exp(offset)
    return (
        torch.stack([functional.softmax(each.answer, dim=1) for each in logits]).mean(dim=0).numpy(),
        torch.stack([functional.softmax(each.answer_type, dim=1) for each in logits]).mean(dim=0).numpy(),
        (1 - 1 / (1 + odds)).unsqueeze(1).numpy(),  # this way round, certainty (infinite odds) is 1
    )
