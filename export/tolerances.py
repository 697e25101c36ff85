"""How far a graph may be from PyTorch, per precision; docs/parity.md has what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from export.targets import Precision


@dataclass(frozen=True)
class Tolerance:
    """The largest errors that are published; each sees what the others are blind to."""

    relative_error: float  # of features max |difference| / max |reference|, of probabilities max |difference|
    cosine_error: float  # of features, 1 - cosine of the worst row: blind to scale
    # of features, max |difference| / max |reference - its mean|: sees faults below what all inputs have in common
    spread_error: float
    # of the head alone, which computes in fp32 at every precision: its log-probabilities, by their largest value
    log_error: float = 5e-5


# Rounding in another order: ten times and more what was measured, 3.4e-6, 3e-11 and 9e-6; OpenAI's trained weights may
# round more than random ones. A matrix that is off by 1% shows as 1e-3 or more.
FP32 = Tolerance(5e-5, 1e-9, 1e-3)
# 11 bits of significand: 5e-4 each time, over tens of layers. 6e-4 and 3e-7 were measured with fp16 storage alone; in
# fp16 arithmetic, which takes a GPU, nothing was, so these are not tightened.
FP16 = Tolerance(2e-2, 1e-4, 0.1)
# 8 bits of significand: 4e-3 each time. Three times what was measured, 1.4e-2, 1.7e-4 and 0.1.
BF16 = Tolerance(4e-2, 5e-4, 0.25)
# 256 levels per tensor or channel: as coarse as bf16 for most values, coarser for small ones beside large ones. 4.0e-2
# and 7.5e-4 were measured.
INT8 = Tolerance(5e-2, 1e-3, 0.25)

TOLERANCES: Mapping[Precision, Tolerance] = {"fp32": FP32, "fp16": FP16, "bf16": BF16, "int8": INT8}
