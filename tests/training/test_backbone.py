"""Devices, and what is said of a CLIP that cannot be loaded."""

from __future__ import annotations

import errno
import io
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import replace
from email.message import Message
from http.client import IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.architectures import ARCHITECTURES
from training.backbone import ClipError, FrozenClip, choose_device, clip, describe_reading, load_clip

NAME = "ViT-B/32"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where clip keeps what it downloads, empty."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".cache" / "clip"


class Response(io.BytesIO):
    """What a server sends that promises 1,000 bytes."""

    def info(self) -> Message:
        headers = Message()
        headers["Content-Length"] = "1000"
        return headers


class CutResponse(Response):
    """A connection that breaks while the checkpoint is read."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise ConnectionResetError("Connection reset by peer")


def opens(response: Response | Exception) -> Callable[[str], Response]:
    def urlopen(url: str) -> Response:
        if isinstance(response, Exception):
            raise response
        return response

    return urlopen


@pytest.mark.parametrize("device", ["cpu", "cpu:0", "cpu:3"])
def test_a_cpu_has_no_number(device: str, tiny_vit: FrozenClip) -> None:
    chosen = choose_device(device)
    assert str(chosen) == "cpu"
    assert load_clip(tiny_vit.source, chosen).precision == "float32"


def test_a_cuda_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(
        ClipError, match=r"--device cuda:7: this PyTorch sees 2 CUDA device\(s\), the last one is cuda:1"
    ):
        choose_device("cuda:7")


@pytest.mark.parametrize(
    "response",
    [
        URLError("no route to host"),
        ConnectionResetError("reset"),
        TimeoutError("late"),
        IncompleteRead(b""),
        CutResponse(),
    ],
    ids=lambda response: type(response).__name__,
)
def test_without_a_connection_the_checkpoint_is_asked_for(
    response: Response | Exception, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", opens(response))
    with pytest.raises(ClipError, match=r"CLIP ViT-B/32 could not be downloaded \(.*give its path"):
        load_clip(NAME)


def test_a_download_that_was_cut_short_is_to_be_tried_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", opens(Response(b"half of it")))
    with pytest.raises(ClipError, match=r"CLIP ViT-B/32 could not be loaded \(.*checksum.*: run the command again"):
        load_clip(NAME)


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.parent.write_text("a file, not a folder")
    with pytest.raises(
        ClipError, match=r"CLIP ViT-B/32 cannot be stored in ~/\.cache/clip \(.*: check its permissions"
    ):
        load_clip(NAME)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nhints"),
            r"CLIP \S+tiny\.pt cannot be loaded on cuda:1 \(OutOfMemoryError: CUDA out of memory\.\): free its memory, "
            "or choose another --device$",
        ),
        (torch.AcceleratorError("CUDA error: out of memory"), r"cannot be loaded on cuda:1 \(AcceleratorError: "),
        (PermissionError(errno.EACCES, "Permission denied"), r"CLIP \S+tiny\.pt cannot be read \(PermissionError: "),
    ],
)
def test_what_is_no_fault_of_the_file_is_not_blamed_on_it(
    failure: Exception, message: str, tiny_vit: FrozenClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(clip.model, "build_model", build)
    with pytest.raises(ClipError, match=message):
        load_clip(tiny_vit.source, "cuda:1")


@pytest.fixture
def weights(tiny_vit: FrozenClip) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint as OpenAI's are stored, in fp16."""
    return {name: each.half() for name, each in torch.load(tiny_vit.source, weights_only=True).items()}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_formats_of_checkpoints(
    dtype: torch.dtype, suffix: str, weights: dict[str, torch.Tensor], tiny_vit: FrozenClip, tmp_path: Path
) -> None:
    stored = {name: each.to(dtype) for name, each in weights.items()}
    save = torch.save if suffix == ".pt" else save_file
    save(stored, path := tmp_path / f"clip{suffix}")
    loaded = load_clip(path)
    assert loaded.precision == "float32"
    matrix = "visual.conv1.weight"
    assert torch.equal(loaded.model.state_dict()[matrix], stored[matrix].float())
    if dtype != torch.bfloat16:
        assert encodes_alike(loaded, tiny_vit)


def encodes_alike(clip: FrozenClip, other: FrozenClip) -> bool:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    return bool(np.allclose(clip.encode_images(pixels), other.encode_images(pixels), rtol=1e-2, atol=1e-2))


