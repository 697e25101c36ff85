"""Triton model configurations, built as protobuf messages, and the warm-up samples that they name.

Every model but the ensemble is immutable, and named by a digest of what it was made from. Field names and meanings:
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import model_config_pb2 as pb

from export.targets import OPENVINO, OPENVINO_HINT, GraphKind
from training.artifacts import file_digest
from vizwiz_client.contract import tensors, tokenizer
from vizwiz_client.contract.tensors import TensorSpec

WARMUP_FOLDER = "warmup"
# An idle and a busy server; on a CPU the first alone: eight images of a large CLIP are seconds of a start.
WARMUP_BATCH_SIZES: Mapping[str, Sequence[int]] = {"cpu": (1,), "cuda": (1, 8), "tensorrt": (1, 8)}

# Preferred batch size on a CPU: on two cores, one batch of 16 of ViT-B/32's size answers a fifth fewer questions a
# second than two batches of 8 (docs/decisions.md).
CPU_BATCH_SIZE = 8

# nice(2) of the text encoder on a CPU: it yields to the image encoder, which takes several times as long. With equal
# priority, each would wait inside its matrix products for threads of the other (docs/decisions.md).
TEXT_ENCODER_NICE = "5"

HEAD_THREADS = "2"  # two threads read the head's weights faster than one; its products are small

TENSORRT = "tensorrt"  # Triton's name of the accelerator
TENSORRT_CACHE = "/tmp/vizwiz-tensorrt"  # Triton creates it; mount a volume there, for engines take minutes to build
TENSORRT_OPT_BATCH = 8  # the batch size that TensorRT optimises for

_GIB = 1 << 30
# Parameters of the model, not of an accelerator, whose values the native backend would overwrite:
# https://github.com/triton-inference-server/onnxruntime_backend#onnx-runtime-with-tensorrt-optimization
# None of the numbers is measured: no GPU was at hand.
_CUDA_PARAMETERS = {
    "cudnn_conv_algo_search": 1,  # HEURISTIC: the default, EXHAUSTIVE, tries every algorithm for each new batch size
    "arena_extend_strategy": 1,  # kSameAsRequested: the default doubles the arena and never shrinks it
    "gpu_mem_limit": 8 * _GIB,  # per model, weights included
    "do_copy_in_default_stream": 1,
}

_DATA_TYPES = {
    "UINT8": pb.TYPE_UINT8,
    "INT32": pb.TYPE_INT32,
    "INT64": pb.TYPE_INT64,
    "FP32": pb.TYPE_FP32,
}

Dims = Mapping[TensorSpec, Sequence[int]]  # tensors with their dimensions, batch axis omitted
Sample = Mapping[TensorSpec, npt.NDArray[Any]]  # one warm-up request: inputs without batch axis


@dataclass(frozen=True)
class ModelNames:
    """Names of the models that the ensemble references, each with the first 12 hex digits of a SHA-256.

    Attributes:
        images: the image encoder of each CLIP, such as ``clip_image_0123456789ab``.
        texts: the text encoder of each CLIP, such as ``clip_text_0123456789ab``.
        head: the head, such as ``gated_head_ba9876543210``.
    """

    images: tuple[str, ...]
    texts: tuple[str, ...]
    head: str

    @property
    def encoders(self) -> list[tuple[str, str]]:
        """The image and the text encoder of each CLIP."""
        return list(zip(self.images, self.texts, strict=True))

    @property
    def all(self) -> list[str]:
        """Every name, in the order of the ensemble's steps."""
        return [*(name for pair in self.encoders for name in pair), self.head]


@dataclass(frozen=True)
class ClipSizes:
    """Image size, embedding dimension and resize mode of a CLIP."""

    image_size: int  # S, pixels
    embed_dim: int  # D
    squash: bool = False  # photos are resized to a square without cropping


