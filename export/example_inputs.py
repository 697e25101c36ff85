"""What graphs are shown before they are published: requests that are drawn at random, the same ones each time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from demo.photo import take_photo
from demo.questions import draw_question_kind, phrase
from demo.scene import Scene, draw_scene
from vizwiz_client.contract.image import load_photo, to_pixels

_PHOTO_SIZE = (480, 640)
_PHOTOS = 16  # ViT-L/14@336px takes 2 s for each on two cores

Array = npt.NDArray[Any]


def photograph(scene: Scene, rng: Random) -> bytes:
    """A photo of ``scene``, a JPEG."""
    file = io.BytesIO()
    take_photo(scene, _PHOTO_SIZE, rng).save(file, "JPEG", quality=90)
    return file.getvalue()


def draw_request(name: str, spoiled_share: float = 0.0) -> tuple[Scene, str, Random]:
    """A scene, a question about it, and the rest of the randomness of ``name``."""
    rng = Random(name)
    scene = draw_scene(rng, spoiled_share)
    return scene, phrase(draw_question_kind(scene, rng, 0), scene, rng), rng


def example_photos(side: int) -> Iterator[Array]:
    """Pixels uint8 [1, S, S, 3] to find ranges on: photos that the parity gate does not show, half of them spoiled, and
    what no photo goes beyond: black, white and noise."""
    for number in range(_PHOTOS):
        scene, _, rng = draw_request(f"example/{number}", spoiled_share=number % 2)
        yield to_pixels(load_photo(photograph(scene, rng)), side)[None]
    yield from (np.full((1, side, side, 3), value, np.uint8) for value in (0, 255))
    yield np.random.default_rng(1).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
