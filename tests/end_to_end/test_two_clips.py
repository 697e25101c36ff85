"""A run on two CLIPs of different image sizes, from fit to answer, and rollouts to it and back under load."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from export import to_onnx
from export.inventory import check_repository, list_models, prune
from export.repository import finish_model
from serving.repository import read_config, read_ensemble
from serving.rollout import rollout
from serving.server import EmbeddedTriton
from tests.conftest import LiveServer, write_checkpoint
from tests.gateway.processes import Gateway
from training.backbone import FrozenClip, load_clip
from training.dataset import read_split
from training.fit import fit
from training.recipe import Recipe
from training.run import Run, read_run
from vizwiz_client import DeadlineExceeded, VizwizClient
from vizwiz_client.contract.image import load_photo
from vizwiz_client.contract.prepared import prepare
from vizwiz_client.contract.tensors import HEAD_PREFIX, IMAGE_ENCODER_PREFIX, ImageInput

CLIENTS = 3
PHOTOS = 6
Pairs = Sequence[tuple[Path, str]]


@dataclass(frozen=True)
class TwoClips:
    """A repository with the heads of a run on one CLIP and of a run on two, whose ensemble references the latter."""

    repository: Path
    one: Run
    two: Run
    expected: dict[str, list[dict[str, float]]]  # answers by the head's name: probability of each, by PyTorch
    pairs: Pairs

    def head(self, run: Run) -> str:
        """The name of the head of ``run``."""
        (name,) = (
            entry.name for entry in list_models(self.repository) if entry.made_from.get("run_sha256") == run.digest
        )
        return name


@pytest.fixture(scope="module")
def two_clips(live_server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> TwoClips:
    place = tmp_path_factory.mktemp("two")
    other = write_checkpoint(place / "other.pt", (1, 1, 1, 1), embed_dim=48)
    clips = [load_clip(live_server.run.clips[0]["source"]), load_clip(other)]
    train, val = read_split(live_server.data, "train"), read_split(live_server.data, "val")
    two = read_run(fit(train, val, clips, Recipe(epochs=5), place / "runs", place / "cache"))
    repository = Path(shutil.copytree(live_server.repository, place / "triton_models"))
    assert to_onnx.main(["--run", str(two.folder), "--repository", str(repository)]) == 0
    records = zip(val.photo_paths(), val.records, strict=True)
    pairs = [(path, record.question) for path, record in records][:PHOTOS]
    made = TwoClips(repository, live_server.run, two, {}, pairs)
    made.expected[made.head(live_server.run)] = pytorch_answers(live_server.run, clips[:1], pairs)
    made.expected[made.head(two)] = pytorch_answers(two, clips, pairs)
    return made


@torch.inference_mode()
def pytorch_answers(run: Run, clips: Sequence[FrozenClip], pairs: Pairs) -> list[dict[str, float]]:
    """The reference: each CLIP's own preprocessing, tokenizer and encoders, and the heads as they were fitted."""
    features = []
    for model in clips:
        preprocess = model.reference_preprocess()
        images = model.model.encode_image(torch.stack([preprocess(load_photo(path)) for path, _ in pairs]))
        features.append((model.model.encode_text(model.reference_tokenize([text for _, text in pairs])), images))
    probabilities = run.load_ensemble()(features).answer
    return [dict(zip(run.answers, row.tolist(), strict=True)) for row in probabilities]


@pytest.fixture(scope="module")
def served(two_clips: TwoClips) -> Iterator[EmbeddedTriton]:
    with EmbeddedTriton(two_clips.repository) as server:
        yield server


def test_answers_are_what_pytorch_gives(two_clips: TwoClips, served: EmbeddedTriton) -> None:
    with VizwizClient(served.grpc_url) as client:
        assert client.check().images == (ImageInput("image_96", 96), ImageInput("image_64", 64))
        answers = client.ask_batch(two_clips.pairs, top=3)
    head = two_clips.head(two_clips.two)
    for answer, expected in zip(answers, two_clips.expected[head], strict=True):
        assert HEAD_PREFIX + answer.head_id == head
        best = sorted(expected.values(), reverse=True)[:3]
        assert [candidate.confidence for candidate in answer.candidates] == pytest.approx(best, abs=1e-5)
        assert {each.answer: expected[each.answer] for each in answer.candidates} == pytest.approx(
            dict(answer.candidates), abs=1e-5
        )


