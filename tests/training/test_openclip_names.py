"""Names of open_clip's CLIPs: which checkpoints are accepted, and why others are not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.open_clips import VIT, config, open_clip
from training import openclip
from training.backbone import ClipError, check_clip_source, clip_name, folder_name
from training.openclip import find_checkpoint, unsupported_reason


def test_which_of_the_listed_checkpoints_are_accepted() -> None:
    """Prints the counts of docs/clips.md."""
    listed = [f"{architecture}/{tag}" for architecture, tag in open_clip.list_pretrained()]
    reasons = {name: reason_of_refusal(name) for name in listed}
    accepted = [name for name, reason in reasons.items() if reason is None]
    print(f"open_clip {open_clip.__version__}: {len(accepted)} of {len(reasons)} checkpoints are accepted")
    for reason, count in Counter(filter(None, reasons.values())).most_common():
        print(f"  {count:>3} refused: {reason}")
    assert {
        "ViT-B-16-quickgelu/metaclip_400m",
        "ViT-L-14/datacomp_xl_s13b_b90k",
        "ViT-L-14-quickgelu/dfn2b",
        "ViT-H-14/laion2b_s32b_b79k",
        "ViT-H-14-378-quickgelu/dfn5b",
        "ViT-bigG-14/laion2b_s39b_b160k",
        "RN50-quickgelu/cc12m",
    } <= {*accepted}
    families = (
        "SigLIP",
        "coca",
        "CLIPA",
        "worldwide",
        "EVA",
        "convnext",
        "roberta",
        "nllb",
        "MobileCLIP",
        "ViTamin",
        "PE-",
    )
    assert not [name for name in accepted if any(family in name for family in families)]


def reason_of_refusal(name: str) -> str | None:
    """The sentence of the error without the name of the checkpoint."""
    try:
        find_checkpoint(f"open_clip:{name}")
    except ClipError as error:
        return str(error).partition("; docs")[0].removeprefix(f"open_clip:{name} ").partition(": give")[0]
    return None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ViT-B-16-SigLIP/webli", "it is a SigLIP, whose tokenizer and pooling"),
        ("coca_ViT-L-14/laion2b_s13b_b90k", "it is a CoCa, which pools images by attention"),
        ("roberta-ViT-B-32/laion2b_s12b_b32k", "its text encoder is one of Hugging Face"),
        ("convnext_base/laion400m_s13b_b51k", "its image encoder is one of timm"),
        ("ViT-H-14-CLIPA/datacomp1b", "its tokenizer is one of Hugging Face"),
        ("ViT-H-14/dfn5b", "other activation: give open_clip:ViT-H-14-quickgelu/dfn5b"),
        ("ViT-B-33/openai", "no architecture 'ViT-B-33': near matches are ViT-B-32"),
        (
            "ViT-B-32-quickgelu/metaclip",
            "no checkpoint 'metaclip' of ViT-B-32-quickgelu: near matches are metaclip_400m",
        ),
        ("ViT-B-32", "expected open_clip:ARCHITECTURE/TAG"),
        ("ViT-B-32@nowhere.pt", "nowhere.pt is not a file that ends with .safetensors, .pt"),
    ],
)
def test_what_is_refused_says_why(name: str, reason: str) -> None:
    with pytest.raises(ClipError) as error:
        check_clip_source(f"open_clip:{name}")
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "pretrained", "reason"),
    [
        (config(), {"interpolation": "bilinear"}, "bilinear interpolation"),
        (config(), {"interpolation": "random"}, "random interpolation"),
        (config(), {"resize_mode": "longest"}, "mode 'longest'"),
        (config(VIT | {"image_size": [64, 32]}), {}, "not square"),
        (config(VIT | {"ls_init_value": 0.1}), {}, "its vision_cfg.ls_init_value is 0.1"),
        (config(VIT | {"no_ln_pre": True}), {}, "its vision_cfg.no_ln_pre is True"),
        (config(VIT | {"act_kwargs": {"approximate": "tanh"}}), {}, "vision_cfg.act_kwargs"),
        (config(text_cfg={"context_length": 64}), {}, "number of positions"),
        (config(text_cfg={"proj_bias": True}), {}, "text_cfg.proj_bias"),
        (config(custom_text=True), {}, "its text encoder is not CLIP's"),
        (config(VIT | {"norm_kwargs": {"eps": 1e-6}}), {}, None),
    ],
)
def test_settings_that_differ_from_clips(
    architecture: dict[str, Any], pretrained: dict[str, Any], reason: str | None
) -> None:
    found = unsupported_reason(architecture, pretrained)
    assert found is None if reason is None else reason in str(found)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError("No module named 'open_clip'")

    monkeypatch.setattr(openclip, "import_module", missing)
    openclip.open_clip.cache_clear()
    with pytest.raises(ClipError, match="pip install open-clip-torch"):
        check_clip_source("open_clip:ViT-B-32/openai")


def test_a_file_is_preprocessed_like_all_checkpoints_of_its_architecture(tmp_path: Path) -> None:
    (file := tmp_path / "weights.pt").touch()
    assert find_checkpoint(f"open_clip:ViT-H-14-378-quickgelu@{file}").pretrained["resize_mode"] == "squash"
    assert find_checkpoint(f"open_clip:ViT-H-14@{file}").pretrained["resize_mode"] == "shortest"
    with pytest.raises(ClipError, match=r"ViT-H-14-quickgelu/TAG@.*weights\.pt: metaclip_fullcc, dfn5b"):
        find_checkpoint(f"open_clip:ViT-H-14-quickgelu@{file}")
    assert find_checkpoint(f"open_clip:ViT-H-14-quickgelu/dfn5b@{file}").pretrained["resize_mode"] == "squash"


def test_names_for_reports_have_no_folders() -> None:
    assert clip_name("open_clip:ViT-B-16/dfn2b@/a/b@2/file.pt") == "open_clip:ViT-B-16/dfn2b@file.pt"
    assert clip_name("open_clip:ViT-B-16/dfn2b") == "open_clip:ViT-B-16/dfn2b"
    assert folder_name("open_clip:ViT-B-16/dfn2b@/a/file.pt") == "open_clip-ViT-B-16-dfn2b@file"
    assert folder_name("ViT-L/14@336px") == "ViT-L-14@336px"
    assert folder_name("demo/clip_demo.pt") == "clip_demo"
    assert folder_name("my clip (1) $a.pt") == "my-clip--1---a"
