"""PyTorch modules to ONNX graphs with the contract's names, shapes and types."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import Message
from torch import Tensor, nn

from vizwiz_client.contract.tensors import TensorSpec

OPSET = 20  # ai.onnx: read by ONNX Runtime 1.17 and later
_BATCH = "batch"


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
) -> None:
    """Export ``module`` to ``path``, batch axis free.

    Args:
        example: one tensor per input, batch of at least 2: a size of 1 would be taken for a constant.
        free_length: the second axis of the first input is free too.

    Raises:
        GraphError: the graph that came out does not have the contract's names and types.
    """
    batch = torch.export.Dim(_BATCH)
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
    save_graph(program.model_proto, path)
    _check_signature(path, inputs, outputs)


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write ``model``, whose weights are taken from it, to ``path``: one file, one digest.

    It is what ``onnx.save`` writes, which holds five copies of the weights on its way; here it is one tensor at a time.
    Every OpenAI CLIP fits protobuf's 2 GB.
    """
    weights = list(model.graph.initializer)
    del model.graph.initializer[:]
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    sizes = [weight.ByteSize() for weight in weights]
    beginnings = [_beginning(onnx.GraphProto, "initializer", size) for size in sizes]
    whole = len(graph) + sum(map(len, beginnings)) + sum(sizes)
    with path.open("wb") as file:
        file.write(model.SerializeToString())
        file.write(_beginning(onnx.ModelProto, "graph", whole) + graph)
        for beginning, weight in zip(beginnings, weights, strict=True):
            file.write(beginning)
            file.write(weight.SerializeToString())


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


def _check_signature(path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    graph = onnx.load(path, load_external_data=False).graph
    for given, expected in ((graph.input, inputs), (graph.output, outputs)):
        got = [(value.name, onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)) for value in given]
        want = [(spec.name, spec.dtype) for spec in expected]
        if got != want:
            raise GraphError(f"{path.name}: the graph has {got}, the contract says {want}")