@dataclass(frozen=True)
class HeadSizes:
    """Dimensions of a head's tensors."""

    embed_dims: tuple[int, ...]  # D of each CLIP
    answers: int  # V
    answer_types: int  # K
    quality_issues: int = 0  # Q; 0: the head has no output `quality`


def image_config(name: str, sizes: ClipSizes, graph: Path, kind: GraphKind) -> Any:
    """Configuration of the image encoder ``name`` with the ONNX file ``graph``."""
    inputs = {tensors.IMAGE: (sizes.image_size, sizes.image_size, 3)}
    config = _encoder_config(name, inputs, {tensors.IMAGE_FEATURES: (sizes.embed_dim,)}, graph, kind)
    if sizes.squash:
        config.parameters[tensors.RESIZE_PARAMETER].string_value = tensors.SQUASH
    return config


def text_config(name: str, sizes: ClipSizes, graph: Path, kind: GraphKind) -> Any:
    """Configuration of the text encoder ``name`` with the ONNX file ``graph``."""
    inputs = {tensors.TOKENS: tensors.TOKENS.shape}
    config = _encoder_config(name, inputs, {tensors.TEXT_FEATURES: (sizes.embed_dim,)}, graph, kind)
    config.response_cache.enable = True  # of this model alone: docs/architecture.md says why
    if kind.device == "cpu":
        config.parameters[tensors.NICE_PARAMETER].string_value = TEXT_ENCODER_NICE
    return config


def head_config(name: str, sizes: HeadSizes, graph: Path, kind: GraphKind, parameters: Mapping[str, str] = {}) -> Any:
    """Configuration of the head ``name``, with labels, beside encoders of ``kind``.

    ``parameters`` for clients: :func:`serving.repository.ensemble_config` copies them into the ensemble.
    """
    clips = len(sizes.embed_dims)
    inputs = {
        spec: (embed_dim,)
        for both in (tensors.IMAGE_FEATURES, tensors.TEXT_FEATURES)
        for spec, embed_dim in zip(tensors.of_each_clip(both, clips), sizes.embed_dims, strict=True)
    }
    outputs = {
        tensors.ANSWER: (sizes.answers,),
        tensors.ANSWER_TYPE: (sizes.answer_types,),
        tensors.ANSWERABLE: (1,),
        tensors.HEAD_ID: (1,),
        **({tensors.QUALITY: (sizes.quality_issues,)} if sizes.quality_issues else {}),
    }
    config = _onnx_config(name, inputs, outputs, graph)
    for output in config.output:
        if output.name in (tensors.ANSWER.name, tensors.ANSWER_TYPE.name, tensors.QUALITY.name):
            output.label_filename = f"{output.name}.txt"
            digest = file_digest(graph.parents[1] / output.label_filename)
            config.parameters[tensors.LABELS_DIGEST_PARAMETER + output.label_filename].string_value = digest
    _set_cuda_parameters(config, kind)
    _set_parameters(config, parameters)
    config.parameters["intra_op_thread_count"].string_value = HEAD_THREADS
    return config


def add_warmup(folder: Path, config: Any, samples: Mapping[str, Sample], kind: GraphKind) -> None:
    """Let Triton run each sample at every warm-up batch size before it reports the model as ready.

    Args:
        folder: the model's folder; the samples' tensors are written below it.
        config: the model's configuration, to which the samples are added.
        samples: requests by name.
        kind: of the encoders' graphs, which decides the batch sizes.
    """
    (folder / WARMUP_FOLDER).mkdir()
    data_types = {tensor.name: tensor.data_type for tensor in config.input}
    for name, sample in samples.items():
        for spec, value in sample.items():
            (folder / WARMUP_FOLDER / f"{name}.{spec.name}").write_bytes(value.tobytes())
        for batch_size in WARMUP_BATCH_SIZES[kind.device]:
            warmup = config.model_warmup.add(name=f"{name} x {batch_size}", batch_size=batch_size)
            for spec, value in sample.items():
                tensor = warmup.inputs[spec.name]
                tensor.data_type = data_types[spec.name]
                tensor.dims.extend(value.shape)
                tensor.input_data_file = f"{name}.{spec.name}"


