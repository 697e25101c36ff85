"""Graphs as files."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export.graphs import GraphBuilder, save_graph


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


def test_weights_are_written_as_they_would_be_after_a_cast(tmp_path: Path) -> None:
    matrix = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7
    graph = GraphBuilder(torch.float16)
    names = [graph.weight(matrix.T), graph.weight(matrix.chunk(3)[1], torch.float32)]
    for name in names:
        graph.add("Identity", name)
    graph.save(tmp_path / "model.onnx", [], [])
    half, wide = onnx.load(tmp_path / "model.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(half), matrix.T.numpy().astype(np.float16))
    np.testing.assert_array_equal(numpy_helper.to_array(wide), matrix[1:2].numpy())
    assert [half.name, wide.name] == names
