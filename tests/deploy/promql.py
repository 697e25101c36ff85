"""The PromQL of deploy/, and what it asks of the metrics that Prometheus scrapes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser
import yaml

from tests.conftest import ROOT

RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "vizwiz.json"
ADAPTER = ROOT / "deploy" / "kubernetes" / "adapter.yaml"

# What Grafana and the adapter put in place of their variables.
_VARIABLES = {
    "$__rate_interval": "1m",
    "$instance": ".+",
    "<<.GroupBy>>": "pod",
    "<<.LabelMatchers>>": 'namespace="n", pod=~"p"',
}
_OPERATORS = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}


@dataclass(frozen=True)
class Matcher:
    label: str
    operator: str  # = != =~ !~
    value: str

    def accepts(self, labels: dict[str, str]) -> bool:
        got = labels.get(self.label, "")
        equal = bool(re.fullmatch(self.value, got)) if "~" in self.operator else got == self.value
        return equal != self.operator.startswith("!")


@dataclass(frozen=True)
class Selector:
    metric: str
    matchers: tuple[Matcher, ...]


def expressions() -> dict[str, str]:
    """Every PromQL expression in deploy/, by where it stands."""
    found = {f"rule {rule.get('alert') or rule['record']}": rule["expr"] for rule in rules()}
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        found |= {f"panel {panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    (adapter,) = yaml.safe_load(ADAPTER.read_text(encoding="utf-8"))["rules"]["custom"]
    series = adapter["seriesQuery"]
    found["adapter series"] = series
    found["adapter metric"] = adapter["metricsQuery"].replace("<<.Series>>", series.partition("{")[0])
    for name, value in _VARIABLES.items():
        found = {where: expression.replace(name, value) for where, expression in found.items()}
    return found


def rules() -> list[dict[str, Any]]:
    """The recording and alerting rules."""
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def nodes(expression: str) -> Iterator[Any]:
    """Every node of the expression's tree.

    Raises:
        ValueError: it is no PromQL.
    """
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(expression), found.append)
    yield from found


def selectors(expression: str) -> list[Selector]:
    """The series that an expression asks for."""
    return [
        Selector(
            node.name, tuple(Matcher(one.name, _OPERATORS[str(one.op)], one.value) for one in node.matchers.matchers)
        )
        for node in nodes(expression)
        if isinstance(node, promql_parser.VectorSelector)
    ]


def grouping_labels(expression: str) -> set[str]:
    """The labels that an expression groups or joins by."""
    labels: set[str] = set()
    for node in nodes(expression):
        modifier = getattr(node, "modifier", None)
        for part in (modifier, getattr(modifier, "matching", None)):
            labels.update(getattr(part, "labels", None) or [])
    return labels


def series(scrape: str) -> list[tuple[str, dict[str, str]]]:
    """The name and labels of every series in Prometheus's text format."""
    samples = re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", scrape, re.MULTILINE)
    return [(name, dict(re.findall(r'(\w+)="([^"]*)"', labels))) for name, labels in samples]
