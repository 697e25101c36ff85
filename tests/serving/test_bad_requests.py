"""Requests that no client should send: the server refuses each, and keeps answering others."""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from serving.server import EmbeddedTriton
from tests.serving import malformed
from tests.serving.processes import is_ready
from tests.serving.test_lifecycle import IMAGE, TOKENS, answers
from tests.serving.tiny_repository import SIDE, ask
from vizwiz_client.contract import tensors


@pytest.fixture
def still_well(server: EmbeddedTriton, client: InferenceServerClient) -> Iterator[None]:
    """The server lives, and answers, before the test and after it."""
    assert answers(client)
    yield
    assert server._process.is_alive()
    assert is_ready(server.http_url)
    assert answers(client)


@pytest.mark.usefixtures("still_well")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_malformed_requests_are_refused_each(server: EmbeddedTriton, client: InferenceServerClient, seed: int) -> None:
    """500 of them, half over HTTP, half over gRPC; a good one is answered in between."""
    inputs, message = malformed.good_inputs(SIDE), malformed.good_message(SIDE)
    dice = random.Random(seed)
    statuses: Counter[Any] = Counter()
    for part in range(5):
        statuses += malformed.send_all(100, server.http_url, server.grpc_url, inputs, message, dice)
        assert answers(client), f"after part {part} of seed {seed}"
    malformed.check_refusals(statuses)


def test_the_requests_that_the_malformed_ones_are_made_of_are_good(server: EmbeddedTriton) -> None:
    body = json.dumps({"inputs": malformed.good_inputs(SIDE)}).encode()
    assert malformed.send_http(server.http_url, body, {}) == 200


@pytest.mark.usefixtures("still_well")
def test_clients_that_trickle_or_say_nothing_hold_nobody_up(
    server: EmbeddedTriton, client: InferenceServerClient
) -> None:
    head = f"POST /v2/models/{tensors.ENSEMBLE}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode()
    with ExitStack() as stack:
        slow = []
        for url, opening in ((server.http_url, head), (server.grpc_url, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")):
            host, port = url.split(":")
            for sent in [0, 5, *range(20, 20 + 48), len(opening)]:
                connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
                connection.sendall(opening[:sent])
                slow.append(connection)
        for _ in range(5):
            for connection in slow[1::9]:
                with suppress(OSError):  # the server may hang up
                    connection.sendall(b"{")
            assert answers(client)
            assert is_ready(server.http_url)


@pytest.mark.usefixtures("still_well")
def test_too_large_requests_are_refused(server: EmbeddedTriton, client: InferenceServerClient) -> None:
    many = tensors.MAX_BATCH_SIZE + 1
    with pytest.raises(InferenceServerException, match="batch-size must be <= 64"):
        ask(client, np.repeat(IMAGE, many, axis=0), np.repeat(TOKENS, many, axis=0))
    with pytest.raises(InferenceServerException, match="unexpected shape for input 'image'"):
        ask(client, np.zeros((1, 4000, 4000, 3), np.uint8), TOKENS)
    assert malformed.send_http(server.http_url, b" " * 64_000_000, {}) in (0, 400, 500)
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # curl's default, which goes through the stack
    assert malformed.send_http(server.http_url, b" " * 64_000_000, form) in (400, 500)
    assert malformed.send_http(server.http_url, b"", {"X-Large": "a" * 1_000_000}) in (0, 400, 431)
    host, port = server.http_url.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:  # more than any memory, then silence
        connection.sendall(b"POST /v2/models/vizwiz_vqa/infer HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n{")
        assert answers(client)