def save_sizes(path: Path, image: tuple[int, ...], projection: tuple[int, int], value: float) -> Path:
    """A checkpoint with the weights that tell an architecture, all of ``value``; the file is small."""
    shapes = {"visual.conv1.weight": (image[1], 3, 32, 32), "visual.positional_embedding": image}
    shapes["text_projection"] = projection
    torch.save({name: torch.tensor(value).expand(shape) for name, shape in shapes.items()}, path)
    return path


def test_a_file_of_open_clips_is_refused_as_openais(tiny_vit: FrozenClip, tmp_path: Path) -> None:
    in_fp32 = save_sizes(tmp_path / "b32.pt", (50, 768), (512, 512), 0.1)
    with pytest.raises(ClipError, match=r"size of ViT-B/32, .* exact in fp16.* give open_clip:ViT-B-32@\S+b32\.pt"):
        load_clip(in_fp32)
    huge = save_sizes(tmp_path / "h14.pt", (257, 1280), (1024, 1024), 0.5)
    with pytest.raises(ClipError, match=r"width of open_clip's ViT-H-14: give open_clip:ARCHITECTURE@\S+h14\.pt"):
        load_clip(huge)
    (named := tmp_path / "open_clip_pytorch_model.bin").write_bytes(Path(tiny_vit.source).read_bytes())
    with pytest.raises(ClipError, match=r"file of open_clip's by its name: give open_clip:ARCHITECTURE@\S+\.bin"):
        load_clip(named)


def test_fp32_weights_that_are_exact_in_fp16_may_be_openais(tmp_path: Path) -> None:
    """Such a file gets past the check, to be refused because it lacks the rest of the weights."""
    with pytest.raises(ClipError, match=r"is not an OpenAI CLIP checkpoint \(\w+: "):
        load_clip(save_sizes(tmp_path / "b32.pt", (50, 768), (512, 512), 0.5))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_sizes_of_openais(name: str, tmp_path: Path) -> None:
    embed_dim, size, layers, width, patch, text_width, _, _ = ARCHITECTURES[name]
    with torch.device("meta"):
        model = clip.model.CLIP(embed_dim, size, layers, width, patch, 77, 49408, text_width, text_width // 64, 1)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    inexact = torch.tensor(0.1)
    torch.save({key: inexact.expand(shape) for key, shape in shapes.items()}, path := tmp_path / "clip.pt")
    with pytest.raises(ClipError, match=f"has the size of {name}, "):
        load_clip(path)


def test_how_a_file_is_read_is_described(tiny_clip: FrozenClip) -> None:
    heads = 2 if hasattr(tiny_clip.model.visual, "transformer") else 8
    assert describe_reading(tiny_clip) == (
        f"{tiny_clip.source} is read as OpenAI's architecture: QuickGELU, {heads} heads in the image encoder and 1 in "
        "the text encoder, weights in fp16"
    )
    assert describe_reading(replace(tiny_clip, source=NAME)) is None
    assert describe_reading(replace(tiny_clip, source="open_clip:ViT-B-32/openai")) is None


class Archived(nn.Module):
    """What OpenAI's archives hold: a CLIP whose sizes are buffers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, size in (("input_resolution", 64), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(size))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.visual(image)


def test_a_torchscript_archive_like_openais(tiny_vit: FrozenClip, tmp_path: Path) -> None:
    with warnings.catch_warnings():  # TorchScript is deprecated
        warnings.simplefilter("ignore")
        archive = torch.jit.trace(Archived(tiny_vit.model), torch.zeros(1, 3, 64, 64))
        torch.jit.save(archive, tmp_path / "clip.pt")
    assert load_clip(tmp_path / "clip.pt").digest == tiny_vit.digest


class Trap:
    """A pickle that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "pickle"])
def test_code_in_a_pickled_checkpoint_is_not_executed(
    old: bool, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    state = {"trap": Trap(sprung := tmp_path / "sprung"), **weights}
    torch.save(state, path := tmp_path / "clip.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(ClipError, match=r"clip\.pt is not an OpenAI CLIP checkpoint \(neither a TorchScript archive"):
        load_clip(path)
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists()  # it would have been


@pytest.mark.parametrize("content", [5, "text", [1], {}, {"a": 1}, None], ids=repr)
def test_a_file_with_something_else_is_not_a_checkpoint(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ClipError, match=r"other\.pt is not an OpenAI CLIP checkpoint \(\w+: "):
        load_clip(tmp_path / "other.pt")
