"""Roll out two fits with different vocabularies in turn, under load."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from export.publish import export_run
from serving.golden import read_golden
from serving.rollout import rollout
from serving.server import EmbeddedTriton
from tests.conftest import LiveServer
from tests.serving.load import Load, errors
from training.backbone import load_clip
from training.dataset import read_split
from training.fit import fit
from training.recipe import Recipe
from training.run import read_run
from vizwiz_client.contract import tensors

TOP = 5


@pytest.mark.slow
def test_twenty_rollouts_fail_no_request_and_mix_no_vocabularies(live_server: LiveServer, tmp_path: Path) -> None:
    model = load_clip(live_server.run.clips[0]["source"])
    train, val = read_split(live_server.data, "train", limit=100), read_split(live_server.data, "val")
    other = read_run(fit(train, val, model, Recipe(epochs=5), tmp_path / "runs", tmp_path / "cache"))
    repository = Path(shutil.copytree(live_server.repository, tmp_path / "triton_models"))
    heads = {live_server.head: live_server.run.answers, export_run(other, model, repository).head: other.answers}
    assert set(other.answers) < set(live_server.run.answers), "they could not be told apart"
    first, second = heads

    with EmbeddedTriton(repository) as server:
        feed = read_golden(repository, second).feed(tensors.image_inputs([(live_server.image_size, False)]))
        returned = [(0.0, second)]
        with Load(server.grpc_url, repository, feed, top=TOP, clients=2) as load:
            for number in range(20):
                load.wait_for(40)
                head = (first, second)[number % 2]
                done = rollout(server.grpc_url, to=head.removeprefix(tensors.HEAD_PREFIX))
                returned.append((time.monotonic(), head))
                assert (done.head, done.loaded) == (head, [head])
            load.wait_for(40)

    assert errors(load.replies) == set()
    best = {head: {tuple(reply.answers) for reply in load.replies if reply.head == head} for head in heads}
    for head, answers in best.items():
        assert len(answers) == 1, "one question, one head, several answers"
        assert {*answers.pop()} <= {*heads[head]}
    for reply in load.replies:
        current = [head for when, head in returned if when <= reply.sent][-1]
        coming = [head for when, head in returned if when > reply.sent][:1]
        assert reply.head in {current, *coming}, "a stale answer"
    print(f"{len(load.replies)} replies over 20 rollouts")
