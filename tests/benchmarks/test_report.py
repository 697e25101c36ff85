"""The runner: what it writes into docs/results.md, and when it does not; the peers' weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import architectures, encoders, machine, report, start
from benchmarks.__main__ import PARTS
from benchmarks.machine import cpu_rates
from benchmarks.report import RESULTS, Table, kinds_here, replace_section
from tests.conftest import ROOT
from training.backbone import load_clip

DOCUMENT = "by hand\n\n<!-- bench:start -->\nold\n<!-- /bench:start -->\n\nby hand too\n"


def test_a_section_alone_is_replaced() -> None:
    assert replace_section(DOCUMENT, "start", r"new \1") == DOCUMENT.replace("old", r"new \1")


def test_hosts_with_amx_have_their_own_section() -> None:
    once = replace_section(DOCUMENT, "start-amx", "first")
    assert "old" in once
    assert replace_section(once, "start-amx", "second") == once.replace("first", "second")
    assert once.index("old") < once.index("first") < once.index("by hand too")


@pytest.mark.parametrize("document", ["", DOCUMENT * 2])
def test_a_section_that_is_missing_or_double_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="<!-- bench:start -->"):
        replace_section(document, "start", "new")


def test_the_document_and_the_makefile_have_every_part() -> None:
    document, makefile = RESULTS.read_text(encoding="utf-8"), (ROOT / "Makefile").read_text(encoding="utf-8")
    for part in PARTS:
        replace_section(document, part, "")
    assert "bench-%:" in makefile


@pytest.mark.parametrize(
    ("load", "options", "written"),
    [(0.1, [], True), (3.0, [], False), (3.0, ["--busy"], True), (0.1, ["--no-write"], False)],
)
def test_a_busy_machine_is_measured_and_not_written(
    load: float,
    options: list[str],
    written: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results.md"
    results.write_text(DOCUMENT)
    monkeypatch.setattr(bench.os, "getloadavg", lambda: (load, 0, 0))
    monkeypatch.setattr(bench, "write_section", lambda name, text: report.write_section(name, text, results))
    monkeypatch.setattr(bench, "section_name", lambda part: part)
    monkeypatch.setattr(start, "run", lambda settings: [Table(("a", "b"), [("1", "2")])])
    monkeypatch.setattr("sys.argv", ["benchmarks", "start", f"--cache={tmp_path}", *options])
    assert bench.main() == 0
    table = "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert table in capsys.readouterr().out
    assert (table in results.read_text()) is written
    assert (f"load average {load:.2f} at the start" in results.read_text()) is written


def test_the_peers_have_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setitem(architectures.ARCHITECTURES, "tiny", (24, 64, 2, 128, 16, 64, 1, 2))
    checkpoint = architectures.write_full_size("tiny", tmp_path / "clip.pt")
    architectures.write_hugging_face("tiny", checkpoint, tmp_path / "theirs")
    ours, theirs = load_clip(checkpoint).model, transformers.CLIPModel.from_pretrained(tmp_path / "theirs").eval()
    photo = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32))
    with torch.inference_mode():
        expected, found = ours.encode_image(photo), theirs.get_image_features(photo)
    features = getattr(found, "pooler_output", found)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_the_rate_of_each_type_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROUNDS", 1)
    monkeypatch.setattr(machine, "PRODUCTS", 2)  # there and back
    rates = cpu_rates()
    assert list(rates) == [kind.precision for kind in kinds_here()]
    assert all(rate > 0 for rate in rates.values())


def test_operations_are_those_of_products_and_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a graph, one position of the last block: PyTorch's own counter leaves attention on a CPU out."""
    monkeypatch.setitem(architectures.ARCHITECTURES, "tiny", (24, 64, 2, 128, 16, 64, 1, 2))
    model = architectures.random_model("tiny").eval()
    positions, width, patches = 17, 128, 16
    block = 2 * positions * width**2 * 12 + 4 * positions**2 * width
    last = 2 * positions * width**2 * 2 + 2 * width**2 * 10 + 4 * positions * width
    others = 2 * patches * (3 * 16**2) * width + 2 * width * 24
    with torch.inference_mode():
        counted = encoders.count(lambda: model.encode_image(torch.zeros(1, 3, 64, 64)))
    assert 1e9 * counted == pytest.approx(2 * block + others)
    assert 1e9 * (counted - encoders.skipped(model, text=False)) == pytest.approx(block + last + others)
    resnet = architectures.random_model("RN50")
    assert encoders.skipped(resnet, text=False) == 0 < encoders.skipped(resnet, text=True)
