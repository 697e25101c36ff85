"""Everyday objects: each is drawn upright, in one main colour, on a square of 100 units."""

from __future__ import annotations

import math
from collections.abc import Callable

from demo.pen import COLOURS, METAL, WOOD, Pen, Rgb, contrasting, darker, lighter

_INK: Rgb = (40, 38, 40)
_PAPER: Rgb = (246, 242, 230)


def _mug(pen: Pen, colour: Rgb) -> None:
    pen.arc(((56, 36), (88, 72)), -95, 95, darker(colour, 0.15), 7)
    pen.rect(18, 22, 70, 88, colour, 8)
    pen.rect(22, 30, 29, 80, lighter(colour), 3)
    pen.ellipse(18, 15, 70, 31, lighter(colour, 0.2))
    pen.ellipse(22, 18, 66, 29, (70, 44, 28))


def _bottle(pen: Pen, colour: Rgb) -> None:
    pen.poly([(42, 18), (58, 18), (59, 32), (70, 46), (30, 46), (41, 32)], colour)
    pen.rect(30, 42, 70, 97, colour, 6)
    pen.rect(40, 5, 60, 18, darker(colour, 0.45), 2)
    pen.rect(34, 48, 39, 90, lighter(colour, 0.5), 2)
    pen.rect(44, 56, 66, 80, lighter(colour, 0.75))


def _sock(pen: Pen, colour: Rgb) -> None:
    pen.line([(42, 18), (42, 66), (70, 78)], colour, 26)
    pen.rect(28, 4, 56, 18, lighter(colour, 0.55), 2)
    pen.ellipse(66, 65, 86, 91, darker(colour))
    pen.ellipse(28, 58, 46, 80, darker(colour))


def _umbrella(pen: Pen, colour: Rgb) -> None:
    pen.line([(50, 8), (50, 86)], WOOD, 3)
    pen.arc(((50, 78), (64, 94)), 0, 180, WOOD, 3.5)
    pen.half(6, 12, 94, 96, 180, 360, colour)
    for x, shade in ((6, 0.0), (28, 0.25), (50, 0.1), (72, 0.3)):
        pen.poly([(50, 12), (x, 54), (x + 22, 54)], darker(colour, shade))
        pen.half(x, 48, x + 22, 60, 180, 360, (0, 0, 0))
        pen.half(x, 49, x + 22, 62, 180, 360, darker(colour, 0.55))


def _chair(pen: Pen, colour: Rgb) -> None:
    for x in (26, 66):
        pen.rect(x, 6, x + 7, 96, darker(colour, 0.2), 1)
    pen.poly([(20, 54), (30, 46), (74, 46), (84, 58), (84, 64), (20, 64)], colour)
    for y in (8, 20, 32):
        pen.rect(26, y, 73, y + 8, colour, 2)
    for x in (18, 78):
        pen.rect(x, 60, x + 7, 98, darker(colour, 0.35), 1)


def _apple(pen: Pen, colour: Rgb) -> None:
    pen.ellipse(14, 26, 60, 90, colour)
    pen.ellipse(40, 26, 86, 90, darker(colour, 0.08))
    pen.ellipse(26, 50, 76, 94, colour)
    pen.ellipse(22, 38, 34, 58, lighter(colour, 0.5))
    pen.ellipse(42, 26, 58, 34, darker(colour, 0.5))
    pen.line([(50, 31), (54, 10)], (84, 56, 30), 4)
    pen.poly([(55, 18), (66, 6), (82, 8), (70, 20)], (64, 140, 52))


def _hat(pen: Pen, colour: Rgb) -> None:
    pen.ellipse(3, 56, 97, 86, darker(colour, 0.2))
    pen.ellipse(5, 54, 95, 80, colour)
    pen.rect(26, 20, 74, 68, colour, 14)
    pen.rect(26, 54, 74, 66, contrasting(colour))
    pen.half(26, 58, 74, 76, 0, 180, contrasting(colour))
    pen.ellipse(36, 22, 64, 32, darker(colour))


