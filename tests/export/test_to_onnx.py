"""Export of a fitted run: what is published, and what the parity gate refuses."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch

from export import publish, repository, to_onnx
from export.comparison import ParityError
from export.publish import export_run
from serving.repository import read_config
from tests.conftest import ROOT, write_checkpoint
from tests.export.conftest import snapshot
from training.backbone import FrozenClip, load_clip
from training.dataset import read_split
from training.fit import fit
from training.model import ClipEnsemble, Predictor
from training.recipe import RECIPES, Recipe
from training.run import Run, read_run
from vizwiz_client.contract import tensors


def test_the_repository_holds_the_chain_and_nothing_half_written(published: Path, run: Run) -> None:
    names = {path.name.rpartition("_")[0] for path in published.iterdir()}
    assert names == {"vizwiz", "clip_image", "clip_text", "gated_head"}
    head = next(published.glob("gated_head_*"))
    assert (head / "answer.txt").read_text(encoding="utf-8").splitlines() == run.answers
    assert (head / "answer_type.txt").read_text(encoding="utf-8").splitlines() == run.answer_types
    assert [path.name for path in published.parent.iterdir()] == ["triton_models"]


def test_every_model_warms_up_on_samples_that_are_there(published: Path, run: Run) -> None:
    """On a CPU alone; the text encoder at each of its lengths."""
    for name in publish.model_names(run).all:
        config = read_config(published / name)
        lengths = len(tensors.TOKEN_LENGTHS) if name.startswith(tensors.TEXT_ENCODER_PREFIX) else 1
        assert [warmup.batch_size for warmup in config.model_warmup] == [1] * lengths
        for warmup in config.model_warmup:
            assert set(warmup.inputs) == {tensor.name for tensor in config.input}
            for sample in warmup.inputs.values():
                assert (published / name / "warmup" / sample.input_data_file).stat().st_size > 0


def test_exporting_again_changes_nothing(published: Path, run: Run, tiny_clip: FrozenClip) -> None:
    before = {path: path.stat().st_mtime_ns for path in published.rglob("model.onnx")}
    export_run(run, tiny_clip, published)
    assert {path: path.stat().st_mtime_ns for path in published.rglob("model.onnx")} == before


@pytest.mark.parametrize("damage", ["missing", "reordered"])
def test_a_damaged_label_file_is_written_again(damage: str, own: Path, run: Run, tiny_clip: FrozenClip) -> None:
    labels = next(own.glob("gated_head_*/answer.txt"))
    original = labels.read_text(encoding="utf-8")
    if damage == "missing":
        labels.unlink()
    else:
        labels.write_text("\n".join(reversed(original.splitlines())) + "\n", encoding="utf-8")
    export_run(run, tiny_clip, own)
    assert labels.read_text(encoding="utf-8") == original


def test_two_exports_at_once_leave_one_whole_repository(run: Run, tiny_clip: FrozenClip, tmp_path: Path) -> None:
    target = tmp_path / "triton_models"
    script = "import sys; from export import to_onnx; sys.exit(to_onnx.main(sys.argv[1:]))"
    arguments = ["--run", str(run.folder), "--repository", str(target), "--precision", "fp32", "--variant", "portable"]
    exports = [subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=ROOT) for _ in range(2)]
    assert [export.wait() for export in exports] == [0, 0]
    names = publish.model_names(run)
    assert all(repository.is_published(target, name) for name in names.all)
    assert [path.name for path in tmp_path.iterdir()] == ["triton_models"]


def test_an_altered_graph_is_exported_again(own: Path, run: Run, tiny_clip: FrozenClip) -> None:
    graph = next(own.glob("gated_head_*/1/model.onnx"))
    graph.write_bytes(graph.read_bytes() + b"\0")
    export_run(run, tiny_clip, own)
    assert repository.is_published(own, graph.parents[1].name)


@pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)
def test_a_run_of_another_clip_is_refused(
    run: Run, tmp_path: Path, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_checkpoint(tmp_path / "other.pt", 3, seed=1)
    before = snapshot(published)
    arguments = ["--run", str(run.folder), "--clip", str(other), "--repository", str(published)]
    assert to_onnx.main(arguments) == 2
    error = capsys.readouterr().err
    assert f"was fitted on the CLIP {run.clips[0]['sha256'][:12]}" in error
    assert f"but {other} is {load_clip(other).digest[:12]}: give " in error
    assert snapshot(published) == before


def test_no_run_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert to_onnx.main(["--runs", str(tmp_path)]) == 2
    assert "make one with `python -m training.fit`" in capsys.readouterr().err


@pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)
def test_folds_and_their_calibration_are_one_graph(tiny_clip: FrozenClip, some_photos: Path, tmp_path: Path) -> None:
    train, val = read_split(some_photos, "train"), read_split(some_photos, "val")
    recipe = replace(RECIPES["best"], epochs=3, folds=3)
    run = read_run(fit(train, val, tiny_clip, recipe, tmp_path / "runs", tmp_path / "cache"))
    names = export_run(run, tiny_clip, tmp_path / "triton_models")  # parity is checked before it publishes
    graph = tmp_path / "triton_models" / names.head / "1" / "model.onnx"
    features = torch.randn(4, tiny_clip.embed_dim), torch.randn(4, tiny_clip.embed_dim)
    expected = run.load_ensemble()([(features[1], features[0])])
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    got = session.run(None, {"image_features": features[0].numpy(), "text_features": features[1].numpy()})
    torch.testing.assert_close(torch.from_numpy(got[0]), expected.answer)
    torch.testing.assert_close(torch.from_numpy(got[2])[:, 0], expected.answerable)


@pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)
@pytest.mark.parametrize("damage", ["a fold twice", "another bias"])
def test_a_wrong_average_publishes_nothing(
    damage: str, tiny_clip: FrozenClip, some_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = read_split(some_photos, "train"), read_split(some_photos, "val")
    run = read_run(fit(train, val, tiny_clip, Recipe(epochs=3, folds=2), tmp_path / "runs", tmp_path / "cache"))
    original = publish.write_head

    def damaged(ensemble: ClipEnsemble, digest: str, path: Path) -> None:
        heads = list(ensemble.members[0].heads)
        if damage == "a fold twice":
            heads = heads[:1] * 2
        if damage == "another bias":
            heads = copy.deepcopy(heads)
            for head in heads:
                head.answerable.bias.data.add_(0.01)
        original(ClipEnsemble([Predictor(heads)]), digest, path)

    monkeypatch.setattr(publish, "write_head", damaged)
    with pytest.raises(ParityError):
        export_run(run, tiny_clip, tmp_path / "triton_models")
    assert not list(tmp_path.glob("triton_models/*"))


def test_data_of_the_fit_that_cannot_be_read_are_left_out(
    run: Run, tiny_clip: FrozenClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").write_text("a file where the folder was")
    moved = replace(run, config=run.config | {"data": run.config["data"] | {"folder": str(tmp_path / "data")}})
    names = export_run(moved, tiny_clip, tmp_path / "triton_models")
    assert (tmp_path / "triton_models" / names.head).is_dir()
    out = capsys.readouterr().out
    assert "the data of the fit cannot be read ([Errno 20] Not a directory" in out
    assert "comparing on random and drawn inputs alone" in out
