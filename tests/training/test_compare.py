"""Runs compared on one val, question by question."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import write_checkpoint
from training import compare, evaluate
from training.artifacts import to_json
from training.backbone import FrozenClip, load_clip
from training.dataset import read_split
from training.fit import fit
from training.metrics import question_accuracies
from training.recipe import Recipe
from training.run import Run, read_run
from training.scoring import ANSWERS_SUBMISSION


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def three(tiny_vit: FrozenClip, some_photos: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """A run on each of two CLIPs, the second with folds, and one on both."""
    place = tmp_path_factory.mktemp("three")
    other = load_clip(write_checkpoint(place / "other.pt", (1, 1, 1, 1), seed=1))
    train, val = read_split(some_photos, "train", limit=30), read_split(some_photos, "val")
    folds = Recipe(epochs=2, folds=2)
    return [
        read_run(fit(train, val, clips, recipe, place / name, cache, baselines=False))
        for name, clips, recipe in (
            ("one", [tiny_vit], Recipe(epochs=3)),
            ("other", [other], folds),
            ("both", [tiny_vit, other], folds),
        )
    ]


def test_scores_are_those_of_the_evaluations(
    three: list[Run], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(run.folder) for run in three]
    assert compare.main([*folders, "--cache", str(cache), "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    accuracies = []
    for number, (run, row) in enumerate(zip(three, compared["runs"], strict=True)):
        out = tmp_path / str(number)
        assert evaluate.main(["--run", str(run.folder), "--cache", str(cache), "--out", str(out)]) == 0
        metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        for key in ("vqa_accuracy_leave_one_out", "unanswerable_ap", "answerable_ap"):
            assert row[key] == pytest.approx(metrics[key])
        assert row["clips"] == [Path(clip["source"]).name for clip in run.clips]
        answers = [each["answer"] for each in json.loads((out / ANSWERS_SUBMISSION).read_text(encoding="utf-8"))]
        val = read_split(Path(run.config["data"]["folder"]), "val")
        given = [record.answers for record in val.records]
        accuracies.append(100 * question_accuracies(answers, given).leave_one_out)
        difference = accuracies[-1] - accuracies[0]
        assert row["minus_first"] == pytest.approx(difference.mean())
        margin = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference))
        assert row["minus_first_margin_95"] == pytest.approx(margin)
    assert [row["epoch_chosen_here"] for row in compared["runs"]] == [True, False, False]
    assert compared["records"] == len(accuracies[0])


def test_the_table_names_clips_and_the_choice_of_the_epoch(
    three: list[Run], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main([*(str(run.folder) for run in three), "--cache", str(cache)]) == 0
    _, header, first, _, both, note = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["CLIP", "recipe"]
    assert "*" in first
    assert "*" not in both
    assert both.startswith("tiny.pt and other.pt")
    assert note.startswith("* its fit chose the epoch on this val")


def test_a_clip_that_has_moved_is_found_by_its_weights(
    three: list[Run], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = three[2]
    config = json.loads((both.folder / "run.json").read_text(encoding="utf-8"))
    moved = tmp_path / "moved.pt"
    shutil.copy(config["clips"][1]["source"], moved)
    config["clips"][1]["source"] = "gone.pt"
    run = shutil.copytree(both.folder, tmp_path / "run")
    (run / "run.json").write_text(json.dumps(config), encoding="utf-8")
    assert compare.main([str(run), "--cache", str(cache)]) == 2
    assert "error: no CLIP 'gone.pt'" in capsys.readouterr().err
    assert compare.main([str(run), "--cache", str(cache), "--clip", str(moved)]) == 0


def test_json_has_no_nan(three: list[Run], cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    val = read_split(Path(three[0].config["data"]["folder"]), "val", limit=1)
    rows = compare.compare(three[:1], val, cache, torch.device("cpu"))
    assert np.isnan(rows[0].minus_first_margin_95), "one question has no interval: else the test proves nothing"
    json.loads(to_json([asdict(row) for row in rows]), parse_constant=refuse)


def test_each_clip_is_loaded_once(three: list[Run], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(source: str, device: torch.device) -> FrozenClip:
        loaded.append(source)
        return load_clip(source, device)

    monkeypatch.setattr(compare, "load_clip", load)
    assert compare.main([*(str(run.folder) for run in three), "--cache", str(cache)]) == 0
    assert loaded == [clip["source"] for clip in three[2].clips]


def test_a_folder_without_a_run_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(tmp_path)]) == 2
    assert f"error: {tmp_path} is not a run folder" in capsys.readouterr().err
