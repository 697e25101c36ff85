"""A recipe whose answerability reads the log-odds of photo quality."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from export.publish import export_run
from tests.conftest import write_checkpoint
from tests.training.synthetic import make_dataset, make_records
from training import fit
from training.backbone import FrozenClip, load_clip
from training.dataset import DatasetError, Rows, Split, fold_rows, read_split
from training.folds import FinishedHeads, fit_predictor
from training.model import Predictor, QualityHead
from training.quality import ISSUES
from training.recipe import Recipe
from training.run import RUN_FILE, read_run

READING = Recipe(epochs=2, hidden=16, batch_size=16, weight_decay=0.1, answerable_quality="yes")


def quality_heads(count: int) -> list[QualityHead]:
    """Heads whose every weight differs from its initial value."""
    torch.manual_seed(0)
    heads = [QualityHead(8, 7).requires_grad_(False) for _ in range(count)]
    for head in heads:
        torch.nn.init.normal_(head.norm.weight, mean=1.0)
        torch.nn.init.normal_(head.norm.bias)
    return heads


def standard(log_odds: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Log-odds [N, Q] with mean 0 and variance 1 over ``rows``."""
    return (log_odds - log_odds[rows].mean(dim=0)) / log_odds[rows].std(dim=0, correction=0)


@pytest.mark.parametrize("projection", ["random", "principal"])
@pytest.mark.parametrize("folds", [1, 3])
def test_each_head_reads_the_quality_head_of_its_own_fold(folds: int, projection: str, tmp_path: Path) -> None:
    """A single head reads the mean of all; the fit leaves them as they are, and an interrupted one reads them again."""
    recipe = replace(READING, folds=folds, projection=projection, ema=0.5)
    records = make_records(120)
    dataset, answers = make_dataset(records, recipe)
    held_out = fold_rows(records, 3, 0) if folds > 1 else []
    heads = quality_heads(3)
    log_odds = [head(dataset.images[0]) for head in heads]
    if folds == 1:
        log_odds = [torch.stack(log_odds).mean(dim=0)]
    for _ in range(2):
        finished = FinishedHeads(tmp_path, {})
        fits = fit_predictor(recipe, dataset, dataset, (answers, 4), held_out, finished=finished, quality=heads).fits
        for number, fitted in enumerate(fits):
            rows = np.setdiff1d(np.arange(120), held_out[number] if folds > 1 else [])
            quality = fitted.head.quality
            assert quality is not None
            torch.testing.assert_close(
                quality(dataset.images[0]), standard(log_odds[number], rows), rtol=1e-4, atol=1e-4
            )
            assert (fitted.head.answerable.weight[0, -7:] != 0).all()
    assert len(list(tmp_path.rglob("*.pt"))) == folds


def test_photos_without_differences_are_finite() -> None:
    dataset, answers = make_dataset(make_records(60), READING)
    equal_photos = replace(dataset, images=dataset.images[:, :1].expand_as(dataset.images))
    [fitted] = fit_predictor(READING, equal_photos, equal_photos, (answers, 4), [], quality=quality_heads(1)).fits
    assert all(tensor.isfinite().all() for tensor in fitted.head.state_dict().values())


def with_votes(split: Split) -> Split:
    """Votes on every photo, blur on every other one."""
    records = [replace(record, votes=(5 * (n % 2), n % 6, 0, 0, 0, 0, 0)) for n, record in enumerate(split.records)]
    return replace(split, records=tuple(records), votes_digest="")


@pytest.mark.parametrize("folds", [1, 2])
def test_from_fit_to_export(folds: int, some_photos: Path, tiny_vit: FrozenClip, tmp_path: Path) -> None:
    """The export's parity gate compares the graph with the loaded heads; here these are compared with the fitted."""
    train, val = (with_votes(read_split(some_photos, name)) for name in ("train", "val"))
    recipe = replace(READING, epochs=3, folds=folds)
    run = read_run(fit.fit(train, val, tiny_vit, recipe, tmp_path / "runs", tmp_path / "cache"))
    [member] = run.load_ensemble().members
    check_what_heads_read(member, tiny_vit.embed_dim, folds)
    assert export_run(run, tiny_vit, tmp_path / "triton_models").head


def test_on_two_clips(some_photos: Path, tiny_vit: FrozenClip, tmp_path: Path) -> None:
    """The heads of each CLIP read that CLIP's quality heads."""
    other = load_clip(write_checkpoint(tmp_path / "other.pt", (1, 1, 1, 1), seed=1))
    train, val = (with_votes(read_split(some_photos, name)) for name in ("train", "val"))
    recipe = replace(READING, epochs=3, folds=2)
    run = read_run(fit.fit(train, val, [tiny_vit, other], recipe, tmp_path / "runs", tmp_path / "cache"))
    members = run.load_ensemble().members
    for member, clip in zip(members, (tiny_vit, other), strict=True):
        check_what_heads_read(member, clip.embed_dim, folds=2)
    assert export_run(run, [tiny_vit, other], tmp_path / "triton_models").head


def check_what_heads_read(member: torch.nn.Module, features: int, folds: int) -> None:
    """Each head of ``member`` reads the log-odds of its own fold's quality head, but for scale and offset."""
    assert isinstance(member, Predictor)
    images = torch.randn(50, features)
    own = [head(images) for head in member.quality]
    read = [head.quality(images) for head in member.heads if isinstance(head.quality, QualityHead)]
    assert len(read) == folds
    assert read[0].shape == (50, len(ISSUES))
    for number, found in enumerate(read):
        expected = own[number] if folds > 1 else torch.stack(own).mean(dim=0)
        for issue in (0, 1):
            assert torch.corrcoef(torch.stack([found[:, issue], expected[:, issue]]))[0, 1] > 0.9999


def test_votes_are_asked_for_before_any_work(
    some_photos: Path,
    tiny_vit: FrozenClip,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fit, "load_distinct_clips", None)
    monkeypatch.setattr(fit, "choose_vocabulary", None)
    assert fit.main(["--data", str(some_photos), "--answerable-quality", "yes", "--runs", str(tmp_path / "runs")]) == 2
    expected = f"needs votes on the photos of train, but {some_photos} has them on 0 of its 50: run"
    assert expected in capsys.readouterr().err
    train, val = (read_split(some_photos, name) for name in ("train", "val"))
    with pytest.raises(DatasetError, match="needs votes"):
        fit.fit(train, val, tiny_vit, READING, tmp_path / "runs", tmp_path / "cache")


def test_a_run_from_before_the_setting_loads(some_photos: Path, tiny_vit: FrozenClip, tmp_path: Path) -> None:
    train, val = (with_votes(read_split(some_photos, name)) for name in ("train", "val"))
    folder = fit.fit(train, val, tiny_vit, Recipe(epochs=1), tmp_path / "runs", tmp_path / "cache")
    config = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    del config["recipe"]["answerable_quality"]
    (folder / RUN_FILE).write_text(json.dumps(config), encoding="utf-8")
    assert not any("heads.0.quality" in name for name in read_run(folder).load_ensemble().state_dict())
