"""The production files, as far as a machine without containers can check them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import venv
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import yaml

from export.triton_config import TENSORRT_CACHE
from tests.conftest import ROOT
from tests.deploy.manifests import DEPLOY, ComposeLoader, compose, compose_lines, kubernetes_lines
from vizwiz_client.contract.tensors import ENSEMBLE

DOCKERFILE = (DEPLOY / "gateway.Dockerfile").read_text(encoding="utf-8")
YAML_FILES = sorted(DEPLOY.rglob("*.yaml"))


class TestGatewayImage:
    def test_every_source_exists_and_is_let_through(self) -> None:
        ignored = (DEPLOY / "gateway.Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
        assert {f"!{source}" for source in sources()} == {line for line in ignored if line.startswith("!")}
        assert "*" in ignored
        assert all((ROOT / source).exists() for source in sources())

    @pytest.mark.slow  # takes packages from the index
    def test_what_it_installs_runs_without_torch_or_a_file_to_write(self, tmp_path: Path) -> None:
        for source in sources():
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copyfile
            copy(ROOT / source, tmp_path / source)
        venv.create(tmp_path / "venv", with_pip=True)
        python = tmp_path / "venv" / "bin" / "python"
        steps = re.findall(r"^RUN python3 (-m pip .+?)(?: &&|$)", DOCKERFILE, re.MULTILINE)
        assert len(steps) == 2
        for step in steps:
            line = re.sub(r"(?:/tmp)?/wheel\b", str(tmp_path / "wheel"), step)
            subprocess.run(["sh", "-c", f"{python} {line}"], cwd=tmp_path, check=True)
        listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
        assert {"vizwiz-client", "fastapi", "pillow_heif", "uvloop"} <= {
            line.split()[0] for line in listed.splitlines()
        }
        assert not [name for name in ("torch", "onnxruntime", "triton ") if name in listed]
        command = [python.with_name("vizwiz-gateway"), "--help"]
        assert "--token-file" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def sources() -> list[str]:
    """What the Dockerfile copies from the repository."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    return [source for line in lines for source in shlex.split(line)[:-1]]


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_yaml_parses(path: Path) -> None:
    assert list(yaml.load_all(path.read_text(encoding="utf-8"), ComposeLoader))


def test_compose_and_kubernetes_start_and_stop_triton_by_the_same_lines() -> None:
    one, other = compose_lines(), kubernetes_lines()
    assert one.start == other.start
    assert [*other.stop[:-1], other.stop[-1].removeprefix("sleep 10\n")] == one.stop
    assert one.environment.keys() == other.environment.keys()


class TestCompose:
    @pytest.mark.parametrize("name", ["compose.yaml", "compose.cpu.yaml"])
    def test_it_follows_the_specification(self, name: str) -> None:
        schema = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
        jsonschema.validate(compose(name), json.loads(schema.read_text(encoding="utf-8")))

    def test_the_probe_asks_the_ensemble(self) -> None:
        assert compose()["services"]["triton"]["healthcheck"]["test"][-1].endswith(f"/v2/models/{ENSEMBLE}/ready")

    def test_triton_reads_the_models_and_writes_engines_where_export_says(self) -> None:
        repository, engines = compose()["services"]["triton"]["volumes"]
        assert (repository["target"], repository["read_only"]) == ("/models", True)
        assert engines["target"] == TENSORRT_CACHE

    def test_the_faces_of_triton_and_gateway_are_read_only(self) -> None:
        for name in ("triton", "gateway", "caddy"):
            service = compose()["services"][name]
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name

    def test_only_https_leaves_the_machine(self) -> None:
        services = compose()["services"]
        ports = {name: service["ports"] for name, service in services.items()}
        assert ports.pop("caddy") == ["80:80", "443:443"]
        assert services["caddy"]["profiles"] == ["tls"]
        published = [port for each in ports.values() for port in each]
        assert len(published) == 5
        assert all(port.startswith(("127.0.0.1:", "${VIZWIZ_ADDRESS:-127.0.0.1}:")) for port in published)

    def test_the_gateway_answers_to_the_name_that_caddy_serves_and_prometheus_scrapes(self) -> None:
        services = compose()["services"]
        names = services["gateway"]["environment"]["VIZWIZ_GATEWAY_ALLOWED_HOST"]
        assert "VIZWIZ_DOMAIN" in names
        caddyfile = (DEPLOY / "Caddyfile").read_text(encoding="utf-8")
        assert "{$VIZWIZ_DOMAIN}" in caddyfile
        assert "VIZWIZ_DOMAIN" in services["caddy"]["environment"]
        upstream = re.search(r"reverse_proxy (\S+):8080", caddyfile)
        assert upstream
        assert upstream[1] in names.split(",")

    def test_files_that_are_mounted_exist(self) -> None:
        services = compose()["services"]
        mounts = [mount for name in ("prometheus", "grafana", "caddy") for mount in services[name]["volumes"]]
        sources = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
        assert len(sources) == 5
        assert all((DEPLOY / source).exists() for source in sources)


class TestDashboard:
    def test_it_asks_the_provisioned_source(self) -> None:
        dashboard = json.loads((DEPLOY / "grafana" / "vizwiz.json").read_text(encoding="utf-8"))
        (source,) = yaml.safe_load((DEPLOY / "grafana" / "datasource.yaml").read_text(encoding="utf-8"))["datasources"]
        assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
