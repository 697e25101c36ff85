"""The gate before publication: the graphs must give what PyTorch gives, tensor by tensor and along the whole chain.

The references are the ``clip`` package's own modules, tokenizer and preprocessing, and the head as it was fitted; none
of the code under test takes part in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from export.parity_inputs import Inputs
from export.runtimes import Array, Graph
from export.tolerances import Tolerance
from training.clip_models import FrozenClip
from training.predictor import Predictor
from vizwiz_client.contract import tensors, tokens

_SAME = 1e-6  # of the largest value: rounding of the reference
_MIXED = 64  # questions that are asked beside others of other lengths
_BATCH_EDGES = (0, 1, 4)  # one alone, then three together: the batch axis must be free
_BATCH = 8  # and then as many
_TOP = 5
_TEXT_BATCH = 64
_REFERENCE_BATCH = 4  # photos: PyTorch takes a tenth longer for each when there are 8 (ViT-L/14@336px, two cores)


class ParityError(Exception):
    """Graphs that differ from PyTorch by more than the tolerances."""


@dataclass(frozen=True)
class Comparison:
    """How far one output is from its reference on some inputs. What does not apply to a tensor is None."""

    inputs: str  # "random", "drawn" or "val"
    tensor: str
    rows: int
    relative_error: float  # max |difference| / max |reference|
    cosine_error: float | None  # 1 - cosine of the worst row; None for single numbers
    spread_error: float | None  # max |difference| / max |reference - its mean|; only of features, and not of noise
    largest_change: float  # max |difference|
    top1_differ: int | None  # rows whose highest entry is another, and was not tied with it in the reference
    top1_agree: float | None  # share of rows with the same highest entry
    top5_agree: float | None  # mean share of the reference's five highest that are among the five highest

    def passes(self, tolerance: Tolerance) -> bool:
        """Whether every measure is within ``tolerance``; NaN is not."""
        within = self.relative_error <= tolerance.relative_error
        same_direction = self.cosine_error is None or self.cosine_error <= tolerance.cosine_error
        told_apart = self.spread_error is None or self.spread_error <= tolerance.spread_error
        return within and same_direction and told_apart and not self.top1_differ


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

    Sorted by their lengths, so that the graph computes at each of its own, and some of them once more beside others of
    other lengths: what is further from the reference counts.
    """
    served = np.stack([tokens.pad(ids, tensors.CONTEXT_LENGTH) for ids in inputs.questions])
    by_length = np.argsort([np.flatnonzero(ids).size for ids in served], kind="stable")
    measured = _run(graph, tensors.TOKENS.name, served[by_length])[np.argsort(by_length)]
    mixed = _run(graph, tensors.TOKENS.name, served[:_MIXED])
    distinct, places = torch.unique(inputs.reference_questions, dim=0, return_inverse=True)
    with torch.inference_mode():
        reference = torch.cat([model.model.encode_text(part) for part in distinct.split(_TEXT_BATCH)])[places].numpy()
    off, mixed_off = (np.abs(each[:_MIXED] - reference[:_MIXED]).max(axis=1) for each in (measured, mixed))
    worse = ~(mixed_off <= off) & np.isfinite(off)  # not a number is worse than any
    measured[:_MIXED][worse] = mixed[worse]
    return Features(reference, measured)


