"""Kinds of graphs, each a variant and a precision, and the runtime that computes them.

Parity holds only for the runtime, device and precision that computed it: each comparison records an :class:`Execution`.
"""

from __future__ import annotations

import importlib.util
import platform
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

Variant = Literal["portable", "fused"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Device = Literal["cpu", "cuda", "tensorrt"]

VARIANTS: tuple[Variant, ...] = get_args(Variant)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DEVICES: tuple[Device, ...] = get_args(Device)

OPENVINO = "openvino"  # Triton's name of the accelerator
OPENVINO_HINT = "bf16"  # OpenVINO's inference precision hint; it falls back to fp32 on CPUs without bf16

Array = npt.NDArray[Any]
Graph = Callable[[Mapping[str, Array]], list[Array]]  # inputs by name -> outputs in order, batch axis first

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})  # CPU flags of hardware bf16 products
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})  # of int8 products that are added in 32 bits
# Other CPUs add two int8 products in 16 bits, which overflow: wrong sums, and slower than fp32 (docs/decisions.md).
# OpenVINO then has to compute the rounded values in fp32; it has no documented option for that.
_WITHOUT_INT8 = {"LP_TRANSFORMS_MODE": False}
_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_PROVIDERS: dict[Device, str] = {"cpu": _CPU, "cuda": _CUDA, "tensorrt": _TENSORRT}


class GraphKindError(Exception):
    """No such kind of graph, or this machine lacks the runtime that verifies it."""


@dataclass(frozen=True)
class GraphKind:
    """A variant and a precision of the graphs."""

    variant: Variant
    precision: Precision

    @property
    def name(self) -> str:
        """Name in messages and digests, such as ``fused-fp32``."""
        return f"{self.variant}-{self.precision}"

    @property
    def device(self) -> Device:
        """The device whose options the Triton configs set; other devices ignore them."""
        if self.variant == "fused":
            return "cuda"
        return "tensorrt" if self.precision == "fp16" else "cpu"

    @property
    def accelerator(self) -> str | None:
        """The CPU accelerator in the Triton configs, or None."""
        return OPENVINO if self.precision in ("bf16", "int8") else None


GRAPH_KINDS: Mapping[GraphKind, str] = {
    GraphKind("portable", "fp32"): "exact to rounding; any CPU or GPU, any ONNX runtime; the safe choice",
    GraphKind("portable", "bf16"): "CPUs with bf16 instructions: bf16 through OpenVINO; fp32 where the serving machine "
    "lacks either",
    GraphKind("portable", "int8"): "CPUs with VNNI: int8 through OpenVINO; a third of the size, least exact; elsewhere "
    "in fp32",
    GraphKind("portable", "fp16"): "TensorRT and other GPU runtimes: half the size, tensor cores",
    GraphKind("fused", "fp32"): "ONNX Runtime on an NVIDIA GPU: exact to rounding, fused attention",
    GraphKind("fused", "fp16"): "ONNX Runtime on an NVIDIA GPU: half the size, tensor cores, fused attention",
}


@dataclass(frozen=True)
class Machine:
    """The properties of a machine that decide which kind of graph is fastest on it."""

    cuda: bool
    cpu_flags: frozenset[str]
    openvino: bool

    @property
    def bf16(self) -> bool:
        """Whether its CPU multiplies bf16."""
        return bool(self.cpu_flags & _BF16_FLAGS)

    @property
    def int8(self) -> bool:
        """Whether its CPU multiplies int8 without overflow."""
        return bool(self.cpu_flags & _INT8_FLAGS)


def this_machine() -> Machine:
    """Properties of the machine that runs this process."""
    return Machine(
        torch.cuda.is_available(),
        frozenset(_cpuinfo("flags").split()),
        openvino=importlib.util.find_spec("openvino") is not None,
    )