def _shoe(pen: Pen, colour: Rgb) -> None:
    pen.poly([(8, 36), (34, 32), (50, 50), (78, 58), (94, 68), (94, 78), (6, 78)], colour)
    pen.ellipse(76, 57, 97, 82, colour)
    pen.rect(4, 74, 97, 84, (236, 234, 228), 4)
    pen.ellipse(8, 30, 35, 42, darker(colour, 0.6))
    for x, y in ((38, 40), (46, 47), (54, 52)):
        pen.line([(x, y), (x - 8, y + 9)], contrasting(colour), 2.5)


def _scissors(pen: Pen, colour: Rgb) -> None:
    for side in (-1, 1):
        pen.poly([(50 - 4 * side, 56), (50 + 5 * side, 60), (50 + 17 * side, 4)], METAL)
        pen.arc(((50 - 17 * side - 14, 64), (50 - 17 * side + 14, 96)), 0, 360, colour, 7)
        pen.line([(50 + 2 * side, 54), (50 - 10 * side, 68)], colour, 7)
    pen.ellipse(46, 51, 54, 59, _INK)


def _book(pen: Pen, colour: Rgb) -> None:
    pen.rect(20, 10, 86, 95, darker(colour, 0.3), 2)
    pen.rect(24, 12, 88, 90, _PAPER)
    pen.rect(16, 6, 82, 88, colour, 2)
    pen.rect(16, 6, 25, 88, darker(colour, 0.35), 1)
    for y, right in ((24, 72), (32, 64), (66, 60)):
        pen.rect(34, y, right, y + 4, contrasting(colour))


def _ball(pen: Pen, colour: Rgb) -> None:
    pen.ellipse(10, 10, 90, 90, colour)
    seam = contrasting(colour)
    pen.arc(((-36, 12), (44, 88)), -58, 58, seam, 2.5)
    pen.arc(((56, 12), (136, 88)), 122, 238, seam, 2.5)
    pen.line([(50, 11), (50, 89)], seam, 2)
    pen.line([(11, 50), (89, 50)], seam, 2)
    pen.ellipse(26, 18, 44, 32, lighter(colour, 0.5))


def _clock(pen: Pen, colour: Rgb) -> None:
    pen.ellipse(8, 8, 92, 92, colour)
    pen.ellipse(18, 18, 82, 82, (250, 249, 244))
    for hour in range(12):
        angle = math.radians(30 * hour)
        x, y = math.sin(angle), math.cos(angle)
        pen.line([(50 + 25 * x, 50 + 25 * y), (50 + 29 * x, 50 + 29 * y)], _INK, 2.5)
    pen.line([(50, 50), (50, 27)], _INK, 3)
    pen.line([(50, 50), (65, 57)], _INK, 4)


def _bowl(pen: Pen, colour: Rgb) -> None:
    pen.half(6, 2, 94, 90, 0, 180, colour)
    pen.rect(34, 84, 66, 94, darker(colour), 2)
    pen.ellipse(6, 32, 94, 60, lighter(colour, 0.25))
    pen.ellipse(13, 35, 87, 57, darker(colour, 0.35))


def _bucket(pen: Pen, colour: Rgb) -> None:
    pen.arc(((18, 0), (82, 72)), 180, 360, METAL, 3)
    pen.poly([(14, 36), (86, 36), (74, 92), (26, 92)], colour)
    pen.ellipse(26, 86, 74, 98, colour)
    pen.ellipse(14, 28, 86, 46, lighter(colour, 0.25))
    pen.ellipse(19, 31, 81, 44, darker(colour, 0.5))
    pen.poly([(22, 50), (28, 50), (34, 86), (30, 86)], lighter(colour, 0.4))


