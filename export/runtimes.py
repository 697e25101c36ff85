"""Opens a graph with the runtime that will serve it, and names what computes it.

Parity holds only for the runtime, device and precision that measured it: each comparison records an :class:`Execution`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from export.targets import OPENVINO, Target, TargetError, processor

Array = npt.NDArray[Any]
Graph = Callable[[Mapping[str, Array]], list[Array]]  # inputs by name to outputs in order, batch first

_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_PROVIDERS = {"cpu": _CPU, "cuda": _CUDA, "tensorrt": _TENSORRT}  # that a target's device asks for


@dataclass(frozen=True)
class Execution:
    """What computes the graphs of a target on this machine, as ``parity.json`` records it."""

    runtime: str  # with its version
    provider: str
    device: str  # the processor's or GPU's name
    precision: str  # of matrix products
    asked: str  # the target's precision and provider

    @property
    def as_asked(self) -> bool:
        """Whether it computes in the precision and with the provider that the target asks for."""
        return self.asked == f"{self.precision} by {self.provider}"

    def __str__(self) -> str:
        """A summary for people."""
        return f"{self.precision} by {self.provider} of {self.runtime} on {self.device}"


def execution(target: Target) -> Execution:
    """What :func:`open_graph` computes the graphs of ``target`` with when parity is compared.

    Raises:
        TargetError: the runtime of ``target`` is not installed.
    """
    if target.accelerator == OPENVINO:
        openvino, asked = _import_openvino(target), f"{target.precision} by {OPENVINO}"
        whole = _multiplies(target.hint)
        precision = target.precision if whole else "int8 and fp32" if target.precision == "int8" else "fp32"
        return Execution(f"OpenVINO {openvino.__version__}", OPENVINO, processor(), precision, asked)
    on_gpu = _on_gpu(target)
    return Execution(
        f"ONNX Runtime {onnxruntime.__version__}",
        _CUDA if on_gpu else _CPU,
        torch.cuda.get_device_name() if on_gpu else processor(),
        target.precision if on_gpu else "fp32",  # ONNX Runtime's kernels for CPUs convert fp16 to fp32
        f"{target.precision} by {_PROVIDERS[target.device]}",
    )


def open_graph(path: Path, target: Target, *, emulate: bool = False) -> Graph:
    """Open the graph of ``target`` at ``path``, on a GPU where there is one and the target is not for CPUs.

    Args:
        emulate: let OpenVINO compute in bf16 also where the CPU only imitates that, slowly; a server takes fp32 there.

    Raises:
        TargetError: the runtime of ``target`` is not installed, or cannot use the GPU.
    """
    if target.accelerator == OPENVINO:
        return _open_openvino(path, target, emulate)
    providers: list[Any] = [_CPU]
    if _on_gpu(target):
        onnxruntime.preload_dlls()
        # TF32, which is on by default, has 10 bits of mantissa: no fp32 graph would pass
        providers.insert(0, (_CUDA, {"use_tf32": "0"} if target.precision == "fp32" else {}))
    session = onnxruntime.InferenceSession(path, providers=providers)
    if len(providers) > len(session.get_providers()):
        raise TargetError(
            f"ONNX Runtime cannot use CUDA here, for which {target.name} is meant: see what it said above, or choose "
            "--target cpu"
        )
    return lambda inputs: session.run(None, dict(inputs))


def _on_gpu(target: Target) -> bool:
    return torch.cuda.is_available() and target.device != "cpu"


def _open_openvino(path: Path, target: Target, emulate: bool) -> Graph:
    core = _import_openvino(target).Core()
    native = target.hint.upper() in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    hint = target.hint if (_multiplies(target.hint) if emulate else native) else "f32"
    model = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    return lambda inputs: [output.copy() for output in model(dict(inputs)).values()]


def _import_openvino(target: Target) -> Any:
    try:
        import openvino  # needed for its own targets alone
    except ImportError as error:
        raise TargetError(
            f"{target.precision} is computed by OpenVINO, which is not installed here ({error}): "
            "`pip install openvino`, or choose another --precision"
        ) from None
    return openvino


@lru_cache
def _multiplies(precision: str) -> bool:
    """Whether OpenVINO multiplies in ``precision`` on this CPU: asked for it, it may take fp32 without a word."""
    import openvino
    from openvino import opset13 as operators

    given = operators.parameter([8, 64], np.float32)
    product = operators.matmul(given, operators.constant(np.ones((64, 64), np.float32)), False, False)
    model = openvino.Model([product], [given])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return any(
        node["layerType"].astype(str) in ("FullyConnected", "MatMul")
        and node["runtimePrecision"].astype(str) == precision
        for node in nodes
    )