def text_samples(question: str) -> dict[str, Sample]:
    """``question``, extended to each length that the text graph computes."""
    samples: dict[str, Sample] = {}
    for length in tensors.TOKEN_LENGTHS:
        used = np.count_nonzero(tokenizer.tokenize(question).ids)
        ids = tokenizer.tokenize(question + " " + "word " * (length - used)).ids  # "word" is one token
        samples[f"{length} tokens"] = {tensors.TOKENS: tokenizer.pad(ids, tensors.CONTEXT_LENGTH)}
    return samples


def _onnx_config(name: str, inputs: Dims, outputs: Dims, graph: Path) -> Any:
    """An ONNX model, in fields that Triton 2.51 and the native backend both understand."""
    config = pb.ModelConfig(name=name, backend="onnxruntime", max_batch_size=tensors.MAX_BATCH_SIZE)
    _add_tensors(config.input, inputs)
    _add_tensors(config.output, outputs)
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_AUTO, count=1)
    _enable_batching(config)
    config.parameters[tensors.MODEL_DIGEST_PARAMETER].string_value = file_digest(graph)
    return config


def _encoder_config(name: str, inputs: Dims, outputs: Dims, graph: Path, kind: GraphKind) -> Any:
    config = _onnx_config(name, inputs, outputs, graph)
    accelerators = config.optimization.execution_accelerators
    if kind.accelerator is not None:
        # the native backend reads the name alone, and OpenVINO there chooses the precision
        accelerator = accelerators.cpu_execution_accelerator.add(name=OPENVINO)
        accelerator.parameters[tensors.PRECISION_PARAMETER] = OPENVINO_HINT
    if kind.device == "tensorrt":
        options = _tensorrt_options(name, inputs)
        accelerators.gpu_execution_accelerator.add(name=TENSORRT).parameters.update(options)
    _set_cuda_parameters(config, kind)  # for TensorRT too: CUDA computes what TensorRT cannot
    if kind.device == "cpu":
        config.dynamic_batching.preferred_batch_size.append(CPU_BATCH_SIZE)
    return config


def _set_cuda_parameters(config: Any, kind: GraphKind) -> None:
    if kind.device in ("cuda", "tensorrt"):
        _set_parameters(config, {key: str(value) for key, value in _CUDA_PARAMETERS.items()})


def _tensorrt_options(name: str, inputs: Dims) -> dict[str, str]:
    """fp16, cached engines, and one engine for every batch size."""

    def shapes(batch: int) -> str:
        return ",".join(f"{spec.name}:{'x'.join(map(str, (batch, *dims)))}" for spec, dims in inputs.items())

    return {
        "precision_mode": "FP16",
        "trt_layer_norm_fp32_fallback": "1",
        "max_workspace_size_bytes": str(_GIB),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": TENSORRT_CACHE,
        "trt_engine_cache_prefix": name,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": TENSORRT_CACHE,
        "trt_profile_min_shapes": shapes(1),
        "trt_profile_opt_shapes": shapes(TENSORRT_OPT_BATCH),
        "trt_profile_max_shapes": shapes(tensors.MAX_BATCH_SIZE),
    }


def _set_parameters(config: Any, parameters: Mapping[str, str]) -> None:
    for key, value in parameters.items():
        config.parameters[key].string_value = value


def _add_tensors(field: Any, dims: Dims) -> None:
    for spec, shape in dims.items():
        field.add(name=spec.name, data_type=_DATA_TYPES[spec.datatype], dims=shape)


def _enable_batching(config: Any) -> None:
    """Batch requests that wait already; delay none.

    No queue timeout: under one, Triton's batcher miscounts idle instances and waits half a second with requests queued
    (https://github.com/triton-inference-server/server/issues/8870).
    """
    config.dynamic_batching.SetInParent()
