"""Targets: valid pairs, and the recommendation for a machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from export.targets import GRAPH_KINDS, GraphKind, GraphKindError, Machine, choose_kind, execution, recommend

GPU = Machine(cuda=True, cpu_flags=frozenset({"avx512_bf16"}), openvino=True)
NEW_CPU = Machine(cuda=False, cpu_flags=frozenset({"avx2", "avx512_bf16"}), openvino=True)
BARE_CPU = Machine(cuda=False, cpu_flags=frozenset({"avx2", "amx_bf16"}), openvino=False)
OLD_CPU = Machine(cuda=False, cpu_flags=frozenset({"avx2"}), openvino=True)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [(GPU, "fused-fp16"), (NEW_CPU, "portable-bf16"), (BARE_CPU, "portable-fp32"), (OLD_CPU, "portable-fp32")],
)
def test_a_machine_is_recommended_what_it_is_fast_with(machine: Machine, expected: str) -> None:
    assert recommend(machine)[0].name == expected
    assert choose_kind(None, None, machine).name == expected


@pytest.mark.parametrize(
    ("variant", "precision", "machine", "expected"),
    [
        (None, "fp32", NEW_CPU, "portable-fp32"),
        (None, "fp32", GPU, "fused-fp32"),
        (None, "int8", GPU, "portable-int8"),
        ("portable", None, GPU, "portable-fp32"),
        ("fused", None, OLD_CPU, "fused-fp32"),
        ("fused", "fp16", OLD_CPU, "fused-fp16"),
    ],
)
def test_what_is_left_open_is_filled_in(
    variant: str | None, precision: str | None, machine: Machine, expected: str
) -> None:
    assert choose_kind(variant, precision, machine).name == expected


@pytest.mark.parametrize(
    ("device", "machine", "expected"),
    [
        ("cpu", GPU, "portable-bf16"),
        ("cpu", OLD_CPU, "portable-fp32"),
        ("cuda", OLD_CPU, "fused-fp16"),
        ("tensorrt", NEW_CPU, "portable-fp16"),
    ],
)
def test_a_device_is_given_what_it_is_fast_with(device: str, machine: Machine, expected: str) -> None:
    assert choose_kind(None, None, machine, device).name == expected


def test_a_device_leaves_the_precision_open() -> None:
    assert choose_kind(None, "fp32", NEW_CPU, "cuda") == GraphKind("fused", "fp32")
    with pytest.raises(GraphKindError, match=r"^there is no portable graph for cuda; choose .*fp16 \(tensorrt\)"):
        choose_kind("portable", None, NEW_CPU, "cuda")


def test_what_does_not_go_together_is_refused() -> None:
    expected = r"there is no fused-int8 graph; choose one of: portable-fp32 \(cpu\), .*fused-fp16 \(cuda\)$"
    with pytest.raises(GraphKindError, match=expected):
        choose_kind("fused", "int8", NEW_CPU)


def test_a_cpu_does_not_compute_a_gpus_target_as_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [kind for kind in GRAPH_KINDS if kind.device != "cpu" and execution(kind).as_requested] == []
    assert execution(GraphKind("fused", "fp16")).precision == "fp32"


def test_ctrl_c_ends_a_process_that_has_opened_graphs_with_openvino() -> None:
    """OpenVINO leaves the thread a deleted stack for signals where each graph has its own core."""
    pytest.importorskip("openvino")
    script = """
import os, pathlib, signal, tempfile
import onnx
from export.targets import GraphKind, open_graph
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
header = '<ir_version: 10, opset_import: ["": 17]>'
graph = onnx.parser.parse_model(header + "g (float[1, 4] x) => (float[1, 4] y) {y = Relu(x)}")
path = pathlib.Path(tempfile.mkdtemp()) / "model.onnx"
onnx.save(graph, path)
opened = [open_graph(path, GraphKind("portable", "bf16")) for _ in range(2)]
while opened:
    del opened[0]  # in the order in which they were opened
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("stopped")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr
