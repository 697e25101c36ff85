"""Frozen CLIPs: OpenAI's by name or from a checkpoint, and open_clip's; each identified by a digest.

A digest covers everything that the features depend on: of OpenAI's architecture the weights decide all of it.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training.artifacts import digest_of

with warnings.catch_warnings():  # clip imports pkg_resources, which warns of its removal
    warnings.simplefilter("ignore")
    import clip as clip  # re-exported: import it from here to avoid the warning

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of RGB in [0, 1]: clip.clip._transform
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

OPEN_CLIP = "open_clip:"  # prefix of the names of open_clip's checkpoints: see training.openclip

_CONNECTION = (URLError, HTTPException, ConnectionError, TimeoutError)
# A device without memory for CUDA itself raises torch.AcceleratorError.
_DEVICE = (torch.OutOfMemoryError, torch.AcceleratorError)
# What loading raises on another kind of file, or on a truncated one.
_NOT_A_CHECKPOINT = (
    UnpicklingError,
    SafetensorError,
    StopIteration,
    struct.error,
    LookupError,
    AttributeError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
    EOFError,
)
LOAD_ERRORS = (*_CONNECTION, *_DEVICE, OSError, *_NOT_A_CHECKPOINT)


class ClipError(Exception):
    """A CLIP that cannot be loaded: unknown name, file or device, no checkpoint, or a failed download."""


@dataclass(frozen=True)
class FrozenClip:
    """A CLIP in evaluation mode; S = ``image_size``, D = ``embed_dim``. Features are not normalised."""

    model: Any  # clip.model.CLIP: the package ships no types
    source: str  # name or path
    digest: str  # SHA-256
    device: torch.device
    squash: bool = False  # whether photos are resized to a square without cropping: see ``to_pixels`` of the contract
    mean: tuple[float, ...] = PIXEL_MEAN  # of RGB in [0, 1], subtracted from the pixels
    std: tuple[float, ...] = PIXEL_STD  # by which they are divided then

    @property
    def image_size(self) -> int:
        """Height and width of the input image in pixels, S."""
        return int(self.model.visual.input_resolution)

    @property
    def embed_dim(self) -> int:
        """Number of features of an image or a text, D."""
        return int(self.model.text_projection.shape[1])

    @property
    def precision(self) -> str:
        """Compute type: float16 on CUDA, float32 on a CPU."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.visual.conv1.weight.dtype
        return dtype

    @torch.inference_mode()
    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Encode ``pixels`` uint8 [B, S, S, 3] to fp32 [B, D]."""
        images = normalise_pixels(torch.from_numpy(pixels).to(self.device), self.mean, self.std)
        return _to_numpy(self.model.encode_image(images.to(self._dtype)))

    @torch.inference_mode()
    def encode_texts(self, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Encode ``tokens`` int32 [B, T] to fp32 [B, D]."""
        return _to_numpy(self.model.encode_text(torch.from_numpy(tokens).to(self.device)))

    def reference_preprocess(self) -> Callable[[Image.Image], Tensor]:
        """The checkpoint's own transform of a PIL image to fp32 [3, S, S], which the contract's pixels must equal."""
        return clip.clip._transform(self.image_size)

    def reference_tokenize(self, questions: list[str]) -> Tensor:
        """The checkpoint's own token ids, int [B, 77], which the contract's tokenizer must equal."""
        return clip_tokenize(questions)


def normalise_pixels(pixels: Tensor, mean: Sequence[float] = PIXEL_MEAN, std: Sequence[float] = PIXEL_STD) -> Tensor:
    """Standardise pixels uint8 [B, S, S, 3] per channel to the input of CLIP's image encoder, fp32 [B, 3, S, S]."""
    centred = pixels.to(torch.float32) - torch.tensor(mean, device=pixels.device) * 255
    return (centred / (torch.tensor(std, device=pixels.device) * 255)).permute(0, 3, 1, 2)


def clip_tokenize(questions: list[str]) -> Tensor:
    """Token ids of OpenAI's tokenizer, int [B, 77]."""
    tokens: Tensor = clip.tokenize(questions, truncate=True)
    return tokens


def check_clip_source(source: str | Path) -> None:
    """Check that ``source`` names a CLIP, before anything is encoded.

    Raises:
        ClipError: ``source`` is neither one of OpenAI's names nor a file, nor a name of open_clip's that
            :func:`training.openclip.find_checkpoint` accepts.
    """
    if str(source).startswith(OPEN_CLIP):
        from training.openclip import find_checkpoint

        find_checkpoint(str(source))
    elif str(source) not in clip.available_models() and not Path(source).is_file():
        choices = ", ".join(clip.available_models())
        raise ClipError(
            f"no CLIP {str(source)!r}: give a checkpoint file, {OPEN_CLIP}ARCHITECTURE/TAG or one of OpenAI's names: "
            f"{choices}"
        )


