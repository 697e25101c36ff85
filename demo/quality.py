"""Votes of five simulated people on a photo's quality issues, in the format of VizWiz-QualityIssues."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from demo.scene import Scene

VOTERS = 5
UNRECOGNIZABLE = "unrecognizable"

# VizWiz's codes
ISSUES = {
    "FRM": "framing",
    "BLR": "blur",
    "DRK": "dark",
    "BRT": "bright",
    "OBS": "obstruction",
    "ROT": "rotation",
    "OTH": "noise",
}
_NO_ISSUE = "NON"
_SLIPS = 0.01  # probability of a vote for an issue that the photo does not have
_UNUSABLE: Mapping[str, Mapping[str, float]] = {  # probabilities of votes on an unusable photo
    "black": {"dark": 0.95, UNRECOGNIZABLE: 0.9},
    "smeared": {"blur": 0.97, UNRECOGNIZABLE: 0.85},
    "empty": {"framing": 0.75, UNRECOGNIZABLE: 0.45},
    "covered": {"obstruction": 0.9, UNRECOGNIZABLE: 0.9},
    "missed": {"framing": 0.75, UNRECOGNIZABLE: 0.45},
}


def vote_probabilities(scene: Scene) -> dict[str, float]:
    """The probability that a person votes for each of :data:`ISSUES`, and for unrecognizable."""
    if scene.unusable:
        seen: Mapping[str, float] = _UNUSABLE[scene.unusable]
    else:
        severities = {issue: getattr(scene, issue) for issue in ISSUES.values() if issue != "rotation"}
        seen = {issue: 0.4 + 0.55 * severity for issue, severity in severities.items() if severity}
        if scene.rotation:
            seen["rotation"] = 0.8
        elif scene.tilt:
            seen["rotation"] = 0.4 + 0.006 * abs(scene.tilt)
    return {issue: seen.get(issue, _SLIPS) for issue in (*ISSUES.values(), UNRECOGNIZABLE)}


def draw_votes(scene: Scene, rng: Random) -> dict[str, Any]:
    """Draw the votes: ``{"flaws": {code: 0..5}, "unrecognizable": 0..5}``.

    A person who sees no issue votes for ``NON``.
    """
    probabilities = vote_probabilities(scene)
    flaws = dict.fromkeys((*ISSUES, _NO_ISSUE), 0)
    for _ in range(VOTERS):
        seen = [code for code, issue in ISSUES.items() if rng.random() < probabilities[issue]]
        for code in seen or [_NO_ISSUE]:
            flaws[code] += 1
    unrecognizable = sum(rng.random() < probabilities[UNRECOGNIZABLE] for _ in range(VOTERS))
    return {"flaws": flaws, "unrecognizable": unrecognizable}
