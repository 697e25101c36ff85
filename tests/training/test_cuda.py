"""On a CUDA device: the same features to fp16's precision, and a fit that learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training.backbone import FrozenClip, load_clip
from training.dataset import read_split
from training.features import encode_split
from training.fit import fit
from training.recipe import Recipe
from training.run import read_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.material
def test_features_and_fit_on_cuda(tiny_clip: FrozenClip, some_photos: Path, tmp_path: Path) -> None:
    on_gpu = load_clip(tiny_clip.source, "cuda")
    assert on_gpu.digest == tiny_clip.digest  # the same weights, in whatever precision
    train, val = read_split(some_photos, "train"), read_split(some_photos, "val")
    expected = encode_split(tiny_clip, val, tmp_path / "cpu")
    got = encode_split(on_gpu, val, tmp_path / "gpu")
    for a, b in ((got.images, expected.images), (got.texts, expected.texts)):
        assert np.abs(a - b).max() <= 2e-2 * np.abs(b).max()
    run = read_run(fit(train, val, on_gpu, Recipe(epochs=3), tmp_path / "runs", tmp_path / "gpu"))
    assert run.config["device"] == "cuda"
    losses = [row["train_loss"] for row in json.loads((run.folder / "metrics.json").read_text())["history"]]
    assert losses[-1] < losses[0]
