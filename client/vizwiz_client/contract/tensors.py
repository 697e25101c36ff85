"""Names, shapes and types of the served models: the tensor contract.

Graphs, Triton configs and the client are built from these constants. Shapes omit the batch axis; -1 is a length that
the exported model or the request decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

CONTRACT_VERSION = 1  # raise it when an old client would misread a new server
CONTRACT_VERSION_PARAMETER = "contract_version"  # in the ensemble's config
WORDING_PARAMETER = "wording"  # JSON in the ensemble's config: thresholds that choose the sentences shown to people
DEMO_PARAMETER = "demo"  # "true" in the configs of a head that was fitted on drawn pictures alone, and its ensembles
RESIZE_PARAMETER = "resize"  # of an image encoder: SQUASH if photos are resized to a square without cropping
SQUASH = "squash"
MODEL_DIGEST_PARAMETER = "model_sha256"  # SHA-256 of a model's graph file, verified when it loads
LABELS_DIGEST_PARAMETER = "labels_sha256_"  # + file name: SHA-256 of a label file, verified when it loads
PRECISION_PARAMETER = "inference_precision"  # of a CPU accelerator: the lowest precision allowed
NICE_PARAMETER = "nice"  # nice(2) of the model's process in the embedded server

ENSEMBLE = "vizwiz_vqa"  # takes pixels and token ids
IMAGE_ENCODER_PREFIX = "clip_image_"  # + digest, as in the name of every immutable model
TEXT_ENCODER_PREFIX = "clip_text_"
HEAD_PREFIX = "gated_head_"

DIGEST_LENGTH = 12  # hex digits in a model's name: 48 bits, which an int64 `head_id` holds exactly
MAX_BATCH_SIZE = 64

CONTEXT_LENGTH = 77  # token positions of CLIP's text encoder, start and end tokens included
TOKEN_LENGTHS = (8, 16, 32, CONTEXT_LENGTH)  # the text encoder runs at the shortest that holds the batch


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: ``shape`` without the batch axis, ``datatype`` as Triton spells it."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy type of the tensor's elements."""
        return np.dtype(_NUMPY[self.datatype])


_NUMPY = {"UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32}

# [S, S, 3], RGB; S is the CLIP's image size in pixels. The ensemble's may have other names: see ImageInput.
IMAGE = TensorSpec("image", "UINT8", (-1, -1, 3))
# [77], zeros after the end token. One shape for all questions, so that they can be batched. Triton's response cache
# compares bytes but not shapes, so equal bytes must be equal requests.
TOKENS = TensorSpec("tokens", "INT32", (CONTEXT_LENGTH,))
IMAGE_FEATURES = TensorSpec("image_features", "FP32", (-1,))  # [D]
TEXT_FEATURES = TensorSpec("text_features", "FP32", (-1,))  # [D]
ANSWER = TensorSpec("answer", "FP32", (-1,))  # [V] probabilities, with labels
ANSWER_TYPE = TensorSpec("answer_type", "FP32", (-1,))  # [K] probabilities, with labels
ANSWERABLE = TensorSpec("answerable", "FP32", (1,))  # probability that the photo can answer; declined under 0.5
HEAD_ID = TensorSpec("head_id", "INT64", (1,))  # digest in the head's name, as a number
QUALITY = TensorSpec("quality", "FP32", (-1,))  # [Q] probabilities of quality issues, with labels; see below

HEAD_OUTPUTS = (ANSWER, ANSWER_TYPE, ANSWERABLE, HEAD_ID)  # of every head
# A head has QUALITY, as its last output, only if it was fitted with votes on photo quality. Clients request it only
# from an ensemble whose config has it, so that clients and servers of different releases work together.
OPTIONAL_OUTPUTS = (QUALITY,)


@dataclass(frozen=True)
class ImageInput:
    """An image input of the ensemble: its name, and how a photo is resized for it.

    An ensemble has one for each image preprocessing of its CLIPs: ``image``, or ``image_336`` and ``image_448``.
    ``_squash`` is appended to the name of a squashed one, so a client that only crops finds no input that it knows.
    """

    name: str
    image_size: int  # S: the tensor is uint8 [S, S, 3]
    squash: bool = False  # see vizwiz_client.contract.image.to_pixels


_IMAGE_INPUT = re.compile(f"{IMAGE.name}(?:_[0-9]+)?(?P<squash>_{SQUASH})?")


def image_inputs(preprocessing: Iterable[tuple[int, bool]]) -> list[ImageInput]:
    """The image inputs of an ensemble.

    Args:
        preprocessing: image size, and whether photos are resized to it without cropping, of each of its CLIPs.
    """
    distinct = list(dict.fromkeys(preprocessing))
    return [
        ImageInput(
            IMAGE.name + f"_{image_size}" * (len(distinct) > 1) + f"_{SQUASH}" * squash, image_size, bool(squash)
        )
        for image_size, squash in distinct
    ]


def parse_image_input(name: str, shape: Sequence[int]) -> ImageInput | None:
    """The image input with this name and shape; None if the name is that of another tensor."""
    match = _IMAGE_INPUT.fullmatch(name)
    return ImageInput(name, int(shape[0]) if shape else 0, bool(match["squash"])) if match else None


def of_each_clip(spec: TensorSpec, clips: int) -> list[TensorSpec]:
    """The head's input ``spec`` for each of its CLIPs: ``image_features``, or ``image_features_1`` and so on."""
    return [spec] if clips == 1 else [replace(spec, name=f"{spec.name}_{number}") for number in range(1, clips + 1)]


def head_id(digest: str) -> int:
    """The ``head_id`` that the head named ``gated_head_<digest>`` returns."""
    return int(digest[:DIGEST_LENGTH], 16)


def head_digest(number: int) -> str:
    """The digest of a ``head_id``; the inverse of :func:`head_id`."""
    return f"{number:0{DIGEST_LENGTH}x}"


def parse_label(value: bytes) -> tuple[float, str | None]:
    """Parse a class of Triton's, ``b"probability:index:label"``: the probability and the label, which may hold colons.

    The label is None where the model's output has none.
    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
    """
    probability, _, *label = value.decode(errors="replace").split(":", 2)
    return float(probability), label[0] if label else None
