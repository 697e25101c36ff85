"""Peak matrix rates of this machine, and peak memory of a process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper, save

from benchmarks.report import kinds_here
from export.targets import open_graph

MATRIX = 4096  # rows and columns of the product on a GPU
POSITIONS, WIDTH, HIDDEN = 577, 1024, 4096  # of ViT-L/14@336px: its products are the rate on a CPU
PRODUCTS = 16
ROUNDS = 12  # the best of them counts


def cpu_rates() -> dict[str, float]:
    """Best rate of a chain of matrix products, G operations/s by precision, each by the runtime of its graphs.

    fp32 is computed by ONNX Runtime, bf16 and int8 by OpenVINO. The products are those of ViT-L/14@336px:
    [577, 1024] x [1024, 4096] and back.
    """
    operations = 2 * POSITIONS * WIDTH * HIDDEN * PRODUCTS
    found: dict[str, float] = {}
    feed = {"x": np.random.default_rng(0).standard_normal((POSITIONS, WIDTH), np.float32)}
    for kind in kinds_here():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "products.onnx")
            _write_products(path, int8=kind.precision == "int8")
            products = open_graph(path, kind)
            found[kind.precision] = 1e-9 * operations / _best(lambda products=products: products(feed))  # type: ignore[misc]
    return found


def cuda_rates() -> dict[str, float]:
    """Best rate of a square matrix product on the GPU, G operations/s by precision."""
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        matrix = torch.randn(MATRIX, MATRIX, device="cuda").to(dtype)

        def multiply(matrix: torch.Tensor = matrix) -> None:
            matrix @ matrix
            torch.cuda.synchronize()

        found[name] = 2e-9 * MATRIX**3 / _best(multiply)
    return found


def reset_peak() -> None:
    """Let :func:`peak_gb` count from now on."""
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM


def peak_gb() -> float:
    """Peak memory of this process; getrusage(2) would count that of the process which started it, too."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e9


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _write_products(path: Path, *, int8: bool) -> None:
    """Write a chain of matrix products; with ``int8``, quantised as the project's graphs are."""
    random = np.random.default_rng(0)
    nodes, x = [], "x"
    constants: dict[str, Any] = {"zero": np.int8(0), "scale": np.float32(0.05)} if int8 else {}
    for number in range(PRODUCTS):
        shape = (WIDTH, HIDDEN) if number % 2 == 0 else (HIDDEN, WIDTH)
        matrix = (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        w, y = f"w{number}", f"y{number}"
        if int8:
            constants[f"{w}_scale"] = (np.abs(matrix).max(axis=0) / 127).astype(np.float32)
            constants[f"{w}_int8"] = np.rint(matrix / constants[f"{w}_scale"]).astype(np.int8)
            nodes += [
                helper.make_node("DequantizeLinear", [f"{w}_int8", f"{w}_scale"], [w], axis=1),
                helper.make_node("QuantizeLinear", [x, "scale", "zero"], [f"{x}_int8"]),
                helper.make_node("DequantizeLinear", [f"{x}_int8", "scale", "zero"], [f"{x}_rounded"]),
            ]
            x = f"{x}_rounded"
        else:
            constants[w] = matrix
        nodes.append(helper.make_node("MatMul", [x, w], [y]))
        x = y
    shapes = [("x", [POSITIONS, WIDTH]), (x, [POSITIONS, WIDTH])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
    values = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "products", ports[:1], ports[1:], values)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
