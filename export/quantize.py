"""Static int8 quantisation of matrix products, with SmoothQuant, in standard ONNX operators.

Each weight matrix [in, out] gets a symmetric scale per output. Each activation gets one static scale, from the largest
absolute value on calibration inputs. Channels behind a LayerNorm differ in size, and one large channel would leave few
levels to the others. So the LayerNorm's channels are divided by factors that multiply the rows of the next matrix: the
product stays the same, and the channels get equal ranges (SmoothQuant, arXiv 2211.10438). Activations that remain too
uneven stay in fp32; OpenVINO then scales them dynamically, which is more exact but slower.

The graph holds ``QuantizeLinear`` and ``DequantizeLinear`` nodes; a runtime may fuse them into integer products.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from export.graph_builder import save_model

_LEVELS = 127  # symmetric: -128 is unused
# The largest quantisation step of an activation, as a share of its mean absolute value. Random weights give 0.04 after
# a LayerNorm or an attention and 0.1 after a QuickGELU. Trained weights give up to 0.23 there; a ResNet's attention
# pool gives 0.19, and parity refused it.
_MAX_RELATIVE_STEP = 1 / 8
_ZERO_POINT = "int8_zero"

Array = npt.NDArray[Any]


def quantize_matmuls(path: Path, calibration: Iterable[Array] | None = None) -> None:
    """Quantise every ``MatMul`` with a constant matrix in the graph at ``path``, in place.

    Args:
        path: an fp32 ONNX file with one input.
        calibration: inputs of the graph. With them, activations are quantised too, where they are even enough;
            without, weights alone.
    """
    ranges = {} if calibration is None else _measure_ranges(path, calibration)
    model = onnx.load(path)
    graph = model.graph
    constants = {constant.name: constant for constant in graph.initializer}
    new_constants = {_ZERO_POINT: np.array(0, np.int8)}
    insert_before: dict[int, list[onnx.NodeProto]] = {}  # node index -> new nodes
    for activation, consumers in _matmuls(graph).items():
        matrices = [_fp64(constants[graph.node[index].input[1]]) for index in consumers]
        quantized = activation
        if activation_range := ranges.get(activation):
            norm = _exclusive_layer_norm(graph, activation, consumers)
            factors = (
                _smoothing_factors(activation_range.peak, matrices) if norm else np.ones(len(activation_range.peak))
            )
            step = (activation_range.peak / factors).max() / _LEVELS
            if step <= _MAX_RELATIVE_STEP * (activation_range.mean / factors).mean():
                matrices = [matrix * factors[:, None] for matrix in matrices]
                for number, name in enumerate(norm.input[1:] if norm else [], 1):
                    norm.input[number] = f"{activation}_norm_{number}"
                    new_constants[norm.input[number]] = numpy_helper.to_array(constants[name]) / factors
                quantized = f"{activation}_rounded"
                scale, integers = f"{activation}_scale", f"{activation}_int8"
                new_constants[scale] = _as_scale(step)
                insert_before[consumers[0]] = [
                    helper.make_node("QuantizeLinear", [activation, scale, _ZERO_POINT], [integers]),
                    helper.make_node("DequantizeLinear", [integers, scale, _ZERO_POINT], [quantized]),
                ]
        for index, matrix in zip(consumers, matrices, strict=True):
            name = f"{graph.node[index].output[0]}_matrix"
            scales = new_constants[f"{name}_scale"] = _as_scale(np.abs(matrix).max(axis=0) / _LEVELS)
            new_constants[f"{name}_int8"] = np.rint(matrix / scales).astype(np.int8)
            insert_before.setdefault(index, []).append(
                helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], axis=1)
            )
            graph.node[index].input[:] = [quantized, name]
    nodes = [node for index, each in enumerate(graph.node) for node in (*insert_before.get(index, ()), each)]
    del graph.node[:]
    graph.node.extend(nodes)
    _replace_constants(graph, new_constants)
    save_model(model, path)


class _Range(NamedTuple):
    """Absolute values of each channel of an activation, fp64 [C]."""

    peak: Array
    mean: Array


def _matmuls(graph: Any) -> dict[str, list[int]]:
    """Indices of the ``MatMul`` nodes with a constant matrix, by activation."""
    matrices = {constant.name for constant in graph.initializer if len(constant.dims) == 2}
    found: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        if node.op_type == "MatMul" and node.input[1] in matrices:
            found.setdefault(node.input[0], []).append(index)
    return found


def _measure_ranges(path: Path, calibration: Iterable[Array]) -> dict[str, _Range]:
    """Ranges of the activations of matrix products on ``calibration``."""
    model = onnx.load(path)
    graph = model.graph
    rows = {constant.name: constant.dims[0] for constant in graph.initializer if len(constant.dims) == 2}
    channels = {name: rows[graph.node[consumers[0]].input[1]] for name, consumers in _matmuls(graph).items()}
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "rows_axis"))
    for activation, width in channels.items():
        shape, size, flat, peak, mean = (f"{activation}_{part}" for part in ("shape", "size", "flat", "peak", "mean"))
        graph.initializer.append(numpy_helper.from_array(np.array([-1, width], np.int64), shape))
        graph.node.extend(
            [
                helper.make_node("Abs", [activation], [size]),
                helper.make_node("Reshape", [size, shape], [flat]),
                helper.make_node("ReduceMax", [flat, "rows_axis"], [peak], keepdims=0),
                helper.make_node("ReduceMean", [flat, "rows_axis"], [mean], keepdims=0),
            ]
        )
        graph.output.extend(helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [width]) for n in (peak, mean))
    name, observed = graph.input[0].name, path.with_suffix(".observed")
    try:
        save_model(model, observed)
        del model, graph  # the session holds a copy of the weights
        session = onnxruntime.InferenceSession(observed, providers=["CPUExecutionProvider"])
    finally:
        for file in path.parent.glob(f"{observed.name}*"):  # and its weights, where they are external
            file.unlink()
    outputs = [f"{activation}_{part}" for activation in channels for part in _Range._fields]
    runs = [dict(zip(outputs, session.run(outputs, {name: each}), strict=True)) for each in calibration]
    return {
        activation: _Range(
            np.max([run[f"{activation}_peak"] for run in runs], axis=0).astype(np.float64),
            np.mean([run[f"{activation}_mean"] for run in runs], axis=0).astype(np.float64),
        )
        for activation in channels
    }


def _exclusive_layer_norm(graph: Any, activation: str, consumers: Sequence[int]) -> Any:
    """The LayerNorm that computes ``activation``, if only ``consumers`` read it; else None."""
    readers = [index for index, node in enumerate(graph.node) if activation in node.input]
    if readers != list(consumers):
        return None
    return next((n for n in graph.node if n.op_type == "LayerNormalization" and n.output[0] == activation), None)


def _smoothing_factors(peak: Array, matrices: Sequence[Array]) -> Array:
    """Factors [C] that give each channel and its matrix rows the same peak."""
    rows = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    nonzero = (peak > 0) & (rows > 0)
    return np.sqrt(np.divide(peak, rows, where=nonzero, out=np.ones_like(peak)))


def _as_scale(step: Any) -> Array:
    """A quantisation step as ONNX holds it: fp32 and above 0."""
    return np.maximum(step, np.finfo(np.float32).tiny).astype(np.float32)


def _fp64(constant: onnx.TensorProto) -> Array:
    return numpy_helper.to_array(constant).astype(np.float64)


def _replace_constants(graph: Any, new_constants: dict[str, Array]) -> None:
    """Add ``new_constants`` to ``graph``, and remove the constants that no node reads."""
    graph.initializer.extend(
        numpy_helper.from_array(array if array.dtype == np.int8 else array.astype(np.float32), name)
        for name, array in new_constants.items()
    )
    read = {name for node in graph.node for name in node.input}
    kept = [constant for constant in graph.initializer if constant.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