def _glove(pen: Pen, colour: Rgb) -> None:
    for x, top in ((30, 20), (43, 10), (56, 12), (68, 22)):
        pen.line([(x, top), (x + (50 - x) * 0.1, 56)], colour, 11)
    pen.line([(36, 68), (14, 48)], colour, 11)
    pen.rect(26, 46, 74, 78, colour, 8)
    pen.rect(28, 76, 72, 95, darker(colour, 0.3), 2)
    for x in (36, 44, 52, 60):
        pen.line([(x, 80), (x, 92)], lighter(colour, 0.2), 1.5)


def _comb(pen: Pen, colour: Rgb) -> None:
    pen.rect(4, 28, 96, 48, colour, 5)
    for x in range(6, 92, 6):
        pen.rect(x, 44, x + 3, 76, colour, 1)
    pen.rect(10, 32, 90, 36, lighter(colour, 0.3), 2)


def _bag(pen: Pen, colour: Rgb) -> None:
    pen.arc(((28, 4), (72, 74)), 180, 360, darker(colour, 0.4), 6)
    pen.poly([(18, 38), (82, 38), (94, 92), (6, 92)], colour)
    pen.poly([(18, 38), (82, 38), (86, 58), (14, 58)], darker(colour, 0.2))
    pen.rect(44, 52, 56, 64, (226, 190, 84), 2)


def _candle(pen: Pen, colour: Rgb) -> None:
    pen.rect(34, 38, 66, 90, colour, 3)
    pen.ellipse(34, 33, 66, 43, lighter(colour, 0.3))
    pen.rect(38, 46, 43, 86, lighter(colour, 0.4), 2)
    pen.line([(50, 38), (50, 28)], _INK, 2)
    pen.poly([(50, 4), (59, 22), (55, 31), (45, 31), (41, 22)], COLOURS["orange"])
    pen.poly([(50, 13), (55, 24), (50, 30), (45, 24)], (255, 240, 150))
    pen.ellipse(18, 84, 82, 97, METAL)


def _teapot(pen: Pen, colour: Rgb) -> None:
    pen.arc(((60, 34), (96, 76)), -100, 110, darker(colour, 0.2), 6)
    pen.poly([(4, 34), (14, 32), (34, 58), (28, 74)], darker(colour, 0.15))
    pen.ellipse(20, 28, 80, 90, colour)
    pen.half(32, 20, 68, 44, 180, 360, darker(colour, 0.2))
    pen.ellipse(45, 12, 55, 22, darker(colour, 0.35))
    pen.ellipse(29, 40, 39, 58, lighter(colour, 0.5))
    pen.rect(34, 86, 66, 92, darker(colour), 2)


def _remote(pen: Pen, colour: Rgb) -> None:
    pen.rect(32, 2, 68, 98, colour, 8)
    key = contrasting(colour)
    pen.ellipse(37, 7, 45, 15, COLOURS["red"])
    for y in (22, 32, 42):
        for x in (38, 47, 56):
            pen.rect(x, y, x + 6, y + 6, key, 1)
    pen.ellipse(38, 54, 62, 78, key)
    pen.ellipse(45, 61, 55, 71, colour)
    pen.rect(40, 84, 60, 90, key, 2)


def _spoon(pen: Pen, colour: Rgb) -> None:
    pen.line([(50, 40), (50, 94)], colour, 7)
    pen.ellipse(33, 4, 67, 48, colour)
    pen.ellipse(38, 10, 62, 42, darker(colour, 0.25))
    pen.ellipse(41, 13, 48, 26, lighter(colour, 0.4))


OBJECTS: dict[str, Callable[[Pen, Rgb], None]] = {
    "mug": _mug,
    "bottle": _bottle,
    "sock": _sock,
    "umbrella": _umbrella,
    "chair": _chair,
    "apple": _apple,
    "hat": _hat,
    "shoe": _shoe,
    "scissors": _scissors,
    "book": _book,
    "ball": _ball,
    "clock": _clock,
    "bowl": _bowl,
    "bucket": _bucket,
    "glove": _glove,
    "comb": _comb,
    "bag": _bag,
    "candle": _candle,
    "teapot": _teapot,
    "remote": _remote,
    "spoon": _spoon,
}
