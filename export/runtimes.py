"""Opens a graph with the runtime that will serve it: parity that another one proves is worth nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime
import torch

from export.targets import OPENVINO, Target, TargetError

Array = npt.NDArray[Any]
Graph = Callable[[Mapping[str, Array]], list[Array]]  # inputs by name to outputs in order, batch first


def open_graph(path: Path, target: Target) -> Graph:
    """Open the graph of ``target`` at ``path``, on a GPU where there is one and the target is not for CPUs."""
    if target.accelerator == OPENVINO:
        return _open_openvino(path, target)
    providers: list[Any] = ["CPUExecutionProvider"]
    if torch.cuda.is_available() and target.device != "cpu":
        onnxruntime.preload_dlls()
        # TF32, which is on by default, has 10 bits of mantissa: no fp32 graph would pass
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"} if target.precision == "fp32" else {}))
    session = onnxruntime.InferenceSession(path, providers=providers)
    if len(providers) > len(session.get_providers()):
        raise TargetError(
            f"ONNX Runtime cannot use CUDA here, for which {target.name} is meant: see what it said above, or choose "
            "--target cpu"
        )
    return lambda inputs: session.run(None, dict(inputs))


def _open_openvino(path: Path, target: Target) -> Graph:
    try:
        import openvino  # needed for its own targets alone
    except ImportError as error:
        raise TargetError(
            f"{target.precision} is computed by OpenVINO, which is not installed here ({error}): "
            "`pip install openvino`, or choose another --precision"
        ) from None
    core = openvino.Core()
    hint = target.hint
    if hint.upper() not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        hint = "f32"
        print(
            f"  this CPU does not multiply {target.hint}: {path.parents[1].name} is compared in fp32; export "
            "with --recheck where it will be served"
        )
    model = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    return lambda inputs: [output.copy() for output in model(dict(inputs)).values()]
