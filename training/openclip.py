"""CLIPs of open_clip that share CLIP's architecture, tokenizer and resize. ``--clip`` names them:

    open_clip:ViT-B-16-quickgelu/metaclip_400m         ARCHITECTURE/TAG: a checkpoint that open_clip downloads
    open_clip:ViT-B-32@weights.safetensors             ARCHITECTURE@FILE: .safetensors, .pt, .pth or .bin
    open_clip:ViT-H-14-378-quickgelu/dfn5b@weights.pt  a file, preprocessed like the checkpoint TAG

Only such a name imports this module, because importing open_clip takes 10 s.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from training.artifacts import digest_of
from training.backbone import (
    LOAD_ERRORS,
    OPEN_CLIP,
    PIXEL_MEAN,
    PIXEL_STD,
    ClipError,
    FrozenClip,
    load_error,
    weights_digest,
)

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_SQUASH = {"shortest": False, "squash": True}  # of each accepted ``resize_mode``

# Settings of an architecture that may have any value; all others must have open_clip's default.
_SUPPORTED = {
    "": "embed_dim quick_gelu init_logit_scale nonscalar_logit_scale",
    "vision_cfg": "image_size layers width head_width mlp_ratio patch_size patch_dropout pos_embed_type "
    "final_ln_after_pool attn_pooler_queries attn_pooler_heads timm_model_pretrained timm_pool timm_proj "
    "timm_proj_bias timm_drop timm_drop_path",
    "text_cfg": "width heads layers mlp_ratio pad_id eos_id final_ln_after_pool hf_model_pretrained hf_proj_type "
    "hf_pooler_type",
}
# Why a setting is refused, most important first.
_REASONS = {
    "multimodal_cfg": "it is a CoCa, which pools images by attention and reads texts out at a class token",
    "text_cfg.hf_model_name": "its text encoder is one of Hugging Face, not CLIP's transformer",
    "init_logit_bias": "it is a SigLIP, whose tokenizer and pooling differ from CLIP's",
    "text_cfg.hf_tokenizer_name": "its tokenizer is one of Hugging Face, not CLIP's",
    "text_cfg.tokenizer_kwargs": "its tokenizer has other settings than CLIP's",
    "vision_cfg.timm_model_name": "its image encoder is one of timm, not CLIP's VisionTransformer or ModifiedResNet",
    "text_cfg.context_length": "its text encoder has another number of positions than CLIP's 77",
    "text_cfg.vocab_size": "its vocabulary is not CLIP's of 49,408 tokens",
    "text_cfg.pool_type": "its text encoder is not read out at the end token",
    "text_cfg.no_causal_mask": "its text encoder has no causal mask",
    "vision_cfg.attentional_pool": "its image encoder pools by attention instead of reading out the class token",
    "vision_cfg.pool_type": "its image encoder is not read out at the class token",
    "custom_text": "its text encoder is not CLIP's transformer",
}


@dataclass(frozen=True)
class OpenClip(FrozenClip):
    """A CLIP of open_clip, whose references are open_clip's own modules, preprocess and tokenizer."""

    architecture: str = ""

    @property
    def image_size(self) -> int:
        size = self.model.visual.image_size
        return int(size if isinstance(size, int) else size[0])

    def reference_preprocess(self) -> Callable[[Image.Image], Tensor]:
        mode = "squash" if self.squash else "shortest"
        return open_clip().image_transform(self.image_size, False, self.mean, self.std, resize_mode=mode)

    def reference_tokenize(self, questions: list[str]) -> Tensor:
        tokens: Tensor = open_clip().get_tokenizer(self.architecture)(questions)
        return tokens


class Checkpoint(NamedTuple):
    """What ``open_clip:ARCHITECTURE[/TAG][@FILE]`` names."""

    architecture: str
    file: str  # "" for a download
    config: dict[str, Any]  # open_clip's configuration of the architecture
    pretrained: dict[str, Any]  # open_clip's entry of TAG: where to download it, and its preprocessing


@cache
def open_clip() -> Any:
    """The package open_clip.

    Raises:
        ClipError: it is not installed.
    """
    try:
        with warnings.catch_warnings():  # of the packages that it imports
            warnings.simplefilter("ignore")
            return import_module("open_clip")
    except ImportError as error:
        raise ClipError(f"--clip {OPEN_CLIP}... needs open_clip ({error}): pip install open-clip-torch") from error


