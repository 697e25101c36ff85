"""What the graphs are asked when they are compared with PyTorch: noise, drawn photos, and photos of the run's own data.

Each input comes twice, as the contract's code makes it and as the ``clip`` package's own does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from demo.scene import Scene
from export.example_inputs import draw_request, photograph
from training.backbone import PIXEL_MEAN, PIXEL_STD, clip_preprocess, clip_tokenize
from training.dataset import Split
from vizwiz_client.contract import tensors, tokenizer
from vizwiz_client.contract.errors import ImageError, QuestionError
from vizwiz_client.contract.image import load_photo, to_pixels

RANDOM_PHOTOS = 4
DRAWN_PHOTOS = 12
DRAWN_QUESTIONS = 24
RUN_PHOTOS = 50  # at most: a photo costs ViT-L/14@336px 3 s on two cores
RUN_QUESTIONS = 500

GOLDEN_SCENE = Scene("object", "mug", "red")
GOLDEN_QUESTION = "What is this?"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Inputs:
    """Photos and questions, P and Q of them; the question of row i is asked about photo i modulo P."""

    name: str  # "random", "drawn" or "val"
    pixels: Array  # uint8 [P, S, S, 3]
    questions: list[Array]  # Q of int32 [T], each at its own length
    reference_pixels: torch.Tensor  # fp32 [P, 3, S, S], by clip's own preprocessing or its definition
    reference_questions: torch.Tensor  # int [Q, 77]


def random_inputs(side: int) -> Inputs:
    """Noise, and random words that fill each length that the text graph computes at, one fewer and one more."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (RANDOM_PHOTOS, side, side, 3), dtype=np.uint8)
    edges = {length + more for length in tensors.TOKEN_LENGTHS for more in (-1, 0, 1)} - {tensors.CONTEXT_LENGTH + 1}
    questions = []
    for used in (3, *sorted(edges)):
        ids = random.integers(0, tokenizer.START_OF_TEXT, used, dtype=np.int32)
        ids[0], ids[-1] = tokenizer.START_OF_TEXT, tokenizer.END_OF_TEXT
        questions.append(ids)
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    reference = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
    padded = np.stack([tokenizer.pad(ids, tensors.CONTEXT_LENGTH) for ids in questions])
    return Inputs("random", pixels, questions, reference, torch.from_numpy(padded))


def drawn_inputs(side: int, golden_photo: bytes) -> Inputs:
    """The golden request, and photos and questions drawn at random by the demo's renderer."""
    photos, questions = [golden_photo], [GOLDEN_QUESTION]
    for number in range(1, DRAWN_QUESTIONS):
        scene, question, rng = draw_request(f"parity/{number}")
        questions.append(question)
        if number < DRAWN_PHOTOS:
            photos.append(photograph(scene, rng))
    return _asked("drawn", side, [load_photo(photo) for photo in photos], questions)


def run_inputs(side: int, split: Split) -> Inputs | None:
    """Photos and questions of ``split`` that a client could ask; None where it has none, for a data set may not."""
    photos: list[Image.Image] = []
    questions: list[str] = []
    for path, record in zip(split.photo_paths(), split.records, strict=True):
        if len(photos) < RUN_PHOTOS:
            with contextlib.suppress(ImageError):
                photos.append(load_photo(path))
        if len(questions) < RUN_QUESTIONS:
            with contextlib.suppress(QuestionError):
                tokenizer.tokenize(record.question)
                questions.append(record.question)
    return _asked(split.name, side, photos, questions) if photos and questions else None


def draw_golden_photo() -> bytes:
    """The photo of the golden request, a JPEG: drawn, because a photo of the run's data may be somebody's own."""
    return photograph(GOLDEN_SCENE, Random("golden"))


def _asked(name: str, side: int, photos: Sequence[Image.Image], questions: Sequence[str]) -> Inputs:
    preprocess = clip_preprocess(side)
    return Inputs(
        name,
        np.stack([to_pixels(photo, side) for photo in photos]),
        [tokenizer.tokenize(question).ids for question in questions],
        torch.stack([preprocess(photo) for photo in photos]),
        clip_tokenize(list(questions)),
    )
