"""What carries information besides its colour: packages with words, banknotes, clothes with patterns, switches."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from demo.pen import COLOURS, FACES, METAL, Pen, Rgb, darker, lighter, mix

_INK: Rgb = (40, 38, 40)
_LINEN: Rgb = (250, 248, 240)

# Each product with the packages it comes in, and the colour of what is pictured on them.
PRODUCTS: dict[str, tuple[tuple[str, ...], Rgb]] = {
    "milk": (("carton",), (120, 176, 226)),
    "soup": (("can",), (214, 64, 40)),
    "rice": (("box", "packet"), (238, 226, 190)),
    "coffee": (("jar", "packet"), (92, 54, 30)),
    "tea": (("box",), (60, 130, 70)),
    "salt": (("box", "jar"), (70, 110, 190)),
    "beans": (("can",), (150, 70, 40)),
    "juice": (("carton",), (244, 150, 30)),
    "honey": (("jar",), (232, 170, 40)),
    "corn": (("can",), (246, 206, 60)),
    "flour": (("packet",), (226, 200, 160)),
    "cereal": (("box",), (200, 120, 190)),
}
PACKAGES = ("carton", "can", "box", "packet", "jar")
AMOUNTS = (1, 5, 10, 20, 50, 100)
_NOTE_TINTS: dict[int, Rgb] = {  # as on many currencies, each value has its tint
    1: (186, 178, 160),
    5: (150, 176, 200),
    10: (226, 150, 136),
    20: (164, 190, 232),
    50: (244, 196, 130),
    100: (160, 206, 150),
}
PATTERNS = ("plain", "striped", "plaid", "polka dots", "floral")


def draw_package(pen: Pen, package: str, word: str, colour: Rgb, rng: Random) -> None:
    """A package in one colour with a label that carries ``word`` and a picture of the product."""
    label, left, right = _PACKAGE_SHAPES[package](pen, colour)
    width = right - left
    pen.rect(left, label, right, label + 42, _LINEN if rng.random() < 0.7 else lighter(colour, 0.8))
    pen.text(word.upper(), (left + right) / 2, label + 11, width - 5, 17, _INK, rng.choice(FACES))
    _picture(pen, word, (left + right) / 2, label + 31)


def _carton(pen: Pen, colour: Rgb) -> tuple[float, float, float]:
    pen.poly([(26, 24), (74, 24), (64, 10), (36, 10)], darker(colour, 0.25))
    pen.rect(34, 3, 66, 12, lighter(colour, 0.2))
    pen.rect(22, 24, 78, 98, colour)
    pen.poly([(78, 24), (84, 30), (84, 92), (78, 98)], darker(colour, 0.4))
    return 38, 22, 78


def _can(pen: Pen, colour: Rgb) -> tuple[float, float, float]:
    pen.rect(18, 12, 82, 92, colour)
    pen.ellipse(18, 82, 82, 98, darker(colour, 0.2))
    pen.ellipse(18, 4, 82, 22, METAL)
    pen.ellipse(23, 6, 77, 20, lighter(METAL))
    pen.arc(((42, 8), (58, 18)), 0, 360, darker(METAL), 2)
    return 34, 18, 82


def _box(pen: Pen, colour: Rgb) -> tuple[float, float, float]:
    pen.poly([(14, 12), (24, 4), (90, 4), (80, 12)], lighter(colour, 0.3))
    pen.poly([(80, 12), (90, 4), (90, 86), (80, 96)], darker(colour, 0.4))
    pen.rect(14, 12, 80, 96, colour)
    return 30, 18, 76


def _packet(pen: Pen, colour: Rgb) -> tuple[float, float, float]:
    pen.poly([(20, 14), (80, 14), (86, 50), (80, 97), (20, 97), (14, 50)], colour)
    pen.rect(18, 5, 82, 16, darker(colour, 0.25))
    for x in range(20, 82, 6):
        pen.line([(x, 7), (x, 14)], darker(colour, 0.45), 1)
    return 34, 17, 83


def _jar(pen: Pen, colour: Rgb) -> tuple[float, float, float]:
    pen.rect(18, 20, 82, 97, mix(colour, (255, 255, 255), 0.15), 12)
    pen.rect(22, 4, 78, 20, darker(colour, 0.45), 3)
    pen.rect(22, 26, 27, 90, lighter(colour, 0.6), 2)
    return 38, 18, 82


_PACKAGE_SHAPES: dict[str, Callable[[Pen, Rgb], tuple[float, float, float]]] = {
    "carton": _carton,
    "can": _can,
    "box": _box,
    "packet": _packet,
    "jar": _jar,
}


def _picture(pen: Pen, word: str, x: float, y: float) -> None:
    tint = PRODUCTS[word][1]
    if word in ("soup", "rice", "cereal", "beans", "corn"):  # a bowl of it
        pen.half(x - 15, y - 14, x + 15, y + 11, 0, 180, darker(tint, 0.5))
        pen.ellipse(x - 15, y - 6, x + 15, y + 2, tint)
    elif word in ("coffee", "tea"):  # a cup of it
        pen.rect(x - 10, y - 7, x + 8, y + 10, tint, 3)
        pen.arc(((x + 4, y - 5), (x + 14, y + 6)), -90, 90, tint, 2)
    elif word in ("milk", "juice"):  # a glass of it
        pen.poly([(x - 8, y - 9), (x + 8, y - 9), (x + 6, y + 10), (x - 6, y + 10)], tint)
    else:
        pen.ellipse(x - 11, y - 10, x + 11, y + 10, tint)


def draw_note(pen: Pen, amount: int, rng: Random) -> None:
    """A banknote of no country: its value large in the middle and small in the corners."""
    tint = _NOTE_TINTS[amount]
    ink = darker(tint, 0.65)
    pen.rect(1, 26, 99, 74, darker(tint, 0.3), 1)
    pen.rect(3, 28, 97, 72, lighter(tint, 0.25))
    pen.ellipse(6, 36, 30, 66, tint)
    pen.ellipse(13, 40, 23, 51, ink)
    pen.half(8, 51, 28, 75, 180, 360, ink)
    for y in range(31, 70, 4):
        pen.line([(72, y), (80, y)], tint, 1.2)
    pen.text(str(amount), 53, 50, 40, 28, ink, FACES[1] if rng.random() < 0.5 else FACES[0])
    for x, y in ((89, 34), (89, 66)):
        pen.text(str(amount), x, y, 12, 7, ink)


def draw_pattern(pen: Pen, pattern: str, colour: Rgb, second: Rgb, rng: Random) -> None:
    """Fill the square with cloth of ``colour``, patterned in ``second``."""
    pen.rect(0, 0, 100, 100, colour)
    step = rng.choice((10, 12, 15))
    if pattern == "striped":
        for x in range(0, 101, step):
            pen.rect(0, x, 100, x + step / 2.2, second)
    elif pattern == "plaid":
        for x in range(0, 101, step + 4):
            pen.rect(x, 0, x + step / 2.6, 100, mix(colour, second, 0.6))
        for y in range(0, 101, step + 4):
            pen.rect(0, y, 100, y + step / 2.6, mix(colour, second, 0.8))
            pen.rect(0, y + step / 1.4, 100, y + step / 1.4 + 1, second)
    elif pattern == "polka dots":
        for row, y in enumerate(range(0, 101, step)):
            for x in range(-(row % 2) * step // 2, 101, step):
                pen.ellipse(x, y, x + step / 2, y + step / 2, second)
    elif pattern == "floral":
        _flowers(pen, second, step + 7)


def _flowers(pen: Pen, second: Rgb, step: int) -> None:
    for row, y in enumerate(range(0, 106, step)):
        for x in range(-(row % 2) * step // 2, 106, step):
            pen.line([(x, y), (x + 6, y + 8)], (60, 130, 60), 2)
            for dx, dy in ((-4, 0), (4, 0), (0, -4), (0, 4)):
                pen.ellipse(x + dx - 3.4, y + dy - 3.4, x + dx + 3.4, y + dy + 3.4, second)
            pen.ellipse(x - 2.5, y - 2.5, x + 2.5, y + 2.5, (246, 206, 60))


def draw_clothes(pen: Pen, garment: str, pattern: str, colour: Rgb, second: Rgb, rng: Random) -> None:
    """A garment laid flat, cut out of patterned cloth."""
    size = pen.image.size[0]
    shape = Pen(size)
    for outline in GARMENTS[garment]:
        shape.poly(outline, _INK)
    draw_pattern(pen, pattern, colour, second, rng)
    pen.clip_to(shape.image)
    if garment == "shirt":
        pen.half(38, -2, 62, 18, 0, 180, darker(colour, 0.6))
    elif garment == "trousers":
        pen.rect(25, 4, 75, 10, darker(colour, 0.5))
    elif garment == "tie":
        pen.poly([(42, 4), (58, 4), (55, 16), (45, 16)], darker(colour, 0.35))
    elif garment == "dress":
        pen.rect(34, 39, 66, 44, darker(colour, 0.5))


GARMENTS: dict[str, tuple[list[tuple[float, float]], ...]] = {
    "shirt": ([(34, 8), (66, 8), (96, 26), (86, 48), (74, 42), (74, 95), (26, 95), (26, 42), (14, 48), (4, 26)],),
    "dress": ([(36, 4), (42, 4), (50, 16), (58, 4), (64, 4), (66, 42), (90, 96), (10, 96), (34, 42)],),
    "trousers": ([(25, 4), (75, 4), (82, 97), (59, 97), (50, 34), (41, 97), (18, 97)],),
    "tie": ([(42, 4), (58, 4), (55, 16), (64, 78), (50, 98), (36, 78), (45, 16)],),
}


def draw_switch(pen: Pen, state: str, colour: Rgb) -> None:
    """A rocker switch on its plate: up and lit when on, down when off."""
    pen.rect(19, 7, 83, 97, darker(colour, 0.35), 5)
    pen.rect(17, 4, 81, 94, colour, 5)
    for y in (10, 88):
        pen.ellipse(47, y - 2, 51, y + 2, METAL)
    pen.rect(35, 20, 63, 78, darker(colour, 0.45), 2)
    on = state == "on"
    pen.rect(37, 22, 61, 48, lighter(colour, 0.2) if on else darker(colour, 0.25), 2)
    pen.rect(37, 50, 61, 76, darker(colour, 0.25) if on else lighter(colour, 0.2), 2)
    pen.rect(44, 27, 54, 33, (255, 96, 24) if on else darker(colour, 0.55), 1)
    pen.text("ON" if on else "OFF", 49, 40 if on else 64, 16, 9, _INK)


def draw_lamp(pen: Pen, state: str, colour: Rgb) -> None:
    """A table lamp; on, its shade is lit and the light falls around it."""
    if state == "on":
        for step in range(16):
            pen.glow(50, 36, 49 - step, (255, 238, 160), 8 * step)
    pen.rect(46, 50, 54, 88, METAL)
    pen.ellipse(28, 82, 72, 97, darker(METAL))
    shade = mix(colour, (255, 244, 190), 0.45) if state == "on" else darker(colour, 0.1)
    pen.poly([(36, 12), (64, 12), (82, 56), (18, 56)], shade)
    if state == "on":
        pen.ellipse(18, 50, 82, 62, (255, 252, 224))
    else:
        pen.ellipse(18, 52, 82, 60, darker(colour, 0.5))


def draw_door(pen: Pen, state: str, colour: Rgb) -> None:
    """A door in its frame: closed, with its panels, or swung open on a dark room."""
    pen.rect(18, 0, 82, 100, (232, 226, 214))
    if state == "closed":
        pen.rect(24, 5, 76, 100, colour)
        for x in (30, 53):
            for y in (12, 56):
                pen.rect(x, y, x + 17, y + 34, darker(colour, 0.25), 1)
        pen.ellipse(68, 50, 74, 56, (220, 184, 70))
    else:
        pen.rect(24, 5, 76, 100, (34, 34, 42))
        pen.poly([(24, 78), (76, 90), (76, 100), (24, 100)], COLOURS["brown"])
        pen.poly([(24, 5), (42, 14), (42, 112), (24, 100)], colour)
        pen.ellipse(36, 54, 41, 60, (220, 184, 70))
