"""Export of OpenAI's nine CLIPs and three of open_clip's at full size; parity depends little on the random weights.

python -m pytest tests/export/test_full_size.py -s | grep FULL          # one to ten minutes for each
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from benchmarks.architectures import ARCHITECTURES, write_full_size
from benchmarks.report import kinds_here
from export.parity import PARITY_FILE
from export.publish import export_run
from export.targets import GraphKind
from training.backbone import FrozenClip, load_clip
from training.dataset import read_split
from training.fit import fit
from training.recipe import Recipe
from training.run import read_run

ON_A_CPU = [
    GraphKind("portable", "fp32"),
    GraphKind("fused", "fp32"),
    GraphKind("portable", "bf16"),  # left out where the CPU only emulates it, which takes hours
    GraphKind("portable", "int8"),
    GraphKind("portable", "fp16"),  # ONNX Runtime computes it in fp32 here, from weights in fp16
]
PHOTOS = 8
OPEN_CLIPS = ["ViT-B-32/laion2b_s34b_b79k", "ViT-L-14/datacomp_xl_s13b_b90k", "ViT-H-14/laion2b_s32b_b79k"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_full_size_clip_is_fitted_on_and_exported(name: str, some_photos: Path, tmp_path: Path) -> None:
    embed, side = ARCHITECTURES[name][:2]
    write_full_size(name, tmp_path / "random.pt")
    frozen = load_clip(tmp_path / "random.pt")
    assert (frozen.image_size, frozen.embed_dim) == (side, embed)
    fit_and_export(name, frozen, some_photos, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPEN_CLIPS)
def test_a_full_size_open_clip_is_fitted_on_and_exported(name: str, some_photos: Path, tmp_path: Path) -> None:
    """Of GELU, and ViT-H/14 of heads of 80."""
    from tests.open_clips import open_clip, random_weights, write_weights  # takes 10 s

    architecture = name.partition("/")[0]
    file = tmp_path / "random.safetensors"
    write_weights(random_weights(open_clip.get_model_config(architecture)), file)
    frozen = load_clip(f"open_clip:{name}@{file}")
    file.unlink()
    fit_and_export(f"open_clip {architecture}", frozen, some_photos, tmp_path)


def fit_and_export(name: str, frozen: FrozenClip, some_photos: Path, tmp_path: Path) -> None:
    """Fit a head on a CLIP, export in every precision that a CPU computes, and print the errors."""
    train, val = (read_split(some_photos, split, limit=PHOTOS) for split in ("train", "val"))
    for encoder in ("encode_image", "encode_text"):  # the references of one kind are those of the next
        setattr(frozen.model, encoder, remembered(getattr(frozen.model, encoder)))
    folder = fit(train, val, frozen, Recipe(epochs=5), tmp_path / "runs", tmp_path / "cache", limit=PHOTOS)
    run = read_run(folder)  # its limit is that of the export's gate, too
    emulates = GraphKind("portable", "bf16") not in kinds_here()
    for kind in ON_A_CPU:
        if kind.precision == "bf16" and emulates:
            continue
        names = export_run(run, frozen, tmp_path / "repository", kind)  # parity is checked before it publishes
        print_worst(name, kind, tmp_path / "repository" / names.head / PARITY_FILE)


def remembered(encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``encode``, which computes each batch once."""
    known: dict[bytes, Tensor] = {}

    def encode_once(batch: Tensor) -> Tensor:
        key = hashlib.sha256(batch.numpy().tobytes()).digest()
        if key not in known:
            known[key] = encode(batch)
        return known[key]

    return encode_once


def print_worst(name: str, kind: GraphKind, parity: Path) -> None:
    """The worst of every measure, over all inputs: the lines of the table in docs/results.md."""
    comparisons = json.loads(parity.read_text(encoding="utf-8"))["comparisons"]
    for tensors in (("image_features",), ("text_features",), ("answer", "answer_type", "answerable")):
        rows = [row for row in comparisons if row["tensor"] in tensors]
        assert rows
        error, cosine = (max(row[measure] or 0 for row in rows) for measure in ("relative_error", "cosine_error"))
        agree = min((row["top1_agree"] for row in rows if row["top1_agree"] is not None), default=None)
        best = "" if agree is None else f", same best {agree:.1%}"
        print(f"FULL {name} | {kind.name} | {', '.join(tensors)} | {error:.1e} | {cosine:.1e}{best}")
