"""The table of docs/operations.md that follows from other files."""

from __future__ import annotations

import re

from tests.conftest import ROOT
from tests.deploy import promql

OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_every_alert_has_its_line() -> None:
    alerts = [rule["alert"] for rule in promql.rules() if "alert" in rule]
    lines = re.findall(r"^\| (Vizwiz\w+(?:, Vizwiz\w+)*) \|", OPERATIONS, re.M)
    assert sorted(alert for line in lines for alert in line.split(", ")) == sorted(alerts)
