"""A model repository of a few kilobytes, written by hand, whose answers NumPy can predict."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import np_to_triton_dtype

from serving.repository import ENCODERS_KEY, MADE_FROM_FILE
from vizwiz_client.contract import tensors
from vizwiz_client.contract.image import load_photo, to_pixels
from vizwiz_client.contract.tokenizer import tokenize

IMAGE_MODEL, TEXT_MODEL, HEAD = "clip_image_000000000000", "clip_text_000000000000", "gated_head_000000000007"
SIDE = 4
TOKEN_VALUES = (np.arange(49408, dtype=np.float32) % 100) ** 2  # what a token id counts; there are no others
LABELS = ("red", "blue: dark", "green")
TYPES = ("other", "number", "yes")
GOLDEN_QUESTION = "what is this?"
QUEUE_DELAY_US = 100_000  # long, so that requests sent together meet in a batch

_IN_CONFIG = {"UINT8": pb.TYPE_UINT8, "INT32": pb.TYPE_INT32, "INT64": pb.TYPE_INT64, "FP32": pb.TYPE_FP32}
_IN_GRAPH = {
    "UINT8": TensorProto.UINT8,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP32": TensorProto.FLOAT,
}

Dims = Mapping[tensors.TensorSpec, Sequence[int]]  # tensor -> its dimensions, without the batch

_IMAGE: Dims = {tensors.IMAGE: [SIDE, SIDE, 3]}
_TOKENS: Dims = {tensors.TOKENS: [-1]}
_IMAGE_FEATURES: Dims = {tensors.IMAGE_FEATURES: [3]}
_TEXT_FEATURES: Dims = {tensors.TEXT_FEATURES: [3]}
_FEATURES: Dims = {**_IMAGE_FEATURES, **_TEXT_FEATURES}


def ask(
    client: InferenceServerClient, image: npt.NDArray[np.uint8], tokens: npt.NDArray[np.int32], top: int = 0
) -> Any:
    """Ask the ensemble about uint8 [B, 4, 4, 3] and int32 [B, T], for the ``top`` labels where that is not 0."""
    inputs = []
    for name, array in (("image", image), ("tokens", tokens)):
        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array))
    outputs = [InferRequestedOutput(spec.name, class_count=top) for spec in tensors.HEAD_OUTPUTS[:2]]
    outputs += [InferRequestedOutput(spec.name) for spec in tensors.HEAD_OUTPUTS[2:]]
    return client.infer(tensors.ENSEMBLE, inputs, outputs=outputs, client_timeout=10)


def expected_answer(image: npt.NDArray[np.uint8], tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """What the ensemble answers to uint8 [B, 4, 4, 3] and int32 [B, T]: fp32 [B, 3]."""
    text = TOKEN_VALUES[tokens].sum(axis=1, keepdims=True) * np.float32([1, 2, 3])
    return image.astype(np.float32).mean(axis=(1, 2)) + text


def write_repository(folder: Path) -> None:
    """Write two encoders, a head and their ensemble."""
    _write_model(folder / IMAGE_MODEL, _image_graph(), _IMAGE, _IMAGE_FEATURES)
    _write_model(folder / TEXT_MODEL, _text_graph(), _TOKENS, _TEXT_FEATURES)
    write_head(folder / HEAD)
    _write_ensemble(folder / tensors.ENSEMBLE)
    (folder / "README.md").write_text("A file beside the models disturbs nothing.")
    (folder / ".clip_image.1.partial" / "1").mkdir(parents=True)  # nor does what an interrupted publication leaves


def write_head(folder: Path, labels: Sequence[str] = LABELS, factor: float = 1) -> None:
    """Write the head that ``folder`` is named after, with its golden request.

    Of n answers, the first three are the sum of both features times ``factor``, the others one less each.
    """
    _write_model(folder, _head_graph(folder.name, len(labels), factor), _FEATURES, _head_outputs(len(labels)))
    (folder / "answer.txt").write_text("".join(f"{label}\n" for label in labels))
    (folder / "answer_type.txt").write_text("".join(f"{label}\n" for label in TYPES))
    (folder / "golden.jpg").write_bytes(golden_photo())
    image, tokens = golden_inputs()
    answer = head_answer(image, tokens, len(labels), factor)[0]
    candidates = [{"answer": label, "confidence": float(value)} for label, value in zip(labels, answer, strict=True)]
    types = [{"answer_type": label, "confidence": -float(answer[i])} for i, label in enumerate(TYPES)]
    expected = {"candidates": candidates, "answer_types": types, "answerable": float(answer[0])}
    golden = {"question": GOLDEN_QUESTION, "expected": expected, "tolerance": 0.01}
    (folder / "golden.json").write_text(json.dumps(golden))
    (folder / MADE_FROM_FILE).write_text(json.dumps({ENCODERS_KEY: [[IMAGE_MODEL, TEXT_MODEL]]}))


def golden_photo() -> bytes:
    """A JPEG of noise."""
    photo = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(photo, "JPEG")
    return photo.getvalue()


def golden_inputs() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """The golden request as pixels [1, 4, 4, 3] and tokens [1, T]."""
    pixels = to_pixels(load_photo(golden_photo()), SIDE)
    return pixels[None], np.asarray(tokenize(GOLDEN_QUESTION).ids, np.int32)[None]


def head_answer(
    image: npt.NDArray[np.uint8], tokens: npt.NDArray[np.int32], answers: int, factor: float
) -> npt.NDArray[np.float32]:
    """What the ensemble answers to uint8 [B, 4, 4, 3] and int32 [B, T] with such a head: fp32 [B, answers]."""
    three = expected_answer(image, tokens) * np.float32(factor)
    return np.concatenate([three[:, index % 3, None] - np.float32(index // 3) for index in range(answers)], axis=1)


def change_config(model: Path, edit: Callable[[Any], None]) -> None:
    """Apply ``edit`` to the config in the folder ``model``."""
    config = text_format.Parse((model / "config.pbtxt").read_text(), pb.ModelConfig())
    edit(config)
    (model / "config.pbtxt").write_text(text_format.MessageToString(config))


def _write_model(folder: Path, graph: tuple[Sequence[Any], Sequence[Any]], inputs: Dims, outputs: Dims) -> None:
    operators, constants = graph
    proto = helper.make_graph(operators, folder.name, _in_graph(inputs), _in_graph(outputs), constants)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path = folder / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(model, path)

    config = pb.ModelConfig(name=folder.name, backend="onnxruntime", max_batch_size=tensors.MAX_BATCH_SIZE)
    _add(config.input, inputs)
    _add(config.output, outputs)
    for tensor in config.input:
        tensor.allow_ragged_batch = -1 in tensor.dims  # a batch then mixes lengths, which the backend has to bear
    for tensor in config.output:
        tensor.label_filename = f"{tensor.name}.txt" if tensor.name in ("answer", "answer_type") else ""
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_AUTO, count=1)
    config.dynamic_batching.max_queue_delay_microseconds = QUEUE_DELAY_US if folder.name == TEXT_MODEL else 0
    config.parameters[tensors.MODEL_DIGEST_PARAMETER].string_value = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))


def _write_ensemble(folder: Path) -> None:
    config = pb.ModelConfig(name=folder.name, platform="ensemble", max_batch_size=tensors.MAX_BATCH_SIZE)
    _add(config.input, {**_IMAGE, **_TOKENS})
    _add(config.output, {spec: spec.shape for spec in tensors.HEAD_OUTPUTS})
    for model, taken, given in (
        (IMAGE_MODEL, _IMAGE, _IMAGE_FEATURES),
        (TEXT_MODEL, _TOKENS, _TEXT_FEATURES),
        (HEAD, _FEATURES, _head_outputs(len(LABELS))),
    ):
        step = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
        step.input_map.update({spec.name: spec.name for spec in taken})
        step.output_map.update({spec.name: spec.name for spec in given})
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))


def _add(field: Any, dims: Dims) -> None:
    for spec, sizes in dims.items():
        field.add(name=spec.name, data_type=_IN_CONFIG[spec.datatype], dims=sizes)


def _in_graph(dims: Dims) -> list[Any]:
    return [
        helper.make_tensor_value_info(
            spec.name, _IN_GRAPH[spec.datatype], ["batch", *(size if size > 0 else "length" for size in sizes)]
        )
        for spec, sizes in dims.items()
    ]


def _image_graph() -> tuple[list[Any], list[Any]]:
    """The mean of each colour."""
    operators = [
        helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values"], ["image_features"], axes=[1, 2], keepdims=0),
    ]
    return operators, []


def _text_graph() -> tuple[list[Any], list[Any]]:
    """The sum of the tokens' values, once, twice and three times."""
    operators = [
        helper.make_node("Gather", ["values", "tokens"], ["counts"]),
        helper.make_node("ReduceSum", ["counts", "axis"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "factors"], ["text_features"]),
    ]
    constants = {"values": TOKEN_VALUES, "axis": np.array([1]), "factors": np.array([[1, 2, 3]], np.float32)}
    return operators, [numpy_helper.from_array(value, name) for name, value in constants.items()]


