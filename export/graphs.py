"""ONNX graphs, written node by node, and their files, written one weight at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from vizwiz_client.contract.tensors import TensorSpec

OPSET = 20  # ai.onnx: read by ONNX Runtime 1.17 and later
MICROSOFT = "com.microsoft"  # https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
_IR_VERSION = 9  # of that opset
_OPSETS = {"": OPSET, MICROSOFT: 1}
_KINDS = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}


class GraphError(Exception):
    """A graph that is not what its target promises."""


class GraphBuilder:
    """A graph in the making. Values are known by their names, which :meth:`add` returns.

    It computes in ``dtype``, fp32 or fp16, but where :meth:`wide` says otherwise.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        """Begin an empty graph."""
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self._weights: list[_Weight] = []
        self._constants: dict[tuple[Any, ...], onnx.TensorProto] = {}

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with one output, called ``name`` or else by its number; an input that is left out is ``""``."""
        output = name or self.new_name(operator)
        self.add_node(operator, inputs, [output], **attributes)
        return output

    def add_node(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Add a node with these ``outputs``."""
        self.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))

    def new_name(self, operator: str) -> str:
        """A name for an output of the next node."""
        return f"{operator.lower()}_{len(self.nodes)}"

    def rename(self, value: str, name: str) -> None:
        """Call ``value``, which no node reads, ``name``; an Identity would, but OpenVINO drops it with the name."""
        next(node for node in reversed(self.nodes) if node.output[0] == value).output[0] = name

    def weight(self, tensor: Tensor, dtype: torch.dtype | None = None) -> str:
        """Add a weight, which is cast to ``dtype``, or else to the graph's, when it is written."""
        name = f"weight_{len(self._weights)}"
        self._weights.append(_Weight.of_tensor(name, tensor, dtype or self.dtype))
        return name

    def constant(self, value: Any, dtype: npt.DTypeLike = np.int64) -> str:
        """Add a few numbers; equal ones are one constant."""
        array = np.array(value, dtype)
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(array, f"constant_{len(self._constants)}")
        return self._constants[key].name

    def number(self, value: float) -> str:
        """Add a number of the graph's type."""
        return self.constant(value, helper.tensor_dtype_to_np_dtype(_KINDS[self.dtype]))

    def wide(self, x: str) -> str:
        """``x`` of the graph's type in fp32."""
        return x if self.dtype == torch.float32 else self.add("Cast", x, to=TensorProto.FLOAT)

    def narrow(self, x: str) -> str:
        """``x``, fp32, in the graph's type."""
        return x if self.dtype == torch.float32 else self.add("Cast", x, to=_KINDS[self.dtype])

    def product(self, x: str, matrix: Tensor) -> str:
        """``x`` [..., in] times ``matrix`` [in, out]."""
        return self.add("MatMul", x, self.weight(matrix))

    def affine(self, x: str, weight: Tensor, bias: Tensor) -> str:
        """What ``nn.Linear`` does to ``x`` [..., in] by ``weight`` [out, in] and ``bias`` [out]."""
        return self.add("Add", self.product(x, weight.T), self.weight(bias))

    def linear(self, x: str, layer: nn.Module) -> str:
        """``layer``, an ``nn.Linear`` with a bias, of ``x`` [..., in]."""
        assert isinstance(layer, nn.Linear)
        return self.affine(x, layer.weight, layer.bias)

    def norm(self, x: str, layer: nn.Module) -> str:
        """``layer``, an ``nn.LayerNorm``, of ``x`` [..., W], in fp32: the squares of CLIP's residuals overflow fp16."""
        assert isinstance(layer, nn.LayerNorm)
        scale, shift = (self.weight(each, torch.float32) for each in (layer.weight, layer.bias))
        return self.narrow(self.add("LayerNormalization", self.wide(x), scale, shift, axis=-1, epsilon=layer.eps))

    def save(
        self, path: Path, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        """Write the graph to ``path``; returns it without its weights."""
        graph = helper.make_graph(self.nodes, "graph", inputs, outputs, list(self._constants.values()))
        domains = dict.fromkeys(["", *(node.domain for node in self.nodes)])
        opsets = [helper.make_opsetid(domain, _OPSETS[domain]) for domain in domains]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        _write(model, [*_taken_from(model), *self._weights], path)
        return model.graph


def tensor_value(spec: TensorSpec, *shape: int | str) -> onnx.ValueInfoProto:
    """An input or output of the contract, whose ``shape`` behind the free batch axis is known here."""
    return helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(spec.dtype), ["batch", *shape])


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
    def of_tensor(cls, name: str, tensor: Tensor, dtype: torch.dtype) -> _Weight:
        """Of ``tensor`` cast to ``dtype``, on a little-endian machine."""
        size = tensor.numel() * dtype.itemsize
        shape = onnx.TensorProto(name=name, data_type=_KINDS[dtype], dims=tensor.shape).SerializeToString()
        beginning = shape + _beginning(onnx.TensorProto, "raw_data", size)
        return cls(len(beginning) + size, lambda: [beginning, tensor.detach().to(dtype).contiguous().numpy().data])


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
    whole = len(graph) + sum(map(len, beginnings)) + sum(weight.size for weight in weights)
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
