"""Captions for the demo CLIP, each with the facts that it states.

A caption is true of every picture with these facts; the contrastive loss counts all of them as matches.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from demo.goods import AMOUNTS, GARMENTS, PACKAGES, PATTERNS, PRODUCTS
from demo.objects import OBJECTS
from demo.pen import COLOURS
from demo.questions import phrase
from demo.scene import FLAWS, UNUSABLE, Scene

Facts = dict[str, str]

# Facts that a caption can state, and their values. An unusable picture has a flaw only.
FACTS: dict[str, tuple[str, ...]] = {
    "name": (*OBJECTS, *GARMENTS, *PACKAGES, "money", "switch", "lamp", "door"),
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "word": tuple(PRODUCTS),
    "amount": tuple(map(str, AMOUNTS)),
    "state": ("on", "off", "open", "closed"),
    "flaw": (*FLAWS, *UNUSABLE),
    "usable": ("yes", "no"),
}
_NOUNS = {
    "money": ("bill", "banknote", "note", "money"),
    "switch": ("light switch",),
    "trousers": ("trousers", "pants"),
}
_FLAW_WORDS = {
    "blurry": ("blurry", "out of focus", "shaky"),
    "dark": ("dark", "too dark", "badly lit"),
    "noisy": ("grainy", "noisy"),
    "bright": ("overexposed", "very bright"),
    "cut off": ("cut off", "badly framed"),
    "finger": ("with a finger in it", "partly covered by a finger"),
    "black": ("black", "completely dark", "a black picture"),
    "smeared": ("extremely blurry", "smeared", "nothing but a blur"),
    "empty": ("empty", "nothing there", "only the background"),
    "covered": ("covered by a finger", "a finger over the lens"),
    "missed": ("nothing there", "empty", "the object is out of the frame"),
}
_UNUSABLE_WORDS = ("unanswerable", "unsuitable image", "nothing to see", "can't tell", "the photo is unusable")


def facts_of(scene: Scene) -> Facts:
    """Everything that a caption may state about ``scene``."""
    if scene.unusable:
        return {"flaw": "empty" if scene.unusable == "missed" else scene.unusable, "usable": "no"}
    facts = {
        "name": scene.name,
        "colour": scene.colour,
        "pattern": scene.pattern,
        "word": scene.word,
        "amount": str(scene.amount or ""),
        "state": scene.state,
        "flaw": scene.flaw if scene.flaw == "none" or scene.severity > 0.3 else "",  # slight flaws are not mentioned
        "usable": "yes",
    }
    return {key: value for key, value in facts.items() if value}


def draw_caption(scene: Scene, rng: Random) -> tuple[str, Facts]:
    """A caption of ``scene`` and the facts that it states."""
    facts = facts_of(scene)
    if scene.unusable:
        return _unusable_caption(scene, facts, rng)
    if rng.random() < 0.35:
        return _post(scene, facts, rng)
    seen = [key for key in facts if key not in ("flaw", "usable")]
    mentioned = [key for key in seen if rng.random() < (0.35 if key == "colour" else 0.65)]  # colours are learned first
    stated = {key: facts[key] for key in mentioned or [rng.choice(seen)]}
    text = _describe(stated, rng)
    if facts.get("flaw", "none") != "none" and rng.random() < 0.3:
        stated["flaw"] = facts["flaw"]
        text += f", {rng.choice(_FLAW_WORDS[facts['flaw']])}"
    return text, stated


def _describe(facts: Mapping[str, str], rng: Random) -> str:
    noun = rng.choice(_NOUNS.get(facts.get("name", ""), (facts.get("name", rng.choice(("thing", "item", "object"))),)))
    parts = [rng.choice(("a", "the", "my", "this is a", "a photo of a", "picture of a", ""))]
    adjectives = [facts[key] for key in ("colour", "pattern", "amount") if key in facts]
    rng.shuffle(adjectives)
    parts += [*adjectives, noun]
    if "word" in facts:
        parts.append(
            rng.choice(("of {}", "that says {}", "with the label {}", "with {} written on it")).format(facts["word"])
        )
    if "state" in facts:
        parts.append(rng.choice(("that is {}", "{}", "which is {}")).format(facts["state"]))
    return " ".join(part for part in parts if part)


_ANSWERS: dict[str, tuple[str, ...]] = {  # kind of question -> the facts that its answer states
    "what": ("name",),
    "colour": ("colour",),
    "pattern": ("pattern",),
    "money": ("amount",),
    "contents": ("word",),
    "read": ("word",),
    "on or off": ("name", "state"),
    "open or closed": ("state",),
}


def _post(scene: Scene, facts: Facts, rng: Random) -> tuple[str, Facts]:
    """A question with its answer, as on a forum."""
    kind = rng.choice([kind for kind, keys in _ANSWERS.items() if keys[-1] in facts and _fits(kind, facts)])
    stated = {key: facts[key] for key in _ANSWERS[kind]}
    question = phrase(kind, scene, rng)
    if scene.name in question.lower().replace("?", " ").split():
        stated["name"] = scene.name
    answer = facts[_ANSWERS[kind][-1]]
    reply = rng.choice(("{}", "It is {}.", "answer: {}")).format(answer)
    return f"{question} {reply}", stated


def _fits(kind: str, facts: Facts) -> bool:
    return facts.get("state", "") in kind.split() if " or " in kind else True


def _unusable_caption(scene: Scene, facts: Facts, rng: Random) -> tuple[str, Facts]:
    if rng.random() < 0.5:
        return f"{phrase(rng.choice(('what', 'colour')), scene, rng)} {rng.choice(_UNUSABLE_WORDS)}", {"usable": "no"}
    if rng.random() < 0.4:
        return rng.choice(_UNUSABLE_WORDS), {"usable": "no"}
    return f"a photo that is {rng.choice(_FLAW_WORDS[facts['flaw']])}", facts
