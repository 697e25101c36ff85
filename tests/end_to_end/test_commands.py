"""The four commands in order, as a user types them, on the embedded demo; and the scores it reaches."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo import ensure_demo_dataset
from tests.conftest import ROOT
from training.dataset import read_split
from training.fit import next_step
from training.run import newest_run
from vizwiz_client.contract.wording import DEMO

FREE_PORTS = ["--gateway-port", "0", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]


@pytest.fixture(scope="module", params=["quarter", pytest.param("whole", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with nothing in it but the demo data: its first records, or all, which the checkout keeps."""
    place = tmp_path_factory.mktemp(request.param)
    if request.param == "whole":  # which takes a minute to draw
        data = ensure_demo_dataset(ROOT / "data" / "demo")
        (place / "data").symlink_to(data.parent)
    else:
        ensure_demo_dataset(place / "data" / "demo", train=750, val=200, test=10)
    return place


def command(place: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    completed = subprocess.run(
        [sys.executable, *arguments], cwd=place, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return completed.stdout


@pytest.fixture(scope="module")
def fitted(place: Path) -> str:
    """What `python -m training.fit` prints; only of the whole demo data does it need no name."""
    return command(place, "-m", "training.fit", *([] if place.name.startswith("whole") else ["--data", "data/demo"]))


@pytest.fixture(scope="module")
def exported(place: Path, fitted: str) -> str:
    """What `python -m export.to_onnx` prints."""
    return command(place, "-m", "export.to_onnx")


@pytest.fixture(scope="module")
def grpc_url(place: Path, exported: str) -> Iterator[str]:
    """The address at which `python -m serving` serves."""
    server = subprocess.Popen(
        [sys.executable, "-m", "serving", "--json", *FREE_PORTS],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    with server.stdout:
        yield json.loads(server.stdout.readline())["grpc"]
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=30) == 0


def test_fit_prints_its_data_and_the_next_command(fitted: str) -> None:
    lines = fitted.splitlines()
    assert re.match("data: .*demo", lines[0])
    assert lines[1].startswith("CLIP: the demo CLIP")
    assert lines[-1] == "next: python -m export.to_onnx"


def test_what_comes_next_names_a_run_that_export_would_not_find() -> None:
    assert next_step(Path("runs/1")) == "next: python -m export.to_onnx"
    assert next_step(Path("elsewhere/1")) == "next: python -m export.to_onnx --run elsewhere/1"


def test_the_demo_clip_carries_the_demo(place: Path, fitted: str, request: pytest.FixtureRequest) -> None:
    """A quarter of the data is 60 steps, after which logistic regression on the same features is ahead of the head."""
    metrics: dict[str, Any] = json.loads((newest_run(place / "runs") / "metrics.json").read_text(encoding="utf-8"))
    best, majority = metrics["best"], metrics["majority_baseline"]
    whole = request.node.callspec.params["place"] == "whole"
    most = best if whole else metrics["baselines"]["logistic_regression"]
    assert most["vqa_accuracy_leave_one_out"] >= (75 if whole else 70)
    assert best["vqa_accuracy_leave_one_out"] >= majority["vqa_accuracy_leave_one_out"] + (30 if whole else 20)
    assert best["unanswerable_ap"] >= 0.85


def test_export_takes_the_newest_run(place: Path, exported: str) -> None:
    run = newest_run(place / "runs").relative_to(place)
    assert exported.startswith(f"run: {run} (")
    assert "published in triton_models/: vizwiz_vqa = clip_image_" in exported


def test_the_client_answers_in_a_line(place: Path, grpc_url: str) -> None:
    split = read_split(place / "data" / "demo", "val")
    record = next(record for record in split.records if record.answerable)
    shutil.copy(split.photos / record.image, place / "img.jpg")
    client = str(Path(sys.executable).with_name("vizwiz-client"))
    completed = subprocess.run(
        [client, "ask", "img.jpg", "what is this?", "--url", grpc_url],
        cwd=place,
        check=True,
        capture_output=True,
        text=True,
    )
    assert len(completed.stdout.splitlines()) == 1
    assert re.fullmatch(r"[A-Z].*\. [A-Z][a-z ]+ sure, \d+%\.\n", completed.stdout)
    assert completed.stderr == f"{DEMO}\n"  # the answers of its model to real photos mean nothing


def test_every_command_refuses_a_closed_output() -> None:
    modules = [path for name in ("training", "export", "serving", "demo") for path in (ROOT / name).rglob("*.py")]
    sources = [path.read_text(encoding="utf-8") for path in modules]
    commands = [text for text in sources if "ArgumentParser(" in text and "__name__ ==" in text]
    assert len(commands) >= 9
    assert all("(streams.run(main))" in text for text in commands)
