"""The gate before publication: the graphs must give what PyTorch gives, tensor by tensor and along the whole chain.

The references are the ``clip`` package's own modules, tokenizer and preprocessing, and the head as it was fitted; none
of the code under test takes part in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from export.parity_inputs import Inputs
from export.runtimes import Array, Execution, Graph
from export.tolerances import Tolerance
from training.backbone import FrozenClip
from training.predictor import Predictor
from vizwiz_client.contract import tensors, tokenizer
from vizwiz_client.contract.tensors import TensorSpec

_MIXED = 64  # questions that are asked beside others of other lengths
_BATCH_EDGES = (0, 1, 4)  # one alone, then three together: the batch axis must be free
_BATCH = 8  # and then as many
_TOP = 5
_TEXT_BATCH = 64
_REFERENCE_BATCH = 4  # photos: PyTorch takes a tenth longer for each when there are 8 (ViT-L/14@336px, two cores)

# What fp32 rounds a probability by. A softmax divides, so its small probabilities are as exact as its large ones, down
# to fp32's smallest normal number. A sigmoid is exact to a few units of the last place below 1, 2^-24 each: 2.8 were
# measured of ONNX Runtime's, so 4 are rounding, and log-odds beyond log(2^22) = 15.2 are all alike.
_SOFTMAX_RESOLUTION = float(np.finfo(np.float32).tiny)
_SIGMOID_RESOLUTION = 2.0**-22
_LOG_SCALE = 4.0  # at most: a probability changes by a quarter of what its log-odds change, p (1 - p) <= 1/4


_REPORT_IT = "this is a fault of the export: report it with the table above"


class ParityError(Exception):
    """Graphs that do not give what PyTorch gives."""


class OutputError(ParityError):
    """A graph with other outputs than the contract names."""


class ShapeError(ParityError):
    """An output of another shape than the reference."""


class ToleranceError(ParityError):
    """Outputs that differ from the reference by more than the tolerances."""


@dataclass(frozen=True)
class Comparison:
    """How far one output is from its reference on some inputs. What does not apply to a tensor is None."""

    inputs: str  # "random", "drawn" or "val"
    tensor: str
    rows: int
    relative_error: float  # max |difference| / scale: of features max |reference|, of probabilities 1
    cosine_error: float | None = None  # of features: 1 - cosine of the worst row
    spread_error: float | None = None  # of features, but not of noise: max |difference| / max |reference - its mean|
    log_error: float | None = None  # of probabilities: max |difference of logarithms| / their scale, on equal features
    top1_differ: int | None = None  # rows whose highest entry is another, by more than the tolerance explains
    top1_agree: float | None = None  # share of rows with the same highest entry
    top5_agree: float | None = None  # mean share of the reference's five highest that are among the five highest

    def passes(self, tolerance: Tolerance) -> bool:
        """Whether every measure is within ``tolerance``; NaN is not."""
        measured = (
            (self.relative_error, tolerance.relative_error),
            (self.cosine_error, tolerance.cosine_error),
            (self.spread_error, tolerance.spread_error),
            (self.log_error, tolerance.log_error),
        )
        return all(error is None or error <= allowed for error, allowed in measured) and not self.top1_differ


class Features(NamedTuple):
    """What an encoder gave on the N photos or questions of some inputs."""

    reference: Array  # fp32 [N, D], PyTorch's
    measured: Array  # fp32 [N, D], the graph's


def measure_image(graph: Graph, model: FrozenClip, inputs: Inputs) -> Features:
    """Run the image encoder and its reference."""
    measured = _run(graph, tensors.IMAGE.name, inputs.pixels)
    with torch.inference_mode():
        parts = [model.model.encode_image(part) for part in inputs.reference_pixels.split(_REFERENCE_BATCH)]
    return Features(torch.cat(parts).numpy(), measured)


def measure_text(graph: Graph, model: FrozenClip, inputs: Inputs) -> Features:
    """Run the text encoder on questions as a server gets them, at 77 positions, and its reference, each once.

    Questions of one length are asked together, so that the graph computes at that length, and some of them once more
    beside others of other lengths: what is further from the reference counts.
    """
    served = np.stack([tokenizer.pad(ids, tensors.CONTEXT_LENGTH) for ids in inputs.questions])
    lengths = (served == tokenizer.END_OF_TEXT).argmax(axis=1)
    alike = [_run(graph, tensors.TOKENS.name, served[lengths == length]) for length in np.unique(lengths)]
    measured = np.concatenate(alike)[np.argsort(np.argsort(lengths, kind="stable"), kind="stable")]
    mixed = _run(graph, tensors.TOKENS.name, served[:_MIXED])
    distinct, places = torch.unique(inputs.reference_questions, dim=0, return_inverse=True)
    with torch.inference_mode():
        reference = torch.cat([model.model.encode_text(part) for part in distinct.split(_TEXT_BATCH)])[places].numpy()
    off, mixed_off = (np.abs(each[:_MIXED] - reference[:_MIXED]).max(axis=1) for each in (measured, mixed))
    worse = ~(mixed_off <= off) & np.isfinite(off)  # not a number is worse than any
    measured[:_MIXED][worse] = mixed[worse]
    return Features(reference, measured)


def compare_features(images: Mapping[str, Features], texts: Mapping[str, Features]) -> list[Comparison]:
    """Compare both encoders on each set of inputs."""
    return [
        compare_encoder(
            inputs,
            name,
            features[inputs],
            # to a network, one noise looks like another; and a run's own photos may be much alike, drawn ones are not
            spread=0 if inputs == "random" else max(_spread(features[each].reference) for each in ("drawn", inputs)),
        )
        for inputs in images
        for name, features in ((tensors.IMAGE_FEATURES.name, images), (tensors.TEXT_FEATURES.name, texts))
    ]


def compare_answers(
    head: Graph,
    predictor: Predictor,
    images: Mapping[str, Features],
    texts: Mapping[str, Features],
    tolerance: Tolerance,
) -> list[Comparison]:
    """Compare the whole chain, the head's graph behind the encoders' graphs, with PyTorch's behind PyTorch's.

    Raises:
        OutputError: the head's graph has other outputs than the contract names.
    """
    comparisons = []
    for inputs, photos in images.items():
        questions = texts[inputs]
        asked = np.arange(len(questions.reference)) % len(photos.reference)
        chain = reference_answers(predictor, photos.reference[asked], questions.reference)
        alone = reference_answers(predictor, photos.measured[asked], questions.measured)
        named = {
            tensors.IMAGE_FEATURES.name: photos.measured[asked],
            tensors.TEXT_FEATURES.name: questions.measured,
        }
        parts = [head({name: array[start:end] for name, array in named.items()}) for start, end in _batches(len(asked))]
        if len(parts[0]) != len(tensors.HEAD_OUTPUTS):
            expected = ", ".join(spec.name for spec in tensors.HEAD_OUTPUTS)
            raise OutputError(f"the head's graph has {len(parts[0])} outputs, expected {expected}; {_REPORT_IT}")
        measured = [np.concatenate(column) for column in zip(*parts, strict=True)]
        comparisons += [
            compare_probabilities(inputs, spec, got, expected, same, tolerance)
            for spec, got, expected, same in zip(tensors.HEAD_OUTPUTS[:3], measured[:3], chain, alone, strict=True)
        ]
    return comparisons


def compare_encoder(inputs: str, tensor: str, features: Features, *, spread: float = 0) -> Comparison:
    """Measure the features of some inputs.

    Args:
        spread: how far from their mean the features of different inputs are; 0 if nothing should tell these apart.

    Raises:
        ShapeError: the graph's are of another shape.
    """
    a, b = _in_double(inputs, tensor, features.measured, features.reference)
    difference = np.abs(a - b).max()
    return Comparison(
        inputs,
        tensor,
        rows=len(a),
        relative_error=float(difference / np.abs(b).max()),
        cosine_error=_cosine_error(a, b),
        spread_error=float(difference / spread) if spread else None,
    )


def compare_probabilities(
    inputs: str, spec: TensorSpec, got: Array, chain: Array, alone: Array, tolerance: Tolerance
) -> Comparison:
    """Measure an output of the head, [B, N].

    Args:
        chain: what PyTorch gives along the whole chain: what users see may differ by the encoders' rounding too.
        alone: what PyTorch's head gives on the features that the graph's head got. The head computes in fp32 at every
            precision, so this sees faults in probabilities that are too small, or too sure, to show in the others.

    Raises:
        ShapeError: the graph's are of another shape.
    """
    a, b = _in_double(inputs, spec.name, got, chain)
    certainty = spec is tensors.ANSWERABLE
    top1_differ = top1_agree = top5_agree = None
    if not certainty:
        best_a, best_b = (np.argsort(-x, axis=1, kind="stable")[:, :_TOP] for x in (a, b))
        differ = best_a[:, 0] != best_b[:, 0]
        two = -np.sort(-b, axis=1)[:, :2]
        tied = two[:, 0] - two[:, -1] <= 2 * tolerance.relative_error  # one may be too high, the other too low
        top1_differ = int((differ & ~tied).sum())
        top1_agree = float(1 - differ.mean())
        top5_agree = float(np.mean([len({*x} & {*y}) / len(y) for x, y in zip(best_a, best_b, strict=True)]))
    return Comparison(
        inputs,
        spec.name,
        rows=len(a),
        relative_error=float(np.abs(a - b).max()),
        log_error=log_error(a, alone, _SIGMOID_RESOLUTION if certainty else _SOFTMAX_RESOLUTION),
        top1_differ=top1_differ,
        top1_agree=top1_agree,
        top5_agree=top5_agree,
    )


def log_error(got: Array, reference: Array, resolution: float) -> float:
    """The largest difference of logarithms of probabilities [B, N], as a share of the largest logarithm.

    A single probability, N = 1, counts with its complement. Differences up to ``resolution`` are rounding and count as
    none; so do all below it.
    """
    a, b = (np.concatenate([x, 1 - x], axis=1) if x.shape[1] == 1 else x for x in (got, reference.astype(np.float64)))
    a = a + np.clip(b - a, -resolution, resolution)
    logs_a, logs_b = (np.log(np.maximum(x, resolution)) for x in (a, b))
    return float(np.abs(logs_a - logs_b).max() / max(_LOG_SCALE, np.abs(logs_b).max()))


def check(comparisons: Sequence[Comparison], tolerance: Tolerance, target: str) -> None:
    """Refuse comparisons that are out of ``tolerance``.

    Raises:
        ToleranceError: the message names every one that is.
    """
    failed = [row for row in comparisons if not row.passes(tolerance)]
    if failed:
        rows = "; ".join(_describe(row, tolerance) for row in failed)
        raise ToleranceError(
            f"the {target} graphs do not give what PyTorch gives, so nothing was published: {rows}. If the weights are "
            f"as they were fitted, another --precision may hold; otherwise {_REPORT_IT}"
        )


def report(
    comparisons: Sequence[Comparison], tolerance: Tolerance, target: str, encoders: Execution, head: Execution
) -> dict[str, Any]:
    """The comparisons as JSON holds them.

    ``passed`` is null where nothing is out of tolerance, but the encoders were not computed as ``target`` asks: whether
    they pass there is not known.
    """
    within = all(row.passes(tolerance) for row in comparisons)
    return {
        "target": target,
        "passed": None if within and not encoders.as_asked else within,
        "computed_as_asked": encoders.as_asked,
        "encoders": asdict(encoders),
        "head": asdict(head),
        "allowed": asdict(tolerance),
        "comparisons": [asdict(row) for row in comparisons],
    }


def table(comparisons: Sequence[Comparison], tolerance: Tolerance, target: str, computed: Execution) -> str:
    """The comparisons as a table for people: measured beside allowed."""
    allowed = " ".join(
        f"{value:>9g}"
        for value in (tolerance.relative_error, tolerance.cosine_error, tolerance.spread_error, tolerance.log_error)
    )
    lines = [
        f"parity with PyTorch, {target}, computed in {computed}",
        f"  {'inputs':<8}{'tensor':<16}{'rows':>5}{'error':>10}{'1 - cos':>10}{'apart':>10}{'log':>10}{'same best':>11}"
        f"{'same 5 best':>13}",
        f"  {'allowed':<29} {allowed}",
    ]
    for row in comparisons:
        measures = (row.relative_error, row.cosine_error, row.spread_error, row.log_error)
        errors = "".join(" " * 10 if x is None else f"{x:>10.1e}" for x in measures)
        agreement = ["" if share is None else f"{share:.1%}" for share in (row.top1_agree, row.top5_agree)]
        verdict = "" if row.passes(tolerance) else "  REFUSED"
        lines.append(
            f"  {row.inputs:<8}{row.tensor:<16}{row.rows:>5}{errors}{agreement[0]:>11}{agreement[1]:>13}{verdict}"
        )
    if not computed.as_asked:
        lines.append(
            f"  NOT PROVED for {target}: it asks for {computed.asked}, this machine computed {computed}; export with "
            "--recheck where it will be served"
        )
    return "\n".join(lines)


@torch.inference_mode()
def reference_answers(predictor: Predictor, image_features: Array, text_features: Array) -> tuple[Array, Array, Array]:
    """Answer [B, V], answer type [B, K] and answerable [B, 1] of the heads as they were fitted, one by one.

    Their mean and its calibration are written out here once more, in fp64: with many folds fp32 would round the mean.
    """
    logits = [head(torch.from_numpy(text_features), torch.from_numpy(image_features)) for head in predictor.heads]
    scale, offset = predictor.calibration.line.tolist()
    odds = torch.stack([each.answerable.double() for each in logits])
    # of the mean of sigmoids and its complement, which is 0 in fp64 from log-odds of 37 on
    found, not_found = (torch.logsumexp(functional.logsigmoid(x), dim=0) for x in (odds, -odds))
    return (
        torch.stack([functional.softmax(each.answer.double(), dim=1) for each in logits]).mean(dim=0).numpy(),
        torch.stack([functional.softmax(each.answer_type.double(), dim=1) for each in logits]).mean(dim=0).numpy(),
        torch.sigmoid(scale * (found - not_found) + offset).unsqueeze(1).numpy(),
    )


def _in_double(inputs: str, tensor: str, got: Array, reference: Array) -> tuple[Array, Array]:
    if got.shape != reference.shape:
        raise ShapeError(
            f"{tensor} on {inputs} inputs has the shape {[*got.shape]}, expected {[*reference.shape]}; {_REPORT_IT}"
        )
    return got.astype(np.float64), reference.astype(np.float64)


def _spread(reference: Array) -> float:
    """How far from their mean the most unusual of [N, D] are."""
    return float(np.abs(reference - reference.mean(axis=0, dtype=np.float64)).max())


def _cosine_error(a: Array, b: Array) -> float:
    """1 - cosine of the worst row of two [B, N]."""
    cosine = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(np.maximum(0, 1 - cosine).max())


def _describe(row: Comparison, tolerance: Tolerance) -> str:
    measures = [f"error {row.relative_error:.1e} (allowed {tolerance.relative_error:g})"]
    for name, error, allowed in (
        ("1 - cosine", row.cosine_error, tolerance.cosine_error),
        ("of what tells inputs apart", row.spread_error, tolerance.spread_error),
        ("of log-probabilities", row.log_error, tolerance.log_error),
    ):
        if error is not None:
            measures.append(f"{name} {error:.1e} (allowed {allowed:g})")
    if row.top1_differ:
        measures.append(f"another best entry in {row.top1_differ} of {row.rows}")
    return f"{row.tensor} on {row.inputs} inputs: {', '.join(measures)}"


def _run(graph: Graph, name: str, array: Array) -> Array:
    return np.concatenate([graph({name: array[start:end]})[0] for start, end in _batches(len(array))])


def _batches(rows: int) -> list[tuple[int, int]]:
    edges = [edge for edge in (*_BATCH_EDGES, *range(_BATCH_EDGES[-1] + _BATCH, rows, _BATCH)) if edge < rows]
    return list(pairwise([*edges, rows]))
