"""Names, shapes and types of everything that is served: the one home of the wire contract.

Graphs, Triton configs and the client are all built from these constants; shapes leave out the batch axis, and -1 is a
length that the exported model or the request decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

CONTRACT_VERSION = 1  # raised when a client of the old contract would misread a server of the new one
CONTRACT_VERSION_PARAMETER = "contract_version"  # where the ensemble's config states it
MODEL_DIGEST_PARAMETER = "model_sha256"  # in a model's config: SHA-256 of its graph file, verified when it loads
LABELS_DIGEST_PARAMETER = "labels_sha256_"  # + a label file's name: the same for the file that names the outputs
FILE_DIGEST_PARAMETER = "file_sha256_"  # + the name of any other file beside the config: verified by export alone
PRECISION_PARAMETER = "inference_precision"  # of a CPU accelerator, in a model's config: the least it may compute in
NICE_PARAMETER = "nice"  # in a model's config: nice(2) of its process in the embedded server, where it yields the cores

ENSEMBLE = "vizwiz_vqa"  # asked with pixels and token ids
RAW_ENSEMBLE = "vizwiz_vqa_raw"  # asked with a file and a text
ENSEMBLES = (ENSEMBLE, RAW_ENSEMBLE)
PREPROCESS_PREFIX = "preprocess_"  # + digest, as every immutable model is named
IMAGE_ENCODER_PREFIX = "clip_image_"
TEXT_ENCODER_PREFIX = "clip_text_"
HEAD_PREFIX = "gated_head_"

DIGEST_LENGTH = 12  # hex digits in a model's name: 48 bits, which an int64 `head_id` holds exactly
MAX_BATCH_SIZE = 64

CONTEXT_LENGTH = 77  # token positions of CLIP's text encoder, start and end tokens included
TOKEN_LENGTHS = (8, 16, 32, CONTEXT_LENGTH)  # a batch of questions is encoded at the shortest that holds it

MAX_IMAGE_BYTES = 40_000_000  # of one photo's file, asked raw; as base64 it fits Triton's 64 MiB for an HTTP request


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: ``shape`` without the batch axis, ``datatype`` in Triton's spelling."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy type of the tensor's elements."""
        return np.dtype(_NUMPY[self.datatype])


_NUMPY = {"BYTES": np.object_, "UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32}

IMAGE = TensorSpec("image", "UINT8", (-1, -1, 3))  # [S, S, 3], RGB, S = the encoder's input side in pixels
# [77], zeros after the end token. One shape, so that questions of any lengths batch, and that equal bytes are the same
# request to Triton's response cache, which does not look at shapes.
TOKENS = TensorSpec("tokens", "INT32", (CONTEXT_LENGTH,))
IMAGE_BYTES = TensorSpec("image_bytes", "BYTES", (1,))  # a photo's file, or base64 of it
QUESTION = TensorSpec("question", "BYTES", (1,))  # UTF-8
ERROR = TensorSpec("error", "BYTES", (1,))  # UTF-8: why photo or question was refused; empty when they were not
IMAGE_FEATURES = TensorSpec("image_features", "FP32", (-1,))  # [D]
TEXT_FEATURES = TensorSpec("text_features", "FP32", (-1,))  # [D]
ANSWER = TensorSpec("answer", "FP32", (-1,))  # [V] probabilities, labelled
ANSWER_TYPE = TensorSpec("answer_type", "FP32", (-1,))  # [K] probabilities, labelled
ANSWERABLE = TensorSpec("answerable", "FP32", (1,))  # probability that the photo can answer: decline under 0.5
HEAD_ID = TensorSpec("head_id", "INT64", (1,))  # the digest in the head's name, as a number

HEAD_OUTPUTS = (ANSWER, ANSWER_TYPE, ANSWERABLE, HEAD_ID)


def head_id(digest: str) -> int:
    """The number that the head named ``gated_head_<digest>`` returns in ``head_id``."""
    return int(digest[:DIGEST_LENGTH], 16)


def head_digest(number: int) -> str:
    """The digest in a head's name, from the number it returned: the inverse of :func:`head_id`."""
    return f"{number:0{DIGEST_LENGTH}x}"
