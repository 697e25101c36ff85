"""Simulated votes on the quality of the demo's photos."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from demo.dataset import _UNUSABLE_SHARE
from demo.quality import ISSUES, UNRECOGNIZABLE, VOTERS, draw_votes, vote_probabilities
from demo.scene import Scene, draw_scene
from training import quality

CODES = {issue: code for code, issue in ISSUES.items()}


def votes(scene: Scene, seed: int) -> Counter[str]:
    """The votes on a photo, by code or ``unrecognizable``."""
    drawn = draw_votes(scene, Random(f"votes {seed}"))
    return Counter({**drawn["flaws"], UNRECOGNIZABLE: drawn[UNRECOGNIZABLE]})


def spoiled(issue: str) -> Scene:
    """A photo with this issue alone, severe."""
    severity: dict[str, Any] = {"rotation": 90} if issue == "rotation" else {issue: 1.0}
    return Scene("door", "door", "red", state="open", **severity)


@pytest.mark.parametrize("issue", [*ISSUES.values()])
def test_people_vote_for_a_severe_flaw_and_for_little_else(issue: str) -> None:
    drawn = [votes(spoiled(issue), seed) for seed in range(100)]
    assert min(each[CODES[issue]] for each in drawn) >= 1
    assert sum(each[CODES[issue]] for each in drawn) > 0.75 * VOTERS * 100
    others = [each[other] for each in drawn for other in (*ISSUES, UNRECOGNIZABLE) if other != CODES[issue]]
    assert sum(count >= 2 for count in others) / len(others) < 0.01


def test_training_reads_the_votes_under_the_same_names(tmp_path: Path) -> None:
    issues = [issue for issue in quality.ISSUES if issue != UNRECOGNIZABLE]
    entries = [{"image": issue, **draw_votes(spoiled(issue), Random(0))} for issue in issues]
    (tmp_path / "val.json").write_text(json.dumps(entries), encoding="utf-8")
    found = quality.read_votes(tmp_path / "val.json")
    assert {image: list(quality.ISSUES)[int(np.argmax(row))] for image, row in found.items()} == {
        issue: issue for issue in issues
    }


def test_an_unspoiled_photo_gets_no_votes_but_for_no_flaw() -> None:
    drawn = [votes(Scene("object", "mug", "red"), seed) for seed in range(100)]
    assert sum(each["NON"] for each in drawn) > 0.9 * VOTERS * 100
    counted = [each[code] >= 2 for each in drawn for code in (*ISSUES, UNRECOGNIZABLE)]
    assert sum(counted) / len(counted) < 0.01


def test_more_people_vote_for_a_worse_flaw() -> None:
    for flaw in set(ISSUES.values()) - {"rotation"}:
        none, mild, severe = (
            vote_probabilities(Scene("object", "mug", "red", **{flaw: severity}))[flaw] for severity in (0.0, 0.1, 1.0)
        )
        assert none < 0.05 < 0.3 < mild < 0.6 < 0.9 < severe


@pytest.mark.parametrize(
    ("unusable", "issue"),
    [
        ("black", "dark"),
        ("smeared", "blur"),
        ("empty", "framing"),
        ("covered", "obstruction"),
        ("missed", "framing"),
    ],
)
def test_an_unusable_photo_has_its_issue_and_is_unrecognizable(unusable: str, issue: str) -> None:
    drawn = [votes(Scene("object", "mug", "red", unusable=unusable), seed) for seed in range(100)]
    assert sum(each[CODES[issue]] >= 2 for each in drawn) > 90
    assert sum(each[UNRECOGNIZABLE] >= 2 for each in drawn) > 60


def test_who_sees_no_flaw_votes_for_none() -> None:
    for number in range(200):
        flaws = draw_votes(draw_scene(Random(number), 0.2), Random(number))["flaws"]
        named = sum(count for code, count in flaws.items() if code != "NON")
        assert 0 <= flaws["NON"] <= VOTERS
        assert flaws["NON"] + named >= VOTERS
        assert flaws["NON"] < VOTERS or not named


def test_issues_are_as_frequent_as_in_vizwiz() -> None:
    found = Counter[str]()
    for number in range(3000):
        drawn = votes(draw_scene(Random(f"scene {number}"), _UNUSABLE_SHARE), number)
        found.update(code for code, count in drawn.items() if count >= 2)
    vizwiz = {"FRM": 59, "BLR": 44, "ROT": 18, "BRT": 6, "DRK": 5.5, "OBS": 3, UNRECOGNIZABLE: 14}  # percent
    for code, percent in vizwiz.items():
        assert found[code] / 30 == pytest.approx(percent, rel=0.2, abs=1), code
