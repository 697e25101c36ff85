"""The production files, as far as a machine without containers can check them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import venv
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.conftest import ROOT
from tests.deploy.conftest import DEPLOY
from vizwiz_client.contract.tensors import ENSEMBLE

DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
JOINED = re.sub(r"\\\n(#.*\n)*", "", DOCKERFILE)  # each step on one line
YAML_FILES = sorted(DEPLOY.rglob("*.yaml"))


class ComposeLoader(yaml.SafeLoader):
    """Reads `!reset`, by which an override of compose takes something away."""


ComposeLoader.add_constructor("!reset", lambda loader, node: None)


class TestDockerfile:
    def test_the_release_is_pinned_and_recent_enough(self) -> None:
        (year, month), *others = re.findall(r"tritonserver:(\d\d)\.(\d\d)-py3$", DOCKERFILE, re.MULTILINE)
        assert not others
        assert (int(year), int(month)) >= (25, 7)  # the Python backend's CVEs

    def test_every_source_exists_and_is_let_through(self) -> None:
        ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
        assert {f"!{source}" for source in sources()} == {line for line in ignored if line.startswith("!")}
        assert "*" in ignored
        assert all((ROOT / source).exists() for source in sources())

    def test_it_adds_what_the_client_needs_but_grpc(self) -> None:
        added = re.findall(r"'([a-z]+>=[\d.]+)'", DOCKERFILE)
        needed = [one for one in metadata.requires("vizwiz-client") or [] if "extra ==" not in one]
        assert sorted(added) == sorted(one for one in needed if not one.startswith("tritonclient"))

    @pytest.mark.slow  # takes packages from the index
    def test_what_it_installs_runs_the_contract_without_torch_or_grpc(self, tmp_path: Path) -> None:
        for source in sources():
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copyfile
            (tmp_path / source).parent.mkdir(exist_ok=True)
            copy(ROOT / source, tmp_path / source)
        venv.create(tmp_path / "venv", with_pip=True)
        python = tmp_path / "venv" / "bin" / "python"
        steps = re.findall(r"python3 (-m pip [^&]+?|-c [^&]+?)\s*(?:&&|\n)", JOINED)
        assert len(steps) == 4
        for step in steps:
            arguments = [glob for part in shlex.split(step) for glob in unfold(part, tmp_path)]
            arguments = [one for one in arguments if one != "--break-system-packages"]
            subprocess.run([python, *arguments], cwd=tmp_path, check=True)
        listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
        assert "vizwiz-client" in listed
        assert not [name for name in ("torch", "grpcio", "tritonclient", "onnxruntime") if name in listed]


def sources() -> list[str]:
    """What the Dockerfile copies from the repository."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    return [source for line in lines for source in shlex.split(re.sub(r"--\S+", "", line))[:-1]]


def unfold(argument: str, folder: Path) -> list[str]:
    """An argument of a build step, with the image's folder of the wheel in ``folder`` and its pattern replaced."""
    argument = re.sub(r"^(/tmp)?/wheel", str(folder / "wheel"), argument)
    return [str(path) for path in folder.glob("wheel/*")] if argument.endswith("*.whl") else [argument]


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_yaml_parses(path: Path) -> None:
    assert list(yaml.load_all(path.read_text(encoding="utf-8"), ComposeLoader))


class TestCompose:
    @pytest.mark.parametrize("name", ["compose.yaml", "compose.cpu.yaml"])
    def test_it_follows_the_specification(self, name: str) -> None:
        schema = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
        jsonschema.validate(compose(name), json.loads(schema.read_text(encoding="utf-8")))

    def test_the_probe_asks_the_ensemble(self) -> None:
        assert compose("compose.yaml")["services"]["triton"]["healthcheck"]["test"][-1].endswith(
            f"/v2/models/{ENSEMBLE}/ready"
        )

    def test_the_repository_is_read_only(self) -> None:
        repository, engines = compose("compose.yaml")["services"]["triton"]["volumes"]
        assert (repository["target"], repository["read_only"]) == ("/models", True)
        assert engines.split(":")[1] in DOCKERFILE

    def test_ports_are_on_loopback_by_default(self) -> None:
        services = compose("compose.yaml")["services"].values()
        ports = [port for service in services for port in service["ports"]]
        assert len(ports) == 4
        assert all(port.startswith(("127.0.0.1:", "${VIZWIZ_ADDRESS:-127.0.0.1}:")) for port in ports)

    def test_files_that_are_mounted_exist(self) -> None:
        services = compose("compose.yaml")["services"]
        mounts = [*services["prometheus"]["volumes"], *services["grafana"]["volumes"]]
        sources = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
        assert len(sources) == 4
        assert all((DEPLOY / source).exists() for source in sources)


class TestDashboard:
    def test_it_asks_the_provisioned_source(self) -> None:
        dashboard = json.loads((DEPLOY / "grafana" / "vizwiz.json").read_text(encoding="utf-8"))
        (source,) = yaml.safe_load((DEPLOY / "grafana" / "datasource.yaml").read_text(encoding="utf-8"))["datasources"]
        assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}


def compose(name: str) -> dict[str, Any]:
    return dict(yaml.load((DEPLOY / name).read_text(encoding="utf-8"), ComposeLoader))