def cpu_name() -> str:
    """Model name of this machine's CPU."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def recommend(machine: Machine) -> tuple[GraphKind, str]:
    """The fastest safe kind for ``machine``, and the reason; docs/results.md has the figures behind it."""
    if machine.cuda:
        return GraphKind("fused", "fp16"), "it has a CUDA GPU"
    if not machine.bf16:
        return GraphKind("portable", "fp32"), "its CPU does not multiply bf16"
    if not machine.openvino:
        return GraphKind("portable", "fp32"), "OpenVINO, which would compute in bf16, is not installed"
    return GraphKind("portable", "bf16"), "its CPU multiplies bf16, and OpenVINO is installed"


def choose_kind(variant: str | None, precision: str | None, machine: Machine, device: str | None = None) -> GraphKind:
    """Complete a partly specified kind of graph.

    Args:
        variant: "portable", "fused" or None.
        precision: "fp32", "fp16", "bf16", "int8" or None.
        machine: the machine to recommend for, where no ``device`` is given.
        device: "cpu", "cuda", "tensorrt" or None.

    Returns:
        The recommended kind if it matches, else another match, preferably of the recommended variant.

    Raises:
        GraphKindError: none matches; the message lists all kinds.
    """
    recommended, _ = recommend(replace(machine, cuda=device == "cuda") if device else machine)
    by_preference = sorted(GRAPH_KINDS, key=lambda t: (t != recommended, t.variant != recommended.variant))
    for kind in by_preference:
        asked = (variant, kind.variant), (precision, kind.precision), (device, kind.device)
        if all(wanted in (None, found) for wanted, found in asked):
            return kind
    wanted = "-".join(part for part in (variant, precision) if part) + (f" graph for {device}" if device else " graph")
    choices = ", ".join(f"{kind.name} ({kind.device})" for kind in GRAPH_KINDS)
    raise GraphKindError(f"there is no {wanted}; choose one of: {choices}")


def kinds_help(machine: Machine) -> str:
    """The part of ``--help`` about kinds of graphs, with the recommendation for ``machine``."""
    recommended, reason = recommend(machine)
    lines = [
        "values of --target, --variant and --precision that go together:",
        *(f"  {t.device:<9}{t.variant:<9}{t.precision:<5} {words}" for t, words in GRAPH_KINDS.items()),
        f"On this machine: {recommended.variant} {recommended.precision}, because {reason}. Choose for the machine "
        "that will serve. Export refuses every graph that fails parity with PyTorch.",
    ]
    return "\n".join(textwrap.fill(line, 100, subsequent_indent=" " * 26 * line.startswith("  ")) for line in lines)


@dataclass(frozen=True)
class Execution:
    """The runtime, device and precision that compute graphs of one kind on this machine."""

    runtime: str  # with its version
    provider: str
    device: str  # model name of the CPU or GPU
    precision: str  # of matrix products
    requested: str  # precision and provider of the kind

    @property
    def as_requested(self) -> bool:
        """Whether precision and provider are those that the kind of graph requests."""
        return self.requested == f"{self.precision} by {self.provider}"

    def __str__(self) -> str:
        """One phrase for messages."""
        return f"{self.precision} by {self.provider} of {self.runtime} on {self.device}"


def execution(kind: GraphKind) -> Execution:
    """How :func:`open_graph` with ``emulate`` computes the graphs of ``kind`` on this machine.

    Raises:
        GraphKindError: the runtime of ``kind`` is not installed.
    """
    if kind.accelerator == OPENVINO:
        version, requested = _import_openvino(kind).__version__, f"{kind.precision} by {OPENVINO}"
        precision = OPENVINO_HINT if _openvino_multiplies(OPENVINO_HINT) else "fp32"
        if kind.precision == "int8" and this_machine().int8:
            precision = "int8" if precision == OPENVINO_HINT else f"int8 and {precision}"
        return Execution(f"OpenVINO {version}", OPENVINO, cpu_name(), precision, requested)
    on_gpu = _on_gpu(kind)
    return Execution(
        f"ONNX Runtime {onnxruntime.__version__}",
        _CUDA if on_gpu else _CPU,
        torch.cuda.get_device_name() if on_gpu else cpu_name(),
        kind.precision if on_gpu else "fp32",  # ONNX Runtime's CPU kernels convert fp16 to fp32
        f"{kind.precision} by {_PROVIDERS[kind.device]}",
    )


def open_graph(path: Path, kind: GraphKind, *, emulate: bool = False) -> Graph:
    """Open an ONNX file with the runtime of its kind; on a GPU where there is one and the kind is not for CPUs.

    Args:
        path: the ONNX file.
        kind: the kind of the graph.
        emulate: compute bf16 with OpenVINO even where the CPU only emulates it, slowly. A server takes fp32 there.

    Returns:
        A function from inputs by name to the list of outputs.

    Raises:
        GraphKindError: the runtime of ``kind`` is not installed, or cannot use the GPU.
    """
    if kind.accelerator == OPENVINO:
        return _open_openvino(path, kind, emulate)
    providers: list[Any] = [_CPU]
    if _on_gpu(kind):
        onnxruntime.preload_dlls()
        # TF32, the default, has 10 bits of mantissa: no fp32 graph would pass parity
        providers.insert(0, (_CUDA, {"use_tf32": "0"} if kind.precision == "fp32" else {}))
    session = onnxruntime.InferenceSession(path, providers=providers)
    if len(providers) > len(session.get_providers()):
        raise GraphKindError(
            f"ONNX Runtime cannot use CUDA here, which {kind.name} needs: see its messages above, or choose "
            "--target cpu"
        )
    return lambda inputs: session.run(None, dict(inputs))


def _on_gpu(kind: GraphKind) -> bool:
    return torch.cuda.is_available() and kind.device != "cpu"


def _open_openvino(path: Path, kind: GraphKind, emulate: bool) -> Graph:
    _import_openvino(kind)
    core = openvino_core()
    native = OPENVINO_HINT.upper() in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    hint = OPENVINO_HINT if (_openvino_multiplies(OPENVINO_HINT) if emulate else native) else "f32"
    options = {"INFERENCE_PRECISION_HINT": hint, **({} if this_machine().int8 else _WITHOUT_INT8)}
    model = core.compile_model(path, "CPU", options)
    return lambda inputs: [output.copy() for output in model(dict(inputs)).values()]


def _import_openvino(kind: GraphKind) -> Any:
    try:
        import openvino  # late: only bf16 and int8 need it
    except ImportError as error:
        raise GraphKindError(
            f"OpenVINO computes {kind.precision}, and is not installed here ({error}): `pip install openvino`, or "
            "choose another --precision"
        ) from None
    return openvino


@lru_cache
def openvino_core() -> Any:
    """The process's only ``openvino.Core``.

    A core gives the thread that compiles its first model another stack for signals, and the one before back when it is
    deleted. After two cores, the thread may have a stack that was deleted, and then Ctrl-C is a segmentation fault.
    """
    import openvino

    return openvino.Core()


@lru_cache
def _openvino_multiplies(precision: str) -> bool:
    """Whether OpenVINO multiplies in ``precision`` on this CPU; where it cannot, it silently takes fp32."""
    import openvino
    from openvino import opset13 as operators

    x = operators.parameter([8, 64], np.float32)
    product = operators.matmul(x, operators.constant(np.ones((64, 64), np.float32)), False, False)
    compiled = openvino_core().compile_model(
        openvino.Model([product], [x]), "CPU", {"INFERENCE_PRECISION_HINT": precision}
    )
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return any(
        node["layerType"].astype(str) in ("FullyConnected", "MatMul")
        and node["runtimePrecision"].astype(str) == precision
        for node in nodes
    )


def _cpuinfo(key: str) -> str:
    """A value of the first CPU in ``/proc/cpuinfo``; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
