"""A squashed photo becomes the pixels that open_clip's own preprocess makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.contract.test_image import noise, small_sizes
from vizwiz_client.contract.image import load_photo, to_pixels


def open_clip_resize(side: int) -> Callable[[Image.Image], Image.Image]:
    """The resize step of open_clip's preprocess for checkpoints of ``resize_mode="squash"``."""
    reason = "open_clip is not installed: pip install open-clip-torch"
    transform = pytest.importorskip("open_clip.transform", reason=reason, exc_type=ImportError)
    resize, to_rgb, *_ = transform.image_transform(side, is_train=False, resize_mode="squash").transforms
    return lambda photo: to_rgb(resize(photo))


@pytest.mark.parametrize("side", [32, 33, 224, 378])
def test_on_generated_sizes(side: int) -> None:
    reference = open_clip_resize(side)
    for width, height in [*small_sizes(), (side, side), (side, 2 * side), (1000, 101), (16, 160)]:
        photo = noise(width, height)
        ours = to_pixels(load_photo(photo), side, squash=True)
        assert (ours.shape, ours.dtype, ours.flags.writeable) == ((side, side, 3), np.uint8, True)
        np.testing.assert_array_equal(ours, reference(photo), err_msg=f"{width} x {height} -> {side}")


def test_on_real_photos(vizwiz: Path) -> None:
    paths, reference = sorted((vizwiz / "val").glob("*.jpg"))[:12], open_clip_resize(378)
    assert len(paths) >= 8
    for path in paths:
        photo = load_photo(path)
        np.testing.assert_array_equal(to_pixels(photo, 378, squash=True), reference(photo))


def test_nothing_is_cropped() -> None:
    photo = Image.new("RGB", (300, 100), "white")
    photo.paste("red", (0, 0, 20, 100))
    assert to_pixels(photo, 30, squash=True)[15, 0].tolist() == [255, 0, 0]
    assert to_pixels(photo, 30)[15, 0].tolist() == [255, 255, 255]
