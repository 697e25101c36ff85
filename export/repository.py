"""The configurations of a Triton model repository; :mod:`export.store` puts them in their place.

Every model but the ensemble is immutable and named by a digest of what it was made from. The ensemble's configuration
names the three that answer together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export.targets import Target
from training.storage import file_digest, staged_file
from vizwiz_client.contract import tensors
from vizwiz_client.contract.tensors import TensorSpec

CONFIG_FILE = "config.pbtxt"
GRAPH_FILE = "model.onnx"
VERSION = "1"  # the only one: a changed model is another model

_DATA_TYPES = {"UINT8": pb.TYPE_UINT8, "INT32": pb.TYPE_INT32, "INT64": pb.TYPE_INT64, "FP32": pb.TYPE_FP32}


@dataclass(frozen=True)
class Names:
    """The three immutable models of one answer chain."""

    image: str
    text: str
    head: str


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
    if target is not None and target.accelerator is not None:
        # the native backend reads the name alone: OpenVINO there chooses the precision itself
        accelerator = config.optimization.execution_accelerators.cpu_execution_accelerator.add(name=target.accelerator)
        accelerator.parameters[tensors.PRECISION_PARAMETER] = target.hint
    config.dynamic_batching.SetInParent()  # batches what waits already, and delays nothing
    config.parameters[tensors.MODEL_DIGEST_PARAMETER].string_value = file_digest(graph)
    for file in labels.values():
        digest = file_digest(graph.parents[1] / file)
        config.parameters[tensors.LABELS_DIGEST_PARAMETER + file].string_value = digest
    return config


def image_config(name: str, sizes: Sizes, graph: Path, target: Target) -> Any:
    """Configuration of the image encoder."""
    image = {tensors.IMAGE: (sizes.side, sizes.side, 3)}
    return model_config(name, image, {tensors.IMAGE_FEATURES: (sizes.features,)}, {}, graph, target)


def text_config(name: str, sizes: Sizes, graph: Path, target: Target) -> Any:
    """Configuration of the text encoder: questions of any length up to the context's."""
    return model_config(name, {tensors.TOKENS: (-1,)}, {tensors.TEXT_FEATURES: (sizes.features,)}, {}, graph, target)


def head_config(name: str, sizes: Sizes, graph: Path) -> Any:
    """Configuration of a head, whose answers and types Triton labels."""
    features = {tensors.IMAGE_FEATURES: (sizes.features,), tensors.TEXT_FEATURES: (sizes.features,)}
    outputs = {
        tensors.ANSWER: (sizes.answers,),
        tensors.ANSWER_TYPE: (sizes.types,),
        tensors.ANSWERABLE: (1,),
        tensors.HEAD_ID: (1,),
    }
    labels = {tensors.ANSWER: f"{tensors.ANSWER.name}.txt", tensors.ANSWER_TYPE: f"{tensors.ANSWER_TYPE.name}.txt"}
    return model_config(name, features, outputs, labels, graph)


def ensemble_config(names: Names, sizes: Sizes) -> Any:
    """Configuration of the ensemble that clients ask: both encoders, then the head.

    The answer's length stays open, so that a head with another vocabulary fits the same ensemble.
    """
    config = pb.ModelConfig(name=tensors.ENSEMBLE, platform="ensemble", max_batch_size=tensors.MAX_BATCH_SIZE)
    _add_tensors(config.input, {tensors.IMAGE: (sizes.side, sizes.side, 3), tensors.TOKENS: (-1,)})
    _add_tensors(config.output, {spec: spec.shape for spec in tensors.HEAD_OUTPUTS})
    for name, inputs, outputs in (
        (names.image, [tensors.IMAGE], [tensors.IMAGE_FEATURES]),
        (names.text, [tensors.TOKENS], [tensors.TEXT_FEATURES]),
        (names.head, [tensors.IMAGE_FEATURES, tensors.TEXT_FEATURES], tensors.HEAD_OUTPUTS),
    ):
        step = config.ensemble_scheduling.step.add(model_name=name, model_version=-1)
        step.input_map.update({spec.name: spec.name for spec in inputs})
        step.output_map.update({spec.name: spec.name for spec in outputs})
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
