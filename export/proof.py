"""What comparing a pair of encoders with PyTorch showed, kept beside their graphs.

A head that is fitted later is then proved along the whole chain without running the encoders, in PyTorch or otherwise:
the graphs are the same files, by digest, and their features on the same inputs are known, if the same runtime measured
them on the same kind of device in the same precision.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from export.parity import Comparison, Features, compare_features, measure_image, measure_text
from export.parity_inputs import Inputs
from export.runtimes import Execution, execution, open_graph
from export.targets import Target
from training.artifacts import write_json
from training.backbone import FrozenClip

FEATURES_FILE = "parity.npz"
PARITY_FILE = "parity.json"
# Of the run's own photos and questions nothing is kept but how large the errors were: features tell what they show.
_KEPT = ("random", "drawn")


@dataclass(frozen=True)
class Proof:
    """Both encoders on each set of inputs, and how far they were from PyTorch."""

    images: dict[str, Features]
    texts: dict[str, Features]
    comparisons: list[Comparison]  # may be of more inputs than there are features
    execution: Execution  # what computed the graphs


def prove(image: Path, text: Path, target: Target, model: FrozenClip, inputs: Sequence[Inputs]) -> Proof:
    """Run the graphs ``image`` and ``text`` and their references on ``inputs``."""
    run_image, run_text = (open_graph(path, target, emulate=True) for path in (image, text))
    images, texts = {}, {}
    for each in tqdm(inputs, desc="compare with PyTorch", unit="set", disable=None):
        images[each.name] = measure_image(run_image, model, each)
        texts[each.name] = measure_text(run_text, model, each)
    return Proof(images, texts, compare_features(images, texts), execution(target))


def keep(folder: Path, features: Mapping[str, Features], proof: Proof) -> None:
    """Write an encoder's ``features``, and how its pair compared, into its ``folder``."""
    arrays = {
        f"{name}_{kind}": array for name in _KEPT for kind, array in zip(Features._fields, features[name], strict=True)
    }
    with (folder / FEATURES_FILE).open("wb") as file:
        np.savez(file, **arrays)
    rows = [asdict(comparison) for comparison in proof.comparisons]
    write_json(folder / PARITY_FILE, {"encoders": asdict(proof.execution), "comparisons": rows})


def kept(image: Path, text: Path, target: Target) -> Proof | None:
    """Read what :func:`keep` wrote for two encoders whose digests were checked.

    None if this machine computes with another runtime, provider, processor or precision.
    """
    here = execution(target)
    for folder in (image, text):
        found = json.loads((folder / PARITY_FILE).read_text(encoding="utf-8"))
        there = Execution(**found["encoders"])
        if there != here:
            print(f"{folder.name} was compared in {there}, this machine computes {here}: comparing it again")
            return None
    return Proof(_read(image), _read(text), [Comparison(**row) for row in found["comparisons"]], here)


def _read(folder: Path) -> dict[str, Features]:
    with np.load(folder / FEATURES_FILE) as arrays:
        return {name: Features(*(arrays[f"{name}_{kind}"] for kind in Features._fields)) for name in _KEPT}
