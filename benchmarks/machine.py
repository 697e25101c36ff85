"""Peak matrix rate of this machine, and peak memory of a process."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import numpy as np
import torch

MATRIX = 4096  # rows and columns of the product


def rates(device: torch.device) -> dict[str, float]:
    """The best rate of a square matrix product that PyTorch or NumPy reaches here, GFLOP/s by precision."""

    def rate(multiply: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            multiply()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
        return 2e-9 * MATRIX**3 / best

    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if name != "fp16" or device.type == "cuda":
            matrix = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
            found[name] = rate(lambda matrix=matrix: matrix @ matrix)  # type: ignore[misc]
    if device.type == "cpu":
        array = np.random.default_rng(0).standard_normal((MATRIX, MATRIX), dtype=np.float32)
        found["fp32"] = max(found["fp32"], rate(lambda: array @ array))
    return found


def peak_gb() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
