from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import write_checkpoint
from training import evaluate
from training.artifacts import write_json
from training.backbone import FrozenClip
from training.dataset import ANSWER_TYPES, DEMO_MANIFEST, DatasetError, holdout_rows, read_split, select
from training.metrics import answerability, vqa_accuracy, vqa_accuracy_by_type
from training.model import ClipEnsemble, GatedHead, Predictor
from training.recipe import RECIPES, REPORT
from training.report import overrides, write_model_card
from training.run import Run, RunError, epoch_log, read_run, write_run


@pytest.fixture(scope="module")
def data(some_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos as train, val and test."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "Annotations").mkdir()
    records = json.loads((some_photos / "Annotations" / "val.json").read_text(encoding="utf-8"))
    if not read_split(some_photos, "val").is_vizwiz:
        (folder / DEMO_MANIFEST).touch()
    for split in ("train", "val", "test"):
        (folder / split).symlink_to((some_photos / "val").resolve())
        kept = [{key: record[key] for key in ("image", "question")} for record in records]
        (folder / "Annotations" / f"{split}.json").write_text(json.dumps(kept if split == "test" else records))
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tiny_vit: FrozenClip, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two heads that nobody fitted: what it says is arbitrary, and varied."""
    folder = tmp_path_factory.mktemp("runs") / "20260101T000000Z-tiny"
    folder.mkdir()
    val = read_split(data, "val")
    answers = list(dict.fromkeys(record.answers[0] for record in val.records))
    torch.manual_seed(1)
    heads = [GatedHead(tiny_vit.embed_dim, len(answers), len(ANSWER_TYPES)) for _ in range(2)]
    config: dict[str, Any] = {
        "recipe": vars(replace(REPORT, folds=2, dropout=0.9)),
        "type_set": "official",
        "quality": None,
        "wording": {},
        "answer_types": ANSWER_TYPES,
        "vocabulary": {"rule": "report", "size": len(answers), "oracle_accuracy": 87.6},
        "holdout": {"fraction": 0.2, "seed": 3},
        "data": {"folder": str(data)}
        | {name: {"records": len(val.records), "sha256": read_split(data, name).digest} for name in ("train", "val")},
        "clips": [
            {
                "source": tiny_vit.source,
                "sha256": tiny_vit.digest,
                "image_size": tiny_vit.image_size,
                "embed_dim": tiny_vit.embed_dim,
            }
        ],
    }
    write_run(folder, config, ClipEnsemble([Predictor(heads)]), answers)
    row = {"epoch": 1, "train_loss": 3.0, "val_loss": 2.0, **vqa_accuracy(["mug"], [["mug"] * 10])}
    majority = {"answer": "unanswerable", "vqa_accuracy_leave_one_out": 73.0}
    scores = {"best": row, "majority_baseline": majority, "baselines": {}, "history": [row]}
    write_json(folder / "metrics.json", scores)
    with epoch_log(folder) as log:
        log(row)
    write_model_card(folder)
    return read_run(folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, encoded once for the tests of this file."""
    return tmp_path_factory.mktemp("cache")


def command(run: Run, cache: Path, *arguments: str) -> int:
    return evaluate.main(["--run", str(run.folder), "--device", "cpu", "--cache", str(cache), *arguments])


@pytest.fixture(scope="module")
def on_val(run: Run, cache: Path) -> Path:
    """The results on val."""
    assert command(run, cache) == 0
    return run.folder / "evaluation-val"


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.material
def test_the_metrics_are_those_of_the_submission(on_val: Path, data: Path, run: Run) -> None:
    records = read_split(data, "val").records
    tasks = load(on_val / "submission_answers.json"), load(on_val / "submission_answerability.json")
    for task in tasks:
        assert [entry["image"] for entry in task] == [record.image for record in records]
    answers = [entry["answer"] for entry in tasks[0]]
    confidence = np.array([entry["answerable"] for entry in tasks[1]], np.float32)
    assert set(answers) <= set(run.answers)
    assert len(set(answers)) > 1

    metrics, given = load(on_val / "metrics.json"), [record.answers for record in records]
    types = [record.answer_type or "" for record in records]
    expected = (
        vqa_accuracy(answers, given)
        | answerability(confidence, np.array([bool(record.answerable) for record in records]))
        | {"by_answer_type": vqa_accuracy_by_type(answers, given, types)}
        | {"records": 50, "split": "val", "run_sha256": run.digest}
    )
    assert {key: metrics[key] for key in expected} == expected
    assert metrics["majority_baseline"] == {"answer": "unanswerable"} | vqa_accuracy(["unanswerable"] * 50, given)
    assert np.sum(metrics["answer_types"]["confusion"], axis=1).tolist() == [types.count(name) for name in ANSWER_TYPES]
    assert metrics["oracle_accuracy"] >= metrics["vqa_accuracy_leave_one_out"]
    assert (
        metrics["selective_accuracy"]["deciles"][0]["vqa_accuracy_leave_one_out"]
        == metrics["vqa_accuracy_leave_one_out"]
    )


class Page(HTMLParser):
    """What is asserted of the report."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def all(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


def test_the_report_loads_nothing_and_runs_nothing(on_val: Path) -> None:
    text = (on_val / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.all("script", "link", "iframe", "object", "embed", "base")
    sources = [
        attributes.get(key) for _, attributes in page.tags for key in ("src", "href", "srcset") if key in attributes
    ]
    assert len(sources) == 4
    assert all((source or "").startswith("data:image/svg+xml;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?://", text)
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]


def test_the_report_can_be_read_without_seeing(on_val: Path) -> None:
    page = Page((on_val / "report.html").read_text(encoding="utf-8"))
    assert page.all("html")[0]["lang"] == "en"
    assert all(len(image["alt"] or "") > 20 for image in page.all("img"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table")) == 6
    assert all(header.get("scope") in ("row", "col") for header in page.all("th"))


@pytest.mark.material
def test_test_gets_the_submission_files_alone(run: Run, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(run, cache, "--split", "test") == 0
    files = sorted(path.name for path in (run.folder / "evaluation-test").iterdir())
    assert files == ["submission_answerability.json", "submission_answers.json"]
    assert "the answers of this split are hidden" in capsys.readouterr().out


@pytest.mark.material
def test_the_held_out_part_is_what_the_fit_left_out(run: Run, data: Path, cache: Path, on_val: Path) -> None:
    assert command(run, cache, "--split", "holdout") == 0
    train = read_split(data, "train")
    held = select(train, holdout_rows(train, 0.2, 3)[1])
    task = load(run.folder / "evaluation-holdout" / "submission_answers.json")
    assert [entry["image"] for entry in task] == [record.image for record in held.records]
    assert len(task) == 10
    # train is val here: the same photo gets the same answer, whichever rows were taken
    everywhere = {entry["image"]: entry["answer"] for entry in load(on_val / "submission_answers.json")}
    assert all(everywhere[entry["image"]] == entry["answer"] for entry in task)
    card = (run.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| | val, in the fit | holdout | val |" in card
    majorities = [
        load(run.folder / f"evaluation-{split}" / "metrics.json")["majority_baseline"]["vqa_accuracy_leave_one_out"]
        for split in ("holdout", "val")
    ]
    assert majorities[0] != majorities[1]
    assert f'| - always "unanswerable" | 73.00 | {majorities[0]:.2f} | {majorities[1]:.2f} |' in card


def times(folder: Path) -> dict[Path, int]:
    """When each file was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_results_elsewhere_leave_the_run_folder_alone(run: Run, cache: Path, tmp_path: Path, on_val: Path) -> None:
    before = times(run.folder)
    assert command(run, cache, "--out", str(tmp_path / "elsewhere")) == 0
    assert times(run.folder) == before
    assert load(tmp_path / "elsewhere" / "metrics.json") == load(on_val / "metrics.json")


def test_results_never_replace_those_of_a_fit(run: Run, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = times(run.folder)
    assert command(run, cache, "--out", str(run.folder)) == 2
    assert f"error: --out {run.folder} is a run folder: its metrics.json is that of the fit" in capsys.readouterr().err
    assert times(run.folder) == before


def test_another_val_never_passes_for_that_of_the_fit(
    run: Run, data: Path, cache: Path, tmp_path: Path, on_val: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(data, other, symlinks=True)
    path = other / "Annotations" / "val.json"
    path.write_text(json.dumps(load(path)[:20]))
    card = run.folder / "MODEL_CARD.md"
    before = times(on_val), card.read_text(encoding="utf-8")
    assert command(run, cache, "--data", str(other)) == 0
    assert "this is not the val of the fit" in capsys.readouterr().out
    out = run.folder / f"evaluation-val-{read_split(other, 'val').digest[:12]}"
    assert load(out / "metrics.json")["records"] == 20
    assert (times(on_val), card.read_text(encoding="utf-8")) == before
    shutil.rmtree(out)


def test_a_run_without_a_held_out_part_is_refused(run: Run, data: Path) -> None:
    without = replace(run, config=run.config | {"holdout": None})
    with pytest.raises(DatasetError, match=r"held nothing out of train: fit with `python -m training\.fit --holdout"):
        evaluate.read_records(without, "holdout")


def test_another_train_has_no_held_out_part(run: Run, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(data, other, symlinks=True)
    path = other / "Annotations" / "train.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(DatasetError, match=r"is not the file that .* was fitted on"):
        evaluate.read_records(run, "holdout", other)


def test_another_clip_is_refused(run: Run, tmp_path: Path) -> None:
    other = str(write_checkpoint(tmp_path / "other.pt", 3, seed=1))
    with pytest.raises(RunError, match=r"was fitted on the CLIP [0-9a-f]{12} .*, but .*other\.pt is [0-9a-f]{12}"):
        evaluate.load_clips_of(run, [other], torch.device("cpu"))
    with pytest.raises(RunError, match=r"was fitted on 1 CLIP\(s\), got 2"):
        evaluate.load_clips_of(run, [other, other], torch.device("cpu"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nowhere"], "error: nowhere is not a run folder"),
        (["--data", "nowhere"], "error: nowhere/Annotations/val.json does not exist: a VizWiz folder has"),
        (["--clip", "ViT-B/7"], "error: no CLIP 'ViT-B/7'"),
        (["--device", "tpu9"], "error: --device tpu9: no such device"),
        (["--data", "README.md"], "error: [Errno 20] Not a directory: 'README.md/Annotations/val.json'"),
        (["--out", "README.md"], "error: [Errno 17] File exists: 'README.md'"),
        (["--cache", "README.md"], "error: [Errno 20] Not a directory: 'README.md/"),
    ],
)
def test_bad_input_is_one_clear_line(
    run: Run, cache: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(run, cache, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("content", [None, "{"], ids=["missing", "cut"])
def test_what_the_fit_scored_is_missed_before_anything_is_encoded(
    run: Run, tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.folder, copy)
    (copy / "metrics.json").unlink()
    if content:
        (copy / "metrics.json").write_text(content)
    cache = tmp_path / "cache"
    assert evaluate.main(["--run", str(copy), "--device", "cpu", "--cache", str(cache)]) == 2
    assert f"error: {copy / 'metrics.json'} cannot be read (" in capsys.readouterr().err
    assert not cache.exists()


def test_a_run_that_lacks_what_is_used_is_refused(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.folder, copy)
    config = load(copy / "run.json")
    for key in ("clips", "type_set", "vocabulary", "holdout"):
        (copy / "run.json").write_text(json.dumps({name: value for name, value in config.items() if name != key}))
        with pytest.raises(RunError, match=rf"run\.json lacks {key}: it was changed after the fit; fit again"):
            read_run(copy)


@pytest.mark.material
@pytest.mark.parametrize("is_vizwiz", [False, True])
def test_vizwiz_is_named_in_the_card_of_vizwiz_alone(run: Run, tmp_path: Path, is_vizwiz: bool) -> None:
    for name in ("run.json", "metrics.json"):
        shutil.copy(run.folder / name, tmp_path)
    config = load(tmp_path / "run.json")
    config["data"]["is_vizwiz"] = is_vizwiz
    (tmp_path / "run.json").write_text(json.dumps(config), encoding="utf-8")
    card = write_model_card(tmp_path).read_text(encoding="utf-8").replace("Powerful VizWiz Model", "")
    for mention in ("datasets: [vizwiz]", "VizWiz-VQA's (Gurari et al., CVPR 2018), under CC BY 4.0", "blind people"):
        assert (mention in card) is is_vizwiz
    assert ("VizWiz" in card) is is_vizwiz


def test_the_card_names_the_licence_and_the_crop_of_each_clip(run: Run, tmp_path: Path) -> None:
    for name in ("run.json", "metrics.json"):
        shutil.copy(run.folder / name, tmp_path)
    config = load(tmp_path / "run.json")
    (own,) = config["clips"]
    openai = own | {"source": "ViT-B/32"}
    for clips, licence, count, sight in (
        ([openai], "mit", 1, "It sees the resized centre square of the photo."),
        ([openai, own | {"squash": True}], "other", 1, "square of the photo and the whole photo, resized to a square."),
    ):
        (tmp_path / "run.json").write_text(json.dumps(config | {"clips": clips}), encoding="utf-8")
        card = write_model_card(tmp_path).read_text(encoding="utf-8")
        assert f"license: {licence}\n" in card
        assert card.count("OpenAI's CLIP is under the MIT licence.") == count
        assert sight in card


def test_settings_that_override_the_recipe_are_named_with_it(run: Run, on_val: Path) -> None:
    card = (run.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "Recipe `report` with `--dropout 0.9 --folds 2`, 2 head(s) per CLIP" in card
    report = (on_val / "report.html").read_text(encoding="utf-8")
    assert "the recipe <em>report</em> with <code>--dropout 0.9 --folds 2</code> on" in report
    assert [overrides(vars(recipe)) for recipe in RECIPES.values()] == ["", "", ""]
    assert overrides(vars(replace(RECIPES["best"], learning_rate=0.001))) == "--learning-rate 0.001"


@pytest.mark.material
def test_the_model_card_is_complete(run: Run, on_val: Path) -> None:
    card = (run.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    for needed in (
        "Its weights have a licence of their own.",
        "license: other",
        "It sees the resized centre square of the photo.",
        "Not for medicines, money or traffic",
        "English",
        "Under 0.5",
        "0.2 of its photos",
    ):
        assert needed in card
    metrics = load(on_val / "metrics.json")
    assert f"{metrics['vqa_accuracy_leave_one_out']:.2f}" in card
    assert f"{metrics['answerable_ece']:.3f}" in card
    assert str(run.folder.parent) not in card  # no place on this machine
    assert str(Path(run.clips[0]["source"]).parent) not in card
    assert "{{" not in card