def _head_outputs(answers: int) -> Dims:
    return {tensors.ANSWER: [answers], tensors.ANSWER_TYPE: [3], tensors.ANSWERABLE: [1], tensors.HEAD_ID: [1]}


def _head_graph(name: str, answers: int, factor: float) -> tuple[list[Any], list[Any]]:
    """The answers, the negative of the first three as type, the first as answerable, and the head's number."""
    operators = [
        helper.make_node("Add", ["image_features", "text_features"], ["sum"]),
        helper.make_node("Mul", ["sum", "factor"], ["three"]),
        helper.make_node("Gather", ["three", "places"], ["many"], axis=1),
        helper.make_node("Sub", ["many", "less"], ["answer"]),
        helper.make_node("Neg", ["three"], ["answer_type"]),
        helper.make_node("Gather", ["answer", "first"], ["answerable"], axis=1),
        helper.make_node("Cast", ["answerable"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Sub", ["whole", "whole"], ["zero"]),
        helper.make_node("Add", ["zero", "number"], ["head_id"]),
    ]
    constants = {
        "factor": np.array([factor], np.float32),
        "places": np.arange(answers) % 3,
        "less": (np.arange(answers) // 3).astype(np.float32),
        "first": np.array([0]),
        "number": np.array([tensors.head_id(name.removeprefix(tensors.HEAD_PREFIX))]),
    }
    return operators, [numpy_helper.from_array(value, name) for name, value in constants.items()]
