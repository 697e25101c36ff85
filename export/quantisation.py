"""Matrix products in 8 bits, in standard ONNX operators: whole numbers, on both sides where examples are at hand.

A product's matrix [in, out] gets a scale per output. What it is multiplied with gets one scale for all of it, from the
largest values that example inputs give. Where that comes from a LayerNorm, its channels differ, and one large channel
would leave few levels to the others: the norm divides each by a factor with which the matrix's row is multiplied, which
changes nothing but evens out both (SmoothQuant, arXiv 2211.10438). What is too uneven all the same keeps its values,
and the runtime does as it sees fit: OpenVINO finds scales for them as they come, which is closer, but slower.

``QuantizeLinear`` and ``DequantizeLinear`` say so in the graph; a runtime that can multiplies the whole numbers.
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

from export.graphs import save_graph

_LEVELS = 127  # symmetric: -128 is not used
# Steps of the whole numbers, over the mean absolute value. Random weights give 0.04 behind a LayerNorm or an attention
# and 0.1 behind a QuickGELU; trained ones up to 0.23 there, and 0.19 in a ResNet's attention pool: the gate refused it.
_COARSEST = 1 / 8
_ZERO = "int8_zero"

Array = npt.NDArray[Any]


def quantise_products(path: Path, examples: Iterable[Array] | None = None) -> None:
    """Rewrite the graph at ``path`` so that every ``MatMul`` with a constant second input holds that in 8 bits.

    Args:
        examples: what the graph's one input may be, one after the other. With them, what the matrices multiply gets
            scales too, where it is even enough; without, the runtime does as it sees fit.
    """
    sizes = {} if examples is None else _sizes(path, examples)
    model = onnx.load(path)
    graph = model.graph
    constants = {constant.name: constant for constant in graph.initializer}
    added = {_ZERO: np.array(0, np.int8)}
    before: dict[int, list[onnx.NodeProto]] = {}  # by place in the graph: what a node needs
    for left, places in _products(graph).items():
        matrices = [numpy_helper.to_array(constants[graph.node[place].input[1]]).astype(np.float64) for place in places]
        rounded = left
        if size := sizes.get(left):
            norm = _norm_before(graph, left, places)
            factors = _even(size.peak, matrices) if norm else np.ones(len(size.peak))
            scale = (size.peak / factors).max() / _LEVELS
            if scale <= _COARSEST * (size.mean / factors).mean():
                matrices = [matrix * factors[:, None] for matrix in matrices]
                for number, name in enumerate(norm.input[1:] if norm else [], 1):
                    norm.input[number] = f"{left}_norm_{number}"
                    added[norm.input[number]] = numpy_helper.to_array(constants[name]) / factors
                rounded = f"{left}_rounded"
                added[f"{left}_scale"] = _scale(scale)
                before[places[0]] = [
                    helper.make_node("QuantizeLinear", [left, f"{left}_scale", _ZERO], [f"{left}_int8"]),
                    helper.make_node("DequantizeLinear", [f"{left}_int8", f"{left}_scale", _ZERO], [rounded]),
                ]
        for place, matrix in zip(places, matrices, strict=True):
            name = f"{graph.node[place].output[0]}_matrix"
            step = added[f"{name}_scale"] = _scale(np.abs(matrix).max(axis=0) / _LEVELS)
            added[f"{name}_int8"] = np.rint(matrix / step).astype(np.int8)
            before.setdefault(place, []).append(
                helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], axis=1)
            )
            graph.node[place].input[:] = [rounded, name]
    nodes = [node for place, each in enumerate(graph.node) for node in (*before.get(place, ()), each)]
    del graph.node[:]
    graph.node.extend(nodes)
    _replace_constants(graph, added)
    save_graph(model, path)


def _products(graph: Any) -> dict[str, list[int]]:
    """The products with a constant matrix, as places in the graph, by what is multiplied."""
    matrices = {constant.name for constant in graph.initializer if len(constant.dims) == 2}
    found: dict[str, list[int]] = {}
    for place, node in enumerate(graph.node):
        if node.op_type == "MatMul" and node.input[1] in matrices:
            found.setdefault(node.input[0], []).append(place)
    return found


class _Size(NamedTuple):
    """How large each channel of a tensor is, fp64 [C]."""

    peak: Array  # the largest absolute value
    mean: Array  # the mean absolute value


def _sizes(path: Path, examples: Iterable[Array]) -> dict[str, _Size]:
    """How large what products multiply is on ``examples``, by its name."""
    model = onnx.load(path)
    graph = model.graph
    rows = {constant.name: constant.dims[0] for constant in graph.initializer if len(constant.dims) == 2}
    lefts = {left: rows[graph.node[places[0]].input[1]] for left, places in _products(graph).items()}
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "rows_axis"))
    for left, width in lefts.items():
        shape, size, flat, peak, mean = (f"{left}_{part}" for part in ("shape", "size", "flat", "peak", "mean"))
        graph.initializer.append(numpy_helper.from_array(np.array([-1, width], np.int64), shape))
        graph.node.extend(
            [
                helper.make_node("Abs", [left], [size]),
                helper.make_node("Reshape", [size, shape], [flat]),
                helper.make_node("ReduceMax", [flat, "rows_axis"], [peak], keepdims=0),
                helper.make_node("ReduceMean", [flat, "rows_axis"], [mean], keepdims=0),
            ]
        )
        graph.output.extend(helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [width]) for n in (peak, mean))
    name, watched = graph.input[0].name, path.with_suffix(".watched")
    try:
        save_graph(model, watched)
        del model, graph  # the session holds the weights once more
        session = onnxruntime.InferenceSession(watched, providers=["CPUExecutionProvider"])
    finally:
        watched.unlink(missing_ok=True)
    wanted = [f"{left}_{part}" for left in lefts for part in _Size._fields]
    runs = [dict(zip(wanted, session.run(wanted, {name: example}), strict=True)) for example in examples]
    return {
        left: _Size(
            np.max([run[f"{left}_peak"] for run in runs], axis=0).astype(np.float64),
            np.mean([run[f"{left}_mean"] for run in runs], axis=0).astype(np.float64),
        )
        for left in lefts
    }


def _norm_before(graph: Any, left: str, places: Sequence[int]) -> Any:
    """The LayerNorm that ``left`` comes from, if nothing but the products at ``places`` takes it; else None."""
    takers = [place for place, node in enumerate(graph.node) if left in node.input]
    if takers != list(places):
        return None
    return next((n for n in graph.node if n.op_type == "LayerNormalization" and n.output[0] == left), None)


def _even(peak: Array, matrices: Sequence[Array]) -> Array:
    """The factor of each channel, by which it and its rows of the ``matrices`` have the same peak."""
    rows = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    known = (peak > 0) & (rows > 0)
    return np.sqrt(np.divide(peak, rows, where=known, out=np.ones_like(peak)))


def _scale(step: Any) -> Array:
    """A scale as graphs hold it, fp32; never 0."""
    return np.maximum(step, np.finfo(np.float32).tiny).astype(np.float32)


def _replace_constants(graph: Any, added: dict[str, Array]) -> None:
    """Give ``graph`` the constants ``added``, and take out those that nothing reads any more."""
    graph.initializer.extend(
        numpy_helper.from_array(array if array.dtype == np.int8 else array.astype(np.float32), name)
        for name, array in added.items()
    )
    read = {name for node in graph.node for name in node.input}
    kept = [constant for constant in graph.initializer if constant.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
