"""What is in a repository, whether it is what a run would publish, and what may go."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch

from export import publish, repository, to_onnx
from export.inventory import check_repository, list_models, prune
from export.publish import ExportError, export_run, model_names
from export.triton_config import ModelNames
from serving.repository import RepositoryError
from tests.conftest import ROOT
from tests.export.conftest import snapshot
from training.backbone import FrozenClip
from training.run import Run

pytestmark = pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, time of change and size of every file below ``folder``."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def test_a_new_fit_exports_the_head_alone(run: Run, other_run: Run, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither CLIP nor its graphs are needed: the CLIP that is named does not exist."""
    monkeypatch.setattr(publish, "write_image_encoder", pytest.fail)
    old, new = model_names(run), model_names(other_run)
    before = [state(own / name) for name in old.all]
    assert export_run(other_run, "no/such/clip.pt", own) == new
    assert [state(own / name) for name in old.all] == before
    assert new.encoders == old.encoders
    assert new.head != old.head
    labels = (own / new.head / "answer.txt").read_text(encoding="utf-8").splitlines()
    assert labels == other_run.answers != run.answers
    assert check_repository(own, other_run) == []


def test_encoders_are_compared_again_when_asked(run: Run, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = publish.check_parity
    monkeypatch.setattr(publish, "check_parity", lambda *values: asked.append(values) or original(*values))
    export_run(run, run.clips[0]["source"], own)
    assert not asked
    export_run(run, run.clips[0]["source"], own, recheck=True)
    assert len(asked) == 1
    assert check_repository(own, run) == []


def test_the_list_names_each_model_and_its_use(run: Run, other_run: Run, own: Path) -> None:
    old, new = model_names(run), export_run(other_run, other_run.clips[0]["source"], own)
    (own / "mine").mkdir()
    entries = {entry.name: entry for entry in list_models(own)}
    assert next(iter(entries)) == "vizwiz_vqa"
    assert entries["vizwiz_vqa"].steps == new.all
    assert [entries[name].kind for name in (new.images[0], new.texts[0], new.head, "mine")] == [
        "image encoder",
        "text encoder",
        "head",
        "other",
    ]
    assert entries[new.head].referenced
    assert entries[new.images[0]].referenced
    assert not entries[old.head].referenced
    assert entries[old.head].made_from["run"] == run.folder.name
    assert entries[new.images[0]].made_from["clip_sha256"] == run.clips[0]["sha256"]
    assert entries[new.images[0]].bytes == sum(size for *_, size in state(own / new.images[0]).values())


def damaged_graph(own: Path, names: ModelNames) -> str:
    (own / names.texts[0] / "1" / "model.onnx").write_bytes(b"x")
    return f"{own / names.texts[0] / '1' / 'model.onnx'} is damaged or replaced: its SHA-256 differs"


def missing_labels(own: Path, names: ModelNames) -> str:
    (own / names.head / "answer.txt").unlink()
    return f"{own / names.head / 'answer.txt'} is missing"


def missing_encoder(own: Path, names: ModelNames) -> str:
    shutil.rmtree(own / names.images[0])
    return f"{own / names.images[0] / 'config.pbtxt'} is missing"


def altered_photo(own: Path, names: ModelNames) -> str:
    (own / names.head / "golden.jpg").write_bytes(b"x")
    return f"{own / names.head / 'golden.jpg'} is damaged or replaced"


def other_contract(own: Path, names: ModelNames) -> str:
    config = own / "vizwiz_vqa" / "config.pbtxt"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace('string_value: "1"', 'string_value: "0"'), encoding="utf-8")
    return "vizwiz_vqa has contract version 0, this version's clients speak 1"


def edited_ensemble(own: Path, names: ModelNames) -> str:
    config = own / "vizwiz_vqa" / "config.pbtxt"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("max_batch_size: 64", "max_batch_size: 8"), encoding="utf-8")
    return f"{config} is not what export writes for"


def altered_warmup(own: Path, names: ModelNames) -> str:
    path = own / names.images[0] / "warmup" / "golden.image"
    path.unlink()
    return f"{path} is missing"


def undecodable_digests(own: Path, names: ModelNames) -> str:
    path = own / names.head / "SHA256SUMS"
    path.write_bytes(b"\xff\n")
    return f"{path} cannot be read ('utf-8' codec can't decode byte 0xff"


def no_ensemble(own: Path, names: ModelNames) -> str:
    shutil.rmtree(own / "vizwiz_vqa")
    return f"{own / 'vizwiz_vqa' / 'config.pbtxt'} is missing: nothing can be served"


def no_version_of_an_ensemble(own: Path, names: ModelNames) -> str:
    shutil.rmtree(own / "vizwiz_vqa" / "1")
    return f"{own / 'vizwiz_vqa' / '1'} is missing: Triton loads no ensemble without a version folder"


