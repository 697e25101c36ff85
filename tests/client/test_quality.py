"""Photo quality: in answers, in the model info, and while the served head changes to one with it or without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.client.fake_server import MODELS, FakeServer
from vizwiz_client import Answer, ContractMismatch, Thresholds, _core
from vizwiz_client.contract import tensors

QUALITY = {"blur": 0.75, "framing": 0.5, "dark": 0.125}
BLURRED = "The photo is blurred. Hold the phone still, and move it a little away."
THRESHOLDS = Thresholds(0.43, {"blur": 0.6})
NEXT_HEAD = "00000000beef"
NEXT_MODELS = (*MODELS[:2], tensors.HEAD_PREFIX + NEXT_HEAD)

Ask = Callable[[Any, Path], Answer]


def ask_one(client: Any, photo: Path) -> Answer:
    return client.ask(photo, "what is this?")


def ask_batch(client: Any, photo: Path) -> Answer:
    first, second = client.ask_batch([(photo, "what is this?")] * 2)
    assert first == second
    return first


def ask_many(client: Any, photo: Path) -> Answer:
    answers = list(client.ask_many([(photo, "what is this?")] * 20))
    assert all(isinstance(answer, Answer) for answer in answers), answers
    return answers[-1]


@pytest.fixture(params=[ask_one, ask_batch, ask_many], ids=["ask", "batch", "many"])
def ask(request: pytest.FixtureRequest) -> Ask:
    return request.param


@pytest.fixture
def quality_server(fake_server: FakeServer) -> FakeServer:
    fake_server.quality, fake_server.labels = QUALITY, ("banana",)
    fake_server.wording = json.dumps({"sure_from": 0.43, "advise_from": {"blur": 0.6}})
    return fake_server


def change_head(server: FakeServer, quality: dict[str, float] | None, wording: str = "") -> None:
    server.head, server.models, server.quality, server.wording = NEXT_HEAD, NEXT_MODELS, quality, wording


def test_the_answer(client: Any, quality_server: FakeServer, photos: list[Path], ask: Ask) -> None:
    answer = ask(client, photos[0])
    assert list(answer.quality.items()) == list(QUALITY.items())
    assert answer.advice == (BLURRED,)
    assert answer.sentence == "Banana. Fairly sure, 50%."
    quality_server.answerable = 0.2
    answer = ask(client, photos[0])
    assert answer.sentence == f"The photo cannot answer this. {BLURRED} Then take another photo."
    assert (
        json.loads(json.dumps(answer.to_dict())).items()
        >= {
            "quality": QUALITY,
            "advice": [BLURRED],
            "sentence": answer.sentence,
        }.items()
    )


def test_an_answer_without_quality(client: Any, fake_server: FakeServer, photos: list[Path], ask: Ask) -> None:
    fake_server.labels, fake_server.answerable = ("banana",), 0.2
    answer = ask(client, photos[0])
    assert (answer.quality, answer.advice) == ({}, ())
    assert answer.sentence == "The photo cannot answer this. Take another photo, or ask another question."


def test_a_truncated_question_is_part_of_what_a_person_is_told(
    client: Any, fake_server: FakeServer, photos: list[Path]
) -> None:
    fake_server.labels = ("banana",)
    told = client.ask(photos[0], "what is this " * 60).sentence
    assert told == "Banana. Fairly sure, 50%. The question was too long; its end was ignored."


def test_the_model_info(client: Any, quality_server: FakeServer) -> None:
    info = client.check()
    assert (info.serves_quality, info.thresholds) == (True, THRESHOLDS)
    quality_server.quality, quality_server.wording = None, ""
    info = client.check()
    assert (info.serves_quality, info.thresholds) == (False, Thresholds())


def test_a_head_that_is_rolled_back_to_one_without(
    client: Any, quality_server: FakeServer, photos: list[Path], ask: Ask
) -> None:
    assert ask(client, photos[0]).quality
    change_head(quality_server, None)
    answer = ask(client, photos[0])
    assert (answer.head_id, answer.quality) == (NEXT_HEAD, {})
    sent = len(quality_server.request_ids)
    assert ask(client, photos[0]).thresholds == Thresholds()
    at_once = 2 if ask is ask_many else 1  # requests, each of which may read the configuration
    assert len(quality_server.request_ids) == sent + at_once, "no more refused requests"
    assert quality_server.config_reads <= 4 * at_once


def test_a_head_that_is_rolled_out_with_it(client: Any, fake_server: FakeServer, photos: list[Path], ask: Ask) -> None:
    fake_server.labels = ("banana",)
    assert ask(client, photos[0]).thresholds == Thresholds()
    change_head(fake_server, QUALITY, json.dumps({"sure_from": 0.43, "advise_from": {"blur": 0.6}}))
    reads = fake_server.config_reads
    noticed = ask(client, photos[0])
    assert ask is ask_many or noticed.thresholds == THRESHOLDS  # of two requests at a time, one notices
    for _ in range(3):
        assert ask(client, photos[0]).advice == (BLURRED,)
    assert fake_server.config_reads == reads + 1


def test_replicas_that_differ_cost_one_read(
    client: Any, fake_server: FakeServer, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration comes from one replica, the answers from another."""
    fake_server.head = NEXT_HEAD
    for _ in range(5):
        client.ask(photos[0], "what is this?")
    assert fake_server.config_reads == 2
    monkeypatch.setattr(_core, "REFRESH_AFTER_S", 0)
    client.ask(photos[0], "what is this?")
    assert fake_server.config_reads == 3


def test_an_answer_survives_a_configuration_that_cannot_be_read(
    client: Any, fake_server: FakeServer, photos: list[Path]
) -> None:
    client.ask(photos[0], "what is this?")
    fake_server.head, fake_server.contract_version = NEXT_HEAD, "99"
    assert client.ask(photos[0], "what is this?").head_id == NEXT_HEAD
    with pytest.raises(ContractMismatch, match="contract version 99"):
        client.ask(photos[0], "what is this?")


def test_other_refusals_are_not_repeated_without_quality(
    client: Any, quality_server: FakeServer, photos: list[Path]
) -> None:
    client.check()
    quality_server.failure = (grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape for input 'image'")
    with pytest.raises(ContractMismatch, match="unexpected shape"):
        client.ask(photos[0], "what is this?")
    assert len(quality_server.request_ids) == 3  # as a request that met another model
