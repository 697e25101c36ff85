"""What a photo shows and how it was taken: the one description that pictures, answers and captions are made from."""

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

# How the light and the hand spoil a photo. The spoiled ones are past answering.
FLAWS = ("none", "blurry", "dark", "noisy", "bright", "cut off", "finger")
_FLAW_WEIGHTS = (44, 18, 11, 8, 5, 9, 5)
SPOILED = ("black", "smeared", "empty", "covered", "missed")
_SPOILED_WEIGHTS = (20, 30, 25, 15, 10)
TURNS = (0, 90, 270)  # degrees: the phone was held sideways
_TURN_WEIGHTS = (90, 5, 5)

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
    spoiled: str = ""  # of SPOILED, or empty: the photo can be used
    turn: int = 0  # of TURNS


def draw_scene(rng: Random, spoiled_share: float, without: Collection[Pair] = ()) -> Scene:
    """Draw a scene at random.

    Args:
        spoiled_share: of photos that are past answering.
        without: pairs of name and colour that must not occur together.
    """
    kind = rng.choices(KINDS, _KIND_WEIGHTS)[0]
    thing = _thing(rng, kind)
    while (thing["name"], thing["colour"]) in without:
        thing = _thing(rng, kind)
    flaw = rng.choices(FLAWS, _FLAW_WEIGHTS)[0]
    spoiled = rng.choices(SPOILED, _SPOILED_WEIGHTS)[0] if rng.random() < spoiled_share else ""
    turn = rng.choices(TURNS, _TURN_WEIGHTS)[0]
    return Scene(kind, **thing, flaw=flaw, severity=rng.betavariate(1.6, 2.2), spoiled=spoiled, turn=turn)


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
