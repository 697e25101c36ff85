"""The graphs of open_clip's CLIPs in every variant and precision, against open_clip's own modules and preprocess."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from torch import nn

from export.clip_graph import write_image_encoder, write_text_encoder
from export.comparison import TOLERANCES
from export.graph_builder import MICROSOFT
from export.parity import check_parity
from export.parity_inputs import Inputs, draw_golden_photo, drawn_inputs, random_inputs
from export.targets import GRAPH_KINDS, GraphKind
from tests.export import faults
from tests.open_clips import RESNET, VIT, config, open_clip, random_weights, register, write_weights
from training.backbone import FrozenClip, load_clip

FP32 = GraphKind("portable", "fp32")


@pytest.fixture(scope="module", params=[VIT, RESNET], ids=["vit", "resnet"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FrozenClip:
    """A small random CLIP of either family, with heads of 80 and of 48, GELU, another mean, and squashed photos."""
    place, patch = tmp_path_factory.mktemp("open clip"), pytest.MonkeyPatch()
    name = register(place, f"graph-{request.param['patch_size']}", config(request.param))
    file = write_weights(random_weights(config(request.param)), place / "weights.safetensors")
    squashed = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7), "resize_mode": "squash"}
    with patch.context() as context:
        context.setitem(open_clip.pretrained._PRETRAINED, name, {"squashed": squashed})
        return load_clip(f"open_clip:{name}/squashed@{file}")


@pytest.fixture(scope="module")
def inputs(model: FrozenClip) -> list[Inputs]:
    return [random_inputs(model), drawn_inputs(model, draw_golden_photo())]


def refused(model: FrozenClip, exported: FrozenClip, kind: GraphKind, inputs: list[Inputs], folder: Path) -> list[str]:
    """The tensors of the graphs of ``exported`` that differ from those of ``model``."""
    write_image_encoder(exported, kind, image := folder / "image.onnx")
    write_text_encoder(exported, kind, text := folder / "text.onnx")
    tolerance = TOLERANCES[kind.precision]
    comparisons = check_parity(image, text, kind, model, inputs).comparisons
    return [row.describe(tolerance) for row in comparisons if not row.passes(tolerance)]


@pytest.mark.parametrize("kind", GRAPH_KINDS, ids=lambda kind: kind.name)
def test_the_graphs_give_what_open_clip_gives(
    kind: GraphKind, model: FrozenClip, inputs: list[Inputs], tmp_path: Path
) -> None:
    assert refused(model, model, kind, inputs, tmp_path) == []
    blocks = {"image": getattr(model.model.visual, "transformer", None), "text": model.model.transformer}
    for name, source in blocks.items():
        nodes = onnx.load(tmp_path / f"{name}.onnx").graph.node
        operators = Counter((node.domain, node.op_type) for node in nodes)
        assert operators["", "Gelu"] == (len(source.resblocks) if source else 0)
        assert operators[MICROSOFT, "QuickGelu"] + operators["", "Sigmoid"] == 0


def quick_gelu(model: Any) -> None:
    for block in model.transformer.resblocks:
        block.mlp.gelu = open_clip.model.QuickGELU()


def another_head_width(model: Any) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.MultiheadAttention):
            layer.num_heads = 1


@pytest.mark.parametrize("fault", [quick_gelu, another_head_width])
def test_another_activation_or_head_width_is_refused(
    fault: Any, model: FrozenClip, inputs: list[Inputs], tmp_path: Path
) -> None:
    exported = replace(model, model=faults.with_fault(model.model, fault))
    assert refused(model, exported, FP32, inputs, tmp_path)


@pytest.mark.parametrize("change", [{"mean": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.5)}, {"squash": False}], ids=str)
def test_another_preprocessing_is_refused(
    change: dict[str, Any], model: FrozenClip, inputs: list[Inputs], tmp_path: Path
) -> None:
    """The graph of another mean, or the pixels of a client that crops, against open_clip's preprocess."""
    other = replace(model, **change)
    drawn = replace(inputs[1], pixels=drawn_inputs(other, draw_golden_photo()).pixels)
    assert refused(model, other, FP32, [drawn], tmp_path)
