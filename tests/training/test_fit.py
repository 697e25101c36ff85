from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import annotation, write_split
from training import fit
from training.clip_models import ClipError, FrozenClip, load_clip
from training.data import Split, read_split
from training.recipe import Recipe, RecipeError
from training.runs import RunError, newest_run, read_run


@pytest.fixture(scope="module")
def splits(real_photos: Path) -> tuple[Split, Split]:
    """The real photos, as train and as val."""
    return read_split(real_photos, "train"), read_split(real_photos, "val")


@pytest.fixture(scope="module")
def run(tiny_vit: FrozenClip, splits: tuple[Split, Split], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run fitted on real photos."""
    place = tmp_path_factory.mktemp("fit")
    return fit.fit(*splits, tiny_vit, Recipe(epochs=3), place / "runs", place / "cache")


def test_a_run_folder_holds_what_it_promises(run: Path, tiny_vit: FrozenClip) -> None:
    loaded = read_run(run)
    assert loaded.clip_digest == tiny_vit.digest
    assert loaded.config["recipe"] == vars(Recipe(epochs=3))
    assert loaded.config["data"]["train"]["records"] == 50
    assert re.fullmatch(r"[0-9a-f]{64}", loaded.config["data"]["val"]["sha256"])
    assert {"python", "torch", "vizwiz-client"} <= loaded.config["versions"].keys()
    assert "unanswerable" in loaded.answers
    with Image.open(run / "loss_curves.png") as curves:
        assert curves.size[0] > 600
    assert loaded.load_head()(torch.zeros(1, 64), torch.zeros(1, 64)).answer.shape == (1, len(loaded.answers))


def test_every_epoch_is_scored(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert [row["epoch"] for row in metrics["history"]] == [1, 2, 3]
    best = max(metrics["history"], key=lambda row: row["vqa_accuracy_leave_one_out"])
    assert metrics["best"] == best
    assert best.keys() == {
        "epoch",
        "train_loss",
        "val_loss",
        "vqa_accuracy_leave_one_out",
        "vqa_accuracy_min3",
        "unanswerable_ap",
        "unanswerable_ap_chance",
        "answerable_ap",
        "answerable_ap_chance",
        "answerable_f1",
        "answerable_accuracy",
    }
    assert metrics["constant"]["answer"] == "unanswerable"


def test_the_same_seed_gives_the_same_weights(
    run: Path, tiny_vit: FrozenClip, splits: tuple[Split, Split], tmp_path: Path
) -> None:
    again = fit.fit(*splits, tiny_vit, Recipe(epochs=3), tmp_path / "runs", tmp_path / "cache")
    other = fit.fit(*splits, tiny_vit, Recipe(epochs=3, seed=1), tmp_path / "runs", tmp_path / "cache")
    assert (again / "head.safetensors").read_bytes() == (run / "head.safetensors").read_bytes()
    assert read_run(again).digest == read_run(run).digest != read_run(other).digest


def test_a_head_learns_what_can_be_learnt(tiny_vit: FrozenClip, splits: tuple[Split, Split], tmp_path: Path) -> None:
    """Fitted long enough on 50 photos and scored on the same, it must know most of them by heart."""
    folder = fit.fit(*splits, tiny_vit, Recipe(epochs=100, dropout=0.0), tmp_path / "runs", tmp_path / "cache")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["best"]["vqa_accuracy_leave_one_out"] > metrics["constant"]["vqa_accuracy_leave_one_out"] + 10
    assert metrics["best"]["unanswerable_ap"] > 0.95


def test_the_newest_run_is_the_one_fitted_last(run: Path) -> None:
    assert newest_run(run.parent) == run
    with pytest.raises(RunError, match=r"no run in .*: make one with `python -m training\.fit`"):
        newest_run(run / "nowhere")


def test_a_changed_file_is_refused(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "answers.txt").write_text("unanswerable\n")
    with pytest.raises(RunError, match=r"answers\.txt is missing or was changed after the fit"):
        read_run(copy)
    (copy / "run.json").write_text('{"format": 99}')
    with pytest.raises(RunError, match="run format 99, this version reads 1"):
        read_run(copy)
    with pytest.raises(RunError, match=r"is not a run folder: it has no run\.json"):
        read_run(tmp_path)


def test_bad_settings_are_reported_together() -> None:
    with pytest.raises(RecipeError, match=r"--epochs must be at least 1, got 0; --dropout must be in \[0, 1\), got 1"):
        Recipe(epochs=0, dropout=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clip", "ViT-B/7"], "error: no CLIP 'ViT-B/7': give a checkpoint file or one of OpenAI's names: RN50, "),
        (["--clip", "README.md"], "error: README.md is not an OpenAI CLIP checkpoint"),
        (["--device", "tpu9"], "error: --device tpu9: no such device"),
        (["--epochs", "-1"], "error: --epochs must be at least 1, got -1"),
        (["--limit", "0"], "error: --limit must be at least 1, got 0"),
        (["--data", "nowhere"], "error: nowhere/Annotations/train.json does not exist."),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for split in ("train", "val"):
        write_split(tmp_path, split, [annotation(0)])
    defaults = ["--data", str(tmp_path), "--runs", str(tmp_path / "runs"), "--clip", "README.md"]
    assert fit.main([*defaults, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(ClipError, match="this PyTorch sees no CUDA device; use --device cpu"):
        fit.choose_device("cuda")


def test_a_cut_checkpoint_is_refused(tiny_vit: FrozenClip, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(Path(tiny_vit.source).read_bytes()[:100_000])
    with pytest.raises(ClipError, match=r"cut\.pt is not an OpenAI CLIP checkpoint"):
        load_clip(cut)
