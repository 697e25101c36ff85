"""docs/operations.md says what is so: its arithmetic, its alerts, its metrics."""

from __future__ import annotations

import math
import re

import pytest

from tests.conftest import ROOT
from tests.deploy import promql

TEXT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
MEASURED_CORES, HEAD_MS, UTILISATION, REPLICA_CORES, LEAST_REPLICAS = 2, 0.45, 0.6, 4, 2

ROWS = re.findall(
    r"^\| ([^|]+), portable (\w+) [^|]*\| ([\d.]+) ms \| ([\d.]+) ms[^|]* \| ([\d.]+) \| ([\d.]+) \|$", TEXT, re.M
)


def core_seconds(image_ms: str, text_ms: str) -> float:
    return MEASURED_CORES * (float(image_ms) + float(text_ms) + HEAD_MS) / 1000


def test_core_seconds_follow_from_the_times() -> None:
    assert len(ROWS) == 4
    for name, precision, image, text, cost, rate in ROWS:
        exact = core_seconds(image, text)
        assert float(cost) == round(exact, 3), (name, precision, exact)
        assert float(rate) == pytest.approx(UTILISATION / exact, rel=0.02), (name, precision)


def test_the_times_are_those_of_the_results() -> None:
    table = RESULTS.partition("## Encoders as graphs")[2].partition("| eight images |")[0]
    clips = re.findall(r"[^ |]+", table.partition("| one image |")[2].splitlines()[0])
    for name, precision, image, *_ in ROWS:
        line = re.search(rf"^\| \**portable {precision}, .*$", table, re.M)
        assert line is not None
        assert line[0].split("|")[2 + clips.index(name)].startswith(f" {image} ms"), (name, precision)
    assert f"against {HEAD_MS} ms of one" in RESULTS.replace("\n", " ")


def test_cores_and_replicas_follow_from_them() -> None:
    header = re.search(r"^\| questions/s \| (.+) \|$", TEXT, re.M)
    assert header is not None
    costs = {f"{name} {precision}": core_seconds(image, text) for name, precision, image, text, *_ in ROWS}
    lines = re.findall(r"^\| (1[\d,]+) \| (.+) \|$", TEXT, re.M)
    assert [line[0] for line in lines] == ["10", "100", "1,000", "10,000"]
    for questions, cells in lines:
        for column, cell in zip(header[1].split(" | "), cells.split(" | "), strict=True):
            exact = int(questions.replace(",", "")) * costs[column] / UTILISATION
            cores, replicas = math.ceil(exact), max(LEAST_REPLICAS, math.ceil(exact / REPLICA_CORES))
            assert cell == f"{cores:,} core{'s' * (cores > 1)}, {replicas:,} replicas", (questions, column)


def test_every_alert_has_its_line() -> None:
    alerts = [rule["alert"] for rule in promql.rules() if "alert" in rule]
    lines = re.findall(r"^\| (Vizwiz\w+(?:, Vizwiz\w+)*) \|", TEXT, re.M)
    assert sorted(alert for line in lines for alert in line.split(", ")) == sorted(alerts)
