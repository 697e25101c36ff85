"""The parity check: compare the graphs with PyTorch, tensor by tensor and along the whole chain.

The references come from the modules, tokenizer and preprocessing of the package ``clip`` or ``open_clip``, and from the
fitted head, never from the code that is under test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from export.comparison import (
    REPORT_BUG,
    Comparison,
    Features,
    OutputError,
    Tolerance,
    ToleranceError,
    compare_features,
    compare_probabilities,
)
from export.parity_inputs import Inputs
from export.targets import Array, Execution, Graph, GraphKind, execution, open_graph
from training.artifacts import write_json
from training.backbone import FrozenClip
from training.model import ClipEnsemble, Predictor
from vizwiz_client.contract import tensors, tokenizer

FEATURES_FILE = "parity.npz"
PARITY_FILE = "parity.json"
_SAVED_INPUTS = ("random", "drawn")  # not "val": features reveal what a run's own photos show

_MIXED_QUESTIONS = 64  # questions compared in batches of mixed lengths too
_BATCH_EDGES = (0, 1, 4)  # batches of 1, of 3, and then of _BATCH: the batch axis must be free
_BATCH = 8
_REFERENCE_TEXTS = 64
_REFERENCE_PHOTOS = 4  # in batches of 8 PyTorch takes a tenth longer per photo (ViT-L/14@336px, two cores)

EncodedInputs = tuple[Mapping[str, Features], Mapping[str, Features]]  # of photos and questions, by set of inputs


@dataclass(frozen=True)
class ParityResult:
    """Features of a pair of encoders on each set of inputs, and their difference from PyTorch."""

    images: dict[str, Features]
    texts: dict[str, Features]
    comparisons: list[Comparison]  # may cover more sets of inputs than the features
    execution: Execution

    def save(self, folder: Path, features: Mapping[str, Features]) -> None:
        """Write one encoder's ``features``, and the comparisons of the pair, into its model folder.

        A later head is then checked along the whole chain without CLIP: :meth:`load` reads what its encoders computed.
        """
        arrays = {
            f"{name}_{kind}": array
            for name in _SAVED_INPUTS
            for kind, array in zip(Features._fields, features[name], strict=True)
        }
        with (folder / FEATURES_FILE).open("wb") as file:
            np.savez(file, **arrays)
        rows = [asdict(comparison) for comparison in self.comparisons]
        write_json(folder / PARITY_FILE, {"encoders": asdict(self.execution), "comparisons": rows})

    @classmethod
    def load(cls, image: Path, text: Path, kind: GraphKind) -> ParityResult | None:
        """Read the saved results of two published encoders.

        Args:
            image: model folder of the image encoder, with verified digests.
            text: model folder of the text encoder, likewise.
            kind: the kind of both graphs.

        Returns:
            None where this machine has another runtime, provider, CPU or precision than the saved results.
        """
        here = execution(kind)
        for folder in (image, text):
            saved = json.loads((folder / PARITY_FILE).read_text(encoding="utf-8"))
            there = Execution(**saved["encoders"])
            if there != here:
                print(f"{folder.name} was compared in {there}, this machine computes {here}: comparing it again")
                return None
        comparisons = [Comparison(**row) for row in saved["comparisons"]]
        return cls(_load_features(image), _load_features(text), comparisons, here)


def check_parity(image: Path, text: Path, kind: GraphKind, model: FrozenClip, inputs: Sequence[Inputs]) -> ParityResult:
    """Compare both encoders with PyTorch.

    Args:
        image: ONNX file of the image encoder.
        text: ONNX file of the text encoder.
        kind: the kind of both graphs.
        model: the reference.
        inputs: sets of photos and questions; one is called "drawn".

    Returns:
        The measured differences, within tolerance or not: :func:`require_tolerance` decides.

    Raises:
        ShapeError: features have another shape than the reference.
        GraphKindError: the runtime of ``kind`` is not installed.
    """
    image_graph, text_graph = (open_graph(path, kind, emulate=True) for path in (image, text))
    images, texts = {}, {}
    for each in tqdm(inputs, desc="compare with PyTorch", unit="set", disable=None):
        images[each.name] = encode_images(image_graph, model, each)
        texts[each.name] = encode_texts(text_graph, model, each)
    return ParityResult(images, texts, compare_features(images, texts), execution(kind))


def encode_images(graph: Graph, model: FrozenClip, inputs: Inputs) -> Features:
    """Encode photos with the graph and with PyTorch."""
    measured = _run(graph, tensors.IMAGE.name, inputs.pixels)
    with torch.inference_mode():
        parts = [model.model.encode_image(part) for part in inputs.reference_pixels.split(_REFERENCE_PHOTOS)]
    return Features(torch.cat(parts).numpy(), measured)


def encode_texts(graph: Graph, model: FrozenClip, inputs: Inputs) -> Features:
    """Encode questions, padded to 77 ids, with the graph and with PyTorch.

    Questions of one length form a batch, so that the graph computes that length. The first 64 are computed again in
    batches of mixed lengths. Of the two results, the one with the larger error counts.
    """
    padded = np.stack([tokenizer.pad(ids, tensors.CONTEXT_LENGTH) for ids in inputs.questions])
    lengths = (padded == tokenizer.END_OF_TEXT).argmax(axis=1)
    by_length = [_run(graph, tensors.TOKENS.name, padded[lengths == length]) for length in np.unique(lengths)]
    measured = np.concatenate(by_length)[np.argsort(np.argsort(lengths, kind="stable"), kind="stable")]
    mixed = _run(graph, tensors.TOKENS.name, padded[:_MIXED_QUESTIONS])
    distinct, indices = torch.unique(inputs.reference_questions, dim=0, return_inverse=True)
    with torch.inference_mode():
        parts = [model.model.encode_text(part) for part in distinct.split(_REFERENCE_TEXTS)]
    reference = torch.cat(parts)[indices].numpy()
    error, mixed_error = (
        np.abs(each[:_MIXED_QUESTIONS] - reference[:_MIXED_QUESTIONS]).max(axis=1) for each in (measured, mixed)
    )
    worse = ~(mixed_error <= error) & np.isfinite(error)  # NaN is worse than any number
    measured[:_MIXED_QUESTIONS][worse] = mixed[worse]
    return Features(reference, measured)


def encoder_comparisons(results: Sequence[ParityResult]) -> list[Comparison]:
    """The comparisons of the encoders of each CLIP; with several, the tensors are numbered as the head's inputs are."""
    if len(results) == 1:
        return results[0].comparisons
    return [
        replace(row, tensor=f"{row.tensor}_{number}")
        for number, result in enumerate(results, 1)
        for row in result.comparisons
    ]


