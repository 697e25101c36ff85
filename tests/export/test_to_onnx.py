"""Export of a fitted run: what is published, and what the parity gate refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch

from export import to_onnx
from export.parity import Comparison, ParityError, compare
from tests.conftest import ROOT, write_checkpoint
from training.clip_models import FrozenClip, load_clip
from training.data import read_split
from training.fit import fit
from training.predictor import Calibration, Predictor
from training.recipe import RECIPES, Recipe
from training.runs import Run, read_run


@pytest.fixture(scope="module")
def run(tiny_clip: FrozenClip, real_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of either CLIP family, fitted on the real photos."""
    place = tmp_path_factory.mktemp("run")
    train, val = read_split(real_photos, "train"), read_split(real_photos, "val")
    return read_run(fit(train, val, tiny_clip, Recipe(epochs=5), place / "runs", place / "cache"))


@pytest.fixture(scope="module")
def published(run: Run, tiny_clip: FrozenClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that the run was exported into."""
    repository = tmp_path_factory.mktemp("export") / "triton_models"
    to_onnx.export_run(run, tiny_clip, repository)
    return repository


def snapshot(repository: Path) -> dict[str, bytes]:
    return {str(path.relative_to(repository)): path.read_bytes() for path in repository.rglob("*") if path.is_file()}


def test_the_repository_holds_the_chain_and_nothing_half_written(published: Path, run: Run) -> None:
    names = {path.name.rpartition("_")[0] for path in published.iterdir()}
    assert names == {"vizwiz", "clip_image", "clip_text", "gated_head"}
    head = next(published.glob("gated_head_*"))
    assert (head / "answer.txt").read_text(encoding="utf-8").splitlines() == run.answers
    assert (head / "answer_type.txt").read_text(encoding="utf-8").splitlines() == run.answer_types
    assert [path.name for path in published.parent.iterdir()] == ["triton_models"]


def test_every_tensor_was_compared_on_random_input_and_photos(published: Path) -> None:
    rows = json.loads((next(published.glob("gated_head_*")) / "parity.json").read_text(encoding="utf-8"))
    tensors = ["image_features", "text_features", "answer", "answer_type", "answerable"]
    assert [(row["inputs"], row["tensor"]) for row in rows] == [
        (inputs, tensor) for inputs in ("random", "photos") for tensor in tensors
    ]
    assert all(0 < row["relative_error"] < 1e-5 for row in rows)


def test_exporting_again_changes_nothing(published: Path, run: Run, tiny_clip: FrozenClip) -> None:
    before = {path: path.stat().st_mtime_ns for path in published.rglob("model.onnx")}
    to_onnx.export_run(run, tiny_clip, published)
    assert {path: path.stat().st_mtime_ns for path in published.rglob("model.onnx")} == before


@pytest.mark.parametrize("damage", ["missing", "reordered"])
def test_a_damaged_label_file_is_written_again(damage: str, published: Path, run: Run, tiny_clip: FrozenClip) -> None:
    labels = next(published.glob("gated_head_*/answer.txt"))
    original = labels.read_text(encoding="utf-8")
    if damage == "missing":
        labels.unlink()
    else:
        labels.write_text("\n".join(reversed(original.splitlines())) + "\n", encoding="utf-8")
    to_onnx.export_run(run, tiny_clip, published)
    assert labels.read_text(encoding="utf-8") == original


def test_two_exports_at_once_leave_one_whole_repository(run: Run, tiny_clip: FrozenClip, tmp_path: Path) -> None:
    target = tmp_path / "triton_models"
    script = "import sys; from export import to_onnx; sys.exit(to_onnx.main(sys.argv[1:]))"
    arguments = ["--run", str(run.folder), "--repository", str(target)]
    exports = [subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=ROOT) for _ in range(2)]
    assert [export.wait() for export in exports] == [0, 0]
    names = to_onnx.model_names(run, tiny_clip)
    assert all(to_onnx.repository.is_published(target, name) for name in (names.image, names.text, names.head))
    assert [path.name for path in tmp_path.iterdir()] == ["triton_models"]


def test_an_altered_graph_is_exported_again(published: Path, run: Run, tiny_clip: FrozenClip) -> None:
    graph = next(published.glob("gated_head_*/1/model.onnx"))
    graph.write_bytes(graph.read_bytes() + b"\0")
    to_onnx.export_run(run, tiny_clip, published)
    assert to_onnx.repository.is_published(published, graph.parents[1].name)


@pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)
@pytest.mark.parametrize(
    "damage", ["scaled matrix", "swapped heads", "missing block", "wrong mean", "swapped channels"]
)
def test_a_wrong_graph_publishes_nothing(
    damage: str, run: Run, tiny_clip: FrozenClip, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder that is exported is damaged in a way that users would only notice as worse answers."""
    original = to_onnx.image_encoder

    def damaged(clip_model: object) -> torch.nn.Module:
        encoder = original(clip_model)
        first = encoder.blocks[0].attention
        if damage == "scaled matrix":
            first.value.weight = torch.nn.Parameter(first.value.weight * 1.01, requires_grad=False)
        elif damage == "swapped heads":
            order = torch.cat([torch.arange(64, 128), torch.arange(64)])
            first.value.weight = torch.nn.Parameter(first.value.weight[order], requires_grad=False)
        elif damage == "missing block":
            encoder.blocks = encoder.blocks[1:]
        else:
            shift = 1.0 if damage == "wrong mean" else 0.0
            order = [2, 1, 0] if damage == "swapped channels" else [0, 1, 2]
            patches = encoder.patches
            encoder.patches = torch.nn.Sequential(Channels(order, shift), patches)
        return encoder

    monkeypatch.setattr(to_onnx, "image_encoder", damaged)
    monkeypatch.setattr(to_onnx, "EXPORT_FORMAT", f"damaged {damage}")  # other names: nothing is taken as published
    before = snapshot(published)
    with pytest.raises(ParityError, match="the graphs do not give what PyTorch gives, so nothing was published"):
        to_onnx.export_run(run, tiny_clip, published)
    assert snapshot(published) == before
    assert [path.name for path in published.parent.iterdir()] == ["triton_models"]


class Channels(torch.nn.Module):
    """Reorders and shifts the channels of [B, 3, S, S]."""

    def __init__(self, order: list[int], shift: float) -> None:
        super().__init__()
        self.order, self.shift = order, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.order] + self.shift