@pytest.mark.parametrize(
    "damage",
    [
        no_version_of_an_ensemble,
        damaged_graph,
        missing_labels,
        missing_encoder,
        altered_photo,
        other_contract,
        edited_ensemble,
        altered_warmup,
        undecodable_digests,
        no_ensemble,
    ],
)
def test_each_problem_is_reported_with_its_remedy(
    damage: Callable[[Path, ModelNames], str],
    run: Run,
    tiny_clip: FrozenClip,
    own: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["--check", "--repository", str(own), "--run", str(run.folder), "--json"]
    assert to_onnx.main(command) == 0
    assert json.loads(capsys.readouterr().out) == {"run": str(run.folder), "ok": True, "problems": []}
    expected = damage(own, model_names(run))
    assert to_onnx.main(command) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert problems[0].startswith(expected)
    assert all("`python -m export.to_onnx`" in problem or f"--run {run.folder}" in problem for problem in problems)
    export_run(run, tiny_clip, own)  # the remedy
    assert check_repository(own, run) == []


def test_another_run_is_reported(run: Run, other_run: Run, own: Path) -> None:
    (problem,) = check_repository(own, other_run)
    assert problem.startswith(f"vizwiz_vqa serves the run {run.folder.name}, not {other_run.folder.name}: publish that")


@pytest.mark.parametrize("runs", ["none", "."], ids=["no folder", "an empty one"])
def test_a_repository_is_checked_where_there_is_no_run(
    runs: str, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--check", "--repository", str(own), "--runs", str(tmp_path / runs)]
    assert to_onnx.main(command) == 0
    assert capsys.readouterr().out == f"{own}: alone, no run found\n  ok\n"


def test_prune_removes_unreferenced_models_and_nothing_else(
    run: Run, other_run: Run, own: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.mktemp("compiled")  # by the embedded server
    monkeypatch.setenv("VIZWIZ_SERVING_CACHE", str(cache))
    old, new = model_names(run), export_run(other_run, other_run.clips[0]["source"], own)
    compiled = {name: cache / f"{name}-0.openvino" for name in (old.head, new.head)}
    for path in compiled.values():
        path.touch()
    for name in ("mine", "gated_head_mine", "clip_image_0123456789abc"):
        (own / name / "1").mkdir(parents=True)
    (own / "clip_text_00000000000a").mkdir()
    outside = own.parent / "outside"
    outside.mkdir()
    (own / "gated_head_00000000000b").symlink_to(outside)
    (own / "README.md").write_text("kept")
    assert sorted(entry.name for entry in prune(own)) == sorted([old.head, "clip_text_00000000000a"])
    assert [path.exists() for path in compiled.values()] == [False, True]
    not_ours = ["README.md", "clip_image_0123456789abc", "gated_head_00000000000b", "gated_head_mine", "mine"]
    expected = sorted([*not_ours, "vizwiz_vqa", *new.all])
    assert sorted(path.name for path in own.iterdir()) == expected
    assert check_repository(own, other_run) == []
    assert sorted(path.name for path in own.parent.iterdir()) == ["outside", "triton_models"]
    assert prune(own) == []


def test_prune_without_an_ensemble_removes_nothing(run: Run, own: Path) -> None:
    shutil.rmtree(own / "vizwiz_vqa")
    before = snapshot(own)
    with pytest.raises(RepositoryError, match="has no ensemble, so every model would be removed"):
        prune(own)
    assert snapshot(own) == before


def test_prune_waits_for_an_export_to_end(run: Run, own: Path) -> None:
    script = "import sys; from export import to_onnx; sys.exit(to_onnx.main(sys.argv[1:]))"
    with repository.lock(own):
        (own / "gated_head_00000000000c").mkdir()  # published, and not committed yet
        waiting = subprocess.Popen(
            [sys.executable, "-c", script, "--prune", "--repository", str(own)], cwd=ROOT, stderr=subprocess.PIPE
        )
        assert waiting.stderr is not None
        assert b"waiting for another export" in waiting.stderr.readline()
        time.sleep(0.1)
        assert (own / "gated_head_00000000000c").is_dir()
    with waiting.stderr:
        assert waiting.wait() == 0
    assert not (own / "gated_head_00000000000c").exists()


@pytest.mark.parametrize("version", [0, None])
def test_a_run_of_another_contract_is_refused(version: int | None, run: Run, tmp_path: Path) -> None:
    old = replace(run, config=run.config | {"contract_version": version})
    expected = f"was fitted under contract version {version}, this version exports 1: clients would send"
    with pytest.raises(ExportError, match=expected):
        export_run(old, run.clips[0]["source"], tmp_path / "triton_models")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dtype", "device"), [(torch.float16, "cpu"), (torch.float32, "meta")])
def test_a_clip_on_a_gpu_is_refused(
    dtype: torch.dtype, device: str, run: Run, tiny_clip: FrozenClip, tmp_path: Path
) -> None:
    """``load_clip(..., device="cuda")`` gives fp16 weights on the GPU; "meta" is another device on any machine."""
    elsewhere = replace(tiny_clip, model=copy.deepcopy(tiny_clip.model).to(device, dtype))
    with pytest.raises(ExportError, match=f"is on {device} in {dtype}, export needs it on the CPU in torch.float32"):
        export_run(run, elsewhere, tmp_path / "triton_models")


def test_a_target_that_cannot_be_written_is_found_before_any_work(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "load_clip", pytest.fail)
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/triton_models")):
        assert to_onnx.main(["--run", str(run.folder), "--repository", str(target)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {target} cannot be written (")
        assert error.endswith("change its permissions, or choose another folder with --repository\n")
        assert error.count("\n") == 1


def test_a_full_disk_is_found_before_any_work(
    run: Run, tiny_clip: FrozenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "write_head", pytest.fail)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(RepositoryError, match=r"has 0\.00 GiB free, the export needs about 0\.0\d: free some"):
        export_run(run, tiny_clip, tmp_path / "triton_models")
    assert list((tmp_path / "triton_models").iterdir()) == []


def test_a_repository_of_an_older_export_format_is_exported_anew(
    run: Run, tiny_clip: FrozenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "triton_models"
    with monkeypatch.context() as older:
        older.setattr(publish, "EXPORT_FORMAT", "13")
        before = export_run(run, tiny_clip, repository)
    (problem,) = check_repository(repository, run)
    assert problem.startswith(f"vizwiz_vqa serves {run.folder.name} in export format 13, this version writes")
    after = export_run(run, tiny_clip, repository)
    assert not {*astuple(before)} & {*astuple(after)}
    assert check_repository(repository, run) == []
