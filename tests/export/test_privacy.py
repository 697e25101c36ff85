"""The telemetry of ONNX Runtime and OpenVINO keeps an id in the home folder and reports to its maker: not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SESSION = """
import onnxruntime, sys
from onnx import TensorProto, helper
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
"""


def files_in_home_after(code: str, home: Path) -> list[Path]:
    environment = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    environment |= {
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "https_proxy": "http://127.0.0.1:9",
    }  # reports go nowhere
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    return [path for path in home.rglob("*") if path.is_file()]


def test_export_switches_telemetry_off(tmp_path: Path) -> None:
    assert files_in_home_after("import export.parity" + SESSION, tmp_path) == []


def test_openvino_has_no_telemetry_where_it_computes(tmp_path: Path) -> None:
    """On import it writes a client id and sends an event, by a package of its own, which must not be reached."""
    graph = SESSION.partition("onnxruntime.Inf")[0].replace(
        "import onnxruntime, sys", "import export, numpy, openvino, sys"
    )
    code = graph + (
        "compiled = openvino.Core().compile_model(openvino.Core().read_model(model.SerializeToString(), b''), 'CPU')\n"
        "assert compiled([numpy.ones(1, numpy.float32)])\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
    )
    assert files_in_home_after(code, tmp_path) == []


def test_the_first_test_would_notice(tmp_path: Path) -> None:
    if not files_in_home_after(SESSION, tmp_path):
        pytest.skip("this build of ONNX Runtime has no telemetry")


def test_the_test_of_openvino_would_notice(tmp_path: Path) -> None:
    if not files_in_home_after("import openvino", tmp_path):
        pytest.skip("this build of OpenVINO has no telemetry")
