"""An image encoder that takes a tenth of a second and more, so that requests pile up before it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.serving.tiny_repository import SIDE, change_config

_WIDTH = 1500  # two square matrices of it are multiplied: 7 GFLOP


def slow_down(model: Path) -> None:
    """Replace the graph of the tiny image encoder in the folder ``model`` by one that gives the same, slowly."""
    matrix = np.random.default_rng(0).standard_normal((_WIDTH, _WIDTH)).astype(np.float32)
    operators = [
        helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("ReduceMean", ["values"], ["all"], keepdims=0),
        helper.make_node("Mul", ["matrix", "all"], ["factor"]),  # depends on the input, or it would be computed once
        helper.make_node("MatMul", ["factor", "matrix"], ["product"]),
        helper.make_node("ReduceSum", ["product"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["mean", "nothing"], ["image_features"]),
    ]
    graph = helper.make_graph(
        operators,
        model.name,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("image_features", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(np.float32(0), "zero")],
    )
    path = model / "1" / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    change_config(model, lambda config: config.parameters["model_sha256"].__setattr__("string_value", digest))