def compare_answers(
    head: Graph, ensemble: ClipEnsemble, encoders: Sequence[EncodedInputs], tolerance: Tolerance
) -> list[Comparison]:
    """Compare the whole chain: the head's graph behind the encoders' graphs, with PyTorch's head behind PyTorch's.

    Args:
        head: the head's graph, with ``quality`` as the last output if ``ensemble`` has quality heads.
        ensemble: the fitted heads.
        encoders: image and text features by set of inputs, of each CLIP. Sets that not all CLIPs have are left out.
        tolerance: decides which best answers count as tied.

    Raises:
        OutputError: the head's graph has other outputs than the contract names.
        ShapeError: an output has another shape than the reference.
    """
    members = [member for member in ensemble.members if isinstance(member, Predictor)]
    outputs = (*tensors.HEAD_OUTPUTS, *([tensors.QUALITY] if members[0].quality else []))
    names = [tensors.of_each_clip(spec, len(encoders)) for spec in (tensors.IMAGE_FEATURES, tensors.TEXT_FEATURES)]
    comparisons = []
    for inputs in [name for name in encoders[0][0] if all(name in images for images, _ in encoders)]:
        pairs = [_features_of_questions(images[inputs], texts[inputs]) for images, texts in encoders]
        chain = reference_answers(ensemble, [(image.reference, text.reference) for image, text in pairs])
        head_alone = reference_answers(ensemble, [(image.measured, text.measured) for image, text in pairs])
        feed = {
            spec.name: features.measured
            for specs, each in zip(names, zip(*pairs, strict=True), strict=True)
            for spec, features in zip(specs, each, strict=True)
        }
        rows = len(pairs[0][1].measured)
        parts = [head({name: array[start:end] for name, array in feed.items()}) for start, end in _batches(rows)]
        if len(parts[0]) != len(outputs):
            expected = ", ".join(spec.name for spec in outputs)
            raise OutputError(f"the head's graph has {len(parts[0])} outputs, expected {expected}; {REPORT_BUG}")
        measured = dict(zip(outputs, map(np.concatenate, zip(*parts, strict=True)), strict=True))
        for spec, reference in chain.items():
            references = reference, head_alone[spec]
            comparisons.append(compare_probabilities(inputs, spec, measured[spec], *references, tolerance))
    return comparisons


def _features_of_questions(photos: Features, questions: Features) -> tuple[Features, Features]:
    """Image and text features of each question: question i is asked about photo i modulo the number of photos."""
    photo_of = np.arange(len(questions.reference)) % len(photos.reference)
    return Features(photos.reference[photo_of], photos.measured[photo_of]), questions


