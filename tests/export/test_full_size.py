"""Export of OpenAI's nine CLIPs at full size, with random weights: parity does not depend on their values.

python -m pytest tests/export/test_full_size.py -s          # half a minute to some minutes for each
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.architectures import ARCHITECTURES, write_full_size
from export.publication import export_run
from export.targets import Target
from training.clip_models import load_clip
from training.data import read_split
from training.fit import fit
from training.recipe import Recipe
from training.runs import read_run

CPU_TARGETS = [
    Target("portable", "fp32"),
    Target("fused", "fp32"),
    Target("portable", "bf16"),
    Target("portable", "int8"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_full_size_clip_is_fitted_on_and_exported(name: str, real_photos: Path, tmp_path: Path) -> None:
    embed, side = ARCHITECTURES[name][:2]
    write_full_size(name, tmp_path / "random.pt")
    frozen = load_clip(tmp_path / "random.pt")
    assert (frozen.side, frozen.width) == (side, embed)
    train, val = (read_split(real_photos, split, limit=4) for split in ("train", "val"))
    run = read_run(fit(train, val, frozen, Recipe(epochs=5), tmp_path / "runs", tmp_path / "cache"))
    for target in CPU_TARGETS:
        repository = tmp_path / target.name
        names = export_run(run, frozen, repository, target)  # parity is checked before it publishes
        assert {path.name for path in repository.iterdir()} == {"vizwiz_vqa", *vars(names).values()}