def find_checkpoint(source: str) -> Checkpoint:
    """Look up ``source``, and check that it can be fitted, exported and served.

    Raises:
        ClipError: open_clip is not installed, does not know the architecture or tag, or there is no such file; or the
            checkpoint differs from CLIP in a way that the message names.
    """
    name, _, file = source.removeprefix(OPEN_CLIP).partition("@")
    architecture, _, tag = name.partition("/")
    if not architecture or not (tag or file):
        raise ClipError(
            f"--clip {source}: expected {OPEN_CLIP}ARCHITECTURE/TAG, {OPEN_CLIP}ARCHITECTURE@FILE or "
            f"{OPEN_CLIP}ARCHITECTURE/TAG@FILE, such as {OPEN_CLIP}ViT-B-16-quickgelu/metaclip_400m"
        )
    package = open_clip()
    if (config := package.get_model_config(architecture)) is None:
        raise ClipError(f"open_clip has no architecture {architecture!r}: {_near(architecture, package.list_models())}")
    if file and not (Path(file).is_file() and file.endswith(SUFFIXES)):
        raise ClipError(f"--clip {source}: {file} is not a file that ends with {', '.join(SUFFIXES)}")
    known = {each: package.get_pretrained_cfg(architecture, each) for each in _tags(architecture)}
    if not tag:
        pretrained = _shared_preprocessing(source, {tag: each for tag, each in known.items() if _fits(config, each)})
    elif package.is_pretrained_cfg(architecture, tag):
        pretrained = package.get_pretrained_cfg(architecture, tag)
    else:
        raise ClipError(f"open_clip has no checkpoint {tag!r} of {architecture}: {_near(tag, known)}")
    if reason := unsupported_reason(config, pretrained):
        raise ClipError(f"{source} cannot be used: {reason}; docs/clips.md lists CLIPs that can")
    if tag and not _fits(config, pretrained):
        other = architecture.removesuffix("-quickgelu") + "-quickgelu" * pretrained.get("quick_gelu", False)
        raise ClipError(f"{source} was trained with the other activation: give {OPEN_CLIP}{other}/{tag}")
    set_in_config = {name: value for name, value in config.items() if value}  # CLIP() has no "custom_text": false
    return Checkpoint(architecture, file, set_in_config, pretrained)


def unsupported_reason(config: Mapping[str, Any], pretrained: Mapping[str, Any]) -> str | None:
    """Why a checkpoint cannot be exported or preprocessed; None if it can.

    Args:
        config: open_clip's configuration of its architecture.
        pretrained: open_clip's entry of the checkpoint.
    """
    package = open_clip()
    defaults = {"vision_cfg": asdict(package.CLIPVisionCfg()), "text_cfg": asdict(package.CLIPTextCfg())}
    changed = {
        f"{part}.{name}": value
        for part in defaults
        for name, value in config[part].items()
        if name not in _SUPPORTED[part].split() and value != defaults[part].get(name) and not _only_epsilon(name, value)
    }
    supported = {*defaults, *_SUPPORTED[""].split()}
    changed |= {name: value for name, value in config.items() if value and name not in supported}
    for setting in (*_REASONS, *changed):
        if setting in changed:
            return _REASONS.get(setting) or f"its {setting} is {changed[setting]!r}, a setting that CLIP does not have"
    if not isinstance(size := config["vision_cfg"].get("image_size", 224), int):
        return f"its images are not square: {size}"
    if (interpolation := pretrained.get("interpolation", "bicubic")) != "bicubic":
        return f"its photos are resized with {interpolation} interpolation, not bicubically"
    if (mode := pretrained.get("resize_mode", "shortest")) not in _SQUASH:
        return f"its photos are resized by the mode {mode!r}, not by one of {', '.join(map(repr, _SQUASH))}"
    return None


