"""Export of OpenAI's architectures at full size, with random weights: parity does not depend on their values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.publication import export_run
from training.clip_models import clip, load_clip
from training.data import read_split
from training.fit import fit
from training.recipe import Recipe
from training.runs import read_run

# embed_dim, image_resolution, vision_layers, vision_width, vision_patch_size, transformer width, heads, layers
ARCHITECTURES = {
    "RN50": (1024, 224, (3, 4, 6, 3), 64, None, 512, 8, 12),
    "RN50x64": (1024, 448, (3, 15, 36, 10), 128, None, 1024, 16, 12),
    "ViT-B/32": (512, 224, 12, 768, 32, 512, 8, 12),
    "ViT-L/14@336px": (768, 336, 24, 1024, 14, 768, 12, 12),
}


def write_full_size(name: str, path: Path) -> Path:
    """A checkpoint of one of OpenAI's architectures with random weights, in fp16 as OpenAI's are."""
    embed, side, layers, width, patch, text_width, heads, text_layers = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = clip.model.CLIP(embed, side, layers, width, patch, 77, 49408, text_width, heads, text_layers)
    model.initialize_parameters()
    torch.save(model.half().state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_full_size_clip_is_fitted_on_and_exported(name: str, real_photos: Path, tmp_path: Path) -> None:
    embed, side = ARCHITECTURES[name][:2]
    write_full_size(name, tmp_path / "random.pt")
    frozen = load_clip(tmp_path / "random.pt")
    assert (frozen.side, frozen.width) == (side, embed)
    train, val = (read_split(real_photos, split, limit=4) for split in ("train", "val"))
    run = read_run(fit(train, val, frozen, Recipe(epochs=5), tmp_path / "runs", tmp_path / "cache"))
    names = export_run(run, frozen, tmp_path / "triton_models")  # parity is checked before it publishes
    assert {path.name for path in (tmp_path / "triton_models").iterdir()} == {"vizwiz_vqa", *vars(names).values()}
