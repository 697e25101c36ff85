"""What a graph is exported for: the numbers it computes with, and the operators it is written in.

The one home of these names. A target is a variant and a precision; not every pair makes sense.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

Variant = Literal["portable", "fused"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]

VARIANTS: tuple[Variant, ...] = get_args(Variant)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

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
    def accelerator(self) -> str | None:
        """The accelerator that its models' configs ask Triton for on a CPU, or None."""
        return OPENVINO if self.precision in ("bf16", "int8") else None


TARGETS: Mapping[Target, str] = {
    Target("fused", "fp32"): "ONNX Runtime on any CPU or GPU, exact to rounding; the safe choice",
    Target("portable", "fp32"): "any ONNX runtime (TensorRT, OpenVINO, ...), exact to rounding",
    Target("fused", "fp16"): "ONNX Runtime on an NVIDIA GPU: half the memory, tensor cores",
    Target("portable", "fp16"): "TensorRT and other runtimes on a GPU: half the memory, tensor cores",
    Target("portable", "bf16"): "a CPU that multiplies bf16 (avx512_bf16 or amx_bf16), by OpenVINO",
    Target("portable", "int8"): "a CPU with 8-bit products (avx512_vnni, amx_int8), by OpenVINO; not exact",
}


@dataclass(frozen=True)
class Machine:
    """What decides which target is fastest."""

    cuda: bool
    cpu_flags: frozenset[str]
    openvino: bool


def this_machine() -> Machine:
    """The machine that this process runs on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return Machine(
        torch.cuda.is_available(), frozenset(flags), openvino=importlib.util.find_spec("openvino") is not None
    )


def recommend(machine: Machine) -> Target:
    """The fastest target that is safe on ``machine``: docs/export.md has the figures that chose it."""
    if machine.cuda:
        return Target("fused", "fp16")
    if machine.openvino and machine.cpu_flags & _BF16_FLAGS:
        return Target("portable", "bf16")
    return Target("fused", "fp32")


def choose_target(variant: str | None, precision: str | None, machine: Machine) -> Target:
    """Resolve what was asked for; what was left open is recommended for ``machine``.

    Raises:
        TargetError: the two do not go together; the message lists what does.
    """
    recommended = recommend(machine)
    ordered = sorted(TARGETS, key=lambda target: target != recommended)  # the recommended one first
    for target in ordered:
        if variant in (None, target.variant) and precision in (None, target.precision):
            return target
    choices = ", ".join(f"{target.variant} {target.precision}" for target in TARGETS)
    raise TargetError(f"no graph is both {variant} and {precision}; choose one of: {choices}")