def load_open_clip(source: str, device: torch.device) -> OpenClip:
    """Load a CLIP of open_clip; weights are fp16 on CUDA and fp32 on a CPU. Pickles are read weights-only.

    Raises:
        ClipError: as :func:`find_checkpoint`, or the checkpoint cannot be downloaded or loaded.
    """
    architecture, file, config, pretrained = find_checkpoint(source)
    path = file or _download(source, pretrained)
    mean, std = (tuple(pretrained.get(key, default)) for key, default in (("mean", PIXEL_MEAN), ("std", PIXEL_STD)))
    squash = _SQUASH[pretrained.get("resize_mode", "shortest")]
    try:
        model = open_clip().CLIP(**config)
        _check_positions(model, path)
        open_clip().load_checkpoint(model, path, strict=True, weights_only=True)
        preprocessing = {"mean": mean, "std": std, "squash": squash}
        digest = digest_of(weights_digest(model), json.dumps(preprocessing | _settings(model), sort_keys=True))
        model = (to_half(model, config) if device.type == "cuda" else model).to(device)
    except LOAD_ERRORS as error:
        raise ClipError(load_error(error, source, device, f"{path} is not a checkpoint of {architecture}")) from error
    model.eval().requires_grad_(False)
    return OpenClip(model, source, digest, device, squash, mean, std, architecture)


def _check_positions(model: nn.Module, path: str) -> None:
    """Refuse a checkpoint whose position embeddings open_clip would interpolate to those of ``model``."""
    found, expected = open_clip().factory.load_state_dict(path), model.state_dict()
    image, text = "visual.positional_embedding", "positional_embedding"
    if image in found and image in expected and len(found[image]) != len(expected[image]):
        patch = expected["visual.conv1.weight"].shape[-1]
        sizes = [round((len(each[image]) - 1) ** 0.5) * patch for each in (found, expected)]
        raise ClipError(
            f"{path} is of image size {sizes[0]}, the architecture has {sizes[1]}: give an architecture of "
            f"{sizes[0]} pixels"
        )
    if text in found and len(found[text]) != len(expected[text]):
        raise ClipError(
            f"{path} has {len(found[text])} text positions, not the {len(expected[text])} of CLIP: give another"
        )


def to_half(model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """Convert ``model`` to fp16, with norms in fp32, as open_clip's own ``precision="fp16"`` does."""
    half: nn.Module = open_clip().CLIP(**config, cast_dtype=torch.float16)
    open_clip().convert_weights_to_lp(half, torch.float16)
    half.load_state_dict(model.state_dict())
    return half


def _settings(model: Any) -> dict[str, Any]:
    """What changes the features of a model beside its weights and the preprocessing of photos."""
    pool = [model.visual.attnpool.num_heads] if hasattr(model.visual, "attnpool") else []
    attentions = [layer.num_heads for layer in model.modules() if isinstance(layer, nn.MultiheadAttention)]
    return {
        "image_size": model.visual.image_size,
        "heads": [*pool, *attentions],
        "activations": [type(block.mlp.gelu).__name__ for block in model.modules() if hasattr(block, "mlp")],
        "epsilons": [layer.eps for layer in model.modules() if isinstance(layer, nn.LayerNorm)],
    }


def _only_epsilon(name: str, value: Any) -> bool:
    return name == "norm_kwargs" and {*(value or {})} <= {"eps"}


def _fits(config: Mapping[str, Any], pretrained: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was trained with the activation of the architecture."""
    return bool(config.get("quick_gelu", False)) == bool(pretrained.get("quick_gelu", False))


def _tags(architecture: str) -> list[str]:
    return list(open_clip().list_pretrained_tags_by_model(architecture))


def _near(name: str, choices: Any) -> str:
    near = get_close_matches(name, choices, 5, cutoff=0.4) or list(choices)
    return f"near matches are {', '.join(near)}" if near else "it has none"


def _shared_preprocessing(source: str, known: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The preprocessing of all of open_clip's checkpoints of an architecture; of none, open_clip's default."""
    distinct = {
        str([each.get(key) for key in ("mean", "std", "interpolation", "resize_mode")]) for each in known.values()
    }
    if len(distinct) > 1:
        architecture, _, file = source.partition("@")
        raise ClipError(
            f"open_clip's checkpoints of {architecture.removeprefix(OPEN_CLIP)} differ in their preprocessing: give "
            f"{architecture}/TAG@{file}, where TAG has the preprocessing of {file}: {', '.join(known)}"
        )
    return next(iter(known.values()), {})


def _download(source: str, pretrained: dict[str, Any]) -> str:
    try:
        return str(open_clip().download_pretrained(pretrained))
    except Exception as error:  # of the hub's client or of urllib, which open_clip wraps in some cases only
        first_line = str(error).partition("\n")[0]
        raise ClipError(
            f"CLIP {source} could not be downloaded ({type(error).__name__}: {first_line}): try again, or download the "
            f"checkpoint on another machine and give {source}@FILE"
        ) from error
