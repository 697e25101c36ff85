"""An image encoder that takes a tenth of a second and more on any machine, so that requests pile up before it."""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tests.serving.tiny_repository import SIDE, change_config

_WIDTH = 1500  # two square matrices of it are multiplied: 7 GFLOP
_LASTS_S = 0.1


def slow_down(model: Path) -> None:
    """Replace the graph of the tiny image encoder in the folder ``model`` by one that gives the same, slowly."""
    path = model / "1" / "model.onnx"
    onnx.save(_graph(products=1), path)
    onnx.save(_graph(products=math.ceil(_LASTS_S / _seconds(path))), path)

    def edit(config: Any) -> None:
        config.parameters["model_sha256"].string_value = hashlib.sha256(path.read_bytes()).hexdigest()
        config.instance_group[0].kind = config.instance_group[0].KIND_CPU  # where its speed was measured

    change_config(model, edit)


def _seconds(path: Path) -> float:
    """How long the graph takes for one request: the least of three, since other work only adds to it."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        session.run(None, {"image": np.ones((1, SIDE, SIDE, 3), np.uint8)})
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _graph(products: int) -> onnx.ModelProto:
    """The mean of each colour, after a chain of matrix products that add nothing to it."""
    matrix = np.random.default_rng(0).standard_normal((_WIDTH, _WIDTH)).astype(np.float32)
    matrix /= math.sqrt(_WIDTH)  # else the values grow with each product, beyond what a float32 holds
    operators = [
        helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("ReduceMean", ["values"], ["all"], keepdims=0),
        helper.make_node("Mul", ["matrix", "all"], ["product0"]),  # depends on the input, or it would be computed once
        *(
            helper.make_node("MatMul", [f"product{number}", "matrix"], [f"product{number + 1}"])
            for number in range(products)
        ),
        helper.make_node("ReduceSum", [f"product{products}"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["mean", "nothing"], ["image_features"]),
    ]
    graph = helper.make_graph(
        operators,
        "slow",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("image_features", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(np.float32(0), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
