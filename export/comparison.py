"""Measures of the difference between a graph's outputs and PyTorch's, and the tolerances of each precision.

docs/parity.md says what each measure detects.

    ParityError
      OutputError     a graph has other outputs than the contract names
      ShapeError      an output has another shape than the reference
      ToleranceError  an output differs from the reference by more than the tolerances
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from export.targets import Array, Precision
from vizwiz_client.contract import tensors
from vizwiz_client.contract.tensors import TensorSpec

_TOP = 5

# Rounding of probabilities in fp32. A softmax divides, so small probabilities are as exact as large ones, down to
# fp32's smallest normal number. A sigmoid is exact to a few units of the last place below 1, 2^-24 each. ONNX Runtime's
# was off by up to 2.8 units, so 4 count as rounding; log-odds beyond log(2^22) = 15.2 count as equal.
_SOFTMAX_RESOLUTION = float(np.finfo(np.float32).tiny)
_SIGMOID_RESOLUTION = 2.0**-22
_MIN_LOG_SCALE = 4.0  # a probability changes by at most a quarter of the change of its log-odds, p (1 - p) <= 1/4

REPORT_BUG = "this is a bug of the export: report it with the table above"


class ParityError(Exception):
    """A graph does not compute what PyTorch computes."""


class OutputError(ParityError):
    """A graph has other outputs than the contract names."""


class ShapeError(ParityError):
    """An output has another shape than the reference."""


class ToleranceError(ParityError):
    """An output differs from the reference by more than the tolerances."""


@dataclass(frozen=True)
class Tolerance:
    """The largest accepted errors; each detects faults that the others miss."""

    relative_error: float  # features: max |difference| / max |reference|; probabilities: max |difference|
    cosine_error: float  # features: 1 - cosine of the worst row; blind to scale
    centred_error: float  # features: max |difference| / max |reference - its mean|; sees below what all inputs share
    log_error: float = 5e-5  # log-probabilities of the head alone, which computes in fp32 at every precision


TOLERANCES: Mapping[Precision, Tolerance] = {
    # Another order of summation: ten times and more of the measured 3.4e-6, 3e-11 and 9e-6. Trained weights may round
    # more than random ones. A matrix that is off by 1% shows as 1e-3 or more.
    "fp32": Tolerance(5e-5, 1e-9, 1e-3),
    # 11 bits of significand: 5e-4 each time, over tens of layers. fp16 storage alone gave 6e-4 and 3e-7. fp16
    # arithmetic was never measured, so these are not tightened.
    "fp16": Tolerance(2e-2, 1e-4, 0.1),
    # 8 bits of significand: 4e-3 each time. Three times the measured 1.4e-2, 1.7e-4 and 0.1.
    "bf16": Tolerance(4e-2, 5e-4, 0.25),
    # 256 levels per tensor or channel: like bf16 for most values, coarser for small values beside large ones. Measured:
    # 4.0e-2 and 7.5e-4.
    "int8": Tolerance(5e-2, 1e-3, 0.25),
}


class Features(NamedTuple):
    """Features of N photos or questions."""

    reference: Array  # fp32 [N, D], PyTorch's
    measured: Array  # fp32 [N, D], the graph's


@dataclass(frozen=True)
class Comparison:
    """The difference of one tensor on one set of inputs; measures that do not apply are None."""

    inputs: str  # "random", "drawn" or "val"
    tensor: str
    rows: int
    relative_error: float
    cosine_error: float | None = None
    centred_error: float | None = None
    log_error: float | None = None
    top1_differ: int | None = None  # rows whose best entry differs by more than the tolerance explains
    top1_agree: float | None = None  # share of rows with the same best entry
    top5_agree: float | None = None  # mean share of the reference's best five among the graph's best five

    def passes(self, tolerance: Tolerance) -> bool:
        """Whether every measure is within ``tolerance``; NaN never is."""
        errors = (
            (self.relative_error, tolerance.relative_error),
            (self.cosine_error, tolerance.cosine_error),
            (self.centred_error, tolerance.centred_error),
            (self.log_error, tolerance.log_error),
        )
        return all(error is None or error <= allowed for error, allowed in errors) and not self.top1_differ

    def describe(self, tolerance: Tolerance) -> str:
        """One line for an error message: each measure beside its tolerance."""
        measures = [f"error {self.relative_error:.1e} (allowed {tolerance.relative_error:g})"]
        for name, error, allowed in (
            ("1 - cosine", self.cosine_error, tolerance.cosine_error),
            ("centred error", self.centred_error, tolerance.centred_error),
            ("log error", self.log_error, tolerance.log_error),
        ):
            if error is not None:
                measures.append(f"{name} {error:.1e} (allowed {allowed:g})")
        if self.top1_differ:
            measures.append(f"another best entry in {self.top1_differ} of {self.rows} rows")
        return f"{self.tensor} on {self.inputs} inputs: {', '.join(measures)}"


def compare_features(images: Mapping[str, Features], texts: Mapping[str, Features]) -> list[Comparison]:
    """Compare both encoders on each set of inputs."""
    return [
        compare_encoder(
            inputs,
            name,
            features[inputs],
            # Features of noise hardly differ. Those of a run's photos may not either; drawn photos do.
            centred_scale=0
            if inputs == "random"
            else max(_centred_scale(features[each].reference) for each in ("drawn", inputs)),
        )
        for inputs in images
        for name, features in ((tensors.IMAGE_FEATURES.name, images), (tensors.TEXT_FEATURES.name, texts))
    ]


def compare_encoder(inputs: str, tensor: str, features: Features, *, centred_scale: float = 0) -> Comparison:
    """Compare the features of one set of inputs.

    Args:
        inputs: name of the set.
        tensor: name of the output.
        features: reference and measured features.
        centred_scale: max |reference - its mean|, the scale of the centred error; 0 omits that measure.

    Raises:
        ShapeError: the shapes differ.
    """
    got, reference = _as_fp64(inputs, tensor, features.measured, features.reference)
    difference = np.abs(got - reference).max()
    return Comparison(
        inputs,
        tensor,
        rows=len(got),
        relative_error=float(difference / np.abs(reference).max()),
        cosine_error=_cosine_error(got, reference),
        centred_error=float(difference / centred_scale) if centred_scale else None,
    )


def compare_probabilities(
    inputs: str, spec: TensorSpec, got: Array, chain: Array, head_alone: Array, tolerance: Tolerance
) -> Comparison:
    """Compare one output of the head, [B, N].

    Args:
        inputs: name of the set of inputs.
        spec: the output.
        got: the output of the graphs.
        chain: PyTorch's encoders and head: what users see, the encoders' rounding included.
        head_alone: PyTorch's head on the graphs' features. The head computes in fp32 at every precision, so this
            detects faults in probabilities too small, or too certain, to show in ``chain``.
        tolerance: decides which best entries count as tied.

    Raises:
        ShapeError: the shapes differ.
    """
    probabilities, reference = _as_fp64(inputs, spec.name, got, chain)
    is_sigmoid = spec in (tensors.ANSWERABLE, tensors.QUALITY)
    resolution = _SIGMOID_RESOLUTION if is_sigmoid else _SOFTMAX_RESOLUTION
    ranking: dict[str, Any] = {} if is_sigmoid else _compare_ranking(probabilities, reference, tolerance)
    return Comparison(
        inputs,
        spec.name,
        rows=len(probabilities),
        relative_error=float(np.abs(probabilities - reference).max()),
        log_error=log_error(probabilities, head_alone, resolution, complements=is_sigmoid),
        **ranking,
    )


def log_error(got: Array, reference: Array, resolution: float, *, complements: bool = False) -> float:
    """Largest difference of log-probabilities [B, N], relative to the largest |log-probability|.

    Args:
        got: measured probabilities.
        reference: reference probabilities.
        resolution: differences up to this, and probabilities below it, count as rounding.
        complements: each probability counts with its complement, as those of sigmoids do.
    """
    a, b = got, reference.astype(np.float64)
    if complements:
        a, b = (np.concatenate([x, 1 - x], axis=1) for x in (a, b))
    a = a + np.clip(b - a, -resolution, resolution)
    logs_a, logs_b = (np.log(np.maximum(x, resolution)) for x in (a, b))
    return float(np.abs(logs_a - logs_b).max() / max(_MIN_LOG_SCALE, np.abs(logs_b).max()))


def _compare_ranking(got: Array, reference: Array, tolerance: Tolerance) -> dict[str, Any]:
    best, best_reference = (np.argsort(-x, axis=1, kind="stable")[:, :_TOP] for x in (got, reference))
    differ = best[:, 0] != best_reference[:, 0]
    two_best = -np.sort(-reference, axis=1)[:, :2]
    tied = two_best[:, 0] - two_best[:, -1] <= 2 * tolerance.relative_error  # one may be too high, the other too low
    shared = [len({*x} & {*y}) / len(y) for x, y in zip(best, best_reference, strict=True)]
    return {
        "top1_differ": int((differ & ~tied).sum()),
        "top1_agree": float(1 - differ.mean()),
        "top5_agree": float(np.mean(shared)),
    }


def _as_fp64(inputs: str, tensor: str, got: Array, reference: Array) -> tuple[Array, Array]:
    if got.shape != reference.shape:
        raise ShapeError(
            f"{tensor} on {inputs} inputs has shape {[*got.shape]}, expected {[*reference.shape]}; {REPORT_BUG}"
        )
    return got.astype(np.float64), reference.astype(np.float64)


def _centred_scale(reference: Array) -> float:
    """Max |reference - its mean| of features [N, D]."""
    return float(np.abs(reference - reference.mean(axis=0, dtype=np.float64)).max())


def _cosine_error(a: Array, b: Array) -> float:
    """1 - cosine of the worst row of [N, D]."""
    cosine = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(np.maximum(0, 1 - cosine).max())
