"""Frozen CLIPs: OpenAI's by name or from a checkpoint, and open_clip's; each identified by a digest.

A digest covers everything that the features depend on: of OpenAI's architecture the weights decide all of it.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


# Width and positions of the image encoder, width of the text encoder, number of features.
_OPENAI_SIZES = {
    "RN50": (2048, 50, 512, 1024),
    "RN101": (2048, 50, 512, 512),
    "RN50x4": (2560, 82, 640, 640),
    "RN50x16": (3072, 145, 768, 768),
    "RN50x64": (4096, 197, 1024, 1024),
    "ViT-B/32": (768, 50, 512, 512),
    "ViT-B/16": (768, 197, 512, 512),
    "ViT-L/14": (1024, 257, 768, 768),
    "ViT-L/14@336px": (1024, 577, 768, 768),
}
_OPEN_CLIP_WIDTHS = {1280: "ViT-H-14", 1408: "ViT-g-14", 1664: "ViT-bigG-14"}  # by width, which none of OpenAI's has


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
        """Encode ``pixels`` uint8 [B, S, S, 3] to fp32 [B, D]. Raises ClipError where the GPU's memory is full."""
        with _explain_full_gpu():
            images = normalise_pixels(torch.from_numpy(pixels).to(self.device), self.mean, self.std)
            return _to_numpy(self.model.encode_image(images.to(self._dtype)))

    @torch.inference_mode()
    def encode_texts(self, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Encode ``tokens`` int32 [B, T] to fp32 [B, D]. Raises ClipError where the GPU's memory is full."""
        with _explain_full_gpu():
            return _to_numpy(self.model.encode_text(torch.from_numpy(tokens).to(self.device)))

    def reference_preprocess(self) -> Callable[[Image.Image], Tensor]:
        """The checkpoint's own transform of a PIL image to fp32 [3, S, S], which the contract's pixels must equal."""
        return clip.clip._transform(self.image_size)

    def reference_tokenize(self, questions: list[str]) -> Tensor:
        """The checkpoint's own token ids, int [B, 77], which the contract's tokenizer must equal."""
        return clip_tokenize(questions)


@contextmanager
def _explain_full_gpu() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        raise ClipError(f"the GPU's memory is full ({reason}): free it, or choose another --device") from error


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
    elif re.search("open.?clip", Path(source).name, re.IGNORECASE):  # as open_clip names its files
        raise ClipError(f"{source} is a file of open_clip's by its name: give {OPEN_CLIP}ARCHITECTURE@{source}")


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


def is_openai(source: str) -> bool:
    """Whether ``source`` is one of OpenAI's names, whose weights are under the MIT licence."""
    return source in clip.available_models()


def clip_name(source: str) -> str:
    """Name of a CLIP in reports: OpenAI's or open_clip's name, and the name of a file without its folders."""
    if source.startswith(OPEN_CLIP):
        name, at, file = source.partition("@")
        return f"{name}{at}{Path(file).name}"
    return source if is_openai(source) else Path(source).name


def folder_name(source: str) -> str:
    """Name of a CLIP in the names of folders: without characters that paths or shells treat specially."""
    return re.sub(r"[^\w.+@-]", "-", re.sub(r"\.(pt|pth|bin|safetensors)$", "", clip_name(source)))


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
                weights = _read_weights(name)
                _check_is_openai(weights, name)
                model = clip.model.build_model(weights).to(device)
        if device.type == "cpu":
            model.float()
    except LOAD_ERRORS as error:
        raise ClipError(load_error(error, name, device, f"{name} is not an OpenAI CLIP checkpoint")) from error
    model.eval().requires_grad_(False)
    return FrozenClip(model, name, weights_digest(model), torch.device(device))


def load_distinct_clips(sources: Sequence[str], device: torch.device) -> list[FrozenClip]:
    """Load the CLIPs of a fit, and print how plain files are read.

    Raises:
        ClipError: as :func:`load_clip`, or two of ``sources`` are the same CLIP.
    """
    clips: dict[str, FrozenClip] = {}
    for source in sources:
        loaded = load_clip(source, device)
        if same := clips.get(loaded.digest):
            raise ClipError(f"{same.source} and {source} are the same CLIP: give one")
        clips[loaded.digest] = loaded
        if reading := describe_reading(loaded):
            print(reading)
    return list(clips.values())


def _read_weights(path: str) -> dict[str, Tensor]:
    """State dict of a file. Neither TorchScript's unpickler nor PyTorch's weights-only one runs Python code."""
    if path.endswith(".safetensors"):
        return dict(load_file(path))
    try:
        return dict(torch.jit.load(path, map_location="cpu").state_dict())
    except RuntimeError:  # not a TorchScript archive
        return dict(torch.load(path, map_location="cpu", weights_only=True))


def _check_is_openai(weights: dict[str, Tensor], path: str) -> None:
    """Refuse weights that are certainly not OpenAI's: open_clip's tensors have the same names.

    A fine-tuned CLIP in fp32 is refused too, because nothing in it says which activation it was trained with.

    Raises:
        ClipError: they are of a width that only open_clip has, or of one of OpenAI's sizes and not exact in fp16.
    """
    vit, resnet = "visual.positional_embedding", "visual.attnpool.positional_embedding"
    positions, width = weights[resnet if resnet in weights else vit].shape
    if vit in weights and width in _OPEN_CLIP_WIDTHS:
        raise ClipError(
            f"{path} has the width of open_clip's {_OPEN_CLIP_WIDTHS[width]}: give {OPEN_CLIP}ARCHITECTURE@{path}"
        )
    first = weights["visual.conv1.weight"]  # trained in fp32, none is exact in fp16
    for name, sizes in _OPENAI_SIZES.items():
        if sizes == (width, positions, *weights["text_projection"].shape) and not torch.equal(
            first.half().float(), first.float()
        ):
            architecture = name.replace("/", "-").replace("@336px", "-336")
            raise ClipError(
                f"{path} has the size of {name}, but OpenAI's weights are exact in fp16, and its are not. If it is "
                f"open_clip's, give {OPEN_CLIP}{architecture}@{path}; if it was fine-tuned from OpenAI's, convert it "
                "to fp16"
            )


def describe_reading(frozen: FrozenClip) -> str | None:
    """How the file of ``frozen`` is read; None for a name. Files do not say which activation or heads they need."""
    if frozen.source in clip.available_models() or frozen.source.startswith(OPEN_CLIP):
        return None
    visual = frozen.model.visual
    pool = visual.attnpool if hasattr(visual, "attnpool") else visual.transformer.resblocks[0].attn
    texts = frozen.model.transformer.resblocks[0].attn
    return (
        f"{frozen.source} is read as OpenAI's architecture: QuickGELU, {pool.num_heads} heads in the image encoder and "
        f"{texts.num_heads} in the text encoder, weights in fp16"
    )


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
    if isinstance(error, UnpicklingError):  # PyTorch's message advises to read the file with its code
        reason = "neither a TorchScript archive, nor a PyTorch file of weights alone, nor .safetensors"
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
