"""PyTorch modules to ONNX graphs with the contract's names, shapes and types."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from google.protobuf.message import Message
from onnx import helper
from torch import Tensor, nn

from vizwiz_client.contract.tensors import TensorSpec

OPSET = 20  # ai.onnx: read by ONNX Runtime 1.17 and later
BATCH = "batch"  # name of the free axis


class GraphError(Exception):
    """An exported graph whose inputs or outputs are not the contract's."""


def write_graph(
    module: nn.Module,
    example: Sequence[Tensor],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    path: Path,
    *,
    free_length: bool = False,
    edit: Callable[[onnx.GraphProto], None] | None = None,
) -> onnx.GraphProto:
    """Export ``module`` to ``path``, batch axis free.

    Args:
        example: one tensor per input, batch of at least 2: a size of 1 would be taken for a constant.
        free_length: the second axis of the first input is free too.
        edit: changes the graph, without the module's weights, before it is written.

    Returns:
        What was written, without the module's weights.

    Raises:
        GraphError: the graph that came out does not have the contract's names and types.
    """
    batch = torch.export.Dim(BATCH)
    axes: list[dict[int, Any]] = [{0: batch} for _ in example]
    if free_length:
        axes[0][1] = torch.export.Dim("length", max=example[0].shape[1])
    with warnings.catch_warnings():
        # two inputs share the batch axis, as they should
        warnings.filterwarnings("ignore", message=".*shares the same shape constraints")
        program = torch.onnx.export(
            module.eval(),
            tuple(example),
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            dynamic_shapes=tuple(axes),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    constants = program.model.graph.initializers
    weights = [
        _Weight.of_array(name, value.const_value.numpy())
        for name, value in constants.items()
        if value.const_value is not None
    ]
    constants.clear()
    model = program.model_proto
    if edit:
        edit(model.graph)
    _check_signature(model.graph, inputs, outputs)
    _write(model, [*_taken_from(model), *weights], path)
    return model.graph


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write ``model``, whose weights are taken from it, to ``path``: one file, one digest.

    It is what ``onnx.save`` writes, which holds five copies of the weights on its way; here it is one tensor at a time.
    Every OpenAI CLIP fits protobuf's 2 GB.
    """
    _write(model, _taken_from(model), path)


class _Weight(NamedTuple):
    """A ``TensorProto`` to be written: so many bytes, in pieces that are made when they are asked for."""

    size: int
    pieces: Callable[[], Sequence[bytes | memoryview]]

    @classmethod
    def of_proto(cls, proto: onnx.TensorProto) -> _Weight:
        return cls(proto.ByteSize(), lambda: [proto.SerializeToString()])

    @classmethod
    def of_array(cls, name: str, array: npt.NDArray[Any]) -> _Weight:
        """Of a little-endian ``array``, which is copied only where its rows are not one after the other."""
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        shape = onnx.TensorProto(name=name, data_type=kind, dims=array.shape).SerializeToString()
        beginning = shape + _beginning(onnx.TensorProto, "raw_data", array.nbytes)
        return cls(len(beginning) + array.nbytes, lambda: [beginning, np.ascontiguousarray(array).data.cast("B")])


def _taken_from(model: onnx.ModelProto) -> list[_Weight]:
    weights = [_Weight.of_proto(weight) for weight in model.graph.initializer]
    del model.graph.initializer[:]
    return weights


def _write(model: onnx.ModelProto, weights: Sequence[_Weight], path: Path) -> None:
    """Write ``model``, which has no weights, with ``weights``."""
    graph = model.graph.SerializeToString()
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    beginnings = [_beginning(onnx.GraphProto, "initializer", weight.size) for weight in weights]
    whole = len(graph) + sum(
        len(beginning) + weight.size for beginning, weight in zip(beginnings, weights, strict=True)
    )
    with path.open("wb") as file:
        file.write(rest.SerializeToString())
        file.write(_beginning(onnx.ModelProto, "graph", whole) + graph)
        for beginning, weight in zip(beginnings, weights, strict=True):
            file.write(beginning)
            file.writelines(weight.pieces())


def _beginning(message: type[Message], field: str, size: int) -> bytes:
    """What precedes the ``size`` bytes of a submessage: https://protobuf.dev/programming-guides/encoding/"""
    length_prefixed = 2
    return _varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | length_prefixed) + _varint(size)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first, and the eighth set on all but the last."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _check_signature(graph: onnx.GraphProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    for given, expected in ((graph.input, inputs), (graph.output, outputs)):
        got = [(value.name, helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)) for value in given]
        want = [(spec.name, spec.dtype) for spec in expected]
        if got != want:
            raise GraphError(f"the graph that was exported has {got}, the contract says {want}")
