"""Captions for the demo CLIP, each with the facts that it states.

A caption is true of every picture with these facts; the contrastive loss counts all of them as matches.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from demo.goods import AMOUNTS, GARMENTS, PACKAGES, PATTERNS, PRODUCTS
from demo.objects import OBJECTS
from demo.pen import COLOURS
from demo.quality import vote_probabilities
from demo.questions import phrase
from demo.scene import UNUSABLE, WITHOUT_UPRIGHT, Scene

Facts = dict[str, str]

# Facts that a caption can state, and their values. Those of an unusable picture are of its quality alone.
FACTS: dict[str, tuple[str, ...]] = {
    "name": (*OBJECTS, *GARMENTS, *PACKAGES, "money", "switch", "lamp", "door"),
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "word": tuple(PRODUCTS),
    "amount": tuple(map(str, AMOUNTS)),
    "state": ("on", "off", "open", "closed"),
    "focus": ("sharp", "blurred"),
    "frame": ("in view", "cut off"),
    "light": ("normal", "dark", "bright"),
    "lens": ("free", "covered"),
    "grain": ("fine", "coarse"),
    "orientation": ("upright", "sideways", "upside down", "tilted"),
    "unusable": UNUSABLE,
    "usable": ("yes", "no"),
}
_NOUNS = {
    "money": ("bill", "banknote", "note", "money"),
    "switch": ("light switch",),
    "trousers": ("trousers", "pants"),
}
_QUALITY_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "focus": {"sharp": ("sharp", "in focus"), "blurred": ("blurry", "out of focus", "shaky")},
    "frame": {"in view": ("well framed", "fully in view"), "cut off": ("cut off", "out of frame", "off center")},
    "light": {
        "normal": ("well lit",),
        "dark": ("dark", "too dark", "badly lit"),
        "bright": ("overexposed", "too bright", "washed out"),
    },
    "lens": {"covered": ("with a finger in it", "partly covered by a finger")},
    "grain": {"coarse": ("grainy", "noisy")},
    "orientation": {
        "upright": ("upright", "the right way up"),
        "sideways": ("sideways", "turned on its side"),
        "upside down": ("upside down",),
        "tilted": ("tilted", "crooked"),
    },
}
_FAULTLESS = ("sharp", "in view", "normal", "upright")  # stated less often than a fault
_UNUSABLE_KINDS = {
    "black": ("black", "completely dark", "a black picture"),
    "smeared": ("extremely blurry", "smeared", "nothing but a blur"),
    "empty": ("empty", "nothing there", "only the background"),
    "covered": ("covered by a finger", "a finger over the lens"),
    "missed": ("nothing there", "empty", "the object is out of the frame"),
}
_QUALITY_OPENINGS = ("the photo is", "a picture that is", "this photo is")
_NOTICED = 0.4  # probability of a vote from which a caption may state an issue
_UNUSABLE_WORDS = ("unanswerable", "unsuitable image", "nothing to see", "can't tell", "the photo is unusable")


def facts_of(scene: Scene) -> Facts:
    """Everything that a caption may state about ``scene``."""
    votes = vote_probabilities(scene)
    noticed = {issue for issue, probability in votes.items() if probability >= _NOTICED}
    if scene.unusable:
        kind = "empty" if scene.unusable == "missed" else scene.unusable
        faults = {
            "focus": "blurred" if "blur" in noticed else "",
            "frame": "cut off" if "framing" in noticed else "",
            "light": "dark" if "dark" in noticed else "",
            "lens": "covered" if "obstruction" in noticed else "",
        }
        return {key: value for key, value in {**faults, "unusable": kind, "usable": "no"}.items() if value}
    facts = {
        "name": scene.name,
        "colour": scene.colour,
        "pattern": scene.pattern,
        "word": scene.word,
        "amount": str(scene.amount or ""),
        "state": scene.state,
        "focus": "blurred" if "blur" in noticed else "sharp",
        "frame": "cut off" if "framing" in noticed else "in view",
        "light": "dark" if "dark" in noticed else "bright" if "bright" in noticed else "normal",
        "lens": "covered" if "obstruction" in noticed else "free",
        "grain": "coarse" if "noise" in noticed else "fine",
        "orientation": _orientation(scene),
        "usable": "yes",
    }
    return {key: value for key, value in facts.items() if value}


def _orientation(scene: Scene) -> str:
    if scene.name in WITHOUT_UPRIGHT:
        return ""
    if scene.tilt:
        return "tilted"
    return {0: "upright", 180: "upside down"}.get(scene.rotation, "sideways")


def draw_caption(scene: Scene, rng: Random) -> tuple[str, Facts]:
    """A caption of what ``scene`` shows and the facts that it states."""
    facts = facts_of(scene)
    if scene.unusable:
        return _unusable_caption(scene, facts, rng)
    if rng.random() < 0.35:
        return _post(scene, facts, rng)
    seen = [key for key in facts if key not in _QUALITY_WORDS and key != "usable"]
    mentioned = [key for key in seen if rng.random() < (0.35 if key == "colour" else 0.65)]  # colours are learned first
    stated = {key: facts[key] for key in mentioned or [rng.choice(seen)]}
    return _describe(stated, rng), stated


def draw_quality_caption(scene: Scene, rng: Random) -> tuple[str, Facts]:
    """A caption of how ``scene`` was taken and the facts that it states."""
    facts = facts_of(scene)
    choices = {key: words[facts[key]] for key, words in _QUALITY_WORDS.items() if facts.get(key) in words}
    mentioned = [key for key in choices if rng.random() < (0.25 if facts[key] in _FAULTLESS else 0.6)]
    mentioned = mentioned or [rng.choice(list(choices))]
    rng.shuffle(mentioned)
    words = " and ".join(rng.choice(choices[key]) for key in mentioned)
    return f"{rng.choice(_QUALITY_OPENINGS)} {words}", {key: facts[key] for key in mentioned}


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
    stated = {"unusable": facts["unusable"], "usable": "no"}
    return f"a photo that is {rng.choice(_UNUSABLE_KINDS[scene.unusable])}", stated
