"""How far a graph may be from PyTorch, per precision; docs/parity.md has what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from export.targets import Precision


@dataclass(frozen=True)
class Tolerance:
    """The largest errors that are published; each sees what the others are blind to."""

    relative_error: float  # max |difference| / max |reference|; of a probability, also the largest change
    cosine_error: float  # 1 - cosine of the worst row: blind to scale
    spread_error: (
        float  # max |difference| / max |reference - its mean|: sees faults below what all inputs have in common
    )


# Rounding in another order: at most 3e-6 and 4e-12 were measured. A matrix that is off by 1% shows as 1e-3 or more.
FP32 = Tolerance(1e-4, 1e-6, 1e-2)
# 11 bits of significand: 5e-4 each time, over tens of layers; 2e-3 and 2e-7 were measured with fp16 storage alone.
FP16 = Tolerance(2e-2, 1e-4, 0.1)
# 8 bits of significand: 4e-3 each time. Answers hold better than features: the head was fitted on noisier ones.
BF16 = Tolerance(5e-2, 1e-3, 0.25)
# 256 levels per tensor or channel: as coarse as bf16 for most values, coarser for small ones beside large ones.
INT8 = Tolerance(5e-2, 1e-3, 0.25)

TOLERANCES: Mapping[Precision, Tolerance] = {"fp32": FP32, "fp16": FP16, "bf16": BF16, "int8": INT8}
