"""The library: what it sends, what it makes of the reply, and what it says when there is none."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from PIL import Image

from tests.client.stand_in import StandIn, serve
from vizwiz_client import (
    Answer,
    Candidate,
    DeadlineExceeded,
    ImageError,
    Overloaded,
    QuestionError,
    ServerError,
    ServerUnavailable,
    VizwizClient,
    VizwizError,
    WrongServer,
)
from vizwiz_client.contract import tensors
from vizwiz_client.contract.geometry import load_photo, to_pixels
from vizwiz_client.contract.tokens import tokenize

SIDE = 32


@pytest.fixture
def client(stand_in: StandIn) -> Iterator[VizwizClient]:
    with VizwizClient(stand_in.url, timeout_s=5) as client:
        yield client


def expected_label(photo: Path, question: str) -> str:
    return f"0: {to_pixels(load_photo(photo), SIDE).sum()} {tokenize(question).ids.sum()}"


class TestAsk:
    def test_the_answer(self, client: VizwizClient, photos: list[Path]) -> None:
        answer = client.ask(photos[0], "what is this?", top=3)
        label = expected_label(photos[0], "what is this?")[1:]
        assert answer == Answer(
            candidates=(Candidate(f"0{label}", 0.5), Candidate(f"1{label}", 0.25), Candidate(f"2{label}", 0.166667)),
            answer_type=f"0{label}",  # the label holds a colon
            answerable=0.75,
            head="00a1b2c3d4e5",
            question_truncated=False,
        )
        assert (answer.answer, answer.confidence) == answer.candidates[0]

    def test_one_candidate_unless_asked_for_more(self, client: VizwizClient, photos: list[Path]) -> None:
        assert len(client.ask(photos[0], "what is this?").candidates) == 1

    @pytest.mark.parametrize(("answerable", "declined"), [(0.75, False), (0.5, False), (0.49, True), (0.0, True)])
    def test_declined(
        self, client: VizwizClient, stand_in: StandIn, photos: list[Path], answerable: float, declined: bool
    ) -> None:
        stand_in.answerable = answerable
        assert client.ask(photos[0], "what is this?").declined is declined

    def test_paths_bytes_and_images_are_asked_alike(self, client: VizwizClient, photos: list[Path]) -> None:
        sources = [photos[1], str(photos[1]), photos[1].read_bytes(), Image.open(photos[1])]
        assert len({client.ask(source, "what colour?") for source in sources}) == 1

    def test_a_question_over_77_tokens_says_so(self, client: VizwizClient, photos: list[Path]) -> None:
        assert client.ask(photos[0], "what is this " * 40).question_truncated

    def test_the_config_is_read_once(self, client: VizwizClient, stand_in: StandIn, photos: list[Path]) -> None:
        for photo in photos:
            client.ask(photo, "what is this?")
        assert stand_in.config_reads == 1

    def test_plain_values_for_json(self, client: VizwizClient, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.labels = ("red", "blue")
        assert client.ask(photos[0], "what colour?", top=2).to_dict() == {
            "answer": "red",
            "confidence": 0.5,
            "declined": False,
            "answerable": 0.75,
            "answer_type": "red",
            "candidates": [{"answer": "red", "confidence": 0.5}, {"answer": "blue", "confidence": 0.25}],
            "question_truncated": False,
            "head": "00a1b2c3d4e5",
        }


class TestBatch:
    def test_the_order_is_kept_and_the_length_shared(
        self, client: VizwizClient, stand_in: StandIn, photos: list[Path]
    ) -> None:
        questions = ["what?", "what is this " * 5, "what is this " * 40, "is it ripe?", "what colour is the shirt?"]
        pairs = list(zip(photos, questions, strict=True))
        answers = client.ask_batch(pairs)
        assert [answer.answer for answer in answers] == [expected_label(*pair) for pair in pairs]
        assert [answer.question_truncated for answer in answers] == [False, False, True, False, False]
        assert stand_in.shapes == [((5, SIDE, SIDE, 3), (5, 77))]

    def test_a_batch_equals_single_questions(self, client: VizwizClient, photos: list[Path]) -> None:
        pairs = [(photo, f"is this number {index}?") for index, photo in enumerate(photos)]
        assert client.ask_batch(pairs, top=2) == [client.ask(*pair, top=2) for pair in pairs]

    def test_short_questions_are_sent_short(self, client: VizwizClient, stand_in: StandIn, photos: list[Path]) -> None:
        client.ask_batch([(photo, "what?") for photo in photos])
        assert stand_in.shapes[0][1] == (5, tensors.TOKEN_LENGTHS[0])

    def test_long_iterables_are_read_as_they_are_sent(self, client: VizwizClient, stand_in: StandIn) -> None:
        count = 2 * tensors.MAX_BATCH_SIZE + 3

        def pairs() -> Iterator[tuple[Image.Image, str]]:
            for index in range(count):
                assert len(stand_in.shapes) == index // tensors.MAX_BATCH_SIZE
                yield Image.new("RGB", (40, 40), (index, 0, 0)), "what?"

        answers = client.ask_batch(pairs())
        assert [shape[0][0] for shape in stand_in.shapes] == [tensors.MAX_BATCH_SIZE] * 2 + [3]
        reds = [int(answer.answer.split()[1]) for answer in answers]
        assert reds == [index * SIDE * SIDE for index in range(count)]

    def test_nothing_asked_is_nothing_sent(self) -> None:
        assert VizwizClient("localhost:1").ask_batch([]) == []

    def test_a_bad_pair_is_raised(self, client: VizwizClient, stand_in: StandIn, photos: list[Path]) -> None:
        with pytest.raises(ImageError, match=r"missing\.jpg"):
            client.ask_batch([(photos[0], "what?"), ("missing.jpg", "what?")])
        with pytest.raises(QuestionError, match="expected words"):
            client.ask_batch([(photos[0], " ")])
        assert stand_in.shapes == []

    def test_or_returned_in_its_place(self, client: VizwizClient, stand_in: StandIn, photos: list[Path]) -> None:
        pairs = [(b"", "what?"), (photos[0], "what?"), (photos[1], ""), (photos[2], "what?")]
        bad_image, first, bad_question, second = client.ask_batch(pairs, return_errors=True)
        assert isinstance(bad_image, ImageError)
        assert isinstance(bad_question, QuestionError)
        assert [first, second] == client.ask_batch([pairs[1], pairs[3]])
        assert stand_in.shapes[0][0][0] == 2

    def test_nothing_but_bad_pairs(self, client: VizwizClient, stand_in: StandIn) -> None:
        (error,) = client.ask_batch([(b"", "what?")], return_errors=True)
        assert isinstance(error, ImageError)
        assert stand_in.shapes == []

    @pytest.mark.parametrize("top", [0, -1])
    def test_top_is_at_least_one(self, client: VizwizClient, photos: list[Path], top: int) -> None:
        with pytest.raises(ValueError, match=f"got top={top}, expected 1 or more"):
            client.ask(photos[0], "what?", top=top)

    def test_threads_share_a_client(self, client: VizwizClient, stand_in: StandIn, photos: list[Path]) -> None:
        pairs = [(photos[index % 5], f"is this number {index}?") for index in range(40)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda pair: client.ask(*pair), pairs))
        assert [answer.answer for answer in answers] == [expected_label(*pair) for pair in pairs]

    def test_every_candidate_of_a_large_batch(self, client: VizwizClient, stand_in: StandIn) -> None:
        stand_in.labels = tuple(f"answer number {number}" for number in range(3_000))
        pairs = [(Image.new("RGB", (40, 40)), "what?")] * tensors.MAX_BATCH_SIZE
        answers = client.ask_batch(pairs, top=3_000)  # 5.6 MB, over gRPC's own limit of 4 MiB for a reply
        assert {len(answer.candidates) for answer in answers} == {3_000}


class TestServerTrouble:
    def test_nothing_listens(self, photos: list[Path]) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"127.0.0.1:{unused.getsockname()[1]}"
            with pytest.raises(
                ServerUnavailable, match=f"no server is ready at {url}; start it with `python -m serving`"
            ):
                VizwizClient(url).ask(photos[0], "what is this?")

    def test_no_such_host(self, photos: list[Path]) -> None:
        with pytest.raises(ServerUnavailable, match=r"no server is ready at no-such-host\.invalid:8001"):
            VizwizClient("no-such-host.invalid:8001").ask(photos[0], "what is this?")

    def test_a_listener_that_says_nothing(self, photos: list[Path]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"127.0.0.1:{listener.getsockname()[1]}"
            with pytest.raises(DeadlineExceeded, match=rf"no answer from {url} within 0\.5 s; allow more time"):
                VizwizClient(url, timeout_s=0.5).ask(photos[0], "what is this?")

    def test_an_http_server(self, photos: list[Path]) -> None:
        with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
            server.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[method-assign]
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with pytest.raises(WrongServer, match="speaks HTTP, not gRPC; give Triton's gRPC port"):
                VizwizClient(f"127.0.0.1:{server.server_port}", timeout_s=5).ask(photos[0], "what is this?")
            server.shutdown()

    def test_another_grpc_server(self, photos: list[Path]) -> None:
        server = grpc.server(ThreadPoolExecutor(1))
        url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        with pytest.raises(WrongServer, match=f"the gRPC server at {url} is not Triton"):
            VizwizClient(url).ask(photos[0], "what is this?")
        server.stop(None).wait()

    @pytest.mark.parametrize("version", ["", "99"])
    def test_another_contract(self, client: VizwizClient, stand_in: StandIn, photos: list[Path], version: str) -> None:
        stand_in.contract_version = version
        text = f"contract version {version or 'none'}, this client has {tensors.CONTRACT_VERSION}; install"
        with pytest.raises(WrongServer, match=text):
            client.ask(photos[0], "what is this?")

    @pytest.mark.parametrize("dims", [(), (-1, -1, 3), (3, 32, 32), (32, 31, 3)])
    def test_another_picture_shape(
        self, client: VizwizClient, stand_in: StandIn, photos: list[Path], dims: tuple[int, ...]
    ) -> None:
        stand_in.image_dims = dims
        with pytest.raises(WrongServer, match=r"takes pictures of shape \[.*\], expected \[S, S, 3\]"):
            client.ask(photos[0], "what is this?")

    def test_answers_without_labels(self, client: VizwizClient, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.labelled, stand_in.labels = False, ("red",)
        with pytest.raises(WrongServer, match="sends answers without labels; export its model again"):
            client.ask(photos[0], "what is this?")

    @pytest.mark.parametrize(
        ("status", "message", "error", "text"),
        [
            ("UNAVAILABLE", "Exceeds maximum queue size", Overloaded, "has too many requests waiting; ask again"),
            ("UNAVAILABLE", "Request timeout expired", Overloaded, "has too many requests waiting; ask again"),
            ("UNAVAILABLE", "Server is stopping", ServerUnavailable, "no server is ready at .*Server is stopping"),
            ("NOT_FOUND", "unknown model", WrongServer, "does not serve 'vizwiz_vqa'; export a model"),
            ("INVALID_ARGUMENT", "unexpected shape", WrongServer, "refused the request; was its model replaced"),
            ("INTERNAL", "CUDA out of memory", ServerError, "failed .INTERNAL: CUDA out of memory"),
        ],
    )
    def test_failures_of_a_request(
        self,
        client: VizwizClient,
        stand_in: StandIn,
        photos: list[Path],
        status: str,
        message: str,
        error: type[VizwizError],
        text: str,
    ) -> None:
        stand_in.failure = (grpc.StatusCode[status], message)
        with pytest.raises(error, match=text) as caught:
            client.ask(photos[0], "what is this?")
        assert type(caught.value) is error
        stand_in.failure = None
        assert client.ask(photos[0], "what is this?").candidates  # the client survives

    def test_too_slow(self, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.delay_s = 1.0
        with (
            VizwizClient(stand_in.url, timeout_s=0.3) as client,
            pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"),
        ):
            client.ask(photos[0], "what is this?")

    def test_another_model_is_met_at_the_next_question(
        self, client: VizwizClient, stand_in: StandIn, photos: list[Path]
    ) -> None:
        client.ask(photos[0], "what is this?")
        stand_in.image_dims, stand_in.failure = (48, 48, 3), (grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape")
        with pytest.raises(WrongServer):
            client.ask(photos[0], "what is this?")
        stand_in.failure = None
        client.ask(photos[0], "what is this?")
        assert [image for image, _ in stand_in.shapes] == [(1, 32, 32, 3), (1, 48, 48, 3)]

    def test_bad_input_is_said_before_the_server_is_called(self) -> None:
        with pytest.raises(ImageError):
            VizwizClient("localhost:1").ask(b"words", "what is this?")

    @pytest.mark.parametrize("url", ["http://localhost:8001", "localhost", "", "local host:8001", "grpc://x:1"])
    def test_an_address_of_another_form(self, url: str) -> None:
        with pytest.raises(WrongServer, match="expected host:port without http://, such as localhost:8001"):
            VizwizClient(url)

    @pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
    def test_a_timeout_is_over_zero(self, timeout_s: float) -> None:
        with pytest.raises(ValueError, match="expected a number of seconds over 0"):
            VizwizClient(timeout_s=timeout_s)

    def test_a_server_that_comes_back_is_found_again(self, photos: list[Path]) -> None:
        first, url = serve(StandIn())
        with VizwizClient(url, timeout_s=5) as client:
            answer = client.ask(photos[0], "what is this?")
            first.stop(None).wait()
            with pytest.raises(ServerUnavailable):
                client.ask(photos[0], "what is this?")
            second, _ = serve(StandIn(), url)
            deadline = time.monotonic() + 5
            while True:
                try:
                    assert client.ask(photos[0], "what is this?") == answer
                    break
                except ServerUnavailable:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            second.stop(None).wait()

    def test_a_closed_client_opens_again(self, client: VizwizClient, photos: list[Path]) -> None:
        first = client.ask(photos[0], "what is this?")
        client.close()
        client.close()
        assert client.ask(photos[0], "what is this?") == first