@torch.inference_mode()
def reference_answers(
    ensemble: ClipEnsemble, features: Sequence[tuple[Array, Array]]
) -> dict[tensors.TensorSpec, Array]:
    """Outputs of the fitted heads, fp64: answer [B, V], answer type [B, K], answerable [B, 1], quality [B, Q] if any.

    Averages in fp64, unlike :class:`ClipEnsemble`: over many folds fp32 would round the mean. All CLIPs have as many
    heads, so the mean of all heads is that of the CLIPs.

    Args:
        ensemble: the fitted heads.
        features: image and text features, fp32 [B, D] each, of each CLIP.
    """
    logits, quality = [], []
    for member, pair in zip(ensemble.members, features, strict=True):
        image, text = map(torch.from_numpy, pair)
        assert isinstance(member, Predictor)
        logits += [head(text, image) for head in member.heads]
        quality += [head(image) for head in member.quality]
    outputs = {
        tensors.ANSWER: _mean([functional.softmax(each.answer.double(), dim=1) for each in logits]),
        tensors.ANSWER_TYPE: _mean([functional.softmax(each.answer_type.double(), dim=1) for each in logits]),
        tensors.ANSWERABLE: _mean_of_sigmoids([each.answerable.unsqueeze(1) for each in logits]),
    }
    if quality:
        outputs[tensors.QUALITY] = _mean_of_sigmoids(quality)
    return {spec: output.numpy() for spec, output in outputs.items()}


def _mean(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(parts)).mean(dim=0)


def _mean_of_sigmoids(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean and its complement are computed in logarithms: in fp64 the complement is 0 from log-odds of 37 on."""
    log_odds = torch.stack(list(logits)).double()
    log_mean, log_complement = (torch.logsumexp(functional.logsigmoid(x), dim=0) for x in (log_odds, -log_odds))
    return torch.sigmoid(log_mean - log_complement)


def require_tolerance(comparisons: Sequence[Comparison], tolerance: Tolerance, kind: str) -> None:
    """Refuse comparisons out of ``tolerance``.

    Raises:
        ToleranceError: at least one exceeds it; the message gives the tensor, measured and allowed errors of each.
    """
    failed = [row for row in comparisons if not row.passes(tolerance)]
    if failed:
        rows = "; ".join(row.describe(tolerance) for row in failed)
        raise ToleranceError(
            f"the {kind} graphs differ from PyTorch by more than the tolerances, so nothing was published: {rows}. "
            f"Another --precision may pass; in fp32 {REPORT_BUG}"
        )


def parity_report(
    comparisons: Sequence[Comparison], tolerance: Tolerance, kind: str, encoders: Execution, head: Execution
) -> dict[str, Any]:
    """The content of ``parity.json``.

    ``passed`` is null where all comparisons are within tolerance, but were computed in another precision or by another
    provider than ``kind`` requests.
    """
    within = all(row.passes(tolerance) for row in comparisons)
    return {
        "target": kind,
        "passed": None if within and not encoders.as_requested else within,
        "computed_as_requested": encoders.as_requested,
        "encoders": asdict(encoders),
        "head": asdict(head),
        "allowed": asdict(tolerance),
        "comparisons": [asdict(row) for row in comparisons],
    }


def parity_table(comparisons: Sequence[Comparison], tolerance: Tolerance, kind: str, computed: Execution) -> str:
    """The comparisons as a table: measured errors below allowed ones."""
    allowed = " ".join(
        f"{value:>9g}"
        for value in (tolerance.relative_error, tolerance.cosine_error, tolerance.centred_error, tolerance.log_error)
    )
    lines = [
        f"parity with PyTorch, {kind}, computed in {computed}",
        f"  {'inputs':<8}{'tensor':<18}{'rows':>5}{'error':>10}{'1 - cos':>10}{'centred':>10}{'log':>10}"
        f"{'same best':>11}{'same 5 best':>13}",
        f"  {'allowed':<31} {allowed}",
    ]
    for row in comparisons:
        measures = (row.relative_error, row.cosine_error, row.centred_error, row.log_error)
        errors = "".join(" " * 10 if x is None else f"{x:>10.1e}" for x in measures)
        agreement = ["" if share is None else f"{share:.1%}" for share in (row.top1_agree, row.top5_agree)]
        verdict = "" if row.passes(tolerance) else "  FAILED"
        lines.append(
            f"  {row.inputs:<8}{row.tensor:<18}{row.rows:>5}{errors}{agreement[0]:>11}{agreement[1]:>13}{verdict}"
        )
    if not computed.as_requested:
        lines.append(
            f"  not verified for {kind}: it requests {computed.requested}, this machine computed {computed}; run the "
            "export with --recheck on the machine that will serve"
        )
    return "\n".join(lines)


def _load_features(folder: Path) -> dict[str, Features]:
    with np.load(folder / FEATURES_FILE) as arrays:
        return {name: Features(*(arrays[f"{name}_{kind}"] for kind in Features._fields)) for name in _SAVED_INPUTS}


def _run(graph: Graph, name: str, array: Array) -> Array:
    return np.concatenate([graph({name: array[start:end]})[0] for start, end in _batches(len(array))])


def _batches(rows: int) -> list[tuple[int, int]]:
    edges = [edge for edge in (*_BATCH_EDGES, *range(_BATCH_EDGES[-1] + _BATCH, rows, _BATCH)) if edge < rows]
    return list(pairwise([*edges, rows]))
