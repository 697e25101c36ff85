"""Warm-up: what Triton asks a model before it calls it loaded, so that the first request is as fast as the tenth.

Samples are real, and lie in the model's folder ``warmup/``:
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto (``ModelWarmup``).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vizwiz_client.contract import tensors, tokenizer
from vizwiz_client.contract.tensors import TensorSpec

FOLDER = "warmup"
BATCH_SIZES = (1, 8)  # alone, and as many as wait when it is busy

_FILLER = "word "  # one token each

Sample = Mapping[TensorSpec, npt.NDArray[Any] | bytes]  # one item: each input without its batch axis


def add_warmup(folder: Path, config: Any, samples: Mapping[str, Sample], batch_sizes: Sequence[int]) -> None:
    """Write ``samples`` into the model's ``folder`` and have ``config`` ask each of them at all ``batch_sizes``."""
    (folder / FOLDER).mkdir()
    data_types = {tensor.name: tensor.data_type for tensor in config.input}
    for name, sample in samples.items():
        for spec, value in sample.items():
            (folder / FOLDER / f"{name}.{spec.name}").write_bytes(_serialise(value))
        for batch_size in batch_sizes:
            warmup = config.model_warmup.add(name=f"{name} x {batch_size}", batch_size=batch_size)
            for spec, value in sample.items():
                tensor = warmup.inputs[spec.name]
                tensor.data_type = data_types[spec.name]
                tensor.dims.extend([1] if isinstance(value, bytes) else value.shape)
                tensor.input_data_file = f"{name}.{spec.name}"


def text_samples(question: str) -> dict[str, Sample]:
    """``question`` made as long as fills each of the lengths that the text encoder computes at."""
    samples: dict[str, Sample] = {}
    for length in tensors.TOKEN_LENGTHS:
        used = np.count_nonzero(tokenizer.tokenize(question).ids)
        ids = tokenizer.tokenize(question + " " + _FILLER * (length - used)).ids
        samples[f"{length} tokens"] = {tensors.TOKENS: tokenizer.pad(ids, tensors.CONTEXT_LENGTH)}
    return samples


def _serialise(value: npt.NDArray[Any] | bytes) -> bytes:
    """As Triton reads it: a text is preceded by its length."""
    if isinstance(value, bytes):
        return struct.pack("<I", len(value)) + value
    return value.tobytes()
