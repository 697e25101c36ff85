"""Backdrops: tables, cloths, carpets, tiles and walls; and the noise that textures are cropped from."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from demo.pen import Rgb, darker, lighter

Size = tuple[int, int]
_BANK_SIZE = 1024  # pixels of noise; every texture is a crop of it
_GREYS: tuple[Rgb, ...] = ((226, 222, 214), (206, 204, 200), (188, 180, 168), (150, 148, 146), (216, 206, 186))
_WOODS: tuple[Rgb, ...] = ((186, 140, 92), (148, 104, 64), (206, 168, 122), (122, 84, 54), (170, 150, 126))
_CLOTHS: tuple[Rgb, ...] = (*_GREYS, (176, 190, 204), (196, 206, 182), (214, 190, 190), (128, 140, 156), (96, 92, 90))


@lru_cache(maxsize=1)
def _bank() -> Image.Image:
    noise = np.random.default_rng(0).normal(128, 42, (_BANK_SIZE, _BANK_SIZE, 3))
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8))


def noise(size: Size, grain: Size, amount: float, rng: Random, *, grey: bool = True) -> Image.Image:
    """Smooth noise around 128 with grains of about ``grain`` pixels; ``amount`` 1 is a deviation of 42 levels."""
    width, height = max(2, size[0] // grain[0]), max(2, size[1] // grain[1])
    x, y = rng.randrange(_BANK_SIZE - width), rng.randrange(_BANK_SIZE - height)
    window = _bank().crop((x, y, x + width, y + height))
    window = window.getchannel(0).convert("RGB") if grey else window
    window = window.point([round(128 + (level - 128) * amount) for level in range(256)] * 3)
    return window if window.size == size else window.resize(size, Image.Resampling.BICUBIC)


def roughen(image: Image.Image, texture: Image.Image) -> Image.Image:
    """Add a texture of :func:`noise`."""
    return ImageChops.add(image, texture, 1, -128)


def draw_backdrop(size: Size, rng: Random) -> Image.Image:
    """A plausible surface of ``size`` pixels (width, height), RGB."""
    return rng.choice(_BACKDROPS)(size, rng)


def _grain(size: Size, share: float) -> int:
    return max(1, round(min(size) * share))


def _table(size: Size, rng: Random) -> Image.Image:
    wood = rng.choice(_WOODS)
    image = Image.new("RGB", size, wood)
    image = roughen(image, noise(size, (_grain(size, 0.4), _grain(size, 0.008)), 0.45, rng))
    draw = ImageDraw.Draw(image)
    for y in range(rng.randrange(40), size[1], _grain(size, rng.uniform(0.25, 0.45))):
        draw.line([(0, y), (size[0], y)], darker(wood, 0.4), _grain(size, 0.005))
    return image


def _cloth(size: Size, rng: Random) -> Image.Image:
    image = roughen(Image.new("RGB", size, rng.choice(_CLOTHS)), noise(size, (_grain(size, 0.25),) * 2, 0.3, rng))
    return roughen(image, noise(size, (_grain(size, 0.006),) * 2, 0.15, rng))


def _carpet(size: Size, rng: Random) -> Image.Image:
    image = roughen(Image.new("RGB", size, rng.choice(_CLOTHS)), noise(size, (_grain(size, 0.012),) * 2, 0.7, rng))
    return roughen(image, noise(size, (_grain(size, 0.3),) * 2, 0.2, rng))


def _tiles(size: Size, rng: Random) -> Image.Image:
    tile = rng.choice(_GREYS)
    image = roughen(Image.new("RGB", size, tile), noise(size, (_grain(size, 0.1),) * 2, 0.12, rng))
    draw = ImageDraw.Draw(image)
    step, start = _grain(size, rng.uniform(0.25, 0.5)), rng.randrange(60)
    for at in range(start, max(size), step):
        draw.line([(at, 0), (at, size[1])], darker(tile, 0.3), _grain(size, 0.008))
        draw.line([(0, at), (size[0], at)], darker(tile, 0.3), _grain(size, 0.008))
    return image


def _wall(size: Size, rng: Random) -> Image.Image:
    paint = rng.choice(_CLOTHS)
    image = Image.new("RGB", (2, 2))
    image.putdata([lighter(paint, rng.uniform(0, 0.3)), darker(paint, rng.uniform(0, 0.3)), paint, darker(paint, 0.1)])
    image = image.resize(size, Image.Resampling.BICUBIC)
    if rng.random() < 0.5:  # the edge of a shelf or a skirting board
        y = round(size[1] * rng.uniform(0.7, 0.9))
        ImageDraw.Draw(image).rectangle((0, y, *size), rng.choice(_WOODS))
    return image


def _marble(size: Size, rng: Random) -> Image.Image:
    image = Image.new("RGB", size, rng.choice(_GREYS))
    for grain, amount in ((0.3, 0.35), (0.08, 0.2), (0.02, 0.12)):
        image = roughen(image, noise(size, (_grain(size, grain),) * 2, amount, rng))
    return image


_BACKDROPS: tuple[Callable[[Size, Random], Image.Image], ...] = (_table, _cloth, _carpet, _tiles, _wall, _marble)
