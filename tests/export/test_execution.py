"""The record of the runtime that computed a comparison, and what it decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export import publish, targets
from export.clip_graph import write_text_encoder
from export.inventory import describe, list_models
from export.publish import DEFAULT_KIND, export_run
from export.targets import Execution, GraphKind, cpu_name, execution, open_graph
from training.backbone import ClipError, FrozenClip
from training.run import Run

vit = pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)
BF16, INT8 = GraphKind("portable", "bf16"), GraphKind("portable", "int8")


def read_report(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "parity.json").read_text(encoding="utf-8")))


@vit
@pytest.mark.parametrize(
    ("kind", "flags", "precision"),
    [(BF16, {"avx2"}, "fp32"), (INT8, {"avx512_vnni"}, "int8 and fp32"), (INT8, {"avx512f"}, "fp32")],
    ids=["bf16", "int8 without bf16", "int8 without VNNI"],
)
def test_a_precision_that_this_machine_lacks_does_not_pass(
    kind: GraphKind,
    flags: set[str],
    precision: str,
    run: Run,
    tiny_clip: FrozenClip,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(targets, "_openvino_multiplies", lambda precision: False)
    with monkeypatch.context() as patch:
        patch.setattr(targets, "_cpuinfo", lambda key: " ".join(flags))
        assert execution(kind).precision == precision
    if kind == INT8 and not targets.this_machine().int8:
        precision = "fp32"  # the gate itself computes: this machine has the last word
    names = export_run(run, tiny_clip, tmp_path / "triton_models", kind)
    report = read_report(tmp_path / "triton_models" / names.head)
    assert (report["passed"], report["computed_as_requested"]) == (None, False)
    assert report["encoders"]["precision"] == precision
    assert f"not verified for {kind.name}: it requests {kind.precision} by openvino" in capsys.readouterr().out
    (head,) = [entry for entry in list_models(tmp_path / "triton_models") if entry.kind == "head"]
    assert head.parity_verified is False
    assert f"parity not verified for {kind.name}" in describe([head])


@vit
def test_bf16_is_computed_where_the_report_claims_it(tiny_clip: FrozenClip, tmp_path: Path) -> None:
    """Where OpenVINO cannot compute in bf16, it silently computes in fp32."""
    pytest.importorskip("openvino")
    write_text_encoder(tiny_clip, BF16, tmp_path / "model.onnx")
    ids = np.zeros((1, 77), np.int32)
    ids[0, :3] = 49406, 320, 49407
    exact = open_graph(tmp_path / "model.onnx", DEFAULT_KIND)({"tokens": ids})[0]
    got = open_graph(tmp_path / "model.onnx", BF16, emulate=True)({"tokens": ids})[0]
    rounded = np.abs(got - exact).max() > 1e-4 * np.abs(exact).max()
    assert rounded == (execution(BF16).precision == "bf16")


@vit
@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(onnxruntime, "__version__", "0.1"),
        lambda patch: patch.setattr(targets, "cpu_name", lambda: "another"),
    ],
    ids=["runtime", "processor"],
)
def test_saved_features_of_another_machine_do_not_count(
    change: Callable[[pytest.MonkeyPatch], None],
    run: Run,
    other_run: Run,
    tiny_clip: FrozenClip,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then a new head needs CLIP again."""
    there = Execution(**read_report(own / publish.model_names(run).images[0])["encoders"])
    assert there.device == cpu_name()
    change(monkeypatch)
    before = {path.name for path in own.iterdir()}
    with pytest.raises(ClipError):
        export_run(other_run, "no/such/clip.pt", own)
    assert {path.name for path in own.iterdir()} == before
    names = export_run(other_run, tiny_clip, own)
    assert read_report(own / names.head)["encoders"] == vars(execution(DEFAULT_KIND)) != vars(there)