def compare_features(
    images: Mapping[str, Features], texts: Mapping[str, Features], tolerance: Tolerance
) -> list[Comparison]:
    """Compare both encoders on each set of inputs."""
    return [
        compare(
            inputs,
            name,
            features[inputs].measured,
            features[inputs].reference,
            tolerance,
            spread=inputs != "random",  # to a network, one noise looks like another
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
    """Compare the whole chain: the head's graph behind the encoders' graphs, with PyTorch's behind PyTorch's."""
    comparisons = []
    for inputs, photos in images.items():
        questions = texts[inputs]
        asked = np.arange(len(questions.reference)) % len(photos.reference)
        reference = reference_answers(predictor, photos.reference[asked], questions.reference)
        named = {
            tensors.IMAGE_FEATURES.name: photos.measured[asked],
            tensors.TEXT_FEATURES.name: questions.measured,
        }
        parts = [head({name: array[start:end] for name, array in named.items()}) for start, end in _batches(len(asked))]
        measured = [np.concatenate(column) for column in zip(*parts, strict=True)]
        comparisons += [
            compare(inputs, spec.name, got, expected, tolerance, ranks=spec is not tensors.ANSWERABLE)
            for spec, got, expected in zip(tensors.HEAD_OUTPUTS[:3], measured, reference, strict=False)
        ]
    return comparisons


def compare(
    inputs: str,
    tensor: str,
    got: Array,
    reference: Array,
    tolerance: Tolerance,
    *,
    ranks: bool = False,
    spread: bool = False,
) -> Comparison:
    """Measure ``got`` against ``reference``, both [B, N].

    Args:
        ranks: their highest entries are what users see.
        spread: their rows are of inputs that differ, and must not come out alike.
    """
    a, b = got.astype(np.float64), reference.astype(np.float64)
    scale = np.abs(b).max()
    difference = float(np.abs(a - b).max())
    top1_differ = top1_agree = top5_agree = None
    if ranks:
        best_a, best_b = (np.argsort(-x, axis=1, kind="stable")[:, :_TOP] for x in (a, b))
        differ = best_a[:, 0] != best_b[:, 0]
        two = -np.sort(-b, axis=1)[:, :2]
        tied = two[:, 0] - two[:, -1] < tolerance.relative_error * scale
        top1_differ = int((differ & ~tied).sum())
        top1_agree = float(1 - differ.mean())
        top5_agree = float(np.mean([len({*x} & {*y}) / len(y) for x, y in zip(best_a, best_b, strict=True)]))
    apart = np.abs(b - b.mean(axis=0)).max()
    alike = apart <= _SAME * scale  # one photo, or one question asked throughout: they tell nothing
    return Comparison(
        inputs,
        tensor,
        rows=len(a),
        relative_error=float(difference / scale),
        cosine_error=_cosine_error(a, b) if a.shape[1] > 1 else None,
        spread_error=float(difference / apart) if spread and not alike else None,
        largest_change=difference,
        top1_differ=top1_differ,
        top1_agree=top1_agree,
        top5_agree=top5_agree,
    )


def check(comparisons: Sequence[Comparison], tolerance: Tolerance, target: str) -> None:
    """Refuse comparisons that are out of ``tolerance``.

    Raises:
        ParityError: the message names every one that is.
    """
    failed = [row for row in comparisons if not row.passes(tolerance)]
    if failed:
        rows = "; ".join(_describe(row, tolerance) for row in failed)
        raise ParityError(
            f"the {target} graphs do not give what PyTorch gives, so nothing was published: {rows}. If the weights are "
            "as they were fitted, another --precision may hold; otherwise this is a fault of the export: report it "
            "with the table above"
        )


def report(comparisons: Sequence[Comparison], tolerance: Tolerance, target: str) -> dict[str, Any]:
    """The comparisons as JSON holds them."""
    return {
        "target": target,
        "allowed": asdict(tolerance),
        "passed": all(row.passes(tolerance) for row in comparisons),
        "comparisons": [asdict(row) for row in comparisons],
    }


def table(comparisons: Sequence[Comparison], tolerance: Tolerance, target: str) -> str:
    """The comparisons as a table for people: measured beside allowed."""
    lines = [
        f"parity with PyTorch, {target}: the largest error, as a share of the largest value (allowed "
        f"{tolerance.relative_error:g}), in direction, 1 - cosine (allowed {tolerance.cosine_error:g}), and as a share "
        f"of what tells inputs apart (allowed {tolerance.spread_error:g})",
        f"  {'inputs':<8}{'tensor':<16}{'rows':>5}{'error':>10}{'1 - cos':>10}{'apart':>10}{'same best':>11}"
        f"{'same 5 best':>13}",
    ]
    for row in comparisons:
        cosine, apart = ("" if x is None else f"{x:.1e}" for x in (row.cosine_error, row.spread_error))
        agreement = ["" if share is None else f"{share:.1%}" for share in (row.top1_agree, row.top5_agree)]
        verdict = "" if row.passes(tolerance) else "  REFUSED"
        lines.append(
            f"  {row.inputs:<8}{row.tensor:<16}{row.rows:>5}{row.relative_error:>10.1e}{cosine:>10}{apart:>10}"
            f"{agreement[0]:>11}{agreement[1]:>13}{verdict}"
        )
    return "\n".join(lines)


@torch.inference_mode()
def reference_answers(predictor: Predictor, image_features: Array, text_features: Array) -> tuple[Array, Array, Array]:
    """Answer [B, V], answer type [B, K] and answerable [B, 1] of the heads as they were fitted, one by one.

    Their mean and its calibration are written out here once more.
    """
    logits = [head(torch.from_numpy(text_features), torch.from_numpy(image_features)) for head in predictor.heads]
    scale, offset = predictor.calibration.line.tolist()
    mean = torch.stack([torch.sigmoid(each.answerable.double()) for each in logits]).mean(dim=0)
    odds = (mean / (1 - mean)) ** scale * math.exp(offset)
    return (
        torch.stack([functional.softmax(each.answer, dim=1) for each in logits]).mean(dim=0).numpy(),
        torch.stack([functional.softmax(each.answer_type, dim=1) for each in logits]).mean(dim=0).numpy(),
        (1 - 1 / (1 + odds)).unsqueeze(1).numpy(),  # this way round, certainty (infinite odds) is 1
    )


def _cosine_error(a: Array, b: Array) -> float:
    """1 - cosine of the worst row of two [B, N]."""
    cosine = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(np.maximum(0, 1 - cosine).max())


def _describe(row: Comparison, tolerance: Tolerance) -> str:
    measures = [f"error {row.relative_error:.1e} (allowed {tolerance.relative_error:g})"]
    if row.cosine_error is not None:
        measures.append(f"1 - cosine {row.cosine_error:.1e} (allowed {tolerance.cosine_error:g})")
    if row.spread_error is not None:
        measures.append(f"of what tells inputs apart {row.spread_error:.1e} (allowed {tolerance.spread_error:g})")
    if row.top1_differ:
        measures.append(f"another best entry in {row.top1_differ} of {row.rows}")
    return f"{row.tensor} on {row.inputs} inputs: {', '.join(measures)}"


def _run(graph: Graph, name: str, array: Array) -> Array:
    return np.concatenate([graph({name: array[start:end]})[0] for start, end in _batches(len(array))])


def _batches(rows: int) -> list[tuple[int, int]]:
    edges = [edge for edge in (*_BATCH_EDGES, *range(_BATCH_EDGES[-1] + _BATCH, rows, _BATCH)) if edge < rows]
    return list(pairwise([*edges, rows]))