def choose_device(asked: str) -> torch.device:
    """Resolve ``--device``: auto, cpu, cuda or cuda:N.

    Raises:
        ClipError: there is no such device.
    """
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ClipError(f"--device {asked}: no such device; give auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ClipError(f"--device {asked}: only the CPU and CUDA are supported; give auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return torch.device("cpu")  # clip.load computes in fp16 on every other name, "cpu:0" included
    if not torch.cuda.is_available():
        raise ClipError(f"--device {asked}: this PyTorch sees no CUDA device; use --device cpu")
    if (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ClipError(f"--device {asked}: this PyTorch sees {count} CUDA device(s), the last one is cuda:{count - 1}")
    return device


def clip_name(source: str) -> str:
    """Name of a CLIP in reports: OpenAI's or open_clip's name, and the name of a file without its folders."""
    if source.startswith(OPEN_CLIP):
        name, at, file = source.partition("@")
        return f"{name}{at}{Path(file).name}"
    return source if source in clip.available_models() else Path(source).name


def folder_name(source: str) -> str:
    """Name of a CLIP in the names of folders: without characters that paths or shells treat specially."""
    return re.sub(r"[/:]", "-", re.sub(r"\.(pt|pth|bin|safetensors)$", "", clip_name(source)))


def load_clip(source: str | Path, device: str | torch.device = "cpu") -> FrozenClip:
    """Load a CLIP; weights are fp16 on CUDA and fp32 on a CPU.

    Args:
        source: one of OpenAI's names (downloaded once, checksum verified), a checkpoint file of OpenAI's architecture
            (TorchScript archive, pickle or safetensors), or a name of open_clip's (:mod:`training.openclip`).
        device: where to load it.

    Raises:
        ClipError: it cannot be loaded.
    """
    name, device = str(source), torch.device(device)
    if name.startswith(OPEN_CLIP):
        from training.openclip import load_open_clip

        return load_open_clip(name, device)
    check_clip_source(name)
    try:
        with warnings.catch_warnings():  # OpenAI's checkpoints are TorchScript archives, which are deprecated
            warnings.simplefilter("ignore")
            if name in clip.available_models():
                model, _ = clip.load(name, device=device, jit=False)
            else:
                model = clip.model.build_model(_read_weights(name)).to(device)
        if device.type == "cpu":
            model.float()
    except LOAD_ERRORS as error:
        raise ClipError(load_error(error, name, device, f"{name} is not an OpenAI CLIP checkpoint")) from error
    model.eval().requires_grad_(False)
    return FrozenClip(model, name, weights_digest(model), torch.device(device))


def _read_weights(path: str) -> dict[str, Tensor]:
    """State dict of a file. Neither TorchScript's unpickler nor PyTorch's weights-only one runs Python code."""
    if path.endswith(".safetensors"):
        return dict(load_file(path))
    try:
        return dict(torch.jit.load(path, map_location="cpu").state_dict())
    except RuntimeError:  # not a TorchScript archive
        return dict(torch.load(path, map_location="cpu", weights_only=True))


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of a CLIP's weights in fp32, independent of file format and precision.

    ``clip.load`` keeps fp16 weights on a GPU and converts them to fp32 on a CPU; both have the same digest.
    """
    parts: list[bytes | str] = []
    for name, tensor in sorted(model.state_dict().items()):
        parts += [f"{name} {tuple(tensor.shape)}", _to_numpy(tensor).tobytes()]
    return digest_of(*parts)


def load_error(error: Exception, name: str, device: torch.device, no_checkpoint: str) -> str:
    """Error message for one of LOAD_ERRORS, ``no_checkpoint`` for most; the order matters, URLError is an OSError."""
    first_line = str(error).partition("\n")[0]  # PyTorch adds hints for its developers
    reason = f"{type(error).__name__}: {first_line}"
    downloaded = name in clip.available_models()
    if isinstance(error, _CONNECTION):
        return (
            f"CLIP {name} could not be downloaded ({reason}): try again, or download the checkpoint on another "
            "machine and give its path"
        )
    if isinstance(error, _DEVICE):
        return f"CLIP {name} cannot be loaded on {device} ({reason}): free its memory, or choose another --device"
    if isinstance(error, OSError):
        action = "stored in ~/.cache/clip" if downloaded else "read"
        return f"CLIP {name} cannot be {action} ({reason}): check its permissions and the free disk space"
    if downloaded:  # its checksum did not match
        return f"CLIP {name} could not be loaded ({reason}): run the command again to download it again"
    return f"{no_checkpoint} ({reason})"


def _to_numpy(tensor: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = tensor.detach().to("cpu", torch.float32).numpy()
    return array
