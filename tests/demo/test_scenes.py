"""The demo's pictures, questions, answers and captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import combinations
from random import Random

import numpy as np
import pytest

from demo.answers import UNANSWERABLE, annotate, answer_of
from demo.captions import FACTS, Facts, draw_caption, draw_quality_caption, facts_of
from demo.goods import AMOUNTS, GARMENTS, PATTERNS, PRODUCTS
from demo.objects import OBJECTS
from demo.pairs import HELD_OUT, encode_facts, matches, scene_of
from demo.pen import COLOURS
from demo.photo import take_photo
from demo.questions import KINDS, draw_question_kind, phrase
from demo.scene import FLAW_SHARES, UNUSABLE, Scene, draw_scene
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


def flawed(flaw: str, severity: float = 1.0) -> Scene:
    """A can with one flaw."""
    return Scene("package", "can", "red", word="soup", **{flaw: severity})


def test_flaws_do_what_they_are_called() -> None:
    good = flawed("blur", 0)
    assert sharpness(flawed("blur")) < 0.7 * sharpness(good) < sharpness(flawed("noise"))
    assert pixels(flawed("dark")).mean() < 0.3 * pixels(good).mean() < 0.3 * pixels(flawed("bright")).mean()
    assert pixels(flawed("bright")).min() > pixels(good).min() + 30  # nothing stays black
    covered = np.abs(pixels(flawed("obstruction")) - pixels(good)).max(axis=2) > 40
    assert 0.1 < covered.mean() < 0.6


def red_centre(scene: Scene, seed: int) -> tuple[float, float]:
    """Where the red of a photo is, as shares of its height and width."""
    photo = pixels(scene, seed)
    rows, columns = np.nonzero((photo[..., 0] > 120) & (photo[..., 1:].max(axis=2) < 80))
    return rows.mean() / photo.shape[0], columns.mean() / photo.shape[1]


@pytest.mark.parametrize(("framing", "least", "most"), [(0.0, 0.0, 0.12), (0.01, 0.1, 0.35), (1.0, 0.2, 0.5)])
def test_a_badly_framed_thing_is_off_the_centre(framing: float, least: float, most: float) -> None:
    for seed in range(5):
        row, column = red_centre(Scene("object", "ball", "red", framing=framing), seed)
        assert least < np.hypot((row - 0.5) * 4 / 3, column - 0.5) < most


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_photo_is_the_upright_one_rotated(rotation: int) -> None:
    size = SIZE[::-1] if rotation != 180 else SIZE
    upright = take_photo(Scene("door", "door", "red", state="open"), size, Random(0))
    rotated = take_photo(Scene("door", "door", "red", state="open", rotation=rotation), SIZE, Random(0))
    assert rotated.size == SIZE
    assert np.array_equal(np.rot90(np.asarray(upright), rotation // 90), np.asarray(rotated))


def test_a_photo_has_several_flaws_drawn_independently() -> None:
    scenes = [draw_scene(Random(f"flaws {number}"), 0) for number in range(3000)]
    for flaw, share in FLAW_SHARES.items():
        assert np.mean([getattr(scene, flaw) > 0 for scene in scenes]) == pytest.approx(share, abs=0.03)
    both = np.mean([scene.blur > 0 and scene.framing > 0 for scene in scenes])
    assert both == pytest.approx(FLAW_SHARES["blur"] * FLAW_SHARES["framing"], abs=0.03)
    assert np.median([scene.blur for scene in scenes if scene.blur]) < 0.4  # most are mild
    assert not any(scene.dark and scene.bright for scene in scenes)


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


def test_people_give_up_more_on_a_worse_photo() -> None:
    shares = []
    for severity in (0.0, 0.3, 1.0):
        scene, rng = Scene("object", "mug", "red", blur=severity, dark=severity), Random(0)
        answers = [entry["answer"] for _ in range(200) for entry in annotate("what", scene, rng)["answers"]]
        shares.append(answers.count(UNANSWERABLE) / len(answers))
    assert shares[0] < 0.04 < shares[1] < 0.15 < 0.5 < shares[2]


@pytest.mark.parametrize("draw", [draw_caption, draw_quality_caption])
def test_a_caption_is_true_of_its_own_scene(draw: Callable[[Scene, Random], tuple[str, Facts]]) -> None:
    rng = Random(0)
    scenes = [draw_scene(rng, 0.2) for _ in range(500)]
    captions = [draw(scene, rng) for scene in scenes]
    shown = encode_facts([facts_of(scene) for scene in scenes])
    match = matches(shown, encode_facts([facts for _, facts in captions]))
    assert match.diagonal().all()
    assert 0.01 < match.float().mean() < 0.5
    for (text, facts), scene in zip(captions, scenes, strict=True):
        if facts.get("word"):
            assert scene.word in text


def test_captions_state_every_fault() -> None:
    stated = Counter(fact for index in range(2000) for fact in draw_quality_caption(*scene_of(0, index))[1].items())
    faults = [("focus", "blurred"), ("frame", "cut off"), ("light", "dark"), ("light", "bright"), ("lens", "covered")]
    for fault in (*faults, *(("orientation", value) for value in FACTS["orientation"])):
        assert stated[fault] > 30, fault


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
