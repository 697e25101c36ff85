"""Drawing on a transparent square of 100 x 100 units, and the colours and fonts that the scenes share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

Rgb = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Rgb] = {
    "red": (206, 32, 38),
    "orange": (244, 132, 28),
    "yellow": (247, 212, 40),
    "green": (38, 146, 64),
    "blue": (34, 84, 190),
    "purple": (118, 48, 156),
    "pink": (247, 140, 182),
    "brown": (112, 68, 36),
    "black": (30, 30, 34),
    "white": (244, 244, 242),
    "grey": (136, 138, 142),
}
METAL: Rgb = (176, 180, 186)
WOOD: Rgb = (160, 112, 66)
SKIN: Rgb = (222, 170, 138)

FACES = ("DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")
_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # matplotlib ships these fonts


def mix(first: Rgb, second: Rgb, share: float) -> Rgb:
    """Blend two colours; ``share`` 0 is the first one."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def darker(colour: Rgb, share: float = 0.3) -> Rgb:
    """Mix ``colour`` with black."""
    return mix(colour, (0, 0, 0), share)


def lighter(colour: Rgb, share: float = 0.35) -> Rgb:
    """Mix ``colour`` with white."""
    return mix(colour, (255, 255, 255), share)


def contrasting(colour: Rgb) -> Rgb:
    """Black or white, whichever contrasts more with ``colour``."""
    red, green, blue = colour
    return (28, 28, 30) if 299 * red + 587 * green + 114 * blue > 135_000 else (250, 250, 246)


@lru_cache(maxsize=256)
def font(face: str, size: int) -> ImageFont.FreeTypeFont:
    """The face at ``size`` pixels."""
    return ImageFont.truetype(str(_FONTS / f"{face}.ttf"), size)


class Pen:
    """Draws on ``image``, RGBA of ``size`` x ``size`` pixels; coordinates are in hundredths of ``size``."""

    def __init__(self, size: int) -> None:
        self.image = Image.new("RGBA", (size, size))
        self._draw = ImageDraw.Draw(self.image)
        self._unit = size / 100

    def _scaled(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self._unit, y * self._unit) for x, y in points]

    def poly(self, points: Sequence[Point], fill: Rgb) -> None:
        """A filled polygon."""
        self._draw.polygon(self._scaled(points), fill=fill)

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, fill: Rgb) -> None:
        """A filled ellipse in the box."""
        self._draw.ellipse(self._scaled([(x0, y0), (x1, y1)]), fill=fill)

    def glow(self, x: float, y: float, radius: float, fill: Rgb, alpha: int) -> None:
        """A half-transparent disc; only where nothing else will be drawn below it."""
        box = self._scaled([(x - radius, y - radius), (x + radius, y + radius)])
        self._draw.ellipse(box, fill=(*fill, alpha))

    def half(self, x0: float, y0: float, x1: float, y1: float, start: float, end: float, fill: Rgb) -> None:
        """The part of an ellipse between two angles, in degrees clockwise from three o'clock, cut off by a line."""
        self._draw.chord(self._scaled([(x0, y0), (x1, y1)]), start, end, fill=fill)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Rgb, radius: float = 0) -> None:
        """A filled rectangle with rounded corners."""
        self._draw.rounded_rectangle(self._scaled([(x0, y0), (x1, y1)]), radius * self._unit, fill=fill)

    def line(self, points: Sequence[Point], fill: Rgb, width: float) -> None:
        """A line with round joints and ends."""
        self._draw.line(self._scaled(points), fill=fill, width=max(1, round(width * self._unit)), joint="curve")
        for x, y in (points[0], points[-1]):
            self.ellipse(x - width / 2, y - width / 2, x + width / 2, y + width / 2, fill)

    def arc(self, box: tuple[Point, Point], start: float, end: float, fill: Rgb, width: float) -> None:
        """Part of the outline of an ellipse, in degrees clockwise from three o'clock."""
        self._draw.arc(self._scaled(box), start, end, fill=fill, width=max(1, round(width * self._unit)))

    def text(self, text: str, x: float, y: float, width: float, height: float, fill: Rgb, face: str = FACES[0]) -> None:
        """Text centred on (x, y), as large as fits ``width`` x ``height``."""
        probe = font(face, 100)
        left, top, right, bottom = probe.getbbox(text)
        size = int(100 * self._unit * min(width / (right - left), height / (bottom - top)))
        self._draw.text((x * self._unit, y * self._unit), text, fill, font(face, max(size, 4)), anchor="mm")

    def clip_to(self, mask: Image.Image) -> None:
        """Make everything outside the alpha of ``mask`` (RGBA of the same size) transparent."""
        self.image.putalpha(mask.getchannel("A"))
