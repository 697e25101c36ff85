"""OpenAI's nine CLIPs at full size with random weights: speed does not depend on the values."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch

from training.backbone import OPEN_CLIP, FrozenClip, clip
from training.openclip import OpenClip, open_clip

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
    torch.save(random_model(name).half().state_dict(), path)
    return path


def random_clip(name: str) -> FrozenClip:
    """One of :data:`ARCHITECTURES`, or "open_clip:ARCHITECTURE" in the preprocessing of OpenAI's, on the CPU."""
    architecture, cpu = name.removeprefix(OPEN_CLIP), torch.device("cpu")
    if architecture == name:
        return FrozenClip(random_model(name).eval().requires_grad_(False), name, "", cpu)
    package = open_clip()
    config = {key: value for key, value in package.get_model_config(architecture).items() if value}
    return OpenClip(package.CLIP(**config).eval().requires_grad_(False), name, "", cpu, architecture=architecture)


def random_model(name: str) -> Any:
    """The module of one of :data:`ARCHITECTURES`, with the same random weights each time."""
    embed_dim, image_size, layers, width, patch, text_width, heads, text_layers = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = clip.model.CLIP(embed_dim, image_size, layers, width, patch, 77, 49408, text_width, heads, text_layers)
    model.initialize_parameters()
    return model


def write_hugging_face(name: str, checkpoint: Path, folder: Path) -> None:
    """Write a Vision Transformer's checkpoint as Hugging Face's CLIPModel, with its tokenizer, unless it is there."""
    if (folder / "config.json").exists():
        return
    transformers: Any = importlib.import_module("transformers")  # optional, and typed in some versions only
    embed_dim, image_size, layers, width, patch, text_width, heads, text_layers = ARCHITECTURES[name]
    common = {"hidden_act": "quick_gelu"}
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, **common}
    vision |= {"num_attention_heads": width // 64, "image_size": image_size, "patch_size": patch}
    text = {"hidden_size": text_width, "intermediate_size": 4 * text_width, "num_hidden_layers": text_layers, **common}
    text |= {"num_attention_heads": heads, "eos_token_id": 49407, "bos_token_id": 49406}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=embed_dim)
    model = transformers.CLIPModel(config).eval()
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model.load_state_dict(_hugging_face_names({key: value.float() for key, value in state.items()}), strict=False)
    folder.mkdir(parents=True, exist_ok=True)
    table = clip.simple_tokenizer.SimpleTokenizer()
    (folder / "vocab.json").write_text(json.dumps(table.encoder), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in table.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    size = {"shortest_edge": image_size}
    crop = {"height": image_size, "width": image_size}
    images = {"image_processor_type": "CLIPImageProcessor", "size": size, "crop_size": crop, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    model.save_pretrained(folder)


def _hugging_face_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenAI's weights under the names of Hugging Face's CLIPModel."""
    found = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T,
        "text_projection.weight": state["text_projection"].T,
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
    }
    norms = {"ln_final": "text_model.final_layer_norm", "visual.ln_pre": "vision_model.pre_layrnorm"}
    norms["visual.ln_post"] = "vision_model.post_layernorm"
    parts = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
    parts |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if module in norms:
            found[f"{norms[module]}.{kind}"] = value
        elif (prefix := name.partition("resblocks.")[0]) != name:
            number, _, rest = name.removeprefix(f"{prefix}resblocks.").partition(".")
            layer = f"{'vision' if prefix.startswith('visual') else 'text'}_model.encoder.layers.{number}"
            if rest.startswith("attn.in_proj_"):
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    found[f"{layer}.self_attn.{letter}_proj.{rest.removeprefix('attn.in_proj_')}"] = third
            else:
                part, _, kind = rest.rpartition(".")
                found[f"{layer}.{parts[part]}.{kind}"] = value
    return found
