"""OpenVINO in the embedded server, where a model's config asks for it as it would of the native backend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tritonclient.grpc import InferenceServerClient

from export.quantize import quantize_matmuls
from serving.server import EmbeddedTriton
from tests.conftest import ROOT
from tests.export.test_quantize import Layer, values, written
from tests.serving.test_refusals import first_line
from tests.serving.tiny_repository import HEAD, IMAGE_MODEL, SIDE, TEXT_MODEL, ask, change_config, expected_answer

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed (pip install openvino)")


def accelerate(model: Path, name: str = "openvino", **parameters: str) -> None:
    def edit(config: Any) -> None:
        accelerator = config.optimization.execution_accelerators.cpu_execution_accelerator.add(name=name)
        accelerator.parameters.update(parameters)

    change_config(model, edit)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_the_ensemble_answers_as_numpy_does(precision: str, own_repository: Path) -> None:
    able = precision.upper() in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for name in (IMAGE_MODEL, TEXT_MODEL, HEAD):
        accelerate(own_repository / name, inference_precision=precision)
    generator = np.random.default_rng(0)
    with EmbeddedTriton(own_repository) as server, InferenceServerClient(server.grpc_url) as client:
        log = server.log.read_text(errors="replace")
        for name in (IMAGE_MODEL, TEXT_MODEL, HEAD):
            assert f"{name} runs on OpenVINO, in {precision if able else 'f32'}" in log
        for batch, length in ((1, 8), (3, 16), (3, 8)):  # shapes come and go
            image = generator.integers(0, 256, (batch, SIDE, SIDE, 3), dtype=np.uint8)
            tokens = generator.integers(0, 100, (batch, length), dtype=np.int32)
            result, expected = ask(client, image, tokens), expected_answer(image, tokens)
            np.testing.assert_allclose(result.as_numpy("answer"), expected, rtol=1e-6 if precision == "f32" else 2e-2)
            np.testing.assert_array_equal(result.as_numpy("head_id"), np.full((batch, 1), 7))


def test_openvinos_telemetry_is_off(own_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left on, it keeps a client id in the home folder and reports to its maker."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("CI", raising=False)
    accelerate(own_repository / TEXT_MODEL)
    with EmbeddedTriton(own_repository):
        assert [path for path in home.rglob("*") if path.is_file()] == []


def test_an_accelerator_that_is_not_known_is_refused(own_repository: Path) -> None:
    accelerate(own_repository / TEXT_MODEL, name="tensorflow")
    assert "has the CPU accelerator 'tensorflow', expected 'openvino'" in first_line(own_repository)


def test_a_graph_that_is_not_the_configs_is_refused_by_openvino_as_well(own_repository: Path) -> None:
    def edit(config: Any) -> None:
        config.input[0].name = "ids"

    accelerate(own_repository / TEXT_MODEL)
    change_config(own_repository / TEXT_MODEL, edit)
    change_config(own_repository / "vizwiz_vqa", lambda config: config.ensemble_scheduling.step[1].input_map.clear())
    change_config(
        own_repository / "vizwiz_vqa",
        lambda config: config.ensemble_scheduling.step[1].input_map.update({"ids": "tokens"}),
    )
    assert "input 'tokens' is absent in the config and tensor(int32) [-1, -1] in the graph" in first_line(
        own_repository
    )


OPEN_SESSION = """
import sys, types
from pathlib import Path
said = []
logger = types.SimpleNamespace(log_warn=said.append, log_info=said.append)
sys.modules["triton_python_backend_utils"] = types.SimpleNamespace(Logger=logger)
sys.path.insert(0, sys.argv[1])
import sessions
accelerators = {"cpu_execution_accelerator": [{"name": "openvino"}]}
config = {"optimization": {"execution_accelerators": accelerators}, "parameters": globals().get("PARAMETERS", {})}
session = sessions.open_session(Path(sys.argv[2]), {"model_instance_kind": "CPU", "model_name": "clip_text_1"}, config)
"""


def in_its_own_process(model: Path, before: str = "", after: str = "") -> str:
    """What ``after`` prints of ``session``, opened where Triton, which logs, is absent."""
    code, backend = f"{before}\n{OPEN_SESSION}{after}", ROOT / "serving" / "backends" / "onnxruntime"
    command = [sys.executable, "-c", code, backend, model / "1" / "model.onnx"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(("nice", "pinned"), [("0", True), ("10", False)])
def test_a_model_that_yields_is_nice_and_not_pinned(nice: str, pinned: bool, own_repository: Path) -> None:
    """So are the threads that compute, of which OpenVINO has at least one."""
    yielding = f"""
import os
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's threads, older than the session, are not asked
PARAMETERS = {{"nice": {{"string_value": "{nice}"}}}}
"""
    after = """
of_threads = {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir("/proc/self/task")}
print(of_threads, session._model.get_property("ENABLE_CPU_PINNING"), len(os.listdir("/proc/self/task")) > 1)
"""
    output = in_its_own_process(own_repository / TEXT_MODEL, yielding, after)
    expected = min(os.getpriority(os.PRIO_PROCESS, 0) + int(nice), 19)
    assert output == f"{{{expected}}} {pinned} True\n"


def test_a_niceness_that_is_none_is_refused(own_repository: Path) -> None:
    def edit(config: Any) -> None:
        config.parameters["nice"].string_value = "-5"

    change_config(own_repository / TEXT_MODEL, edit)
    assert "config.pbtxt has nice '-5', expected 0 to 19" in first_line(own_repository)


def test_without_openvino_it_warns_and_serves(own_repository: Path) -> None:
    missing = "import sys; sys.modules['openvino'] = None  # as if it were not installed"
    after = "print(type(session).__name__, said)"
    output = in_its_own_process(own_repository / TEXT_MODEL, missing, after)
    assert output.startswith("InferenceSession ['clip_text_1 runs without OpenVINO, which its config selects, ")
    assert "(pip install openvino)" in output


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_int8_graphs_are_exact_on_a_cpu_without_vnni(runtime: str, tmp_path: Path) -> None:
    """There the sums of int8 products overflow."""
    layer, path, x = Layer(), tmp_path / "1" / "model.onnx", values(100)
    path.parent.mkdir()
    quantize_matmuls(written(layer, path), map(values, range(8)))
    np.save(tmp_path / "1" / "x.npy", x)
    missing = "import sys; sys.modules['openvino'] = None" if runtime == "onnxruntime" else ""
    after = """
import numpy
sessions._INT8_FLAGS = frozenset()
session = sessions.open_session(Path(sys.argv[2]), {"model_instance_kind": "CPU", "model_name": "clip_text_1"}, config)
given, [wanted] = Path(sys.argv[2]).with_name("x.npy"), session.get_outputs()
numpy.save(given.with_name("y.npy"), session.run([wanted.name], {"x": numpy.load(given)})[0])
print(said[-1])
"""
    said = in_its_own_process(tmp_path, missing, after)
    assert runtime == "onnxruntime" or said.endswith("int8 graphs too: this CPU lacks VNNI\n")
    expected = layer(torch.from_numpy(x)).detach().numpy()
    assert np.abs(np.load(tmp_path / "1" / "y.npy") - expected).max() < 0.05 * np.abs(expected).max()
