"""int8 products on real runtimes, for activations as uneven as those of trained networks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export import targets
from export.graph_builder import GraphBuilder
from export.quantize import quantize_matmuls
from export.targets import GraphKind, open_graph, openvino_core, this_machine

CHANNELS, OUTPUTS = 64, 48
Array = npt.NDArray[Any]


class Layer(nn.Module):
    """A LayerNorm and a linear layer; ``shared`` adds another reader of the norm."""

    def __init__(self, *, loud: float = 1.0, shared: bool = False, normed: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.linear, self.shared = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, OUTPUTS), shared
        self.normed = normed
        with torch.no_grad():
            self.norm.weight[3] = loud  # one channel that drowns the others

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x) if self.normed else x
        return self.linear(y) + (y[..., :OUTPUTS] if self.shared else 0)


def written(layer: Layer, path: Path) -> Path:
    """``layer`` as a graph of x [B, T, C]."""
    graph = GraphBuilder()
    normed = graph.layer_norm("x", layer.norm) if layer.normed else "x"
    y = graph.linear(normed, layer.linear)
    if layer.shared:
        first, last, axis = (graph.constant([number]) for number in (0, OUTPUTS, 2))
        y = graph.add("Add", y, graph.add("Slice", normed, first, last, axis))
    given, wanted = onnx.helper.make_tensor_value_info("x", 1, ["B", "T", CHANNELS]), onnx.ValueInfoProto(name=y)
    graph.save(path, [given], [wanted])
    return path


def values(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((1, 7, CHANNELS)).astype(np.float32)


def error(layer: Layer, path: Path, run: Any) -> float:
    """The largest error on values that were no example, as a share of the largest output."""
    x = np.concatenate([values(seed) for seed in range(100, 104)])
    with torch.inference_mode():
        expected = layer(torch.from_numpy(x)).numpy()
    return float(np.abs(run({"x": x})[0] - expected).max() / np.abs(expected).max())


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def with_onnx_runtime(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    if not this_machine().int8:  # as the embedded server does
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def with_openvino(path: Path) -> Any:
    return open_graph(path, GraphKind("portable", "int8"))


@pytest.mark.parametrize("opened", [with_onnx_runtime, with_openvino])
@pytest.mark.parametrize("loud", [1.0, 5.0])
def test_a_loud_channel_behind_a_norm_leaves_the_others_their_levels(opened: Any, loud: float, tmp_path: Path) -> None:
    layer = Layer(loud=loud)
    path = written(layer, tmp_path / "model.onnx")
    quantize_matmuls(path, map(values, range(8)))
    assert operators(path).count("QuantizeLinear") == 1
    assert error(layer, path, opened(path)) < 0.05
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("flag", ["avx2", "avx512_vnni"])
def test_int8_is_multiplied_only_where_its_sums_are_exact(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without VNNI, sums of two products overflow 16 bits, and errors of this layer reach a quarter of its outputs."""
    path = written(Layer(), tmp_path / "model.onnx")
    quantize_matmuls(path, map(values, range(8)))
    core, compiled = openvino_core(), []

    def compile_model(*arguments: Any) -> Any:
        compiled.append(core.compile_model(*arguments))
        return compiled[0]

    monkeypatch.setattr(
        targets, "openvino_core", lambda: SimpleNamespace(compile_model=compile_model, get_property=core.get_property)
    )
    monkeypatch.setattr(targets, "_cpuinfo", lambda key: flag)
    with_openvino(path)({"x": values(0)})
    nodes = [node.get_rt_info() for node in compiled[0].get_runtime_model().get_ops()]
    [product] = [node for node in nodes if node["layerType"].astype(str) == "FullyConnected"]
    assert product["primitiveType"].astype(str).endswith("i8" if flag == "avx512_vnni" else "f32")


def test_a_norm_that_others_read_is_left_alone(tmp_path: Path) -> None:
    layer = Layer(loud=3.0, shared=True)
    path = written(layer, tmp_path / "model.onnx")
    quantize_matmuls(path, map(values, range(8)))
    assert operators(path).count("QuantizeLinear") == 1
    assert error(layer, path, with_onnx_runtime(path)) < 0.05


@pytest.mark.parametrize("layer", [Layer(normed=False), Layer(loud=100.0)], ids=["once", "always"])
def test_uneven_activations_stay_fp32(layer: Layer, tmp_path: Path) -> None:
    path = written(layer, tmp_path / "model.onnx")
    examples = [values(seed) for seed in range(8)]
    examples[0][0, 0, 5] = 1000  # one channel, once
    quantize_matmuls(path, examples)
    assert "QuantizeLinear" not in operators(path)
    assert error(layer, path, with_onnx_runtime(path)) < 0.03  # the matrix alone is rounded


def test_channels_that_are_always_zero_are_no_trouble(tmp_path: Path) -> None:
    layer = Layer(normed=False)
    path = written(layer, tmp_path / "model.onnx")
    quantize_matmuls(path, [np.zeros((1, 7, CHANNELS), np.float32)])
    assert np.isfinite(with_onnx_runtime(path)({"x": values(0)})[0]).all()
