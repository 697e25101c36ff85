"""The Kubernetes manifests against the schemas of the API, offline."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy import serve
from tests.deploy.conftest import DEPLOY
from vizwiz_client.contract.tensors import ENSEMBLE

BASE = DEPLOY / "kubernetes" / "base"
RELEASES = ["1.29.0", "1.37.0"]  # the oldest whose fields are used, and the newest that the package knows
KUBECTL = shutil.which("kubectl")


def manifests(text: str) -> dict[str, dict[str, Any]]:
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in yaml.safe_load_all(text)}


def base() -> dict[str, dict[str, Any]]:
    names = yaml.safe_load((BASE / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    assert sorted([*names, "kustomization.yaml"]) == sorted(path.name for path in BASE.iterdir())
    return manifests("\n---\n".join((BASE / name).read_text(encoding="utf-8") for name in names))


MANIFESTS = base()
POD = MANIFESTS["Deployment/vizwiz-triton"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", MANIFESTS)
def test_schema(name: str, release: str) -> None:
    kubernetes_validate.validate(MANIFESTS[name], release, strict=True)


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_kustomize_builds_it(folder: str) -> None:
    command = [str(KUBECTL), "kustomize", str(DEPLOY / "kubernetes" / folder)]
    built = manifests(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert built.keys() == MANIFESTS.keys()
    for one in built.values():
        kubernetes_validate.validate(one, RELEASES[-1], strict=True)
    (container,) = built["Deployment/vizwiz-triton"]["spec"]["template"]["spec"]["containers"]
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (folder == "gpu")
    assert container["image"].endswith(":0.1.0")


class TestPod:
    def test_probes(self) -> None:
        ready = {"path": f"/v2/models/{ENSEMBLE}/ready", "port": "http"}
        assert CONTAINER["startupProbe"]["httpGet"] == CONTAINER["readinessProbe"]["httpGet"] == ready
        assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"

    def test_the_repository_and_the_key_are_mounted_read_only_where_the_command_looks(self) -> None:
        defaults = serve.options([])
        mounts = {mount["name"]: mount for mount in CONTAINER["volumeMounts"]}
        assert mounts["repository"]["mountPath"] == defaults.repository
        assert mounts["admin-key"]["mountPath"] == str(defaults.admin_key_file.parent)
        assert mounts["repository"]["readOnly"] is mounts["admin-key"]["readOnly"] is True
        assert mounts.keys() == {volume["name"] for volume in POD["spec"]["volumes"]}

    def test_a_stop_has_the_time_it_takes(self) -> None:
        delay = serve.options([one.replace("$(CPUS)", "4") for one in CONTAINER["args"][1:]]).stop_delay_s
        assert POD["spec"]["terminationGracePeriodSeconds"] > delay + serve.DRAIN_S + serve.EXIT_S


def test_selectors_and_ports_meet() -> None:
    labels = POD["metadata"]["labels"].items()
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert MANIFESTS["Deployment/vizwiz-triton"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert MANIFESTS["PodDisruptionBudget/vizwiz-triton"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert MANIFESTS["NetworkPolicy/vizwiz-triton"]["spec"]["podSelector"]["matchLabels"].items() <= labels
    for name in ("vizwiz-triton", "vizwiz-triton-http"):
        service = MANIFESTS[f"Service/{name}"]["spec"]
        assert service["selector"].items() <= labels
        assert all(ports[port["targetPort"]] == port["port"] for port in service["ports"])
    assert MANIFESTS["Service/vizwiz-triton"]["spec"]["clusterIP"] == "None"


def test_the_scrape_finds_the_pods_for_the_rules_and_the_adapter() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus" / "kubernetes.yaml").read_text(encoding="utf-8"))
    rules = (DEPLOY / "prometheus" / "rules.yaml").read_text(encoding="utf-8")
    phase, app, port, *added = job["relabel_configs"]
    assert (phase["action"], phase["regex"]) == ("drop", "Pending|Succeeded|Failed")  # listed, and nothing to ask
    assert f'job="{job["job_name"]}"' in rules
    assert POD["metadata"]["labels"]["app"] == app["regex"]
    assert port["regex"] in [one["name"] for one in CONTAINER["ports"]]
    assert [one["target_label"] for one in added] == ["namespace", "pod"]


def test_the_adapter_asks_a_prometheus_that_may_scrape_the_pods() -> None:
    _, scrape = MANIFESTS["NetworkPolicy/vizwiz-triton"]["spec"]["ingress"]
    (source,) = scrape["from"]
    namespace = source["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    adapter = yaml.safe_load((DEPLOY / "kubernetes" / "adapter.yaml").read_text(encoding="utf-8"))
    assert re.fullmatch(rf"http://[a-z-]+\.{namespace}\.svc", adapter["prometheus"]["url"])
    install = (DEPLOY / "README.md").read_text(encoding="utf-8").partition("helm upgrade --install adapter")[2]
    assert f"--namespace {namespace}" in install.splitlines()[0]


def test_the_autoscaler_reads_what_the_adapter_makes() -> None:
    (rule,) = yaml.safe_load((DEPLOY / "kubernetes" / "adapter.yaml").read_text(encoding="utf-8"))["rules"]["custom"]
    autoscaler = MANIFESTS["HorizontalPodAutoscaler/vizwiz-triton"]["spec"]
    (metric,) = autoscaler["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert autoscaler["scaleTargetRef"]["name"] == "vizwiz-triton"
    assert {"namespace", "pod"} <= rule["resources"]["overrides"].keys()
