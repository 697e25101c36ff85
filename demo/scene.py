"""Scenes: the contents of a photo and how it was taken. Photos, questions, answers and captions derive from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
WITHOUT_UPRIGHT = ("ball", "comb", "remote", "scissors", "spoon")  # objects that lie any way round

# Flaws leave a photo answerable; an unusable photo answers nothing. Shares of usable photos, each drawn by itself;
# with the votes of demo.quality, and unusable photos, the issues are about as frequent as in VizWiz.
FLAW_SHARES = {"blur": 0.52, "framing": 0.68, "dark": 0.035, "bright": 0.08, "obstruction": 0.025, "noise": 0.08}
ROTATED_SHARE = 0.25  # of usable photos of things that have an upright
_ROTATIONS = (90, 270, 180, 0)  # degrees counterclockwise; 0: a tilt
_ROTATION_WEIGHTS = (30, 30, 12, 28)
_TILTS = (25, 60)  # degrees, to either side
UNUSABLE = ("black", "smeared", "empty", "covered", "missed")
_UNUSABLE_WEIGHTS = (17, 34, 25, 10, 14)

Pair = tuple[str, str]


@dataclass(frozen=True)
class Scene:
    """One photo's contents. Fields that do not apply to the kind of thing are empty.

    Flaws are severities: 0 for none, else up to 1.
    """

    kind: str  # of KINDS
    name: str  # the object, garment or package; "money", "switch", "lamp" or "door" for these
    colour: str
    pattern: str = ""
    word: str = ""
    amount: int = 0
    state: str = ""  # on, off, open, closed
    blur: float = 0.0
    framing: float = 0.0  # the thing is off the centre, or partly out of view
    dark: float = 0.0
    bright: float = 0.0
    obstruction: float = 0.0
    noise: float = 0.0
    rotation: int = 0  # degrees counterclockwise: 0, 90, 180 or 270
    tilt: float = 0.0  # degrees counterclockwise, from -60 to 60
    unusable: str = ""  # of UNUSABLE; empty for a usable photo


def draw_scene(
    rng: Random,
    unusable_share: float,
    without: Collection[Pair] = (),
    flaw_shares: Mapping[str, float] = FLAW_SHARES,
    rotated_share: float = ROTATED_SHARE,
) -> Scene:
    """Draw a scene at random.

    Args:
        rng: source of randomness.
        unusable_share: share of unusable photos.
        without: pairs of name and colour to exclude.
        flaw_shares: share of photos with each flaw.
        rotated_share: share of rotated and tilted photos.
    """
    kind = rng.choices(KINDS, _KIND_WEIGHTS)[0]
    thing = _thing(rng, kind)
    while (thing["name"], thing["colour"]) in without:
        thing = _thing(rng, kind)
    if rng.random() < unusable_share:
        return Scene(kind, **thing, unusable=rng.choices(UNUSABLE, _UNUSABLE_WEIGHTS)[0])
    flaws: dict[str, Any] = {flaw: _severity(rng) for flaw, share in flaw_shares.items() if rng.random() < share}
    if "dark" in flaws:
        flaws.pop("bright", None)
    if rng.random() < rotated_share and thing["name"] not in WITHOUT_UPRIGHT:
        thing["rotation"] = rng.choices(_ROTATIONS, _ROTATION_WEIGHTS)[0]
        thing["tilt"] = 0.0 if thing["rotation"] else rng.choice((-1, 1)) * rng.uniform(*_TILTS)
    return Scene(kind, **thing, **flaws)


def _severity(rng: Random) -> float:
    """Mostly mild, never 0."""
    return 0.01 + 0.99 * rng.betavariate(1.3, 2.4)


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
