"""What a graph is exported for: the numbers it computes with, and the operators it is written in.

The one home of these names. A target is a variant and a precision; not every pair makes sense.
"""

from __future__ import annotations

import importlib.util
import platform
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch

Variant = Literal["portable", "fused"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Device = Literal["cpu", "cuda", "tensorrt"]

VARIANTS: tuple[Variant, ...] = get_args(Variant)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DEVICES: tuple[Device, ...] = get_args(Device)

OPENVINO = "openvino"  # Triton's name of the accelerator, in a model's config

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})  # of /proc/cpuinfo: either multiplies bf16 in hardware


class TargetError(Exception):
    """A variant and a precision that do not go together, or that this machine cannot check."""


@dataclass(frozen=True)
class Target:
    """One way of writing the graphs."""

    variant: Variant
    precision: Precision

    @property
    def name(self) -> str:
        """As it is shown and digested: ``fused-fp32``."""
        return f"{self.variant}-{self.precision}"

    @property
    def device(self) -> Device:
        """What its models are configured for; another one serves them as well, only not as fast."""
        if self.variant == "fused":
            return "cuda"
        return "tensorrt" if self.precision == "fp16" else "cpu"

    @property
    def accelerator(self) -> str | None:
        """The accelerator that its models' configs ask Triton for on a CPU, or None."""
        return OPENVINO if self.precision in ("bf16", "int8") else None

    @property
    def hint(self) -> str:
        """What that accelerator may compute in, as OpenVINO spells it; a CPU that cannot takes fp32."""
        return "bf16"


TARGETS: Mapping[Target, str] = {
    Target("portable", "fp32"): "exact to rounding, on any CPU or GPU and with any ONNX runtime; the safe choice",
    Target("portable", "bf16"): "for CPUs that multiply 16-bit numbers: twice as fast as fp32, by OpenVINO; exact "
    "fp32 where the machine that serves lacks either",
    Target("portable", "int8"): "for CPUs: products of 8-bit numbers, by OpenVINO: of a vision transformer half as "
    "fast again as bf16 and a third of the size; the least exact",
    Target("portable", "fp16"): "for TensorRT and other runtimes on a GPU: half the size, tensor cores",
    Target("fused", "fp32"): "for ONNX Runtime on an NVIDIA GPU: exact to rounding, attention in one kernel",
    Target("fused", "fp16"): "for ONNX Runtime on an NVIDIA GPU: half the size, tensor cores, attention in one kernel",
}


@dataclass(frozen=True)
class Machine:
    """What decides which target is fastest."""

    cuda: bool
    cpu_flags: frozenset[str]
    openvino: bool


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(
        torch.cuda.is_available(),
        frozenset(_cpuinfo("flags").split()),
        openvino=importlib.util.find_spec("openvino") is not None,
    )


def processor() -> str:
    """The name of this machine's CPU."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    """A value of the first CPU in ``/proc/cpuinfo``; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def recommend(machine: Machine) -> tuple[Target, str]:
    """The fastest target that is safe on ``machine``, and why: docs/export.md has the figures that chose it."""
    if machine.cuda:
        return Target("fused", "fp16"), "it has a CUDA GPU"
    if not machine.cpu_flags & _BF16_FLAGS:
        return Target("portable", "fp32"), "its CPU does not multiply bf16"
    if not machine.openvino:
        return Target("portable", "fp32"), "OpenVINO, which would compute in bf16, is not installed"
    return Target("portable", "bf16"), "its CPU multiplies bf16, and OpenVINO is installed"


def choose_target(variant: str | None, precision: str | None, machine: Machine, device: str | None = None) -> Target:
    """Resolve what was asked for; what was left open is recommended for ``machine``, or the fastest on ``device``.

    Raises:
        TargetError: the two do not go together; the message lists what does.
    """
    recommended, _ = recommend(replace(machine, cuda=device == "cuda") if device else machine)
    first = sorted(TARGETS, key=lambda target: (target != recommended, target.variant != recommended.variant))
    for target in first:
        asked = (variant, target.variant), (precision, target.precision), (device, target.device)
        if all(wanted in (None, found) for wanted, found in asked):
            return target
    wanted = "-".join(part for part in (variant, precision) if part) + (f" graph for {device}" if device else " graph")
    choices = ", ".join(f"{target.name} ({target.device})" for target in TARGETS)
    raise TargetError(f"there is no {wanted}; choose one of: {choices}")


def explain(machine: Machine) -> str:
    """What ``--help`` says about targets: each in plain words, and the one for ``machine``."""
    recommended, reason = recommend(machine)
    lines = [
        "target, variant and precision, as --target, --variant and --precision take them:",
        *(f"  {t.device:<9}{t.variant:<9}{t.precision:<5} {words}" for t, words in TARGETS.items()),
        f"On this machine: {recommended.variant} {recommended.precision}, because {reason}. Export for the machine "
        "that will serve. Whatever is chosen, a graph that does not give what PyTorch gives is not published.",
    ]
    return "\n".join(textwrap.fill(line, 100, subsequent_indent=" " * 26 * line.startswith("  ")) for line in lines)
