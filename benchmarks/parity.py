"""Errors of exported CLIPs of full size against PyTorch, in every precision that a CPU computes; random weights.

    python -m benchmarks parity

One to twenty minutes for each CLIP; after an interruption, the same command goes on with the next CLIP. A head is
fitted on 8 drawn photos; the gate of the export compares 8 more and those that it draws itself. It refuses a graph
outside its tolerance, which ends the benchmark.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import export
from benchmarks.architectures import ARCHITECTURES, random_clip
from benchmarks.report import Section, Settings, Table, describe_machine
from benchmarks.serving.servers import drawn_photos
from export.parity import PARITY_FILE
from export.publish import export_run
from export.targets import GraphKind, this_machine
from training.artifacts import digest_of, write_json
from training.backbone import OPEN_CLIP, FrozenClip
from training.dataset import read_split
from training.fit import fit
from training.recipe import Recipe
from training.run import read_run

CLIPS = (*ARCHITECTURES, *(f"{OPEN_CLIP}{name}" for name in ("ViT-B-32", "ViT-L-14", "ViT-H-14")))
PHOTOS = 8
TENSORS = (("image_features",), ("text_features",), ("answer", "answer_type", "answerable"))


class Errors(NamedTuple):
    """The worst of all inputs in one precision."""

    largest: list[float]  # of image and text features, relative to the largest value; of the head's outputs, absolute
    cosine: float  # 1 - cosine of features
    agree: float  # the share of questions whose best answer is PyTorch's


def run(settings: Settings) -> Section:
    """Export every CLIP in every precision."""
    unfinished = settings.cache / ("parity-quick.json" if settings.quick else "parity.json")
    found = finished_clips(unfinished)
    before = len(found)
    for name in ("ViT-B/32",) if settings.quick else CLIPS:
        if name in found:
            print(f"{name} was measured before the interruption", file=sys.stderr, flush=True)
            continue
        clip = random_clip(name)
        if name.startswith(OPEN_CLIP):
            torch.nn.init.normal_(clip.model.token_embedding.weight, std=0.5)  # so that questions differ
        with tempfile.TemporaryDirectory(dir=settings.cache) as folder:
            measured = errors(clip, drawn_photos(settings.cache), Path(folder))
        found[name] = {kind.name: each for kind, each in measured.items()}
        write_json(unfinished, {"measured": measured_by(), "clips": found})
        print(f"{name}: done", file=sys.stderr, flush=True)
    resumed = [f"{before} of {len(found)} CLIPs were measured before the run was interrupted."] * bool(before)
    section: Section = [table(found), *resumed]
    unfinished.unlink()
    return section


def finished_clips(file: Path) -> dict[str, dict[str, Errors]]:
    """The errors of each CLIP and kind of graph that an interrupted run of this kind wrote to ``file``."""
    if not file.exists():
        return {}
    saved = json.loads(file.read_text(encoding="utf-8"))
    if saved["measured"] != measured_by():
        return {}
    return {name: {kind: Errors(*each) for kind, each in kinds.items()} for name, kinds in saved["clips"].items()}


def measured_by() -> str:
    """What the errors depend on: machine, packages, and the code of the export."""
    code = digest_of(*(file.read_bytes() for file in sorted(Path(export.__file__).parent.glob("*.py"))))
    return f"{describe_machine()}; export {code[:16]}"


def table(found: Mapping[str, Mapping[str, Errors]]) -> Table:
    """A row of errors for each CLIP, and the worst cosine and agreement of each kind of graph."""
    kinds = list(next(iter(found.values())))
    rows = [
        [f"`{name}`", *(" / ".join(f"{each:.1e}" for each in errors_of[kind].largest) for kind in kinds)]
        for name, errors_of in found.items()
    ]
    cosines = (max(errors_of[kind].cosine for errors_of in found.values()) for kind in kinds)
    agreements = (min(errors_of[kind].agree for errors_of in found.values()) for kind in kinds)
    rows.append(["1 - cosine, at most", *(f"{cosine:.1e}" for cosine in cosines)])
    rows.append(["best answers that are PyTorch's, at least", *(f"{agreement:.1%}" for agreement in agreements)])
    text = (
        "The largest error of image features / text features, relative to the largest value, / probabilities of the "
        "head, absolute. ONNX Runtime computes fp16 in fp32, from weights in fp16"
    )
    text += "." if this_machine().int8 else "; this CPU computes int8's rounded values in fp32."
    return Table(("CLIP", *(kind.replace("-", " ") for kind in kinds)), rows, text)


def kinds_on_a_cpu() -> list[GraphKind]:
    """What is exported for a CPU; ONNX Runtime computes fp16 in fp32, from weights in fp16."""
    bf16 = [GraphKind("portable", "bf16")] * this_machine().bf16  # a CPU that emulates it takes hours
    fp32 = [GraphKind(form, "fp32") for form in ("portable", "fused")]
    return [*fp32, *bf16, GraphKind("portable", "fp16"), GraphKind("portable", "int8")]


def errors(clip: FrozenClip, photos: Path, folder: Path) -> dict[GraphKind, Errors]:
    """Fit a head on ``clip``, and export both into ``folder`` in every precision.

    Args:
        clip: on the CPU.
        photos: a VizWiz folder.
        folder: gets the run, features and the repository.

    Raises:
        ParityError: a graph is outside its tolerance.
    """
    train, val = (read_split(photos, split, limit=PHOTOS) for split in ("train", "val"))
    for encoder in ("encode_image", "encode_text"):  # the references of one kind are those of the next
        setattr(clip.model, encoder, _remembered(getattr(clip.model, encoder)))
    run = read_run(fit(train, val, clip, Recipe(epochs=5), folder / "runs", folder / "cache", limit=PHOTOS))
    found = {}
    for kind in kinds_on_a_cpu():
        names = export_run(run, clip, folder / "repository", kind)  # parity is checked before it publishes
        parity = json.loads((folder / "repository" / names.head / PARITY_FILE).read_text(encoding="utf-8"))
        rows = parity["comparisons"]
        worst = [max(row["relative_error"] for row in rows if row["tensor"] in tensors) for tensors in TENSORS]
        found[kind] = Errors(
            worst,
            max(row["cosine_error"] or 0 for row in rows),
            min(row["top1_agree"] for row in rows if row["top1_agree"] is not None),
        )
        print(kind.name, found[kind], file=sys.stderr, flush=True)
    return found


def _remembered(encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``encode``, which computes each batch once."""
    known: dict[bytes, Tensor] = {}

    def encode_once(batch: Tensor) -> Tensor:
        key = hashlib.sha256(batch.numpy().tobytes()).digest()
        if key not in known:
            known[key] = encode(batch)
        return known[key]

    return encode_once
