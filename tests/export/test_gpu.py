"""Configurations for GPUs: what they say, and that a server without one is unharmed by them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from export.inventory import check_repository
from export.publish import export_run, model_names
from export.targets import Device, Machine, choose_kind, execution
from serving.repository import read_config
from serving.server import EmbeddedTriton
from tests.conftest import ROOT
from tests.export.conftest import ask_golden
from training.backbone import FrozenClip
from training.run import Run

CPU_MACHINE = Machine(cuda=False, cpu_flags=frozenset(), openvino=False)


@pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)
@pytest.mark.parametrize(("device", "expected"), [("cuda", "fused-fp16"), ("tensorrt", "portable-fp16")])
def test_a_repository_for_a_gpu_is_served_by_a_cpu(
    device: Device, expected: str, run: Run, tiny_clip: FrozenClip, tmp_path: Path
) -> None:
    target = choose_kind(None, None, CPU_MACHINE, device)
    assert (target.name, target.device) == (expected, device)
    names = export_run(run, tiny_clip, tmp_path / "triton_models", target)
    assert names == model_names(run, target)
    assert check_repository(tmp_path / "triton_models", run) == []
    report = json.loads((tmp_path / "triton_models" / names.head / "parity.json").read_text(encoding="utf-8"))
    assert report["passed"] is (True if execution(target).as_requested else None)  # a CPU verifies no GPU
    for name in names.all:
        config = read_config(tmp_path / "triton_models" / name)
        assert config.parameters["do_copy_in_default_stream"].string_value == "1"
        accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
        is_tensorrt = device == "tensorrt" and name != names.head  # the head is small, and exact in fp32
        assert [accelerator.name for accelerator in accelerators] == ["tensorrt"] * is_tensorrt
        if is_tensorrt:
            options, tensor = dict(accelerators[0].parameters), config.input[0]
            shape = "x".join(map(str, tensor.dims))
            assert options["trt_profile_min_shapes"] == f"{tensor.name}:1x{shape}"
            assert options["trt_profile_max_shapes"] == f"{tensor.name}:64x{shape}"
    with EmbeddedTriton(tmp_path / "triton_models") as server:
        ask_golden(server.grpc_url, tmp_path / "triton_models")


CUDA_OPTIONS = """
import sys, types
sys.modules["triton_python_backend_utils"] = types.SimpleNamespace()  # only Triton has it; none of it is needed here
sys.path.insert(0, sys.argv[1])
import sessions
config = {"parameters": {key: {"string_value": value} for key, value in (each.split("=") for each in sys.argv[2:])}}
try:
    print(sessions.cuda_options(config))
except sessions.LoadError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (
            ["cudnn_conv_algo_search=1", "arena_extend_strategy=1", "gpu_mem_limit=5", "do_copy_in_default_stream=1"],
            "{'cudnn_conv_algo_search': 'HEURISTIC', 'arena_extend_strategy': 'kSameAsRequested', "
            "'do_copy_in_default_stream': '1', 'gpu_mem_limit': '5'}",
        ),
        (["other=1"], "{}"),
        (
            ["arena_extend_strategy=2"],
            "config.pbtxt has arena_extend_strategy '2', expected 0 (kNextPowerOfTwo), 1 (kSameAsRequested)",
        ),
        (["gpu_mem_limit=all"], "config.pbtxt has gpu_mem_limit 'all', expected a whole number"),
    ],
)
def test_the_python_based_backend_reads_the_same_options(parameters: list[str], expected: str) -> None:
    """By ONNX Runtime's names; the native backend takes their numbers."""
    backend = ROOT / "serving" / "backends" / "onnxruntime"
    command = [sys.executable, "-c", CUDA_OPTIONS, str(backend), *parameters]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == expected
