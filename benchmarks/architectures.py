"""OpenAI's nine CLIPs at full size with random weights: speed does not depend on the values."""

from __future__ import annotations

from pathlib import Path

import torch

from training.backbone import clip

# embed_dim, image_resolution, vision_layers, vision_width, vision_patch_size, transformer width, heads, layers
ARCHITECTURES = {
    "RN50": (1024, 224, (3, 4, 6, 3), 64, None, 512, 8, 12),
    "RN101": (512, 224, (3, 4, 23, 3), 64, None, 512, 8, 12),
    "RN50x4": (640, 288, (4, 6, 10, 6), 80, None, 640, 10, 12),
    "RN50x16": (768, 384, (6, 8, 18, 8), 96, None, 768, 12, 12),
    "RN50x64": (1024, 448, (3, 15, 36, 10), 128, None, 1024, 16, 12),
    "ViT-B/32": (512, 224, 12, 768, 32, 512, 8, 12),
    "ViT-B/16": (512, 224, 12, 768, 16, 512, 8, 12),
    "ViT-L/14": (768, 224, 24, 1024, 14, 768, 12, 12),
    "ViT-L/14@336px": (768, 336, 24, 1024, 14, 768, 12, 12),
}


def write_full_size(name: str, path: Path) -> Path:
    """Write a checkpoint of one of :data:`ARCHITECTURES` to ``path``, in fp16 as OpenAI's are."""
    embed_dim, image_size, layers, width, patch, text_width, heads, text_layers = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = clip.model.CLIP(embed_dim, image_size, layers, width, patch, 77, 49408, text_width, heads, text_layers)
    model.initialize_parameters()
    torch.save(model.half().state_dict(), path)
    return path
