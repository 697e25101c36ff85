"""``EXPORT_FORMAT`` is raised whenever the same weights become another graph.

Published models are named by that number: without a new one, a repository would keep the graphs that it has.

    python -m tests.export.test_export_format       # after raising it: write the digests that the test compares with
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from export import clip_graph
from export.head_graph import write_head
from export.publish import EXPORT_FORMAT
from export.targets import GRAPH_KINDS
from tests.conftest import write_checkpoint
from training.backbone import FrozenClip, load_clip
from training.model import ClipEnsemble, GatedHead, Predictor, QualityHead
from training.recipe import FEATURES, HIDDEN

DIGESTS = Path(__file__).with_name("graph_digests.json")
REMEDY = (
    "raise EXPORT_FORMAT in export/publish.py, so that published repositories are exported again, and then run "
    "`python -m tests.export.test_export_format`"
)
FAMILIES = {"vit": 3, "resnet": (1, 1, 1, 1)}
FEW = 16  # numbers that are digested one by one; of more, a sum


def test_a_changed_graph_has_another_export_format(tmp_path: Path) -> None:
    changed = changes(tmp_path)
    assert changed == [], f"these graphs are not those of export format {recorded()['export_format']}: {REMEDY}"
    assert recorded()["export_format"] == EXPORT_FORMAT, f"{DIGESTS.name} is older than EXPORT_FORMAT: {REMEDY}"


@pytest.mark.parametrize("change", ["an attribute", "a constant", "an operator", "a transposed weight"])
def test_the_digest_sees_what_a_graph_computes(change: str, tmp_path: Path) -> None:
    clip_graph.write_text_encoder(small_clip(tmp_path, "vit"), next(iter(GRAPH_KINDS)), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    before = digest(model)
    graph = model.graph
    if change == "an attribute":
        next(node for node in graph.node if node.op_type == "Softmax").attribute[0].i = 1
    elif change == "a constant":
        constant = next(each for each in graph.initializer if each.name.startswith("constant"))
        constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) + 1, constant.name))
    elif change == "an operator":
        next(node for node in graph.node if node.op_type == "Min").op_type = "Max"
    else:
        weight = next(each for each in graph.initializer if [*each.dims] == [64, 64])
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).T.copy(), weight.name))
    assert digest(model) != before


def changes(folder: Path) -> list[str]:
    """The graphs that are not those of which digests are recorded, or of which there are none."""
    before, now = recorded()["graphs"], digests(folder)
    return [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]


def recorded() -> dict[str, Any]:
    return dict(json.loads(DIGESTS.read_text(encoding="utf-8")))


def digests(folder: Path) -> dict[str, str]:
    """The digest of every graph that is written for small CLIPs of either family, and for heads, by its name."""
    found, path = {}, folder / "model.onnx"
    examples = np.linspace(0, 255, 64 * 64 * 3).astype(np.uint8).reshape(1, 64, 64, 3)  # drawn photos depend on Pillow
    for family in FAMILIES:
        model = small_clip(folder, family)
        for kind in GRAPH_KINDS:
            with patch.object(clip_graph, "calibration_photos", lambda model: [examples, 255 - examples]):
                clip_graph.write_image_encoder(model, kind, path)
            # what examples decide is rounded otherwise on another CPU
            found[f"{family} image {kind.name}"] = digest(onnx.load(path), sums=kind.precision != "int8")
            clip_graph.write_text_encoder(model, kind, path)
            found[f"{family} text {kind.name}"] = digest(onnx.load(path))
    for folds, source in ((1, HIDDEN), (1, FEATURES), (3, HIDDEN)):
        heads = [GatedHead(8, 5, 3, hidden=16, answerable_from=source) for _ in range(folds)]
        fill(torch.nn.ModuleList(heads))
        write_head(ClipEnsemble([Predictor(heads)]), "0123456789ab", path)
        found[f"head {folds} {source}"] = digest(onnx.load(path))
        quality = [QualityHead(8, 7) for _ in range(folds)]
        fill(torch.nn.ModuleList(quality))
        write_head(ClipEnsemble([Predictor(heads, quality)]), "0123456789ab", path)
        found[f"head {folds} {source} with quality"] = digest(onnx.load(path))
    return found


def small_clip(folder: Path, family: str) -> FrozenClip:
    model = load_clip(write_checkpoint(folder / f"{family}.pt", FAMILIES[family]))  # type: ignore[arg-type]
    fill(model.model)
    return model


@torch.no_grad()
def fill(module: torch.nn.Module) -> None:
    """Give every weight of ``module`` numbers that no generator draws: generators may change with a package."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for place, (name, tensor) in enumerate(tensors):
        if tensor.is_floating_point():
            numbers = (np.arange(1, tensor.numel() + 1) * 0.6180339887 + place * 0.377) % 1  # of the golden ratio
            low = 0.5 if name.endswith("running_var") else -0.5
            tensor.copy_(torch.from_numpy(numbers + low).reshape(tensor.shape))


def digest(model: onnx.ModelProto, *, sums: bool = True) -> str:
    """A digest of what ``model`` computes: not of its bytes, which depend on packages."""
    graph = model.graph
    lines = [f"{opset.domain} {opset.version}" for opset in model.opset_import]
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        lines.append(f"{value.name} {kind.elem_type} {[dim.dim_param or dim.dim_value for dim in kind.shape.dim]}")
    for node in graph.node:
        attributes = sorted((each.name, str(helper.get_attribute_value(each))) for each in node.attribute)
        lines.append(f"{node.domain} {node.op_type} {[*node.input]} {[*node.output]} {attributes}")
    for constant in graph.initializer:
        lines.append(f"{constant.name} {constant.data_type} {[*constant.dims]}")
        numbers = numpy_helper.to_array(constant).astype(np.float64).ravel()
        if numbers.size <= FEW and sums:
            lines.append(" ".join(f"{number:.5g}" for number in numbers))
        elif sums:  # few digits: the last ones are rounded otherwise on another CPU
            lines.append(f"{numbers @ (np.arange(numbers.size) ** 2 % 101 - 50):.3g}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def main() -> int:
    """Record the digests of today's graphs, unless the export format was forgotten."""
    with tempfile.TemporaryDirectory() as folder:
        known = {*recorded()["graphs"]} if DIGESTS.exists() and recorded()["export_format"] == EXPORT_FORMAT else {*()}
        if known & {*changes(Path(folder))}:  # a graph that is new has had no other digest
            print(f"the graphs changed, and EXPORT_FORMAT is still {EXPORT_FORMAT}: {REMEDY}", file=sys.stderr)
            return 1
        text = json.dumps({"export_format": EXPORT_FORMAT, "graphs": digests(Path(folder))}, indent=2)
    DIGESTS.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
