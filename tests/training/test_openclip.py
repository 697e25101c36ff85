"""CLIPs of open_clip: what they are loaded from, their digests, and that their features are open_clip's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.open_clips import RESNET, VIT, config, open_clip, random_weights, register, write_weights
from tests.training.test_backbone import Trap
from training.backbone import PIXEL_MEAN, PIXEL_STD, ClipError, load_clip
from training.openclip import to_half
from vizwiz_client.contract import tokenizer
from vizwiz_client.contract.errors import QuestionError
from vizwiz_client.contract.image import to_pixels

SQUASHED = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "bicubic", "resize_mode": "squash"}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return random_weights(config())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, torch.Tensor]) -> str:
    """The name of a small checkpoint of the architecture ``tiny``."""
    folder = tmp_path_factory.mktemp("open clip")
    register(folder, "tiny", config(custom_text=False))
    register(folder, "tiny-quickgelu", config(quick_gelu=True))
    return f"open_clip:tiny@{write_weights(weights, folder / 'tiny.safetensors')}"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_formats_of_checkpoints(
    dtype: torch.dtype, suffix: str, tiny: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    write_weights(weights, path := tmp_path / f"weights{suffix}", dtype)
    loaded = load_clip(f"open_clip:tiny@{path}")
    assert loaded.precision == "float32"
    for name, each in loaded.model.state_dict().items():
        assert torch.equal(each, weights[name].to(dtype).float())
    assert (loaded.digest == load_clip(tiny).digest) == (dtype == torch.float32)


def test_a_training_checkpoint_is_loaded_weights_only(
    weights: dict[str, torch.Tensor], tiny: str, tmp_path: Path
) -> None:
    state = {f"module.{name}": each for name, each in weights.items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch_3.pt")
    assert load_clip(f"open_clip:tiny@{tmp_path / 'epoch_3.pt'}").digest == load_clip(tiny).digest


def test_code_in_a_pickled_checkpoint_is_not_executed(
    weights: dict[str, torch.Tensor], tiny: str, tmp_path: Path
) -> None:
    state = {"trap": Trap(sprung := tmp_path / "sprung"), **weights}
    torch.save(state, path := tmp_path / "weights.pt")
    with pytest.raises(ClipError, match=r"weights\.pt is not a checkpoint of tiny \(neither a TorchScript archive"):
        load_clip(f"open_clip:tiny@{path}")
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists()  # it would have been


@pytest.mark.parametrize("content", [5, "text", [1], {}, {"a": 1}, None], ids=repr)
def test_a_file_with_something_else_is_not_a_checkpoint(content: Any, tiny: str, tmp_path: Path) -> None:
    torch.save(content, path := tmp_path / "other.pt")
    with pytest.raises(ClipError, match=r"other\.pt is not a checkpoint of tiny \(\w+"):
        load_clip(f"open_clip:tiny@{path}")
    (damaged := tmp_path / "damaged.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(ClipError, match=r"damaged\.safetensors is not a checkpoint of tiny \(\w+"):
        load_clip(f"open_clip:tiny@{damaged}")


def test_position_embeddings_are_not_interpolated(tiny: str, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    register(tmp_path, "larger", config(VIT | {"image_size": 96}))
    with pytest.raises(ClipError, match="is of image size 64, the architecture has 96: give an architecture of 64 pix"):
        load_clip(f"open_clip:larger@{tiny.partition('@')[2]}")
    short = weights | {"positional_embedding": weights["positional_embedding"][:40]}
    file = write_weights(short, tmp_path / "short.pt")
    with pytest.raises(ClipError, match=r"short\.pt has 40 text positions, not the 77 of CLIP: give another"):
        load_clip(f"open_clip:tiny@{file}")


def test_a_checkpoint_is_downloaded_by_open_clip(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo_id: str, filename: str, **_: Any) -> str:
        asked.append(f"{repo_id}/{filename}")
        return tiny.partition("@")[2]

    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"a_tag": SQUASHED | {"hf_hub": "someone/tiny/"}})
    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", download)
    loaded = load_clip("open_clip:tiny/a_tag")
    assert asked == ["someone/tiny/open_clip_model.safetensors"]
    assert (loaded.squash, loaded.mean, loaded.std) == (True, SQUASHED["mean"], SQUASHED["std"])

    def fail(**_: Any) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", fail)
    with pytest.raises(ClipError, match=r"could not be downloaded .*and give open_clip:tiny/a_tag@FILE"):
        load_clip("open_clip:tiny/a_tag")


def test_the_digest_covers_what_changes_the_features(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny.partition("@")[2]
    plain = {"mean": PIXEL_MEAN, "std": PIXEL_STD, "resize_mode": "shortest"}
    changes = {"same": {}, "mode": {"resize_mode": "squash"}, "mean": {"mean": (0.5,) * 3}, "std": {"std": (0.5,) * 3}}
    tags = {tag: plain | change for tag, change in changes.items()}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", tags)
    digests = [load_clip(f"open_clip:tiny/{tag}@{file}").digest for tag in tags]
    digests.append(load_clip(f"open_clip:tiny-quickgelu@{file}").digest)
    for number, vision in enumerate((VIT | {"head_width": 40}, VIT | {"norm_kwargs": {"eps": 1e-6}})):
        name = register(tmp_path, f"other{number}", config(vision))
        digests.append(load_clip(f"open_clip:{name}@{file}").digest)
    monkeypatch.undo()
    assert digests[0] == load_clip(tiny).digest
    assert len({*digests}) == len(digests)


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=120))
@example("it&amp;#39;s a “mug”… ﬁne 12")
def test_the_tokenizer_is_open_clips_own(question: str) -> None:
    try:
        ids = tokenizer.tokenize(question).ids
    except QuestionError:
        return
    reference = open_clip.get_tokenizer("ViT-B-32")([question])[0].numpy()
    np.testing.assert_array_equal(tokenizer.pad(ids, 77), reference)


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_features_are_open_clips_own(vision: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = register(tmp_path, f"tiny-{vision['patch_size']}", config(vision))
    file = write_weights(random_weights(config(vision)), tmp_path / "weights.pt")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, {"squashed": SQUASHED})
    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", lambda *_, **__: str(file))
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(file))
    model, _, preprocess = open_clip.create_model_and_transforms(name, "squashed")
    random = np.random.default_rng(0)
    sizes = (70, 90), (90, 70), (64, 64)
    photos = [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    questions = ["what is this?", "Is the LIGHT on??", "what&#39;s the colour " * 30]
    ours = load_clip(f"open_clip:{name}/squashed@{file}")
    with torch.inference_mode():
        images = model.eval().encode_image(torch.stack([preprocess(photo) for photo in photos])).numpy()
        texts = model.encode_text(open_clip.get_tokenizer(name)(questions)).numpy()
    pixels = np.stack([to_pixels(photo, ours.image_size, squash=ours.squash) for photo in photos])
    ids = np.stack([tokenizer.pad(tokenizer.tokenize(question).ids, 77) for question in questions])
    np.testing.assert_allclose(ours.encode_images(pixels), images, atol=1e-5 * np.abs(images).max())
    np.testing.assert_allclose(ours.encode_texts(ids), texts, atol=1e-5 * np.abs(texts).max())
    half = dataclasses.replace(ours, model=to_half(ours.model, config(vision)).eval())
    assert half.precision == "float16"
    np.testing.assert_allclose(half.encode_images(pixels), images, atol=1e-2 * np.abs(images).max())
    np.testing.assert_allclose(half.encode_texts(ids), texts, atol=1e-2 * np.abs(texts).max())
