"""Graphs as files: weights after a cast, and weights beyond protobuf's limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export import graph_builder
from export.clip_graph import write_image_encoder
from export.graph_builder import GraphBuilder
from export.targets import GraphKind, Precision, open_graph
from training.backbone import FrozenClip


def test_weights_are_cast_when_they_are_written(tmp_path: Path) -> None:
    matrix = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7
    graph = GraphBuilder(torch.float16)
    names = [graph.weight(matrix.T), graph.weight(matrix.chunk(3)[1], torch.float32)]
    for name in names:
        graph.add("Identity", name)
    graph.save(tmp_path / "model.onnx", [], [])
    half, full = onnx.load(tmp_path / "model.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(half), matrix.T.numpy().astype(np.float16))
    np.testing.assert_array_equal(numpy_helper.to_array(full), matrix[1:2].numpy())
    assert [half.name, full.name] == names


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_weights_beyond_the_limit_of_one_file_lie_beside_it(
    precision: Precision, tiny_vit: FrozenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = GraphKind("portable", precision)
    pixels = np.random.default_rng(0).integers(0, 256, (1, tiny_vit.image_size, tiny_vit.image_size, 3), dtype=np.uint8)
    for limit, folder in ((graph_builder.MAX_FILE_BYTES, tmp_path / "one"), (100_000, tmp_path / "two")):
        folder.mkdir()
        monkeypatch.setattr(graph_builder, "MAX_FILE_BYTES", limit)
        write_image_encoder(tiny_vit, kind, folder / "model.onnx")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["model.onnx"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["model.onnx", "model.onnx.data"]
    one, two = (open_graph(tmp_path / folder / "model.onnx", kind)({"image": pixels})[0] for folder in ("one", "two"))
    np.testing.assert_array_equal(one, two)
