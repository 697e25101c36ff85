"""The client against a real Triton server that serves an exported model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vizwiz_client import ContractMismatch, VizwizClient
from vizwiz_client.contract import tensors
from vizwiz_client.contract.prepared import prepare

QUESTIONS = ["what is this?", "what colour is it?", "what is this and what is it for and is it red " * 2, "what " * 90]


@pytest.fixture(scope="module")
def client(live_server):
    with VizwizClient(live_server.grpc_url) as client:
        yield client


def test_a_head_fitted_on_the_demo_says_so(client: VizwizClient) -> None:
    assert client.check().demo


def test_an_answer_is_complete(client: VizwizClient, photos: list[Path]) -> None:
    answer = client.ask(photos[0], "what is this?", top=3)
    confidences = [candidate.confidence for candidate in answer.candidates]
    assert len(answer.candidates) == 3
    assert confidences == sorted(confidences, reverse=True)
    assert all(candidate.answer for candidate in answer.candidates)
    assert 0 < sum(confidences) <= 1.00001
    assert 0 <= answer.answerable <= 1
    assert answer.answer_type
    assert len(answer.head_id) == tensors.DIGEST_LENGTH


def test_more_candidates_than_there_are_answers(client: VizwizClient, photos: list[Path]) -> None:
    answer = client.ask(photos[0], "what is this?", top=100_000)
    assert sum(candidate.confidence for candidate in answer.candidates) == pytest.approx(1, abs=1e-2)


def test_a_batch_equals_single_questions(client: VizwizClient, photos: list[Path]) -> None:
    pairs = [(photo, question) for photo in photos for question in QUESTIONS] * 4
    assert len(pairs) > tensors.MAX_BATCH_SIZE
    singles = [client.ask(*pair, top=2) for pair in pairs[:20]] * 4
    for together, alone in zip(client.ask_batch(pairs, top=2), singles, strict=True):
        assert (together.answer, together.answer_type, together.head_id) == (
            alone.answer,
            alone.answer_type,
            alone.head_id,
        )
        assert together.confidence == pytest.approx(alone.confidence, abs=1e-4)
        assert together.answerable == pytest.approx(alone.answerable, abs=1e-4)
        assert together.question_truncated == alone.question_truncated


def test_a_model_of_another_image_size_is_noticed_and_asked_again(live_server, photos: list[Path]) -> None:
    with VizwizClient(live_server.grpc_url) as client:
        expected = client.ask(photos[0], "what is this?")
        served = client.check()  # below: as if the server had served another one when its config was read
        (image,) = served.images
        client._core._model_info = replace(served, images=(replace(image, image_size=image.image_size + 1),))
        assert client.ask(photos[0], "what is this?") == expected


def test_a_prepared_photo_is_answered_as_the_photo(live_server, photos: list[Path]) -> None:
    with VizwizClient(live_server.grpc_url) as client:
        images = client.check().images
        prepared = prepare(photos[0], images)
        assert client.ask(prepared, "what is this?") == client.ask(photos[0], "what is this?")
        assert client.ask_batch([(prepared, "what is this?")]) == [client.ask(photos[0], "what is this?")]
        other = prepare(photos[0], [replace(images[0], image_size=images[0].image_size + 1)])
        refusal = r"prepared for image \[97, 97, 3\], the served model takes image \[96, 96, 3\]; prepare it again"
        with pytest.raises(ContractMismatch, match=refusal):
            client.ask(other, "what is this?")
