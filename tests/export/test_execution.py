"""What computed a comparison is recorded, and counts for that runtime, processor and precision alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export import publication, runtimes
from export.encoders import write_text_encoder
from export.publication import export_run
from export.runtimes import Execution, execution, open_graph
from export.targets import TARGETS, Target, processor
from training.backbone import ClipError, FrozenClip
from training.run import Run

vit = pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)
BF16, INT8 = Target("portable", "bf16"), Target("portable", "int8")


@pytest.fixture
def no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU on which OpenVINO cannot even imitate bf16."""
    monkeypatch.setattr(runtimes, "_multiplies", lambda precision: False)


def read_report(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "parity.json").read_text(encoding="utf-8")))


@vit
def test_the_report_names_what_computed(published: Path, run: Run) -> None:
    report = read_report(published / publication.model_names(run).head)
    expected = {
        "runtime": f"ONNX Runtime {onnxruntime.__version__}",
        "provider": "CPUExecutionProvider",
        "device": processor(),
        "precision": "fp32",
        "asked": "fp32 by CPUExecutionProvider",
    }
    assert report["encoders"] == report["head"] == expected
    assert (report["passed"], report["computed_as_asked"]) == (True, True)


@vit
@pytest.mark.usefixtures("no_bf16")
@pytest.mark.parametrize(("target", "precision"), [(BF16, "fp32"), (INT8, "int8 and fp32")], ids=["bf16", "int8"])
def test_a_precision_that_never_ran_does_not_pass(
    target: Target, precision: str, run: Run, tiny_clip: FrozenClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    names = export_run(run, tiny_clip, tmp_path / "triton_models", target)
    report = read_report(tmp_path / "triton_models" / names.head)
    assert (report["passed"], report["computed_as_asked"]) == (None, False)
    assert (report["encoders"]["precision"], report["encoders"]["asked"]) == (
        precision,
        f"{target.precision} by openvino",
    )
    assert f"NOT PROVED for {target.name}: it asks for {target.precision} by openvino" in capsys.readouterr().out


@vit
def test_bf16_is_computed_where_the_report_says_so(tiny_clip: FrozenClip, tmp_path: Path) -> None:
    """Asked for what it cannot do, OpenVINO computes in fp32 without a word."""
    pytest.importorskip("openvino")
    write_text_encoder(tiny_clip, BF16, tmp_path / "model.onnx")
    ids = np.zeros((1, 77), np.int32)
    ids[0, :3] = 49406, 320, 49407
    exact = open_graph(tmp_path / "model.onnx", Target("portable", "fp32"))({"tokens": ids})[0]
    got = open_graph(tmp_path / "model.onnx", BF16, emulate=True)({"tokens": ids})[0]
    rounded = np.abs(got - exact).max() > 1e-4 * np.abs(exact).max()
    assert rounded == (execution(BF16).precision == "bf16")


def test_a_gpus_target_on_a_cpu_is_not_computed_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    as_asked = {target.name for target in TARGETS if target.device != "cpu" and execution(target).as_asked}
    assert as_asked == set()
    assert execution(Target("fused", "fp16")).precision == "fp32"


@vit
@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(onnxruntime, "__version__", "0.1"),
        lambda patch: patch.setattr(runtimes, "processor", lambda: "another"),
    ],
    ids=["runtime", "processor"],
)
def test_a_later_head_is_not_proved_by_features_that_another_machine_measured(
    change: Callable[[pytest.MonkeyPatch], None],
    run: Run,
    other_run: Run,
    tiny_clip: FrozenClip,
    published: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = Path(shutil.copytree(published, tmp_path / "triton_models"))
    change(monkeypatch)
    before = {path.name for path in own.iterdir()}
    with pytest.raises(ClipError):
        export_run(other_run, "no/such/clip.pt", own)
    assert {path.name for path in own.iterdir()} == before
    capsys.readouterr()
    names = export_run(other_run, tiny_clip, own)
    image = publication.model_names(run).image
    there = Execution(**read_report(own / image)["encoders"])
    here = execution(publication.DEFAULT_TARGET)
    assert (
        f"{image} was compared in {there}, this machine computes {here}: comparing it again" in capsys.readouterr().out
    )
    assert read_report(own / names.head)["encoders"] == vars(here) != vars(there)
