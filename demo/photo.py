"""Render the photo of a scene: an object on a backdrop, its shadow, the light, and the usual flaws."""

from __future__ import annotations

import math
from random import Random

from PIL import Image, ImageChops, ImageFilter

from demo.backdrop import Size, draw_backdrop, noise, roughen
from demo.goods import draw_clothes, draw_door, draw_lamp, draw_note, draw_package, draw_switch
from demo.objects import OBJECTS
from demo.pen import COLOURS, SKIN, Pen, Rgb, mix
from demo.scene import Scene

_SUPERSAMPLING = 2  # for smooth edges
_FRAMES = {"money": 0.98, "door": 0.95, "switch": 0.75}  # object size / shorter side of the photo; else 0.8


def take_photo(scene: Scene, size: Size, rng: Random) -> Image.Image:
    """A photo of ``scene``, RGB of ``size`` pixels (width, height), rotated by ``scene.rotation``."""
    if scene.rotation in (90, 270):
        size = size[::-1]
    image = _backdrop(size, scene.tilt, rng)
    if scene.unusable not in ("empty", "covered", "black"):
        _place(image, scene, rng)
    image = _light(image, scene, rng)
    image = _make_unusable(image, scene, rng) if scene.unusable else _spoil(image, scene, rng)
    image = roughen(image, noise(size, (1, 1), rng.uniform(0.03, 0.12), rng, grey=False))
    return image.rotate(scene.rotation, expand=True) if scene.rotation else image


def _backdrop(size: Size, tilt: float, rng: Random) -> Image.Image:
    if not tilt:
        return draw_backdrop(size, rng)
    width, height = size
    diagonal = math.ceil(math.hypot(width, height))
    image = draw_backdrop((diagonal, diagonal), rng).rotate(tilt, Image.Resampling.BILINEAR)
    left, top = (diagonal - width) // 2, (diagonal - height) // 2
    return image.crop((left, top, left + width, top + height))


def _draw(scene: Scene, size: int, rng: Random) -> Image.Image:
    pen = Pen(size * _SUPERSAMPLING)
    colour = _varied(COLOURS.get(scene.colour, (0, 0, 0)), rng)
    if scene.kind == "object":
        OBJECTS[scene.name](pen, colour)
    elif scene.kind == "clothes":
        second = rng.choice([rgb for name, rgb in COLOURS.items() if name in _second_colours(scene.colour)])
        draw_clothes(pen, scene.name, scene.pattern, colour, second, rng)
    elif scene.kind == "package":
        draw_package(pen, scene.name, scene.word, colour, rng)
    elif scene.kind == "money":
        draw_note(pen, scene.amount, rng)
    else:
        {"switch": draw_switch, "lamp": draw_lamp, "door": draw_door}[scene.kind](pen, scene.state, colour)
    return pen.image


def _second_colours(colour: str) -> tuple[str, ...]:
    """Colours that stand out on cloth of ``colour`` without competing with it."""
    return ("black", "blue") if colour in ("white", "yellow", "pink", "grey") else ("white",)


def _varied(colour: Rgb, rng: Random) -> Rgb:
    """Another shade of the same colour."""
    target: Rgb = rng.choice(((0, 0, 0), (255, 255, 255), (128, 128, 128)))
    return mix(colour, target, rng.uniform(0, 0.13))


def _place(image: Image.Image, scene: Scene, rng: Random) -> None:
    """Draw the object, rotated and scaled, with its shadow."""
    shorter = min(image.size)
    object_size = round(shorter * _FRAMES.get(scene.kind, 0.8) * rng.uniform(0.72, 1.05))
    thing = _draw(scene, object_size, rng)
    tilt = scene.tilt + rng.gauss(0, 3 if scene.kind in ("door", "switch", "lamp") else 6)
    thing = thing.rotate(tilt, Image.Resampling.BILINEAR, expand=True)
    thing = thing.reduce(_SUPERSAMPLING)
    x, y = ((full - part) / 2 for full, part in zip(image.size, thing.size, strict=True))
    dx, dy = _offset(scene, shorter, rng)
    corner = (round(x + dx), round(y + dy))
    _cast_shadow(image, thing, corner, shorter, rng)
    image.paste(thing, corner, thing)


def _offset(scene: Scene, shorter: int, rng: Random) -> tuple[float, float]:
    if scene.unusable == "missed":
        angle, distance = rng.uniform(0, math.tau), 1.3
    elif scene.framing:
        angle, distance = rng.uniform(0, math.tau), 0.22 + 0.25 * scene.framing
    else:
        return rng.gauss(0, 0.04) * shorter, rng.gauss(0, 0.04) * shorter
    return math.cos(angle) * distance * shorter, math.sin(angle) * distance * shorter


