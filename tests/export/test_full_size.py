"""Export of OpenAI's nine CLIPs and three of open_clip's at full size, by the benchmark that measures their errors.

python -m pytest tests/export/test_full_size.py -s          # one to ten minutes for each
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.architectures import ARCHITECTURES, write_full_size
from benchmarks.parity import errors, kinds_on_a_cpu
from training.backbone import load_clip

OPEN_CLIPS = ["ViT-B-32/laion2b_s34b_b79k", "ViT-L-14/datacomp_xl_s13b_b90k", "ViT-H-14/laion2b_s32b_b79k"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_full_size_clip_is_fitted_on_and_exported(name: str, some_photos: Path, tmp_path: Path) -> None:
    embed, side = ARCHITECTURES[name][:2]
    write_full_size(name, tmp_path / "random.pt")
    frozen = load_clip(tmp_path / "random.pt")
    assert (frozen.image_size, frozen.embed_dim) == (side, embed)
    assert list(errors(frozen, some_photos, tmp_path)) == kinds_on_a_cpu()


@pytest.mark.slow
@pytest.mark.parametrize("name", OPEN_CLIPS)
def test_a_full_size_open_clip_is_fitted_on_and_exported(name: str, some_photos: Path, tmp_path: Path) -> None:
    """Of GELU, and ViT-H/14 of heads of 80."""
    from tests.open_clips import open_clip, random_weights, write_weights  # takes 10 s

    file = tmp_path / "random.safetensors"
    write_weights(random_weights(open_clip.get_model_config(name.partition("/")[0])), file)
    frozen = load_clip(f"open_clip:{name}@{file}")
    file.unlink()
    assert list(errors(frozen, some_photos, tmp_path)) == kinds_on_a_cpu()
