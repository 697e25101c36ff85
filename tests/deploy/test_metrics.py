"""Every PromQL expression of rules, dashboard and adapter selects series of a real scrape."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.deploy import promql
from tests.deploy.conftest import Deployed
from tests.deploy.manifests import DEPLOY
from tests.gateway.processes import Gateway
from vizwiz_client import VizwizClient

# What a server on a machine without a GPU cannot show: https://github.com/triton-inference-server/server,
# docs/user_guide/metrics.md, GPU metrics
GPU_SERIES = [
    (name, {"gpu_uuid": "GPU-0"})
    for name in ("nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes")
]
TARGET_LABELS = {"job": "vizwiz", "instance": "i", "namespace": "n", "pod": "p"}  # Prometheus adds them
OWN_SERIES = [("up", {}), ("up", {"job": "vizwiz-gateway"})]  # Prometheus makes them

EXPRESSIONS = promql.expressions()
PROMTOOL = shutil.which("promtool")


@pytest.fixture(scope="session")
def scrape(deployed: Deployed, photo: Path) -> list[tuple[str, dict[str, str]]]:
    """Every series there is after a few questions, as Prometheus would store them."""
    with VizwizClient(deployed.grpc_url) as client:
        for _ in range(2):
            client.ask(photo, "what is this?")
    status, text = deployed.http("GET", "/metrics", service="metrics")
    assert status == 200
    gateways = scrape_gateways(deployed, photo.read_bytes())
    recorded = [(rule["record"], {}) for rule in promql.rules() if "record" in rule]
    served = promql.series(text.decode())
    return [
        (name, TARGET_LABELS | labels) for name, labels in [*served, *gateways, *GPU_SERIES, *OWN_SERIES, *recorded]
    ]


def scrape_gateways(deployed: Deployed, photo: bytes) -> list[tuple[str, dict[str, str]]]:
    """Every series of a gateway that answers, and of one that is full and has lost Triton."""
    with Gateway(deployed.grpc_url) as gateway, Gateway("127.0.0.1:1", "--max-requests=1") as lost:
        assert gateway.ask(photo, "what is this?").status_code == 200
        assert lost.ask(photo, "what is this?").status_code == 502
        with socket.create_connection((lost.http.base_url.host, lost.http.base_url.port or 80)) as upload:
            form = "multipart/form-data; boundary=x"
            upload.sendall(f"POST /v1/ask HTTP/1.1\r\nhost: localhost\r\ncontent-type: {form}\r\n".encode())
            upload.sendall(b"content-length: 99\r\n\r\n--x")
            deadline = time.monotonic() + 60
            while "vizwiz_gateway_admitted 1.0" not in lost.http.get("/metrics").text:
                assert time.monotonic() < deadline
            assert lost.ask(photo, "what is this?").status_code == 503
        return [series for one in (gateway, lost) for series in promql.series(one.http.get("/metrics").text)]


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_selector_finds_series(where: str, scrape: list[tuple[str, dict[str, str]]]) -> None:
    for selector in promql.selectors(EXPRESSIONS[where]):
        same_name = [labels for name, labels in scrape if name == selector.metric]
        assert same_name, f"{where}: no metric {selector.metric}"
        found = [labels for labels in same_name if all(matcher.accepts(labels) for matcher in selector.matchers)]
        assert found, f"{where}: {selector} finds none of {same_name}"


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_label_it_groups_by_exists(where: str, scrape: list[tuple[str, dict[str, str]]]) -> None:
    metrics = {selector.metric for selector in promql.selectors(EXPRESSIONS[where])}
    known = {label for name, labels in scrape if name in metrics for label in labels}
    assert promql.grouping_labels(EXPRESSIONS[where]) <= known


def test_the_gpu_list_is_no_longer_than_needed(scrape: list[tuple[str, dict[str, str]]]) -> None:
    asked = {selector.metric for where in EXPRESSIONS for selector in promql.selectors(EXPRESSIONS[where])}
    assert {name for name, _ in GPU_SERIES} == {name for name in asked if name.startswith("nv_gpu_")}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", str(DEPLOY / "prometheus" / "prometheus.yaml")],
        ["test", "rules", str(Path(__file__).with_name("alerts.yaml"))],
    ],
    ids=["config and rules", "alerts"],
)
def test_promtool_agrees(arguments: list[str]) -> None:
    assert PROMTOOL is not None
    run = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
