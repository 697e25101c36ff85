"""The manifests of deploy/, read as compose and Kubernetes read them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes" / "base"


class ComposeLoader(yaml.SafeLoader):
    """Reads `!reset`, by which an override of compose takes something away."""


ComposeLoader.add_constructor("!reset", lambda loader, node: None)


@dataclass(frozen=True)
class Lines:
    """How a manifest starts and stops Triton."""

    start: list[str]
    stop: list[str]
    environment: dict[str, str]


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    return dict(yaml.load((DEPLOY / name).read_text(encoding="utf-8"), ComposeLoader))


def kubernetes() -> dict[str, dict[str, Any]]:
    """The objects of the base, by "Kind/name"."""
    names = yaml.safe_load((BASE / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return by_name("\n---\n".join((BASE / name).read_text(encoding="utf-8") for name in names))


def by_name(text: str) -> dict[str, dict[str, Any]]:
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in yaml.safe_load_all(text)}


def compose_lines() -> Lines:
    triton = compose()["services"]["triton"]
    return Lines(
        [_interpolate(word) for word in triton["command"]],
        [_interpolate(word) for word in triton["pre_stop"][0]["command"]],
        {name: _interpolate(value) for name, value in triton["environment"].items()},
    )


def kubernetes_lines() -> Lines:
    (container,) = kubernetes()["Deployment/vizwiz-triton"]["spec"]["template"]["spec"]["containers"]
    environment = {one["name"]: one.get("value", "1") for one in container["env"]}  # the others are limits
    for word in container["args"]:  # $(NAME) of a variable would be replaced, and $$ be one $
        assert not re.search(rf"\$\$|\$\(({'|'.join(environment)})\)", word)
    return Lines(container["args"], container["lifecycle"]["preStop"]["exec"]["command"], environment)


def _interpolate(text: str) -> str:
    """``text`` as compose passes it on where no variable is set."""
    return re.sub(r"\$(?:(\$)|\{\w+:-([^}]*)\})", lambda match: match[1] or match[2], text)
