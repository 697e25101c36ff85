"""The tables of docs/ that follow from other files."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT
from tests.deploy import promql

OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
MEASURED_CORES, HEAD_MS, UTILISATION = 2, 0.45, 0.6


def test_core_seconds_follow_from_the_times() -> None:
    rows = re.findall(
        r"^\| [^|]+, portable \w+ [^|]*\| ([\d.]+) ms \| ([\d.]+) ms \| ([\d.]+) \| ([\d.]+) \|$", RESULTS, re.M
    )
    assert len(rows) == 4
    for image, text, cost, rate in rows:
        exact = MEASURED_CORES * (float(image) + float(text) + HEAD_MS) / 1000
        assert float(cost) == round(exact, 3)
        assert float(rate) == pytest.approx(UTILISATION / exact, rel=0.02)


def test_every_alert_has_its_line() -> None:
    alerts = [rule["alert"] for rule in promql.rules() if "alert" in rule]
    lines = re.findall(r"^\| (Vizwiz\w+(?:, Vizwiz\w+)*) \|", OPERATIONS, re.M)
    assert sorted(alert for line in lines for alert in line.split(", ")) == sorted(alerts)
