"""The Kubernetes manifests against the schemas of the API, offline."""

from __future__ import annotations

import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from export.triton_config import TENSORRT_CACHE
from tests.deploy.manifests import BASE, DEPLOY, by_name, kubernetes
from vizwiz_client.contract.tensors import ENSEMBLE

RELEASES = ["1.29.0", "1.37.0"]  # the oldest whose fields are used, and the newest that the package knows
KUBECTL = shutil.which("kubectl")
MANIFESTS = kubernetes()
APPS = ("vizwiz-triton", "vizwiz-gateway")
PODS = {app: MANIFESTS[f"Deployment/{app}"]["spec"]["template"] for app in APPS}
CONTAINERS = {app: pod["spec"]["containers"][0] for app, pod in PODS.items()}
PORTS = {app: {port["name"]: port["containerPort"] for port in one["ports"]} for app, one in CONTAINERS.items()}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", MANIFESTS)
def test_schema(name: str, release: str) -> None:
    kubernetes_validate.validate(MANIFESTS[name], release, strict=True)


def test_no_file_of_the_base_is_left_out() -> None:
    names = yaml.safe_load((BASE / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    assert sorted([*names, "kustomization.yaml"]) == sorted(path.name for path in BASE.iterdir())


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_kustomize_builds_it(folder: str) -> None:
    command = [str(KUBECTL), "kustomize", str(DEPLOY / "kubernetes" / folder)]
    built = by_name(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert built.keys() == MANIFESTS.keys()
    for one in built.values():
        kubernetes_validate.validate(one, RELEASES[-1], strict=True)
    triton, gateway = (built[f"Deployment/{app}"]["spec"]["template"]["spec"]["containers"][0] for app in APPS)
    assert ("nvidia.com/gpu" in triton["resources"]["limits"]) == (folder == "gpu")
    assert triton["args"] == CONTAINERS["vizwiz-triton"]["args"]
    assert gateway["image"].endswith("vizwiz-gateway:0.1.0")


class TestTriton:
    CONTAINER = CONTAINERS["vizwiz-triton"]

    def test_probes(self) -> None:
        ready = {"path": f"/v2/models/{ENSEMBLE}/ready", "port": "http"}
        assert self.CONTAINER["startupProbe"]["httpGet"] == self.CONTAINER["readinessProbe"]["httpGet"] == ready
        assert self.CONTAINER["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"

    def test_mounts(self) -> None:
        mounts = {mount["name"]: mount for mount in self.CONTAINER["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in PODS["vizwiz-triton"]["spec"]["volumes"]}
        assert all(mounts[name]["readOnly"] for name in ("repository", "admin-key", "no-python"))
        assert mounts["engines"]["mountPath"] == TENSORRT_CACHE


def test_a_stop_has_the_time_it_takes() -> None:
    script = CONTAINERS["vizwiz-triton"]["lifecycle"]["preStop"]["exec"]["command"][-1]
    delay, polls, poll_s = re.findall(r"sleep (\d+)\n|seq (\d+)|sleep (0\.\d)", script)
    drain_s = int(polls[1]) * float(poll_s[2])
    (exit_s,) = re.findall(r"--exit-timeout-secs=(\d+)", CONTAINERS["vizwiz-triton"]["args"][2])
    assert PODS["vizwiz-triton"]["spec"]["terminationGracePeriodSeconds"] > int(delay[0]) + drain_s + int(exit_s)


@pytest.mark.parametrize("app", APPS)
def test_selectors_and_ports_meet(app: str) -> None:
    labels = PODS[app]["metadata"]["labels"].items()
    assert MANIFESTS[f"Deployment/{app}"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert MANIFESTS[f"PodDisruptionBudget/{app}"]["spec"]["selector"]["matchLabels"].items() <= labels
    policy = MANIFESTS[f"NetworkPolicy/{app}"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} <= PORTS[app].keys()
    service = MANIFESTS[f"Service/{app}"]["spec"]
    assert service["selector"].items() <= labels
    assert all(PORTS[app][port["targetPort"]] == port["port"] for port in service["ports"])
    assert MANIFESTS[f"HorizontalPodAutoscaler/{app}"]["spec"]["scaleTargetRef"]["name"] == app


def test_the_gateway_reaches_triton_and_every_pod_of_it() -> None:
    address = f"--triton=vizwiz-triton:{PORTS['vizwiz-triton']['grpc']}"
    assert address in CONTAINERS["vizwiz-gateway"]["args"]
    assert MANIFESTS["Service/vizwiz-triton"]["spec"]["clusterIP"] == "None"
    to_triton, _ = MANIFESTS["NetworkPolicy/vizwiz-gateway"]["spec"]["egress"]
    from_gateway, _ = MANIFESTS["NetworkPolicy/vizwiz-triton"]["spec"]["ingress"]
    assert to_triton["to"][0]["podSelector"]["matchLabels"] == PODS["vizwiz-triton"]["metadata"]["labels"]
    assert from_gateway["from"][0]["podSelector"]["matchLabels"] == PODS["vizwiz-gateway"]["metadata"]["labels"]
    assert to_triton["ports"] == from_gateway["ports"] == [{"port": "grpc"}]


def test_the_scrape_finds_the_pods_for_the_rules_and_the_adapter() -> None:
    jobs = yaml.safe_load((DEPLOY / "prometheus" / "kubernetes.yaml").read_text(encoding="utf-8"))
    rules = (DEPLOY / "prometheus" / "rules.yaml").read_text(encoding="utf-8")
    found = set()
    for job in jobs:
        phase, app, port, *added = job["relabel_configs"]
        assert (phase["action"], phase["regex"]) == ("drop", "Pending|Succeeded|Failed")  # listed, and nothing to ask
        assert f'job="{job["job_name"]}"' in rules
        assert port["regex"] in PORTS[app["regex"]]
        assert [one["target_label"] for one in added] == ["namespace", "pod"]
        found.add(app["regex"])
    assert found == {*APPS}


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
    (metric,) = MANIFESTS["HorizontalPodAutoscaler/vizwiz-triton"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert {"namespace", "pod"} <= rule["resources"]["overrides"].keys()
