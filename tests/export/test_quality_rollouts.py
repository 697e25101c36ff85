"""Rollouts between a head with quality and one without: what is refused, and clients of two versions under load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from export.publish import model_names
from serving import ServingError
from serving.access import find_server
from serving.repository import ensemble_config, write_config
from serving.rollout import Control, rollout
from serving.server import EmbeddedTriton
from tests.conftest import ROOT
from tests.export import asking_client
from tests.export.conftest import ISSUES, finish_again, reverse_labels
from training.run import Run
from vizwiz_client.contract.tensors import ENSEMBLE, HEAD_PREFIX

pytestmark = pytest.mark.parametrize("tiny_clip", [3], ids=["vit"], indirect=True)


class Served(NamedTuple):
    """A server of a repository with a head of each sort, which serves the one without quality."""

    server: EmbeddedTriton
    repository: Path
    plain: str
    quality: str

    def roll_out(self, head: str) -> None:
        done = rollout(self.server.grpc_url, to=head.removeprefix(HEAD_PREFIX))
        assert done.head == head


@pytest.fixture(scope="module")
def served(both: Path, run: Run, quality_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    repository = Path(shutil.copytree(both, tmp_path_factory.mktemp("served") / "triton_models"))
    names = model_names(run)
    write_config(repository / ENSEMBLE, ensemble_config(repository, names.head))
    with EmbeddedTriton(repository) as server:
        yield Served(server, repository, names.head, model_names(quality_run).head)


def another_expectation(head: Path) -> None:
    change_golden(head, lambda expected: expected["quality"][0].update(confidence=0.5))


def no_expectation(head: Path) -> None:
    change_golden(head, lambda expected: expected.pop("quality"))


def change_golden(head: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    golden = json.loads((head / "golden.json").read_text(encoding="utf-8"))
    edit(golden["expected"])
    (head / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    finish_again(head)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (reverse_labels, "has the probability"),
        (another_expectation, "has the probability"),
        (no_expectation, "has no usable golden request (KeyError: 'quality')"),
    ],
)
def test_a_rollout_refuses_wrong_quality(
    damage: Callable[[Path], None], reason: str, served: Served, both: Path
) -> None:
    head = served.repository / served.quality
    damage(head)
    try:
        with pytest.raises(ServingError) as caught:
            served.roll_out(served.quality)
        assert reason in str(caught.value)
        assert "the server serves as before" in str(caught.value)
    finally:
        shutil.rmtree(head)
        shutil.copytree(both / served.quality, head)


def test_the_server_verifies_the_labels_of_quality_at_load(served: Served, both: Path) -> None:
    server = find_server(served.server.grpc_url)
    assert server is not None
    labels = served.repository / served.quality / "quality.txt"
    labels.write_text("".join(f"{issue}\n" for issue in reversed(ISSUES)), encoding="utf-8")
    try:
        refused = pytest.raises(ServingError, match=r"quality\.txt has SHA-256 \w+, expected \w+: the file is damaged")
        with Control(server.grpc, server.key) as control, refused:
            control.load(served.quality)
    finally:
        shutil.copy(both / served.quality / "quality.txt", labels)


@pytest.fixture(scope="module")
def client_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client as it was before the contract had quality: its wheel, built from the history of this clone."""
    git = ["git", "-C", str(ROOT)]
    log = [
        "log",
        "--reverse",
        "--format=%H",
        "-SQUALITY = TensorSpec",
        "--",
        "client/vizwiz_client/contract/tensors.py",
    ]
    try:
        first = subprocess.run([*git, *log], check=True, capture_output=True, text=True).stdout.split()[0]
        archive = subprocess.run([*git, "archive", f"{first}~1"], check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        pytest.skip(f"the history of this clone does not have the client of the version before ({error})")
    source, wheels, installed = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "installed"))
    subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input"]
    offline = ["--no-index", "--no-deps"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", wheels, source], check=True)
    subprocess.run([*pip, "install", *offline, "--target", installed, *wheels.iterdir()], check=True)
    home = installed / "vizwiz_client" / "contract" / "tensors.py"
    assert "QUALITY" not in home.read_text(encoding="utf-8")
    return installed


class Client:
    """A client in a process of its own, with the package in ``folder``, that asks in a closed loop."""

    def __init__(self, folder: Path, served: Served, output: Path) -> None:
        self._output, head = output, served.repository / served.plain
        command = [sys.executable, asking_client.__file__, folder, served.server.grpc_url, head / "golden.jpg"]
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, env={**os.environ, "PYTHONPATH": str(folder)}
            )

    def replies(self) -> list[dict[str, Any]]:
        """What it got so far."""
        lines = self._output.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def wait_for(self, count: int) -> None:
        """Return when ``count`` more replies have come."""
        target, deadline = len(self.replies()) + count, time.monotonic() + 60
        while len(self.replies()) < target:
            assert self._process.poll() is None, "the client ended"
            assert time.monotonic() < deadline, "the server answers too slowly: the test proves nothing"
            time.sleep(0.05)

    def end(self) -> None:
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0


@contextmanager
def asking(folder: Path, served: Served, output: Path) -> Iterator[Client]:
    client = Client(folder, served, output)
    try:
        yield client
    finally:
        client.end()


@pytest.mark.parametrize("rollouts", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_rollouts_fail_and_mislabel_no_answer_of_the_client_before(
    rollouts: int, client_before: Path, served: Served, tmp_path: Path
) -> None:
    replies = ask_during_rollouts(client_before, served, rollouts, tmp_path / "replies")
    assert not any(reply["quality"] for reply in replies)


@pytest.mark.parametrize("rollouts", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_rollouts_fail_and_mislabel_no_answer_of_this_client(rollouts: int, served: Served, tmp_path: Path) -> None:
    """It notices both: quality comes with the head that has it, and goes."""
    replies = ask_during_rollouts(ROOT / "client", served, rollouts, tmp_path / "replies")
    assert {reply["head"] for reply in replies if reply["quality"]} == {served.quality}


def ask_during_rollouts(folder: Path, served: Served, rollouts: int, output: Path) -> list[dict[str, Any]]:
    """Roll out a head with quality and one without in turn, an even number of times; return the checked replies."""
    with asking(folder, served, output) as client:
        for number in range(rollouts):
            client.wait_for(12)
            served.roll_out(served.plain if number % 2 else served.quality)
        client.wait_for(12)
    replies = client.replies()
    assert [reply["error"] for reply in replies if "error" in reply] == []
    assert {reply["head"] for reply in replies} == {served.plain, served.quality}
    for reply in replies:
        check(reply, served)
    return replies


def check(reply: dict[str, Any], served: Served) -> None:
    """A reply is one head's alone: its labels, its values; quality is complete, or was not requested."""
    head = served.repository / reply["head"]
    golden = json.loads((head / "golden.json").read_text(encoding="utf-8"))
    expected, tolerance = golden["expected"], golden["tolerance"]
    candidates = {each["answer"]: each["confidence"] for each in expected["candidates"]}
    assert {label: reply["answers"].get(label) for label in candidates} == pytest.approx(candidates, abs=tolerance)
    assert {*reply["answers"]} <= {*(head / "answer.txt").read_text(encoding="utf-8").splitlines()}
    assert reply["answerable"] == pytest.approx(expected["answerable"], abs=tolerance)
    if reply["quality"]:
        quality = {each["issue"]: each["confidence"] for each in expected.get("quality", [])}
        assert reply["quality"] == pytest.approx(quality, abs=tolerance)
