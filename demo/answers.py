"""Answers of ten simulated annotators, who mostly agree, use synonyms, or give up."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from demo.pen import COLOURS
from demo.scene import Scene
from training.dataset import ANSWERS_PER_QUESTION

UNANSWERABLE = "unanswerable"

_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "mug": ("cup", "coffee mug", "coffee cup"),
    "bottle": ("container", "glass bottle"),
    "sock": ("socks", "clothing"),
    "umbrella": ("parasol",),
    "chair": ("seat", "wooden chair", "furniture"),
    "apple": ("fruit", "food"),
    "hat": ("cap", "fedora"),
    "shoe": ("sneaker", "shoes", "tennis shoe"),
    "scissors": ("pair scissors", "shears"),
    "book": ("notebook", "hardcover book"),
    "ball": ("basketball", "toy"),
    "clock": ("wall clock", "watch"),
    "bowl": ("dish", "empty bowl"),
    "bucket": ("pail",),
    "glove": ("gloves", "winter glove"),
    "comb": ("hair comb", "brush"),
    "bag": ("purse", "handbag"),
    "candle": ("lit candle", "candle holder"),
    "teapot": ("tea pot", "kettle"),
    "remote": ("remote control", "tv remote"),
    "spoon": ("large spoon", "utensil"),
    "shirt": ("t shirt", "clothing"),
    "dress": ("clothing", "gown"),
    "trousers": ("pants", "jeans"),
    "tie": ("necktie", "clothing"),
    "money": ("bill", "cash", "bank note"),
    "light switch": ("switch", "wall switch"),
    "lamp": ("table lamp", "light"),
    "door": ("doorway", "wooden door"),
}
_OTHER_WORDS: dict[str, tuple[str, ...]] = {
    "milk": ("carton milk", "dairy"),
    "soup": ("tomato soup", "can soup"),
    "rice": ("white rice", "bag rice"),
    "coffee": ("ground coffee", "instant coffee"),
    "tea": ("tea bags", "green tea"),
    "salt": ("table salt", "sea salt"),
    "beans": ("baked beans", "can beans"),
    "juice": ("orange juice", "fruit juice"),
    "honey": ("jar honey", "syrup"),
    "corn": ("sweet corn", "can corn"),
    "flour": ("bag flour", "wheat flour"),
    "cereal": ("breakfast cereal", "box cereal"),
}
_NEAR_COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("dark red", "maroon"),
    "orange": ("light orange", "red"),
    "yellow": ("gold", "light yellow"),
    "green": ("dark green", "teal"),
    "blue": ("navy", "dark blue"),
    "purple": ("violet", "dark purple"),
    "pink": ("light pink", "rose"),
    "brown": ("dark brown", "tan"),
    "black": ("dark grey", "dark"),
    "white": ("off white", "cream"),
    "grey": ("gray", "silver"),
}
_NEAR_PATTERNS: dict[str, tuple[str, ...]] = {
    "plain": ("solid", "no pattern", "no"),
    "striped": ("stripes", "horizontal stripes"),
    "plaid": ("checkered", "checks"),
    "polka dots": ("dots", "spots"),
    "floral": ("flowers", "flower pattern"),
}
_STATES = {
    "yes": ("yes it is",),
    "no": ("no it is not",),
    "on": ("yes",),
    "off": ("no",),
    "open": (),
    "closed": ("shut",),
}
_UNUSABLE_REMARKS: dict[str, tuple[str, ...]] = {
    "black": ("black", "too dark", "nothing"),
    "smeared": ("blurry", "too blurry", "blurred"),
    "empty": ("nothing", "table", "wall"),
    "missed": ("nothing", "floor", "wall"),
    "covered": ("finger", "hand"),
}

# share of annotators who give up at a flaw of severity 1; mild flaws matter less than in proportion
_HARM = {"blur": 0.3, "dark": 0.35, "noise": 0.12, "bright": 0.15, "framing": 0.2, "obstruction": 0.15}
_MAX_GIVING_UP = 0.9


def answer_of(kind: str, scene: Scene) -> tuple[str, tuple[str, ...]]:
    """The correct answer and its alternatives; "unanswerable" if the scene does not show it."""
    if scene.unusable:
        return UNANSWERABLE, _UNUSABLE_REMARKS[scene.unusable]
    if kind == "what":
        return _name_of(scene)
    if kind == "colour":
        return scene.colour, (*_NEAR_COLOURS[scene.colour], f"{scene.colour} {scene.name}")
    if kind == "pattern" and scene.pattern:
        return scene.pattern, _NEAR_PATTERNS[scene.pattern]
    if kind == "money" and scene.amount:
        return str(scene.amount), (_worth(scene), f"{scene.amount} dollar bill", "money")
    if kind in ("contents", "read") and scene.word:
        return scene.word, _OTHER_WORDS[scene.word]
    if scene.state:
        asked, *alternative = kind.split(" or ")
        answer = scene.state if alternative else ("yes" if scene.state == asked else "no")
        return answer, _STATES[answer]
    return UNANSWERABLE, ("no", scene.name)


def _name_of(scene: Scene) -> tuple[str, tuple[str, ...]]:
    if scene.word:
        return scene.word, (*_OTHER_WORDS[scene.word], scene.name)
    name = "light switch" if scene.kind == "switch" else scene.name
    specific = f"{scene.colour} {name}" if scene.colour in COLOURS else _worth(scene)
    return name, (*_OTHER_NAMES[name], specific)


def _worth(scene: Scene) -> str:
    return f"{scene.amount} dollar{'s' if scene.amount > 1 else ''}"


def annotate(kind: str, scene: Scene, rng: Random) -> dict[str, Any]:
    """The labels of a VizWiz record: ``answers``, ``answer_type`` and ``answerable``."""
    answer, others = answer_of(kind, scene)
    giving_up = _giving_up(kind, scene)
    agreeing = rng.betavariate(9, 2.2)
    answers = [_one_answer(answer, others, agreeing, giving_up, rng) for _ in range(ANSWERS_PER_QUESTION)]
    most_common = Counter(entry["answer"] for entry in answers).most_common(1)[0][0]
    return {
        "answers": answers,
        "answer_type": _type_of(most_common),
        "answerable": int(most_common != UNANSWERABLE),
    }


def _giving_up(kind: str, scene: Scene) -> float:
    """The probability that a person gives up."""
    harm = sum(harm * getattr(scene, flaw) ** 2 for flaw, harm in _HARM.items())
    return min(_MAX_GIVING_UP, 0.02 + harm * (1.5 if kind == "read" else 1.0))


def _one_answer(answer: str, others: tuple[str, ...], agreeing: float, giving_up: float, rng: Random) -> dict[str, str]:
    if answer != UNANSWERABLE and rng.random() < giving_up:
        return {"answer": UNANSWERABLE, "answer_confidence": rng.choice(("yes", "no", "maybe"))}
    if rng.random() < agreeing or not others:
        return {"answer": answer, "answer_confidence": "maybe" if rng.random() < giving_up + 0.06 else "yes"}
    weights = range(len(others), 0, -1)  # the usual synonym first
    return {
        "answer": rng.choices(others, weights)[0],
        "answer_confidence": rng.choices(("yes", "maybe", "no"), (60, 32, 8))[0],
    }


def _type_of(answer: str) -> str:
    if answer == UNANSWERABLE:
        return "unanswerable"
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if answer.isdigit() else "other"
