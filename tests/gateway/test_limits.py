"""Bounds: photos decoded, requests admitted, the time of an upload and of an answer."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tests.client.small_server import SmallServer
from tests.gateway.processes import TIMEOUT_S, Gateway, form, head, read_reply


@pytest.fixture(scope="module")
def large_photo() -> bytes:
    """A PNG of 100 megapixels, which takes seconds to decode."""
    file = io.BytesIO()
    Image.new("RGB", (10_000, 10_000), "teal").save(file, "PNG", compress_level=1)
    return file.getvalue()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_decoding_does_not_block_the_event_loop(triton: SmallServer, large_photo: bytes) -> None:
    with Gateway(triton.grpc_url, "--max-photo-bytes=100000000") as gateway, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(Gateway.ask, gateway, large_photo, "what is this?")
        wait_for(lambda: gateway.metric("vizwiz_gateway_upload_seconds_count"))
        answered = 0
        while not asked.done():
            assert gateway.http.get("/healthz").status_code == 200
            answered += 1
        assert asked.result().status_code == 200, asked.result().text
        assert gateway.metric("vizwiz_gateway_decode_seconds_sum") > 0.5, "too short to prove anything"
        assert answered >= 50


def test_requests_beyond_the_limit_are_refused_at_once(triton: SmallServer, photo: bytes) -> None:
    body = form(photo)
    with Gateway(triton.grpc_url, "--max-requests=2") as gateway:
        with gateway.connect() as first, gateway.connect() as second:
            for connection in (first, second):
                connection.sendall(head(len(body)) + body[:50])
            wait_for(lambda: gateway.metric("vizwiz_gateway_admitted") == 2)
            refused = gateway.ask(photo, "what is this?")
            assert (refused.status_code, refused.json()["code"]) == (503, "busy")
            assert int(refused.headers["retry-after"]) > 0
            first.sendall(body[50:])
            assert read_reply(first)[0] == 200
            assert gateway.ask(photo, "what is this?").status_code == 200
        wait_for(lambda: gateway.metric("vizwiz_gateway_admitted") == 0)


def test_a_slow_upload_ends(triton: SmallServer, photo: bytes) -> None:
    body = form(photo)
    with Gateway(triton.grpc_url, "--upload-timeout=0.5") as gateway, gateway.connect() as connection:
        connection.sendall(head(len(body)) + body[:50])
        status, reply = read_reply(connection)
        assert (status, json.loads(reply)["code"]) == (408, "slow-upload")
        assert gateway.metric("vizwiz_gateway_admitted") == 0


def test_a_deadline_that_passes_leaves_the_call_to_triton_alone(small_repository, photo: bytes) -> None:
    with SmallServer(small_repository) as triton, Gateway(triton.grpc_url, "--answer-timeout=5") as gateway:
        assert gateway.ask(photo, "what is this?").status_code == 200
        with triton.frozen():
            late = gateway.ask(photo, "what is this?")
            assert (late.status_code, late.json()["code"]) == (504, "too-slow")
            assert gateway.metric("vizwiz_gateway_admitted") == 1
        wait_for(lambda: gateway.metric("vizwiz_gateway_admitted") == 0)
        assert gateway.metric("vizwiz_gateway_triton_seconds_count") == 2, "the call was cancelled"
        assert gateway.ask(photo, "what is this?").status_code == 200


def test_a_stop_answers_the_requests_in_progress(triton: SmallServer, photo: bytes) -> None:
    body, replies = form(photo), []
    with Gateway(triton.grpc_url) as gateway, gateway.connect() as connection:
        connection.sendall(head(len(body)) + body[:50])
        wait_for(lambda: gateway.metric("vizwiz_gateway_admitted") == 1)
        gateway.http.close()
        reader = threading.Thread(target=lambda: replies.append(read_reply(connection)))
        reader.start()
        gateway.process.terminate()
        connection.sendall(body[50:])
        reader.join(TIMEOUT_S)
        assert [status for status, _ in replies] == [200]
        assert gateway.process.wait(TIMEOUT_S) == 0


def test_a_stop_waits_as_long_as_an_answer_may_take(triton: SmallServer, photo: bytes) -> None:
    """Not for an upload that never ends."""
    body = form(photo)
    flags = ("--upload-timeout=300", "--answer-timeout=0.1")
    with Gateway(triton.grpc_url, *flags) as gateway, gateway.connect() as connection:
        connection.sendall(head(len(body)) + body[:50])
        wait_for(lambda: gateway.metric("vizwiz_gateway_admitted") == 1)
        gateway.http.close()
        gateway.process.terminate()
        assert gateway.process.wait(TIMEOUT_S) == 0
