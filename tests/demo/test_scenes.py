"""The demo's pictures, questions, answers and captions."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from random import Random

import numpy as np
import pytest

from demo.answers import UNANSWERABLE, annotate, answer_of
from demo.captions import draw_caption, facts_of
from demo.goods import AMOUNTS, GARMENTS, PATTERNS, PRODUCTS
from demo.objects import OBJECTS
from demo.pairs import HELD_OUT, encode_facts, matches, scene_of
from demo.pen import COLOURS
from demo.photo import take_photo
from demo.questions import KINDS, draw_question_kind, phrase
from demo.scene import FLAWS, UNUSABLE, Scene, draw_scene
from training.dataset import ANSWER_TYPES, CONFIDENCES
from vizwiz_client.contract.tokenizer import tokenize

SIZE = (120, 160)
THINGS = [
    *(Scene("object", name, "blue") for name in OBJECTS),
    *(Scene("clothes", name, "blue", pattern=pattern) for name in GARMENTS for pattern in PATTERNS),
    *(Scene("package", products[0][0], "blue", word=word) for word, products in PRODUCTS.items()),
    *(Scene("money", "money", "", amount=amount) for amount in AMOUNTS),
    *(Scene("switch", "switch", "white", state=state) for state in ("on", "off")),
    *(Scene("lamp", "lamp", "blue", state=state) for state in ("on", "off")),
    *(Scene("door", "door", "blue", state=state) for state in ("open", "closed")),
]


def pixels(scene: Scene, seed: object = 0) -> np.ndarray:
    """The photo of a scene as int levels."""
    return np.asarray(take_photo(scene, SIZE, Random(f"{seed}"))).astype(int)


def test_every_thing_looks_different_from_every_other() -> None:
    pictures = np.stack([pixels(scene) for scene in THINGS]).reshape(len(THINGS), -1)
    for number, picture in enumerate(pictures):
        distances = np.abs(pictures - picture).mean(axis=1)
        distances[number] = np.inf
        assert distances.min() > 0.3, f"{THINGS[number]} looks like {THINGS[distances.argmin()]}"


def test_colours_are_distinct() -> None:
    means = {colour: pixels(Scene("object", "ball", colour))[55:105, 35:85].mean(axis=(0, 1)) for colour in COLOURS}
    for first, second in combinations(COLOURS, 2):
        assert np.abs(means[first] - means[second]).max() > 15, (first, second)


def sharpness(scene: Scene) -> float:
    """Mean change from pixel to pixel."""
    return float(np.abs(np.diff(pixels(scene), axis=1)).mean())


def test_flaws_do_what_they_are_called() -> None:
    good = Scene("package", "can", "red", word="soup")
    flawed = {flaw: Scene("package", "can", "red", word="soup", flaw=flaw, severity=1.0) for flaw in FLAWS}
    assert sharpness(flawed["blurry"]) < 0.7 * sharpness(good) < sharpness(flawed["noisy"])
    assert pixels(flawed["dark"]).mean() < 0.3 * pixels(good).mean() < 0.3 * pixels(flawed["bright"]).mean()
    assert not np.array_equal(pixels(flawed["finger"]), pixels(good))


@pytest.mark.parametrize("unusable", UNUSABLE)
def test_an_unusable_photo_hides_what_it_shows(unusable: str) -> None:
    mug, tie = (Scene("object", name, "red", unusable=unusable) for name in ("mug", "chair"))
    usable = np.abs(pixels(Scene("object", "mug", "red")) - pixels(Scene("object", "chair", "red"))).mean()
    assert np.abs(pixels(mug) - pixels(tie)).mean() < 0.5 * usable


@pytest.mark.parametrize(
    ("kind", "scene", "answer"),
    [
        ("what", Scene("object", "mug", "red"), "mug"),
        ("what", Scene("package", "can", "red", word="soup"), "soup"),
        ("what", Scene("switch", "switch", "white", state="on"), "light switch"),
        ("colour", Scene("object", "mug", "red"), "red"),
        ("pattern", Scene("clothes", "tie", "red", pattern="polka dots"), "polka dots"),
        ("pattern", Scene("object", "mug", "red"), UNANSWERABLE),
        ("money", Scene("money", "money", "", amount=50), "50"),
        ("money", Scene("object", "mug", "red"), UNANSWERABLE),
        ("read", Scene("package", "can", "red", word="corn"), "corn"),
        ("on", Scene("lamp", "lamp", "red", state="off"), "no"),
        ("on or off", Scene("lamp", "lamp", "red", state="off"), "off"),
        ("open", Scene("door", "door", "red", state="open"), "yes"),
        ("open or closed", Scene("door", "door", "red", state="closed"), "closed"),
        ("what", Scene("object", "mug", "red", unusable="black"), UNANSWERABLE),
    ],
)
def test_the_answer_follows_from_the_scene(kind: str, scene: Scene, answer: str) -> None:
    assert answer_of(kind, scene)[0] == answer


def test_every_kind_of_question_is_asked_and_answered() -> None:
    rng = Random(0)
    kinds, types = Counter[str](), Counter[str]()
    for _ in range(2000):
        scene = draw_scene(rng, 0.16)
        kind = draw_question_kind(scene, rng, 0.03)
        labels = annotate(kind, scene, rng)
        kinds[kind] += 1
        types[labels["answer_type"]] += 1
        assert len(labels["answers"]) == 10
        assert {entry["answer_confidence"] for entry in labels["answers"]} <= set(CONFIDENCES)
        assert labels["answerable"] == (labels["answer_type"] != "unanswerable")
    assert set(kinds) == set(KINDS)
    assert set(types) == set(ANSWER_TYPES)
    assert 0.15 < types["unanswerable"] / 2000 < 0.25


def test_questions_are_phrased_in_many_ways_and_fit_clip() -> None:
    rng = Random(0)
    scene = Scene("object", "mug", "red")
    asked = {phrase(kind, scene, rng) for kind in ("what", "colour") for _ in range(1000)}
    assert len(asked) > 300
    assert not any("{" in question for question in asked)
    assert max((tokenize(question).ids != 0).sum() for question in asked) < 70


def test_annotators_disagree_plausibly() -> None:
    rng = Random(0)
    answers = Counter(
        entry["answer"] for _ in range(300) for entry in annotate("what", Scene("object", "mug", "red"), rng)["answers"]
    )
    assert answers.most_common(1)[0][0] == "mug"
    assert 0.6 < answers["mug"] / answers.total() < 0.9
    assert {"cup", "red mug", UNANSWERABLE} < set(answers)


def test_a_caption_is_true_of_its_own_scene() -> None:
    rng = Random(0)
    scenes = [draw_scene(rng, 0.2) for _ in range(500)]
    captions = [draw_caption(scene, rng) for scene in scenes]
    shown = encode_facts([facts_of(scene) for scene in scenes])
    match = matches(shown, encode_facts([facts for _, facts in captions]))
    assert match.diagonal().all()
    assert 0.01 < match.float().mean() < 0.2
    for (text, facts), scene in zip(captions, scenes, strict=True):
        if facts.get("word"):
            assert scene.word in text


def test_a_caption_is_false_of_a_scene_that_differs_in_what_it_states() -> None:
    red, blue = (encode_facts([facts_of(Scene("object", "mug", colour))]) for colour in ("red", "blue"))
    stated = encode_facts([{"name": "mug", "colour": "red"}, {"name": "mug"}, {"colour": "blue"}, {"usable": "no"}])
    assert matches(red, stated).tolist() == [[True, True, False, False]]
    assert matches(blue, stated).tolist() == [[False, True, True, False]]


def test_held_out_pairs_are_not_pretrained_on_but_asked_about() -> None:
    pretrained = {(scene.name, scene.colour) for scene, _ in (scene_of(0, index) for index in range(5000))}
    asked = {(scene.name, scene.colour) for scene in (draw_scene(Random(index), 0) for index in range(5000))}
    assert not pretrained & HELD_OUT
    assert asked >= HELD_OUT
