"""The configurations of a Triton model repository; :mod:`export.store` puts them in their place.

Every model but the ensembles is immutable and named by a digest of what it was made from. The ensembles' configurations
name those that answer together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export.accelerators import accelerate, bound_on_cuda
from export.targets import Target
from training.artifacts import file_digest, staged_file
from vizwiz_client.contract import tensors
from vizwiz_client.contract.tensors import TensorSpec

CONFIG_FILE = "config.pbtxt"
GRAPH_FILE = "model.onnx"
PYTHON_FILE = "model.py"  # of a model of Triton's Python backend
VERSION = "1"  # the only one: a changed model is another model

# Requests. Bounded on a step that is alone in its turn: of steps that run side by side, Triton 2.51 loses the requests
# that it refuses, or crashes (measured; docs/architecture.md).
MAX_PHOTOS_WAITING = 128

# Of what waits, so many are taken at once where a CPU computes: on two cores, 16 at once of ViT-B/32's size answer a
# fifth fewer questions a second than two times 8 do (docs/results.md, tuning).
CPU_BATCH = 8

# The text encoder has the cores when the image encoder, which takes several times as long, leaves them: taking turns in
# equal shares, each waits in the midst of its products for threads of the other (docs/results.md, tuning).
YIELDING = "5"

_DATA_TYPES = {
    "UINT8": pb.TYPE_UINT8,
    "INT32": pb.TYPE_INT32,
    "INT64": pb.TYPE_INT64,
    "FP32": pb.TYPE_FP32,
    "BYTES": pb.TYPE_STRING,
}


_RAW_INPUTS = (tensors.IMAGE_BYTES, tensors.QUESTION)
_Step = tuple[str, Sequence[TensorSpec], Sequence[TensorSpec]]  # of an ensemble: model, inputs, outputs


@dataclass(frozen=True)
class Names:
    """The immutable models of one answer chain."""

    image: str
    text: str
    head: str
    preprocess: str


@dataclass(frozen=True)
class Sizes:
    """What a CLIP and a head decide: S in pixels, D features, V answers, K answer types."""

    side: int
    features: int
    answers: int
    types: int


def model_config(
    name: str,
    inputs: Mapping[TensorSpec, Sequence[int]],
    outputs: Mapping[TensorSpec, Sequence[int]],
    labels: Mapping[TensorSpec, str],
    graph: Path,
    target: Target | None = None,
) -> Any:
    """Configuration of an ONNX model; only fields that Triton 2.51 and the native backend both understand.

    Args:
        inputs, outputs: each tensor with its dimensions, batch left out.
        labels: the label file of an output, in the model's folder.
        target: decides whether a CPU computes it with an accelerator.
    """
    config = pb.ModelConfig(name=name, backend="onnxruntime", max_batch_size=tensors.MAX_BATCH_SIZE)
    _add_tensors(config.input, inputs)
    _add_tensors(config.output, outputs)
    for output in config.output:
        output.label_filename = {spec.name: file for spec, file in labels.items()}.get(output.name, "")
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_AUTO, count=1)
    if target is not None:
        accelerate(config, target, inputs)
    _add_batching(config)
    config.parameters[tensors.MODEL_DIGEST_PARAMETER].string_value = file_digest(graph)
    for file in labels.values():
        digest = file_digest(graph.parents[1] / file)
        config.parameters[tensors.LABELS_DIGEST_PARAMETER + file].string_value = digest
    return config


def image_config(name: str, sizes: Sizes, graph: Path, target: Target) -> Any:
    """Configuration of the image encoder."""
    image = {tensors.IMAGE: (sizes.side, sizes.side, 3)}
    return _encoder_config(name, image, {tensors.IMAGE_FEATURES: (sizes.features,)}, graph, target)


def text_config(name: str, sizes: Sizes, graph: Path, target: Target) -> Any:
    """Configuration of the text encoder."""
    text = {tensors.TOKENS: tensors.TOKENS.shape}
    config = _encoder_config(name, text, {tensors.TEXT_FEATURES: (sizes.features,)}, graph, target)
    config.response_cache.enable = True  # of this model alone: docs/architecture.md says why
    if target.device == "cpu":
        config.parameters[tensors.NICE_PARAMETER].string_value = YIELDING
    return config


def _encoder_config(
    name: str,
    inputs: Mapping[TensorSpec, Sequence[int]],
    outputs: Mapping[TensorSpec, Sequence[int]],
    graph: Path,
    target: Target,
) -> Any:
    config = model_config(name, inputs, outputs, {}, graph, target)
    if target.device == "cpu":
        config.dynamic_batching.preferred_batch_size.append(CPU_BATCH)
    return config


def head_config(name: str, sizes: Sizes, graph: Path, target: Target) -> Any:
    """Configuration of a head, whose answers and types Triton labels, beside encoders of ``target``."""
    features = {tensors.IMAGE_FEATURES: (sizes.features,), tensors.TEXT_FEATURES: (sizes.features,)}
    outputs = {
        tensors.ANSWER: (sizes.answers,),
        tensors.ANSWER_TYPE: (sizes.types,),
        tensors.ANSWERABLE: (1,),
        tensors.HEAD_ID: (1,),
    }
    labels = {tensors.ANSWER: f"{tensors.ANSWER.name}.txt", tensors.ANSWER_TYPE: f"{tensors.ANSWER_TYPE.name}.txt"}
    config = model_config(name, features, outputs, labels, graph)
    bound_on_cuda(config, target)
    config.parameters["intra_op_thread_count"].string_value = "2"  # two read its weights faster; its products are small
    return config


def preprocess_config(name: str, sizes: Sizes, model: Path) -> Any:
    """Configuration of the model that makes pixels and tokens; ``model`` is its Python file."""
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=tensors.MAX_BATCH_SIZE)
    _add_tensors(config.input, {spec: spec.shape for spec in _RAW_INPUTS})
    _add_tensors(config.output, {**_pixels_and_tokens(sizes), tensors.ERROR: tensors.ERROR.shape})
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    _add_batching(config)
    config.dynamic_batching.default_queue_policy.max_queue_size = MAX_PHOTOS_WAITING
    config.parameters[tensors.CONTRACT_VERSION_PARAMETER].string_value = str(tensors.CONTRACT_VERSION)
    config.parameters[tensors.MODEL_DIGEST_PARAMETER].string_value = file_digest(model)
    return config


def ensemble_configs(names: Names, sizes: Sizes) -> list[Any]:
    """Configurations of the ensembles that clients ask, in the order in which they are to be written.

    The answer's length stays open, so that a head with another vocabulary fits the same ensembles.
    """
    encoders_and_head: list[_Step] = [
        (names.image, [tensors.IMAGE], [tensors.IMAGE_FEATURES]),
        (names.text, [tensors.TOKENS], [tensors.TEXT_FEATURES]),
        (names.head, [tensors.IMAGE_FEATURES, tensors.TEXT_FEATURES], tensors.HEAD_OUTPUTS),
    ]
    preprocess: _Step = (names.preprocess, _RAW_INPUTS, [tensors.IMAGE, tensors.TOKENS, tensors.ERROR])
    raw_inputs = {spec: spec.shape for spec in _RAW_INPUTS}
    raw_outputs = [*tensors.HEAD_OUTPUTS, tensors.ERROR]
    return [
        _ensemble_config(tensors.RAW_ENSEMBLE, raw_inputs, raw_outputs, [preprocess, *encoders_and_head]),
        _ensemble_config(tensors.ENSEMBLE, _pixels_and_tokens(sizes), tensors.HEAD_OUTPUTS, encoders_and_head),
    ]


def _ensemble_config(
    name: str, inputs: Mapping[TensorSpec, Sequence[int]], outputs: Sequence[TensorSpec], steps: Sequence[_Step]
) -> Any:
    config = pb.ModelConfig(name=name, platform="ensemble", max_batch_size=tensors.MAX_BATCH_SIZE)
    _add_tensors(config.input, inputs)
    _add_tensors(config.output, {spec: spec.shape for spec in outputs})
    for model, taken, given in steps:
        step = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
        step.input_map.update({spec.name: spec.name for spec in taken})
        step.output_map.update({spec.name: spec.name for spec in given})
    config.parameters[tensors.CONTRACT_VERSION_PARAMETER].string_value = str(tensors.CONTRACT_VERSION)
    return config


def write_config(path: Path, config: Any) -> None:
    """Write a configuration as the text that Triton reads, whole or not at all."""
    with staged_file(path) as staging:
        staging.write_text(text_format.MessageToString(config), encoding="utf-8")


def write_labels(path: Path, labels: Sequence[str]) -> None:
    """Write a label file: one label a line, whose number is the index."""
    path.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def _add_tensors(field: Any, specs: Mapping[TensorSpec, Sequence[int]]) -> None:
    for spec, dims in specs.items():
        field.add(name=spec.name, data_type=_DATA_TYPES[spec.datatype], dims=dims)


def _pixels_and_tokens(sizes: Sizes) -> dict[TensorSpec, Sequence[int]]:
    return {tensors.IMAGE: (sizes.side, sizes.side, 3), tensors.TOKENS: tensors.TOKENS.shape}


def _add_batching(config: Any) -> None:
    """Batch what waits already, and delay nothing.

    No time limit of the queue: under one, Triton's batcher stops counting idle instances right, and waits half a second
    with work in hand (https://github.com/triton-inference-server/server/issues/8870).
    """
    config.dynamic_batching.SetInParent()
