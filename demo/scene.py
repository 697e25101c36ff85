"""Scenes: the contents of a photo and how it was taken. Photos, questions, answers and captions derive from them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from random import Random
from typing import Any

from demo.goods import AMOUNTS, GARMENTS, PACKAGES, PATTERNS, PRODUCTS
from demo.objects import OBJECTS
from demo.pen import COLOURS

KINDS = ("object", "clothes", "package", "money", "switch", "lamp", "door")
_KIND_WEIGHTS = (40, 14, 20, 12, 5, 4, 5)
_OWN_COLOURS = {
    "apple": ("red", "green", "yellow"),
    "scissors": tuple(COLOURS)[:9],
    "spoon": ("grey", "brown", "white"),
}
_SWITCH_COLOURS = ("white", "grey", "brown", "black")

# Flaws leave a photo answerable; an unusable photo answers nothing.
FLAWS = ("none", "blurry", "dark", "noisy", "bright", "cut off", "finger")
_FLAW_WEIGHTS = (44, 18, 11, 8, 5, 9, 5)
UNUSABLE = ("black", "smeared", "empty", "covered", "missed")
_UNUSABLE_WEIGHTS = (20, 30, 25, 15, 10)
ROTATIONS = (0, 90, 270)  # degrees, counterclockwise
_ROTATION_WEIGHTS = (90, 5, 5)

Pair = tuple[str, str]


@dataclass(frozen=True)
class Scene:
    """One photo's contents. Fields that do not apply to the kind of thing are empty."""

    kind: str  # of KINDS
    name: str  # the object, garment or package; "money", "switch", "lamp" or "door" for these
    colour: str
    pattern: str = ""
    word: str = ""
    amount: int = 0
    state: str = ""  # on, off, open, closed
    flaw: str = "none"  # of FLAWS
    severity: float = 0.0  # of the flaw, 0 to 1
    unusable: str = ""  # of UNUSABLE; empty for a usable photo
    rotation: int = 0  # of ROTATIONS


def draw_scene(rng: Random, unusable_share: float, without: Collection[Pair] = ()) -> Scene:
    """Draw a scene at random.

    Args:
        rng: source of randomness.
        unusable_share: share of unusable photos.
        without: pairs of name and colour to exclude.
    """
    kind = rng.choices(KINDS, _KIND_WEIGHTS)[0]
    thing = _thing(rng, kind)
    while (thing["name"], thing["colour"]) in without:
        thing = _thing(rng, kind)
    flaw = rng.choices(FLAWS, _FLAW_WEIGHTS)[0]
    unusable = rng.choices(UNUSABLE, _UNUSABLE_WEIGHTS)[0] if rng.random() < unusable_share else ""
    rotation = rng.choices(ROTATIONS, _ROTATION_WEIGHTS)[0]
    return Scene(kind, **thing, flaw=flaw, severity=rng.betavariate(1.6, 2.2), unusable=unusable, rotation=rotation)


def _thing(rng: Random, kind: str) -> dict[str, Any]:
    colour = rng.choice(list(COLOURS))
    if kind == "object":
        name = rng.choice(list(OBJECTS))
        return {"name": name, "colour": rng.choice(_OWN_COLOURS.get(name, tuple(COLOURS)))}
    if kind == "clothes":
        return {"name": rng.choice(list(GARMENTS)), "colour": colour, "pattern": rng.choice(PATTERNS)}
    if kind == "package":
        word = rng.choice(list(PRODUCTS))
        usual = PRODUCTS[word][0]
        return {"name": rng.choice(usual if rng.random() < 0.85 else PACKAGES), "colour": colour, "word": word}
    if kind == "money":
        return {"name": "money", "colour": "", "amount": rng.choice(AMOUNTS)}
    if kind == "switch":
        return {"name": "switch", "colour": rng.choice(_SWITCH_COLOURS), "state": rng.choice(("on", "off"))}
    if kind == "lamp":
        return {"name": "lamp", "colour": colour, "state": rng.choice(("on", "off"))}
    return {"name": "door", "colour": colour, "state": rng.choice(("open", "closed"))}
