"""Photos and questions for the parity check and for int8 calibration; drawn ones are the same on every run.

Each parity input is preprocessed twice: by the client's code, and by the checkpoint's own package.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from demo.photo import take_photo
from demo.questions import draw_question_kind, phrase
from demo.scene import Scene, draw_scene
from training.backbone import FrozenClip
from training.dataset import Split
from vizwiz_client.contract import tensors, tokenizer
from vizwiz_client.contract.errors import ImageError, QuestionError
from vizwiz_client.contract.image import load_photo, to_pixels

RANDOM_PHOTOS = 4
DRAWN_PHOTOS = 12
DRAWN_QUESTIONS = 24
MAX_RUN_PHOTOS = 50  # each costs ViT-L/14@336px 3 s on two cores
MAX_RUN_QUESTIONS = 500
CALIBRATION_PHOTOS = 16  # each costs ViT-L/14@336px 2 s on two cores

GOLDEN_SCENE = Scene("object", "mug", "red")
GOLDEN_QUESTION = "What is this?"

_PHOTO_SIZE = (480, 640)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Inputs:
    """One set of P photos and Q questions; question i is asked about photo i modulo P."""

    name: str  # "random", "drawn" or "val"
    pixels: Array  # uint8 [P, S, S, 3]
    questions: list[Array]  # Q arrays of token ids, int32 [T], without padding
    reference_pixels: torch.Tensor  # fp32 [P, 3, S, S], normalised by the checkpoint's own package
    reference_questions: torch.Tensor  # int [Q, 77], tokenised by the checkpoint's own package


def random_inputs(model: FrozenClip) -> Inputs:
    """Photos of noise, and random token ids of each length of the text graph, of one less and of one more."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (RANDOM_PHOTOS, model.image_size, model.image_size, 3), dtype=np.uint8)
    edges = {length + more for length in tensors.TOKEN_LENGTHS for more in (-1, 0, 1)} - {tensors.CONTEXT_LENGTH + 1}
    questions = []
    for length in (3, *sorted(edges)):
        ids = random.integers(0, tokenizer.START_OF_TEXT, length, dtype=np.int32)
        ids[0], ids[-1] = tokenizer.START_OF_TEXT, tokenizer.END_OF_TEXT
        questions.append(ids)
    mean, std = torch.tensor(model.mean), torch.tensor(model.std)
    reference = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
    padded = np.stack([tokenizer.pad(ids, tensors.CONTEXT_LENGTH) for ids in questions])
    return Inputs("random", pixels, questions, reference, torch.from_numpy(padded))


def drawn_inputs(model: FrozenClip, golden_photo: bytes) -> Inputs:
    """The golden request, then photos and questions that the demo's renderer draws."""
    photos, questions = [golden_photo], [GOLDEN_QUESTION]
    for number in range(1, DRAWN_QUESTIONS):
        scene, question, rng = _draw_request(f"parity/{number}")
        questions.append(question)
        if number < DRAWN_PHOTOS:
            photos.append(_render(scene, rng))
    return _preprocess("drawn", model, [load_photo(photo) for photo in photos], questions)


def run_inputs(model: FrozenClip, split: Split) -> Inputs | None:
    """The first photos and questions of ``split`` that the client accepts; None if there are none."""
    photos: list[Image.Image] = []
    questions: list[str] = []
    for path, record in zip(split.photo_paths(), split.records, strict=True):
        if len(photos) < MAX_RUN_PHOTOS:
            with contextlib.suppress(ImageError):
                photos.append(load_photo(path))
        if len(questions) < MAX_RUN_QUESTIONS:
            with contextlib.suppress(QuestionError):
                tokenizer.tokenize(record.question)
                questions.append(record.question)
    return _preprocess(split.name, model, photos, questions) if photos and questions else None


def draw_golden_photo() -> bytes:
    """The photo of the golden request, a JPEG. It is drawn: a run's own photos may be private."""
    return _render(GOLDEN_SCENE, Random("golden"))


def calibration_photos(model: FrozenClip) -> Iterator[Array]:
    """Pixels uint8 [1, S, S, 3] to calibrate int8 on: drawn photos, half of them unusable, then black, white, noise.

    None of them is a parity input.
    """
    for number in range(CALIBRATION_PHOTOS):
        scene, _, rng = _draw_request(f"example/{number}", unusable_share=number % 2)
        yield to_pixels(load_photo(_render(scene, rng)), model.image_size, squash=model.squash)[None]
    shape = (1, model.image_size, model.image_size, 3)
    yield from (np.full(shape, value, np.uint8) for value in (0, 255))
    yield np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def _draw_request(seed: str, unusable_share: float = 0.0) -> tuple[Scene, str, Random]:
    """A scene, a question about it, and the generator that drew them."""
    rng = Random(seed)
    scene = draw_scene(rng, unusable_share)
    return scene, phrase(draw_question_kind(scene, rng, 0), scene, rng), rng


def _render(scene: Scene, rng: Random) -> bytes:
    """Photograph ``scene`` as a JPEG."""
    file = io.BytesIO()
    take_photo(scene, _PHOTO_SIZE, rng).save(file, "JPEG", quality=90)
    return file.getvalue()


def _preprocess(name: str, model: FrozenClip, photos: Sequence[Image.Image], questions: Sequence[str]) -> Inputs:
    reference_preprocess = model.reference_preprocess()
    return Inputs(
        name,
        np.stack([to_pixels(photo, model.image_size, squash=model.squash) for photo in photos]),
        [tokenizer.tokenize(question).ids for question in questions],
        torch.stack([reference_preprocess(photo) for photo in photos]),
        model.reference_tokenize(list(questions)),
    )