@pytest.mark.parametrize(
    ("relative_error", "cosine_error", "disagreements", "passed"),
    [
        (1e-5, 1e-8, 0, True),
        (2e-4, 1e-8, 0, False),
        (1e-5, 2e-6, 0, False),
        (1e-5, 1e-8, 1, False),
        (float("nan"), 0.0, 0, False),
    ],
)
def test_each_measure_can_fail_alone(
    relative_error: float, cosine_error: float, disagreements: int, passed: bool
) -> None:
    assert Comparison("random", "answer", relative_error, cosine_error, disagreements).passed is passed


def test_scale_is_seen_where_cosine_is_blind() -> None:
    reference = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).numpy()
    comparison = compare("random", "image_features", reference * 1.01, reference)
    assert comparison.cosine_error < 1e-6
    assert comparison.relative_error == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)
def test_a_run_of_another_clip_is_refused(
    run: Run, tmp_path: Path, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_checkpoint(tmp_path / "other.pt", 3, seed=1)
    before = snapshot(published)
    arguments = ["--run", str(run.folder), "--clip", str(other), "--repository", str(published)]
    assert to_onnx.main(arguments) == 2
    error = capsys.readouterr().err
    assert f"was fitted on the CLIP {run.clip_digest[:12]}" in error
    assert f"but {other} is {load_clip(other).digest[:12]}: give the CLIP of the fit with --clip" in error
    assert snapshot(published) == before


def test_no_run_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert to_onnx.main(["--runs", str(tmp_path)]) == 2
    assert "make one with `python -m training.fit`" in capsys.readouterr().err


@pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)
def test_a_killed_export_leaves_the_previous_repository(run: Run, tiny_clip: FrozenClip, published: Path) -> None:
    before = snapshot(published)
    script = (
        "from export import to_onnx; to_onnx.EXPORT_FORMAT = 'killed'; "
        f"to_onnx.main(['--run', {str(run.folder)!r}, '--repository', {str(published)!r}])"
    )
    export = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL)
    while not any(published.parent.glob(".*/*/1/model.onnx")):  # in the middle of its work
        assert export.poll() is None
        time.sleep(0.05)
    os.kill(export.pid, signal.SIGKILL)
    export.wait()
    assert snapshot(published) == before
    to_onnx.export_run(run, tiny_clip, published)
    assert [path.name for path in published.parent.iterdir()] == ["triton_models"]


@pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)
def test_folds_and_their_calibration_are_one_graph(tiny_clip: FrozenClip, real_photos: Path, tmp_path: Path) -> None:
    train, val = read_split(real_photos, "train"), read_split(real_photos, "val")
    recipe = replace(RECIPES["best"], epochs=3, folds=3)
    run = read_run(fit(train, val, tiny_clip, recipe, tmp_path / "runs", tmp_path / "cache"))
    names = to_onnx.export_run(run, tiny_clip, tmp_path / "triton_models")  # parity is checked before it publishes
    graph = tmp_path / "triton_models" / names.head / "1" / "model.onnx"
    features = torch.randn(4, tiny_clip.width), torch.randn(4, tiny_clip.width)
    expected = run.load_predictor()(features[1], features[0])
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    got = session.run(None, {"image_features": features[0].numpy(), "text_features": features[1].numpy()})
    torch.testing.assert_close(torch.from_numpy(got[0]), expected.answer)
    torch.testing.assert_close(torch.from_numpy(got[2])[:, 0], expected.answerable)


@pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)
@pytest.mark.parametrize("damage", ["a fold twice", "another calibration"])
def test_a_wrong_average_publishes_nothing(
    damage: str, tiny_clip: FrozenClip, real_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = read_split(real_photos, "train"), read_split(real_photos, "val")
    run = read_run(fit(train, val, tiny_clip, Recipe(epochs=3, folds=2), tmp_path / "runs", tmp_path / "cache"))
    original = to_onnx.ServedHead

    def damaged(predictor: Predictor, digest: str) -> torch.nn.Module:
        heads = [predictor.heads[0]] * 2 if damage == "a fold twice" else list(predictor.heads)
        calibration = Calibration(1.0, 0.01) if damage == "another calibration" else predictor.calibration
        return original(Predictor(heads, calibration), digest)

    monkeypatch.setattr(to_onnx, "ServedHead", damaged)
    with pytest.raises(ParityError):
        to_onnx.export_run(run, tiny_clip, tmp_path / "triton_models")
    assert not list(tmp_path.glob("triton_models/*"))