def _cast_shadow(image: Image.Image, thing: Image.Image, corner: Size, shorter: int, rng: Random) -> None:
    coarse = thing.getchannel("A").reduce(4)
    coarse = coarse.filter(ImageFilter.GaussianBlur(shorter * 0.006)).point([level * 5 // 11 for level in range(256)])
    shadow = coarse.resize(thing.size, Image.Resampling.BILINEAR)
    shift = rng.uniform(0.01, 0.03) * shorter
    image.paste((18, 16, 20), (round(corner[0] + shift * rng.choice((-1, 1))), round(corner[1] + shift)), shadow)


def _light(image: Image.Image, scene: Scene, rng: Random) -> Image.Image:
    """Uneven light, warm or cold."""
    warmth = rng.gauss(0, 0.05)
    white = [255 * min(1, 1 + warmth), 250, 255 * min(1, 1 - warmth)]
    corners = [rng.uniform(0.72, 1.0) for _ in range(4)]
    light = Image.new("RGB", (2, 2))
    light.putdata([tuple(round(level * corner) for level in white) for corner in corners])
    return ImageChops.multiply(image, light.resize(image.size, Image.Resampling.BICUBIC))


def _spoil(image: Image.Image, scene: Scene, rng: Random) -> Image.Image:
    """Add the scene's flaws, in the order in which light meets finger, lens and sensor."""
    shorter = min(image.size)
    if scene.obstruction:
        image = _finger(image, 0.3 + 0.2 * scene.obstruction, rng)
    if scene.blur:
        image = _blur(image, shorter * (0.009 + 0.016 * scene.blur), rng)
    if scene.dark:
        image = _exposed(image, 0.45 - 0.3 * scene.dark)
    if scene.bright:
        image = _exposed(image, 1.3 + 0.3 * scene.bright, 35 + 35 * scene.bright)
    if scene.noise:
        image = roughen(image, noise(image.size, (1, 1), 0.3 + 0.5 * scene.noise, rng, grey=False))
    return image


def _blur(image: Image.Image, amount: float, rng: Random) -> Image.Image:
    """A moved or an unfocused camera, ``amount`` in pixels."""
    return _shake(image, 3 * amount, rng) if rng.random() < 0.5 else image.filter(ImageFilter.GaussianBlur(amount))


def _make_unusable(image: Image.Image, scene: Scene, rng: Random) -> Image.Image:
    shorter = min(image.size)
    if scene.unusable == "black":
        return _exposed(image, rng.uniform(0, 0.06))
    if scene.unusable == "smeared":
        amount = shorter * rng.uniform(0.09, 0.14)
        return _shake(image.filter(ImageFilter.GaussianBlur(amount)), amount * 3, rng)
    if scene.unusable == "covered":
        return _finger(image, rng.uniform(1.2, 1.6), rng)
    return image


def _exposed(image: Image.Image, gain: float, glare: float = 0.0) -> Image.Image:
    """Scale the levels by ``gain``; ``glare`` levels on top wash out the shadows."""
    return image.point([min(255, round(level * gain + glare)) for level in range(256)] * 3)


def _shake(image: Image.Image, length: float, rng: Random) -> Image.Image:
    """Motion blur: each blend doubles the number of shifted copies."""
    angle, step = rng.uniform(0, math.tau), 1.0
    while step < length:
        shift = (round(math.cos(angle) * step), round(math.sin(angle) * step))
        shifted = image.copy()
        shifted.paste(image, shift)
        image = Image.blend(image, shifted, 0.5)
        step *= 2
    return image


def _finger(image: Image.Image, reach: float, rng: Random) -> Image.Image:
    """A fingertip in front of the lens, out of focus, that comes from an edge of the photo."""
    shorter, small = min(image.size), (image.width // 8, image.height // 8)
    pen = Pen(max(small))
    unit = 100 / max(image.size)
    along, side = rng.uniform(0.2, 0.8), rng.choice((0, 1))
    x, y = (along, side) if rng.random() < 0.5 and image.width > image.height else (side, along)
    x, y, radius = x * image.width * unit, y * image.height * unit, reach * shorter * unit
    pen.ellipse(x - radius, y - radius, x + radius, y + radius, mix(SKIN, (120, 50, 40), rng.uniform(0, 0.4)))
    blob = pen.image.crop((0, 0, *small)).filter(ImageFilter.GaussianBlur(shorter * 0.004)).resize(image.size)
    image = image.copy()
    image.paste(blob, mask=blob)
    return image
