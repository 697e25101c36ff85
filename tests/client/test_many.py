"""``ask_many``: in order, of any length, in bounded memory, photos decoded while the server works."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from tests.client.conftest import Connect
from tests.client.fake_server import SIDE, FakeServer
from vizwiz_client import Answer, ImageError, QuestionError, ServerUnavailable
from vizwiz_client._core import MAX_GROUPS, STREAM_BATCH

AHEAD = MAX_GROUPS * STREAM_BATCH  # how many pairs may be read before their answers are taken


def reds(answers: Any) -> list[int]:
    return [int(answer.answer.split()[1]) // SIDE**2 for answer in answers]


def photo(red: int) -> Image.Image:
    return Image.new("RGB", (40, 40), (red, 0, 0))


@pytest.mark.parametrize("count", [0, 1, STREAM_BATCH, AHEAD + STREAM_BATCH + 1])
def test_every_answer_in_order(client: Any, fake_server: FakeServer, count: int) -> None:
    assert reds(client.ask_many((photo(red), "what?") for red in range(count))) == list(range(count))
    assert max((shape[0][0] for shape in fake_server.shapes), default=1) <= STREAM_BATCH


def test_requests_fit_a_smaller_server(client: Any, fake_server: FakeServer) -> None:
    fake_server.max_batch_size = 5
    assert reds(client.ask_many((photo(red), "what?") for red in range(20))) == list(range(20))
    assert max(shape[0][0] for shape in fake_server.shapes) == 5


def test_an_error_takes_its_answers_place(client: Any, photos: list[Path]) -> None:
    pairs = [(photos[0], "what?"), ("missing.jpg", "what?"), (photos[1], " "), (7, "what?"), (photos[2], "what?")]
    outcomes = list(client.ask_many(pairs))
    assert list(map(type, outcomes)) == [Answer, ImageError, QuestionError, ImageError, Answer]
    assert outcomes[4] == client.ask(photos[2], "what?")


def test_a_server_error_does_not_end_it(connect: Connect, fake_server: FakeServer) -> None:
    client = connect(fake_server.url, retries=0)
    client.check()
    fake_server.failures_left, fake_server.failure = 1, (grpc.StatusCode.UNAVAILABLE, "Server is stopping")
    sources = [b"no picture" if red % STREAM_BATCH == 0 else photo(red) for red in range(4 * STREAM_BATCH)]
    outcomes = list(client.ask_many((source, "what?") for source in sources))
    requests = [outcomes[first : first + STREAM_BATCH] for first in range(0, len(outcomes), STREAM_BATCH)]
    failed = [number for number, (_, *rest) in enumerate(requests) if isinstance(rest[0], ServerUnavailable)]
    assert len(failed) == 1
    for number, (refused, *rest) in enumerate(requests):
        assert isinstance(refused, ImageError)
        if number in failed:
            assert {type(outcome) for outcome in rest} == {ServerUnavailable}
        else:
            assert reds(rest) == list(range(number * STREAM_BATCH + 1, (number + 1) * STREAM_BATCH))


def test_an_endless_source_is_read_as_it_is_answered(client: Any) -> None:
    read: list[weakref.ref[Image.Image]] = []

    def endless() -> Iterator[tuple[Image.Image, str]]:
        for number in itertools.count():
            image = photo(number % 256)
            read.append(weakref.ref(image))
            yield image, "what?"

    stream = client.ask_many(endless())
    for taken in range(1, 5 * AHEAD):
        next(stream)
        assert len(read) <= taken + AHEAD
    gc.collect()
    assert sum(reference() is not None for reference in read) <= AHEAD + 1, "photos that were answered stay in memory"
    stream.close()


def test_photos_are_decoded_while_the_server_works(client: Any, fake_server: FakeServer) -> None:
    fake_server.gate.clear()
    outcomes: list[Any] = []
    pairs = ((photo(red), "what?") for red in range(AHEAD))
    thread = threading.Thread(target=lambda: outcomes.extend(client.ask_many(pairs)))
    thread.start()
    deadline = time.monotonic() + 20
    while len(fake_server.request_ids) < MAX_GROUPS and time.monotonic() < deadline:
        time.sleep(0.01)
    sent = len(fake_server.request_ids)  # and the first is not answered yet
    fake_server.gate.set()
    thread.join()
    assert sent == MAX_GROUPS > 1
    assert reds(outcomes) == list(range(AHEAD))


def test_a_camera_may_use_its_buffer_again(client: Any) -> None:
    buffer = np.zeros((40, 40, 3), np.uint8)

    def frames() -> Iterator[tuple[np.ndarray, str]]:
        for red in range(AHEAD):
            buffer[..., 0] = red
            yield buffer, "what?"

    assert reds(client.ask_many(frames())) == list(range(AHEAD))


def test_an_error_of_the_source_is_raised(client: Any, photos: list[Path]) -> None:
    def pairs() -> Iterator[Any]:
        yield photos[0], "what?"
        raise LookupError("no more rows")

    with pytest.raises(LookupError, match="no more rows"):
        list(client.ask_many(pairs()))
