from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import annotation, write_checkpoint, write_split
from training import evaluate, fit
from training.backbone import ClipError, FrozenClip, choose_device, load_clip
from training.dataset import Split, holdout_rows, read_split
from training.features import encode_split
from training.labels import TYPE_SETS
from training.metrics import vqa_accuracy
from training.recipe import RECIPES, Recipe
from training.run import RunError, newest_run, read_epochs, read_run


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each TensorBoard tag."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture(scope="module")
def splits(some_photos: Path) -> tuple[Split, Split]:
    """The real photos, as train and as val."""
    return read_split(some_photos, "train"), read_split(some_photos, "val")


@pytest.fixture(scope="module")
def run(tiny_vit: FrozenClip, splits: tuple[Split, Split], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run fitted on real photos."""
    place = tmp_path_factory.mktemp("fit")
    return fit.fit(*splits, tiny_vit, Recipe(epochs=3), place / "runs", place / "cache")


@pytest.mark.material
def test_a_run_folder_holds_what_it_promises(run: Path, tiny_vit: FrozenClip) -> None:
    loaded = read_run(run)
    assert loaded.clips[0]["sha256"] == tiny_vit.digest
    assert loaded.config["recipe"] == vars(Recipe(epochs=3))
    assert loaded.config["type_set"] == "official"
    assert loaded.answer_types == ["other", "unanswerable", "yes/no", "number"]
    assert loaded.config["vocabulary"]["rule"] == "report"
    assert loaded.config["vocabulary"]["size"] == len(loaded.answers)
    assert 50 < loaded.config["vocabulary"]["oracle_accuracy"] <= 100
    assert loaded.config["holdout"] is None
    assert loaded.config["data"]["train"]["records"] == 50
    assert re.fullmatch(r"[0-9a-f]{64}", loaded.config["data"]["val"]["sha256"])
    assert {"python", "torch", "vizwiz-client"} <= loaded.config["versions"].keys()
    assert "unanswerable" in loaded.answers
    with Image.open(run / "loss_curves.png") as curves:
        assert curves.size[0] > 600
    zeros = torch.zeros(1, 64)
    assert loaded.load_ensemble()([(zeros, zeros)]).answer.shape == (1, len(loaded.answers))


@pytest.mark.material
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
        "unanswerable_f1",
        "answerable_f1",
        "answerable_accuracy",
        "answerable_ece",
    }
    assert metrics["majority_baseline"]["answer"] == "unanswerable"
    assert metrics["baselines"].keys() == {"question_only", "logistic_regression"}
    assert all(
        scores.keys() == best.keys() - {"epoch", "train_loss", "val_loss"} for scores in metrics["baselines"].values()
    )


@pytest.mark.material
def test_baselines_are_scored_again_as_the_fit_scored_them(run: Path, tmp_path: Path) -> None:
    cache = str(run.parents[1] / "cache")
    assert evaluate.main(["--run", str(run), "--cache", cache, "--out", str(tmp_path), "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["baselines"]
    expected = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["baselines"]
    assert found.keys() == expected.keys()
    assert all(found[name] == pytest.approx(expected[name]) for name in found)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "logistic regression, question alone" in page
    assert "logistic regression, question alone" in (run / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_a_fit_without_baselines(tiny_vit: FrozenClip, some_photos: Path, tmp_path: Path) -> None:
    assert fit.main(flags_of(tiny_vit, some_photos, tmp_path, "--epochs", "1", "--no-baselines")) == 0
    run = read_run(newest_run(tmp_path / "runs"))
    assert run.load_baselines() == {}
    assert not (run.folder / "baselines.safetensors").exists()
    assert evaluate.main(["--run", str(run.folder), "--cache", str(tmp_path / "cache"), "--device", "cpu"]) == 0


def test_a_head_that_underfits_is_told(
    tiny_vit: FrozenClip, splits: tuple[Split, Split], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = tmp_path / "runs", tmp_path / "cache"
    fit.fit(*splits, tiny_vit, Recipe(epochs=1, learning_rate=1e-6), *places)
    warned = capsys.readouterr().err
    assert "warning: the head underfits: VQA " in warned
    assert "Each head took 1 steps: give --recipe best, or more --repeat-to-steps" in warned
    fit.fit(*splits, tiny_vit, Recipe(repeat_to_steps=600, dropout=0.0), *places)
    assert "warning" not in capsys.readouterr().err


def test_the_same_seed_gives_the_same_weights(
    run: Path, tiny_vit: FrozenClip, splits: tuple[Split, Split], tmp_path: Path
) -> None:
    again = fit.fit(*splits, tiny_vit, Recipe(epochs=3), tmp_path / "runs", tmp_path / "cache")
    other = fit.fit(*splits, tiny_vit, Recipe(epochs=3, seed=1), tmp_path / "runs", tmp_path / "cache")
    assert (again / "head.safetensors").read_bytes() == (run / "head.safetensors").read_bytes()
    assert read_run(again).digest == read_run(run).digest != read_run(other).digest


@pytest.mark.material
def test_a_head_learns_what_can_be_learnt(tiny_vit: FrozenClip, splits: tuple[Split, Split], tmp_path: Path) -> None:
    """Fitted long enough on 50 photos and scored on the same, it must know most of them by heart."""
    folder = fit.fit(*splits, tiny_vit, Recipe(epochs=100, dropout=0.0), tmp_path / "runs", tmp_path / "cache")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    learnt = metrics["history"][-1]
    assert learnt["vqa_accuracy_leave_one_out"] > metrics["majority_baseline"]["vqa_accuracy_leave_one_out"] + 10
    assert learnt["unanswerable_ap"] > 0.95


def test_every_epoch_is_logged(run: Path) -> None:
    rows = read_epochs(run)
    assert rows == json.loads((run / "metrics.json").read_text(encoding="utf-8"))["history"]
    assert scalars(run)["val_loss"] == [(row["epoch"], pytest.approx(row["val_loss"])) for row in rows]
    assert (run / "MODEL_CARD.md").is_file()
    assert not list(run.parent.rglob("*.pt"))


@pytest.mark.parametrize("name", ["paper", "best"])
def test_the_other_recipes(name: str, tiny_vit: FrozenClip, splits: tuple[Split, Split], tmp_path: Path) -> None:
    recipe = replace(RECIPES[name], epochs=2, folds=3, repeat_to_steps=8)
    run = read_run(fit.fit(*splits, tiny_vit, recipe, tmp_path / "runs", tmp_path / "cache"))
    assert len(run.load_ensemble().members[0].heads) == 3
    assert run.config["recipe"] == vars(recipe)
    assert run.answer_types == list(TYPE_SETS[recipe.types])
    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    assert [(row["fold"], row["epoch"]) for row in metrics["history"]] == [(f, e) for f in (1, 2, 3) for e in (1, 2)]
    # What is written as the run's score is the average of the folds, on val.
    val = splits[1]
    features = encode_split(tiny_vit, val, tmp_path / "cache")
    predicted = run.load_ensemble()([(torch.tensor(features.texts), torch.tensor(features.images))])
    answers = [run.answers[index] for index in predicted.answer.argmax(1).tolist()]
    scored = vqa_accuracy(answers, [record.answers for record in val.records])
    assert metrics["best"]["vqa_accuracy_leave_one_out"] == pytest.approx(scored["vqa_accuracy_leave_one_out"])


def test_two_clips(tiny_vit: FrozenClip, splits: tuple[Split, Split], tmp_path: Path) -> None:
    other = load_clip(write_checkpoint(tmp_path / "other.pt", (1, 1, 1, 1), seed=1))
    recipe = Recipe(epochs=2)
    run = read_run(fit.fit(*splits, [tiny_vit, other], recipe, tmp_path / "runs", tmp_path / "cache"))
    assert [clip["sha256"] for clip in run.clips] == [tiny_vit.digest, other.digest]
    alone = read_run(fit.fit(*splits, tiny_vit, recipe, tmp_path / "alone", tmp_path / "cache"))
    member = run.load_ensemble().members[0].state_dict()
    assert all(torch.equal(member[key], value) for key, value in alone.load_ensemble().members[0].state_dict().items())


def test_what_is_held_out_is_not_fitted_on(tiny_vit: FrozenClip, splits: tuple[Split, Split], tmp_path: Path) -> None:
    """A record that is held out, and only there, has an answer that nobody else gave."""
    train, val = splits
    held = train.records[holdout_rows(train, 0.2, seed=5)[1][0]].image
    odd = {"answers": ("only here",) * 10}
    records = tuple(replace(record, **odd) if record.image == held else record for record in train.records)
    marked = replace(train, records=records)
    recipe = Recipe(epochs=1, seed=5)
    run = read_run(fit.fit(marked, val, tiny_vit, recipe, tmp_path / "runs", tmp_path / "cache", holdout=0.2))
    assert run.config["holdout"] == {"fraction": 0.2, "seed": 5}
    assert "only here" not in run.answers
    whole = read_run(fit.fit(marked, val, tiny_vit, recipe, tmp_path / "runs", tmp_path / "cache"))
    assert "only here" in whole.answers


def flags_of(model: FrozenClip, data: Path, folder: Path, *more: str) -> list[str]:
    """The command line of a fit of ``model`` on ``data``, whose runs and features go into ``folder``."""
    places = ["--runs", str(folder / "runs"), "--cache", str(folder / "cache")]
    return ["--data", str(data), "--clip", model.source, *places, *more]


def test_an_interrupted_fit_continues_from_its_finished_heads(
    tiny_vit: FrozenClip,
    some_photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = flags_of(tiny_vit, some_photos, tmp_path, "--epochs", "2", "--folds", "3", "--no-baselines")

    def interrupt(row: dict[str, Any]) -> str:
        if row["fold"] == 2:
            raise KeyboardInterrupt
        return ""

    with monkeypatch.context() as patch:
        patch.setattr(fit, "describe_epoch", interrupt)
        assert fit.main(arguments) == 130
    assert "finished heads are kept, the same command continues" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".unfinished"]
    [head] = (tmp_path / "runs").rglob("*.pt")
    assert head.name == "clip1-fold1.pt"
    assert fit.main(arguments) == 0
    rows = read_epochs(newest_run(tmp_path / "runs"))
    assert [(row["fold"], row["epoch"]) for row in rows] == [(f, e) for f in (1, 2, 3) for e in (1, 2)]
    assert not list((tmp_path / "runs").rglob("*.pt"))


def test_other_photos_of_the_same_names_are_another_fit(
    tiny_vit: FrozenClip, some_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(some_photos, tmp_path / "data")
    arguments = flags_of(tiny_vit, tmp_path / "data", tmp_path, "--epochs", "1", "--no-baselines")
    with monkeypatch.context() as patch:
        patch.setattr(fit, "write_result", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert fit.main(arguments) == 130
        one, other = sorted((tmp_path / "data" / "train").iterdir())[:2]
        shutil.copy(one, other)
        assert fit.main(arguments) == 130
    assert len(list((tmp_path / "runs").glob(".unfinished/*/*.pt"))) == 2


def test_the_newest_run_is_the_one_fitted_last(run: Path) -> None:
    assert newest_run(run.parent) == run
    copy = run.parent / "zebra"  # a name says nothing about the time
    copy.mkdir()
    config = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (copy / "run.json").write_text(json.dumps(config | {"created": "2020-01-01T00:00:00+00:00"}), encoding="utf-8")
    assert newest_run(run.parent) == run
    (copy / "run.json").write_text("damaged", encoding="utf-8")
    assert newest_run(run.parent) == run
    shutil.rmtree(copy)
    with pytest.raises(RunError, match=r"no run in .*: make one with `python -m training\.fit`"):
        newest_run(run / "nowhere")


def test_a_changed_file_is_refused(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "answers.txt").write_text("unanswerable\n")
    with pytest.raises(RunError, match=r"answers\.txt is missing or was changed after the fit"):
        read_run(copy)
    shutil.copy(run / "answers.txt", copy)
    (copy / "baselines.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"baselines\.safetensors is missing or was changed after the fit"):
        read_run(copy)
    (copy / "run.json").write_text('{"format": 99}')
    with pytest.raises(RunError, match="run format 99, this version reads 4"):
        read_run(copy)
    with pytest.raises(RunError, match=r"is not a run folder: it has no run\.json"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--clip", "ViT-B/7"],
            "error: no CLIP 'ViT-B/7': give a checkpoint file, open_clip:ARCHITECTURE/TAG or one of OpenAI's names: ",
        ),
        (["--clip", "README.md"], "error: README.md is not an OpenAI CLIP checkpoint"),
        (["--device", "tpu9"], "error: --device tpu9: no such device"),
        (["--epochs", "-1"], "error: --epochs must be at least 1, got -1"),
        (["--limit", "0"], "error: --limit must be at least 1, got 0"),
        (["--holdout", "1.5"], "error: --holdout must be above 0 and below 1, got 1.5"),
        (["--clip", "a.pt", "--clip", "a.pt"], "error: --clip a.pt is given more than once"),
        (
            ["--limit", "0", "--holdout", "0", "--epochs", "0", "--recipe", "best", "--folds", "1"],
            "error: --epochs must be at least 1, got 0; --decay-trials needs --folds 2 or more, whose held-out records "
            "decide (or --decay-trials 0); --calibration platt needs --folds 2 or more, whose held-out records it is "
            "fitted on (or --calibration none); --limit must be at least 1, got 0; "
            "--holdout must be above 0 and below 1, got 0.0",
        ),
        (["--recipe", "best", "--folds", "1"], "; --calibration platt needs --folds 2 or more"),
        (["--data", "nowhere"], "error: nowhere/Annotations/train.json does not exist: a VizWiz folder has"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for split in ("train", "val"):
        write_split(tmp_path, split, [annotation(0)])
    clip = [] if "--clip" in arguments else ["--clip", "README.md"]
    assert fit.main(["--data", str(tmp_path), "--runs", str(tmp_path / "runs"), *clip, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_same_clip_under_two_names_is_refused(
    tiny_vit: FrozenClip, some_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copy(tiny_vit.source, tmp_path / "copy.pt")
    assert fit.main(flags_of(tiny_vit, some_photos, tmp_path, "--clip", str(copy))) == 2
    captured = capsys.readouterr()
    assert f"error: {tiny_vit.source} and {copy} are the same CLIP: give one" in captured.err
    assert f"\n{tiny_vit.source} is read as OpenAI's architecture: QuickGELU, 2 heads" in captured.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(ClipError, match="this PyTorch sees no CUDA device; use --device cpu"):
        choose_device("cuda")


@pytest.mark.parametrize("device", ["mps", "meta", "toaster"])
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(ClipError, match=f"--device {device}: .*give auto, cpu, cuda or cuda:N"):
        choose_device(device)


def test_a_validation_split_of_one_class_is_no_error(
    tiny_vit: FrozenClip, some_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit.main(flags_of(tiny_vit, some_photos, tmp_path, "--limit", "1", "--epochs", "1")) == 0
    assert "run folder: " in capsys.readouterr().out
