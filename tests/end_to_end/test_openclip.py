"""The demo CLIP as a checkpoint of open_clip: fit, export, serve and ask; cropped as it was trained, and squashed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demo import DEMO_CLIP
from export import to_onnx
from serving.server import EmbeddedTriton
from tests.conftest import LiveServer
from tests.open_clips import open_clip, register, write_weights
from training.backbone import PIXEL_MEAN, PIXEL_STD, load_clip
from training.dataset import read_split
from training.fit import fit
from training.recipe import Recipe
from training.run import read_run
from vizwiz_client import VizwizClient
from vizwiz_client.contract.image import load_photo

ASKED = 12


def write_demo_clip(folder: Path) -> str:
    """Write the demo CLIP as open_clip's architecture ``demo`` and as a safetensors file; returns its name."""
    model = load_clip(DEMO_CLIP).model
    visual, text = model.visual, model.transformer
    layers = [len(layer) for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4)]
    width = visual.layer1[0].conv1.in_channels
    architecture = {
        "embed_dim": model.text_projection.shape[1],
        "quick_gelu": True,
        "vision_cfg": {"image_size": visual.input_resolution, "layers": layers, "width": width, "patch_size": None},
        "text_cfg": {"width": text.width, "heads": text.width // 64, "layers": len(text.resblocks)},
    }
    register(folder, "demo", architecture)
    return f"open_clip:demo@{write_weights(model.state_dict(), folder / 'demo.safetensors')}"


@pytest.mark.parametrize(
    "squash", [pytest.param(False, id="cropped", marks=pytest.mark.slow), pytest.param(True, id="squashed")]
)
def test_a_checkpoint_of_open_clip_is_fitted_exported_and_served(
    squash: bool, live_server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_demo_clip(tmp_path)
    if squash:
        mode = {"mean": PIXEL_MEAN, "std": PIXEL_STD, "resize_mode": "squash", "quick_gelu": True}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "demo", {"squashed": mode})
        source = source.replace("@", "/squashed@", 1)
    model = load_clip(source)
    train, val = (read_split(live_server.data, name) for name in ("train", "val"))
    folder = fit(train, val, model, Recipe(epochs=5), tmp_path / "runs", tmp_path / "cache", baselines=False)
    run = read_run(folder)
    assert folder.name.endswith(f"Z-open_clip-demo{'-squashed' if squash else ''}@demo")
    assert to_onnx.main(["--run", str(folder), "--repository", str(tmp_path / "triton_models")]) == 0

    asked = [(path, record.question) for path, record in zip(val.photo_paths(), val.records, strict=True)][:ASKED]
    with EmbeddedTriton(tmp_path / "triton_models") as server, VizwizClient(server.grpc_url) as client:
        answers = client.ask_batch(asked, top=1)
    preprocess = model.reference_preprocess()
    with torch.inference_mode():
        images = model.model.encode_image(torch.stack([preprocess(load_photo(path)) for path, _ in asked]))
        texts = model.model.encode_text(model.reference_tokenize([question for _, question in asked]))
        best = run.load_ensemble()([(texts, images)]).answer.max(dim=1)
    assert [answer.answer for answer in answers] == [run.answers[index] for index in best.indices.tolist()]
    assert [answer.confidence for answer in answers] == pytest.approx(best.values.tolist(), abs=1e-4)
    if not squash:  # the same weights and pixels as the demo CLIP's, so the same head
        with VizwizClient(live_server.grpc_url) as client:
            of_demo = client.ask_batch(asked, top=1)
        assert [answer.answer for answer in answers] == [answer.answer for answer in of_demo]
        assert [answer.confidence for answer in answers] == pytest.approx([a.confidence for a in of_demo], abs=2e-2)
