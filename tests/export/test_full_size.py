"""Export of OpenAI's nine CLIPs at full size, with random weights: parity does not depend on their values.

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
from export.parity import PARITY_FILE
from export.publish import export_run
from export.targets import GraphKind
from training.backbone import load_clip
from training.dataset import read_split
from training.fit import fit
from training.recipe import Recipe
from training.run import read_run

ON_A_CPU = [
    GraphKind("portable", "fp32"),
    GraphKind("fused", "fp32"),
    GraphKind("portable", "bf16"),
    GraphKind("portable", "int8"),
    GraphKind("portable", "fp16"),  # ONNX Runtime computes it in fp32 here, from weights in fp16
]
PHOTOS = 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_full_size_clip_is_fitted_on_and_exported(name: str, some_photos: Path, tmp_path: Path) -> None:
    embed, side = ARCHITECTURES[name][:2]
    write_full_size(name, tmp_path / "random.pt")
    frozen = load_clip(tmp_path / "random.pt")
    assert (frozen.image_size, frozen.embed_dim) == (side, embed)
    train, val = (read_split(some_photos, split, limit=PHOTOS) for split in ("train", "val"))
    for encoder in ("encode_image", "encode_text"):  # the references of one kind are those of the next
        setattr(frozen.model, encoder, remembered(getattr(frozen.model, encoder)))
    run = read_run(fit(train, val, frozen, Recipe(epochs=5), tmp_path / "runs", tmp_path / "cache"))
    for kind in ON_A_CPU:
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
