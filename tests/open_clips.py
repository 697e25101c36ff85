"""Small architectures of open_clip, registered as its users do, and checkpoints of them with random weights."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

with warnings.catch_warnings():  # of the packages that open_clip imports
    warnings.simplefilter("ignore")
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed: pip install open-clip-torch")

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 96, "heads": 2, "layers": 2}
VIT = {"image_size": 64, "layers": 3, "width": 160, "head_width": 80, "mlp_ratio": 4.9231, "patch_size": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}


def config(vision: dict[str, Any] = VIT, **changes: Any) -> dict[str, Any]:
    """An architecture with heads of 80 and of 48, whose scales no power of 2 is, and GELU."""
    return {"embed_dim": 64, "vision_cfg": dict(vision), "text_cfg": dict(TEXT)} | changes


def register(folder: Path, name: str, architecture: dict[str, Any]) -> str:
    """Register ``architecture`` with open_clip for the rest of the process; returns ``name``."""
    (folder / f"{name}.json").write_text(json.dumps(architecture), encoding="utf-8")
    open_clip.add_model_config(folder / f"{name}.json")
    return name


def random_weights(architecture: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict of ``architecture``, under which every part of it matters."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**architecture)
    torch.nn.init.normal_(model.token_embedding.weight, std=0.5)  # so that questions differ enough to tell apart
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:  # as open_clip initialises them, every residual block adds nothing
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = None  # keep the mean statistics
    if norms:
        coarse = torch.randn(16, 3, 8, 8)  # as smooth as photos
        model.visual(torch.nn.functional.interpolate(coarse, 64, mode="bilinear"))  # leaves its statistics
    return dict(model.state_dict())


def write_weights(weights: dict[str, torch.Tensor], path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint in the format that the suffix of ``path`` names."""
    weights = {name: each.to(dtype) if each.is_floating_point() else each for name, each in weights.items()}
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return path
