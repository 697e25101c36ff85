"""The weights of matrix products in 8 bits, in standard ONNX operators.

A product's matrix [in, out] becomes int8 and a scale per output, with a ``DequantizeLinear`` between them and the
product: a quarter of the bytes to read. OpenVINO then quantises the other side as it comes, each row in groups that
have a scale of their own, and multiplies 8-bit integers; no calibration is needed. Other runtimes widen the weights,
which is right, but not fast.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.graphs import save_graph

_LEVELS = 127  # symmetric: -128 is not used

# Values of a row that share a scale, the best first: OpenVINO's own choice, 32, stops so often to scale that 8 bits are
# hardly faster than bf16; from 256 on, nothing more is gained (docs/export.md).
_GROUPS = (256, 128, 64, 32)


def quantise_products(path: Path) -> None:
    """Rewrite the graph at ``path`` with 8-bit weights for every ``MatMul`` whose second input is constant."""
    model = onnx.load(path)
    graph = model.graph
    constants = {constant.name: constant for constant in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in constants]
    others = {name for node in graph.node if node not in products for name in node.input}
    for name in sorted({node.input[1] for node in products} - others):
        matrix = numpy_helper.to_array(constants[name])
        if matrix.ndim != 2:
            continue
        scale = np.maximum(np.abs(matrix).max(axis=0) / _LEVELS, np.finfo(np.float32).tiny).astype(np.float32)
        constants[name].CopyFrom(numpy_helper.from_array(np.rint(matrix / scale).astype(np.int8), f"{name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        graph.node.insert(
            0, helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], f"{name}_widen", axis=1)
        )
    save_graph(model, path)


def group_size(path: Path) -> int:
    """How many values of a row are to share a scale when the graph at ``path`` is computed.

    The largest that divides the rows of all its products: one that a group does not divide is not computed in 8 bits.
    """
    constants = onnx.load(path, load_external_data=False).graph.initializer
    rows = [constant.dims[0] for constant in constants if constant.data_type == onnx.TensorProto.INT8]
    return next((group for group in _GROUPS if not any(row % group for row in rows)), _GROUPS[-1])
