"""Errors: which exception is raised, what it says, and what is retried."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.client.conftest import Connect
from tests.client.fake_server import MODELS, FakeServer
from vizwiz_client import (
    ContractMismatch,
    DeadlineExceeded,
    ImageError,
    ModelMissing,
    Overloaded,
    ServerError,
    ServerFault,
    ServerUnavailable,
    VizwizError,
    WrongServer,
    _tasks,
    _threads,
)
from vizwiz_client._failures import backoff_delays
from vizwiz_client.contract import prepared, tensors
from vizwiz_client.contract.image import load_photo


class TestNoServer:
    def test_nothing_listens(self, connect: Connect, photos: list[Path]) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"127.0.0.1:{unused.getsockname()[1]}"
            with pytest.raises(
                ServerUnavailable, match=f"no server is ready at {url}; start it with `python -m serving`"
            ):
                connect(url, retries=0).ask(photos[0], "what is this?")

    def test_a_listener_that_sends_nothing(self, connect: Connect, photos: list[Path]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"127.0.0.1:{listener.getsockname()[1]}"
            with pytest.raises(DeadlineExceeded, match=rf"no answer from {url} within 0\.5 s; allow more time"):
                connect(url, timeout_s=0.5).ask(photos[0], "what is this?")

    def test_another_grpc_server(self, connect: Connect, photos: list[Path]) -> None:
        server = grpc.server(ThreadPoolExecutor(1))
        url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        with pytest.raises(WrongServer, match=f"the gRPC server at {url} is not Triton"):
            connect(url, retries=0).ask(photos[0], "what is this?")
        server.stop(None).wait()


class TestContract:
    @pytest.mark.parametrize("version", ["", "99"])
    def test_another_contract(self, client: Any, fake_server: FakeServer, photos: list[Path], version: str) -> None:
        fake_server.contract_version = version
        text = f"contract version {version or 'none'}, this client has {tensors.CONTRACT_VERSION}; install"
        with pytest.raises(ContractMismatch, match=text):
            client.ask(photos[0], "what is this?")

    @pytest.mark.parametrize("dims", [(), (-1, -1, 3), (3, 32, 32), (32, 31, 3)])
    def test_another_picture_shape(
        self, client: Any, fake_server: FakeServer, photos: list[Path], dims: tuple[int, ...]
    ) -> None:
        fake_server.image_dims = dims
        with pytest.raises(
            ContractMismatch,
            match=r"input 'image' is UINT8 \[.*\] there, expected UINT8 \[|image size -1, expected at least 1",
        ):
            client.ask(photos[0], "what is this?")

    def test_answers_without_labels(self, client: Any, fake_server: FakeServer, photos: list[Path]) -> None:
        fake_server.labelled, fake_server.labels = False, ("red",)
        with pytest.raises(
            ContractMismatch,
            match="without labels, expected 'probability:index:label'; export its model again",
        ):
            client.ask(photos[0], "what is this?")

    @pytest.mark.parametrize(
        ("models", "text"),
        [
            ((), "the ensemble has no models, expected one clip_image_<digest> among them"),
            (
                MODELS[:2],
                r"the ensemble has clip_image_\w+, clip_text_\w+, expected one gated_head_<digest> among them",
            ),
        ],
    )
    def test_another_set_of_models(
        self, client: Any, fake_server: FakeServer, photos: list[Path], models: tuple[str, ...], text: str
    ) -> None:
        fake_server.models = models
        with pytest.raises(ContractMismatch, match=text):
            client.ask(photos[0], "what is this?")

    def test_another_model_is_met_at_the_next_question(
        self, client: Any, fake_server: FakeServer, photos: list[Path]
    ) -> None:
        client.ask(photos[0], "what is this?")
        fake_server.image_dims, fake_server.failure = (
            (48, 48, 3),
            (grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape"),
        )
        with pytest.raises(ContractMismatch):
            client.ask(photos[0], "what is this?")
        fake_server.failure = None
        client.ask(photos[0], "what is this?")
        assert [image for image, _ in fake_server.shapes] == [(1, 32, 32, 3), (1, 48, 48, 3)]


class TestFailures:
    @pytest.mark.parametrize(
        ("status", "message", "error", "text"),
        [
            ("UNAVAILABLE", "Exceeds maximum queue size", Overloaded, "has too many requests waiting; ask again"),
            ("UNAVAILABLE", "Request timeout expired", Overloaded, "has too many requests waiting; ask again"),
            ("UNAVAILABLE", "Server is stopping", ServerUnavailable, "no server is ready at .*Server is stopping"),
            (
                "NOT_FOUND",
                "unknown model",
                ModelMissing,
                "does not serve 'vizwiz_vqa'; export a model to its",
            ),
            ("INVALID_ARGUMENT", "unexpected shape", ContractMismatch, "refused the request; was its model replaced"),
            ("UNAUTHENTICATED", "no key", ServerFault, "requires authentication; pass the headers"),
            ("INTERNAL", "CUDA out of memory", ServerFault, "its log says why .INTERNAL: CUDA out of memory"),
        ],
    )
    def test_failures_of_a_request(
        self,
        client: Any,
        fake_server: FakeServer,
        photos: list[Path],
        status: str,
        message: str,
        error: type[VizwizError],
        text: str,
    ) -> None:
        fake_server.failure = (grpc.StatusCode[status], message)
        with pytest.raises(error, match=text) as caught:
            client.ask(photos[0], "what is this?")
        assert type(caught.value) is error
        assert caught.value.request_id == fake_server.request_ids[-1]
        assert str(caught.value).endswith(f"[request {caught.value.request_id}]")
        fake_server.failure = None
        assert client.ask(photos[0], "what is this?").candidates  # the client survives

    def test_only_retryable_errors_are_retried(self, client: Any, fake_server: FakeServer, photos: list[Path]) -> None:
        for status in grpc.StatusCode:
            if status is grpc.StatusCode.OK:
                continue
            fake_server.request_ids.clear()
            fake_server.failure = (status, "failed")
            with pytest.raises(ServerError):
                client.ask(photos[0], "what is this?")
            # after INVALID_ARGUMENT it is prepared again, for another model or another replica
            again = grpc.StatusCode.INVALID_ARGUMENT
            retryable = status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, again)
            assert len(fake_server.request_ids) == (3 if retryable else 1), status
            assert len(set(fake_server.request_ids)) == (3 if status is again else 1)  # its name in the server's log

    def test_a_retry_brings_the_answer(self, client: Any, fake_server: FakeServer, photos: list[Path]) -> None:
        fake_server.failures_left, fake_server.failure = 2, (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        answer = client.ask(photos[0], "what is this?")
        assert len(fake_server.request_ids) == 3
        assert answer.timings.total_s > answer.timings.request_s + 0.25 * 0.5 + 0.5 * 0.5  # the two shortest delays

    def test_a_model_that_is_away_for_a_moment_is_asked_again(
        self, client: Any, fake_server: FakeServer, photos: list[Path]
    ) -> None:
        """As in a server that drains, where the next attempt comes to another, or that replaces a dead process."""
        fake_server.failures_left, fake_server.failure = 1, (grpc.StatusCode.NOT_FOUND, "Request for unknown model")
        assert client.ask(photos[0], "what is this?").candidates
        assert len(fake_server.request_ids) == 2

    def test_a_model_that_was_never_there_is_not(
        self, connect: Connect, fake_server: FakeServer, photos: list[Path]
    ) -> None:
        client = connect(fake_server.url, retries=1000)
        fake_server.missing = True
        with pytest.raises(ModelMissing):
            client.ask(photos[0], "what is this?")
        assert fake_server.config_reads == 1

    def test_all_attempts_share_one_deadline(
        self, connect: Connect, fake_server: FakeServer, photos: list[Path]
    ) -> None:
        client = connect(fake_server.url, timeout_s=2.0, retries=1000)
        client.check()
        fake_server.failure = (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        start = time.monotonic()
        with pytest.raises(Overloaded):  # the cause, not that the time for another attempt is up
            client.ask(photos[0], "what is this?")
        assert time.monotonic() - start < 60
        assert 2 <= len(fake_server.request_ids) <= 5  # the five shortest delays take longer

    def test_delays_double_with_jitter(self) -> None:
        drawn = [list(backoff_delays(6)) for _ in range(200)]
        for retry, longest in enumerate([0.25, 0.5, 1.0, 2.0, 4.0, 4.0]):
            values = [each[retry] for each in drawn]
            assert longest / 2 <= min(values) < 0.6 * longest
            assert 0.9 * longest < max(values) <= longest
        assert 2.0 <= list(backoff_delays(2_000))[-1] <= 4.0

    def test_too_slow(self, connect: Connect, fake_server: FakeServer, photos: list[Path]) -> None:
        client = connect(fake_server.url, timeout_s=0.3)
        client.check()
        fake_server.delay_s = 1.0
        with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s; allow more time, or send less at once"):
            client.ask(photos[0], "what is this?")
        assert len(fake_server.request_ids) == 1

    def test_bad_input_is_refused_before_the_server_is_called(self, connect: Connect) -> None:
        with pytest.raises(ImageError):
            connect("localhost:1").ask(b"words", "what is this?")


def test_no_photo_is_decoded_after_the_deadline(
    connect: Connect, fake_server: FakeServer, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def slow(photo: Any, draft_size: int | None) -> Any:
        decoded.append(photo)
        time.sleep(0.3)
        return load_photo(photo, draft_size)

    monkeypatch.setattr(prepared, "load_photo", slow)
    many = [(photos[0].read_bytes(), "what?") for _ in range(40)]  # different objects, each decoded
    with pytest.raises(DeadlineExceeded, match="before all photos were decoded"):
        connect(fake_server.url, timeout_s=0.5).ask_batch(many)
    assert 0 < len(decoded) < 40
    assert fake_server.shapes == []


def test_a_passed_timeout_does_not_cancel_the_request(
    connect: Connect, fake_server: FakeServer, photos: list[Path]
) -> None:
    """Triton 2.51 can crash when a request is cancelled."""
    client = connect(fake_server.url, timeout_s=20)
    client.ask(photos[0], "what?")  # connects
    short = connect(fake_server.url, timeout_s=0.5)
    short.check()
    fake_server.gate.clear()
    with pytest.raises(DeadlineExceeded, match=r"no reply came in time\)"):
        short.ask(photos[0], "what?")
    time.sleep(0.5)  # a cancellation would have arrived
    assert len(fake_server.request_ids) == 2
    assert len(fake_server.over) == 1
    fake_server.gate.set()
    assert short.ask(photos[0], "what?") == client.ask(photos[0], "what?")


def test_requests_without_a_reply_do_not_pile_up(
    connect: Connect, fake_server: FakeServer, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (_threads, _tasks):
        monkeypatch.setattr(module, "MAX_ABANDONED", 2)
    client = connect(fake_server.url, timeout_s=0.5)
    client.check()
    fake_server.gate.clear()
    for _ in range(2):
        with pytest.raises(DeadlineExceeded):
            client.ask(photos[0], "what?")
    with pytest.raises(DeadlineExceeded, match="2 earlier requests have no reply either"):
        client.ask(photos[0], "what?")
    assert len(fake_server.request_ids) == 2, "a third one was sent"
    fake_server.gate.set()
    assert client.ask(photos[0], "what?").head_id == fake_server.head
    assert len(fake_server.request_ids) == 3


def test_a_new_request_waits_for_those_without_a_reply(
    connect: Connect, fake_server: FakeServer, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if many callers gave up at once, and one reply after the other comes."""
    for module in (_threads, _tasks):
        monkeypatch.setattr(module, "MAX_ABANDONED", 2)
    client = connect(fake_server.url, timeout_s=1)
    client.check()
    fake_server.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(client.ask, photos[0], "what?") for _ in range(4)]
        assert all(isinstance(call.exception(), DeadlineExceeded) for call in calls)
    fake_server.gate.set()
    fake_server.delay_s = 0.1
    assert client.ask(photos[0], "what?").head_id == fake_server.head


@pytest.mark.parametrize("retries", [2, 0])
def test_a_request_that_met_other_inputs_is_sent_again(
    retries: int, connect: Connect, fake_server: FakeServer, photos: list[Path]
) -> None:
    """From a file object too, which can be read only once."""
    client = connect(fake_server.url, retries=retries)
    client.check()
    fake_server.replicas = (48,)
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as file:
        file.write(photos[0].read_bytes())
    with os.fdopen(reading, "rb") as file:
        assert client.ask(file, "what?").head_id == fake_server.head
    assert fake_server.shapes[-1][0] == (1, 48, 48, 3)
    assert len(fake_server.request_ids) == 2


def test_replicas_of_different_inputs_that_take_turns(
    connect: Connect, fake_server: FakeServer, photos: list[Path]
) -> None:
    """Each configuration comes from one replica, and the request after it goes to the other."""
    fake_server.replicas = (32, 48)
    client = connect(fake_server.url)
    answers = [client.ask(photo, "what?") for photo in photos for _ in range(4)]
    assert {answer.head_id for answer in answers} == {fake_server.head}