def test_the_repository_is_what_the_run_asks_for(two_clips: TwoClips, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_repository(two_clips.repository, two_clips.two) == []
    (problem,) = check_repository(two_clips.repository, two_clips.one)
    assert f"serves the run {two_clips.two.folder.name}, not {two_clips.one.folder.name}" in problem
    kinds = [entry.kind for entry in list_models(two_clips.repository) if entry.referenced]
    assert sorted(kinds) == ["head", "image encoder", "image encoder", "text encoder", "text encoder"]
    assert to_onnx.main(["--list", "--repository", str(two_clips.repository)]) == 0
    assert "other.pt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("numbers", "refusal"),
    [
        (
            [1, 0],
            "as number 1, but .*other.pt is .*: give .*clip_demo.pt, then .*other.pt with --clip",
        ),
        ([0], "was fitted on 2 CLIP.s., got 1: give .*clip_demo.pt, then .*other.pt with --clip"),
    ],
)
def test_other_clips_than_those_of_the_fit_are_refused(
    numbers: list[int], refusal: str, two_clips: TwoClips, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [two_clips.two.clips[number]["source"] for number in numbers]
    arguments = [argument for source in sources for argument in ("--clip", source)]
    assert to_onnx.main(["--run", str(two_clips.two.folder), "--repository", str(tmp_path), *arguments]) == 2
    assert re.search(refusal, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_all_clips_share_the_golden_photo(two_clips: TwoClips, tmp_path: Path) -> None:
    """An encoder that was exported with another version of Pillow has another one."""
    own = Path(shutil.copytree(two_clips.repository, tmp_path / "models"))
    head = two_clips.head(two_clips.two)
    shutil.rmtree(own / head)
    names = [step.model_name for step in read_ensemble(own).ensemble_scheduling.step]
    first, second = (own / name for name in names if name.startswith(IMAGE_ENCODER_PREFIX))
    photo = Image.open(second / "golden.jpg").rotate(90)
    photo.save(second / "golden.jpg")
    config = read_config(second)
    for name in ("config.pbtxt", "SHA256SUMS"):
        (second / name).unlink()
    finish_model(second, config)
    assert to_onnx.main(["--run", str(two_clips.two.folder), "--repository", str(own)]) == 0
    assert (own / head / "golden.jpg").read_bytes() == (first / "golden.jpg").read_bytes()
    golden, before = (json.loads((folder / head / "golden.json").read_text()) for folder in (own, two_clips.repository))
    assert golden == before


def test_pruning_leaves_both_clips(two_clips: TwoClips, tmp_path: Path) -> None:
    own = Path(shutil.copytree(two_clips.repository, tmp_path / "models"))
    assert [entry.kind for entry in prune(own)] == ["head"]
    assert check_repository(own, two_clips.two) == []


@dataclass
class Asking:
    """Threads that ask in a closed loop, and what came back: the pair's number, the head and the candidates."""

    pairs: Pairs
    replies: list[tuple[int, str, dict[str, float]]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    end: threading.Event = field(default_factory=threading.Event)

    def run(self, ask: Any) -> None:
        number = 0
        while not self.end.is_set():
            index = number % len(self.pairs)
            number += 1
            try:
                self.replies.append((index, *ask(*self.pairs[index])))
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")

    def wait_for(self, count: int) -> None:
        target, deadline = len(self.replies) + count, time.monotonic() + 120
        while len(self.replies) < target and not self.errors:
            assert time.monotonic() < deadline, "the server answers too slowly: the test proves nothing"
            time.sleep(0.02)


@pytest.mark.parametrize("rollouts", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_rollouts_fail_and_mislabel_no_answer(rollouts: int, two_clips: TwoClips, served: EmbeddedTriton) -> None:
    """From two CLIPs to one and back, while clients of their own and clients of a gateway ask."""
    asking = Asking(two_clips.pairs)
    heads = [two_clips.head(run) for run in (two_clips.one, two_clips.two)]

    with VizwizClient(served.grpc_url) as client, Gateway(served.grpc_url) as gateway:

        def direct(photo: Path, question: str) -> tuple[str, dict[str, float]]:
            answer = client.ask(photo, question, top=3)
            return answer.head_id, {each.answer: each.confidence for each in answer.candidates}

        def through_gateway(photo: Path, question: str) -> tuple[str, dict[str, float]]:
            reply = gateway.ask(photo.read_bytes(), question)
            assert reply.status_code == 200, reply.text
            answer = reply.json()["answers"][0]
            return answer["head_id"], {each["answer"]: each["confidence"] for each in answer["candidates"]}

        threads = [threading.Thread(target=asking.run, args=[ask]) for ask in [direct, through_gateway] * CLIENTS]
        for thread in threads:
            thread.start()
        try:
            for number in range(rollouts):
                asking.wait_for(20)
                head = heads[number % 2]
                done = rollout(served.grpc_url, to=head.removeprefix(HEAD_PREFIX))
                assert done.head == head
            asking.wait_for(20)
        finally:
            asking.end.set()
            for thread in threads:
                thread.join(60)
    assert asking.errors == []
    assert {HEAD_PREFIX + head for _, head, _ in asking.replies} == {*heads}
    for index, head, candidates in asking.replies:
        expected = two_clips.expected[HEAD_PREFIX + head][index]
        assert candidates == pytest.approx({answer: expected[answer] for answer in candidates}, abs=1e-5)


@pytest.mark.parametrize("deadlines", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_passed_deadlines_leave_the_server_alone(deadlines: int, two_clips: TwoClips) -> None:
    """With gRPC's own deadlines, Triton 2.51 crashes after some ten thousand, and does not unload the models."""
    said: list[str] = []
    passed = 0
    lock = threading.Lock()
    server = EmbeddedTriton(two_clips.repository)
    server.start(said.append)
    try:
        with VizwizClient(server.grpc_url) as patient:
            photo = prepare(two_clips.pairs[0][0], patient.check().images)
            expected = patient.ask(photo, "what is this?")

            def hurry(number: int) -> None:
                nonlocal passed
                with VizwizClient(server.grpc_url, timeout_s=0.005 * (1 + number), retries=0) as client:
                    while passed < deadlines:
                        try:
                            assert client.ask(photo, "what is this?") == expected
                        except DeadlineExceeded:
                            with lock:
                                passed += 1

            with ThreadPoolExecutor(24) as pool:
                list(pool.map(hurry, range(24)))
            assert patient.ask(photo, "what is this?") == expected
    finally:
        server.stop()
    assert passed >= deadlines
    assert [line for line in said if "restarting" in line] == []
