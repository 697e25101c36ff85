"""Graphs as files."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graphs import save_graph


@pytest.mark.parametrize("sizes", [[], [1, 31], [33, 5_000, 700_000]])  # lengths of one to four bytes
def test_a_saved_graph_is_read_as_it_was(sizes: list[int], tmp_path: Path) -> None:
    weights = [numpy_helper.from_array(np.arange(size, dtype=np.float32), f"w{size}") for size in sizes]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch"])
    nodes = [helper.make_node("Identity", [weight.name], [f"{weight.name}_out"]) for weight in weights]
    graph = helper.make_graph([*nodes, helper.make_node("Identity", ["x"], ["y"])], "g", [value], [], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], producer_name="test")
    before = copy.deepcopy(model)
    save_graph(model, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx") == before
    assert (tmp_path / "model.onnx").stat().st_size == before.ByteSize()
