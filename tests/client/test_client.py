"""The library: what it sends, what it makes of the reply, and what it says when there is none."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from tritonclient.grpc import InferenceServerClient

from tests.client.fake_server import HEAD, MODELS, SIDE, FakeServer, serve
from vizwiz_client import Answer, Candidate, ImageError, ModelInfo, QuestionError, Timings
from vizwiz_client.contract import prepared, tensors
from vizwiz_client.contract.image import load_photo, to_pixels
from vizwiz_client.contract.tokenizer import tokenize


def expected_label(photo: Path, question: str) -> str:
    return f"0: {to_pixels(load_photo(photo), SIDE).sum()} {tokenize(question).ids.sum()}"


class TestAsk:
    def test_the_answer(self, client: Any, photos: list[Path]) -> None:
        answer = client.ask(photos[0], "what is this?", top=3)
        label = expected_label(photos[0], "what is this?")[1:]
        assert answer == Answer(
            candidates=(Candidate(f"0{label}", 0.5), Candidate(f"1{label}", 0.25), Candidate(f"2{label}", 0.166667)),
            answer_type=f"0{label}",  # the label holds a colon
            answerable=0.75,
            head_id=HEAD,
            question_truncated=False,
            request_id="compared with nothing",
            timings=Timings(0, 0, 0),
            runner_up=Candidate(f"1{label}", 0.25),
        )
        assert (answer.answer, answer.confidence) == answer.candidates[0]

    @pytest.mark.parametrize(("answerable", "declined"), [(0.75, False), (0.5, False), (0.49, True), (0.0, True)])
    def test_declined(
        self, client: Any, fake_server: FakeServer, photos: list[Path], answerable: float, declined: bool
    ) -> None:
        fake_server.answerable = answerable
        assert client.ask(photos[0], "what is this?").declined is declined

    @pytest.mark.parametrize("label", ["unanswerable", "unsuitable", "unsuitable image"])
    def test_an_answer_that_says_so_is_declined(
        self, client: Any, fake_server: FakeServer, photos: list[Path], label: str
    ) -> None:
        fake_server.labels, fake_server.answerable = (label, "banana"), 0.9
        assert client.ask(photos[0], "what is this?").declined
        fake_server.labels = ("banana", label)
        assert not client.ask(photos[0], "what is this?", top=2).declined

    def test_photos_of_all_kinds_are_asked_alike(self, client: Any, photos: list[Path]) -> None:
        data = photos[1].read_bytes()
        sources = [photos[1], str(photos[1]), data, bytearray(data), memoryview(data), io.BytesIO(data)]
        with photos[1].open("rb") as file, Image.open(photos[1]) as image:
            sources += [file, image, np.asarray(image)]
            assert len({client.ask(source, "what colour?") for source in sources}) == 1

    @pytest.mark.parametrize(
        "options",
        [{"top": 0}, {"top": "3"}, {"top": 1.5}, {"request_id": 7}, {"request_id": ""}, {"request_id": "a\n"}],
    )
    def test_an_invalid_option(self, client: Any, fake_server: FakeServer, options: dict[str, Any]) -> None:
        pair = (Image.new("RGB", (40, 40)), "what is this?")
        for ask in (lambda: client.ask(*pair, **options), lambda: client.ask_batch([pair], **options)):
            with pytest.raises(ValueError, match=f"got {next(iter(options))}=.*, expected"):
                ask()
        assert fake_server.config_reads == 0

    def test_the_config_is_read_once(self, client: Any, fake_server: FakeServer, photos: list[Path]) -> None:
        for photo in photos:
            client.ask(photo, "what is this?")
        assert fake_server.config_reads == 1

    def test_the_request_is_named_and_timed(self, client: Any, fake_server: FakeServer, photos: list[Path]) -> None:
        fake_server.delay_s = 0.1
        answer = client.ask(photos[0], "what is this?")
        assert fake_server.request_ids == [answer.request_id]
        assert answer.timings.prepare_s > 0
        assert answer.timings.prepare_s + answer.timings.request_s <= answer.timings.total_s

    def test_fast_decoding_is_for_the_first_question_too(
        self, connect: Any, fake_server: FakeServer, tmp_path: Path
    ) -> None:
        photo = tmp_path / "large.jpg"
        noise = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
        Image.fromarray(noise).save(photo)
        exact = connect(fake_server.url).ask(photo, "what is this?")
        client = connect(fake_server.url, fast_decode=True)
        first, second = (client.ask(photo, "what is this?") for _ in range(2))
        assert first.answer == second.answer != exact.answer  # the fake server answers with the sum of the pixels

    def test_what_is_served(self, client: Any) -> None:
        assert client.check() == ModelInfo(
            tensors.ENSEMBLE,
            tensors.CONTRACT_VERSION,
            (tensors.ImageInput("image", SIDE),),
            tensors.MAX_BATCH_SIZE,
            MODELS,
        )

    def test_headers_are_sent_with_every_call(self, connect: Any, fake_server: FakeServer, photos: list[Path]) -> None:
        connect(fake_server.url, headers={"X-Key": "secret"}).ask(photos[0], "what is this?")
        assert [call["x-key"] for call in fake_server.metadata] == ["secret"] * 2
        assert not any("grpc-encoding" in call for call in fake_server.metadata)  # nothing is compressed


class TestBatch:
    def test_the_order_is_kept_and_the_length_shared(
        self, client: Any, fake_server: FakeServer, photos: list[Path]
    ) -> None:
        questions = ["what?", "what is this " * 5, "what is this " * 40, "is it ripe?", "what colour is the shirt?"]
        pairs = list(zip(photos, questions, strict=True))
        answers = client.ask_batch(pairs)
        assert [answer.answer for answer in answers] == [expected_label(*pair) for pair in pairs]
        assert [answer.question_truncated for answer in answers] == [False, False, True, False, False]
        assert fake_server.shapes == [((5, SIDE, SIDE, 3), (5, 77))]

    @pytest.mark.parametrize("limit", [1, 3, tensors.MAX_BATCH_SIZE])
    def test_as_many_a_request_as_the_server_takes(self, client: Any, fake_server: FakeServer, limit: int) -> None:
        fake_server.max_batch_size = limit
        count = 2 * limit + 1
        answers = client.ask_batch((Image.new("RGB", (40, 40), (red, 0, 0)), "what?") for red in range(count))
        assert sorted(shape[0][0] for shape in fake_server.shapes) == sorted([limit, limit, 1])
        assert [int(answer.answer.split()[1]) for answer in answers] == [red * SIDE * SIDE for red in range(count)]
        assert len({answer.request_id for answer in answers}) == 3

    def test_a_photo_that_is_asked_about_often_is_decoded_once(
        self, client: Any, fake_server: FakeServer, photos: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decoded: list[object] = []
        real = prepared.load_photo
        monkeypatch.setattr(prepared, "load_photo", lambda *source: decoded.append(source[0]) or real(*source))
        answers = client.ask_batch([(photos[0], question) for question in ("what?", "is it ripe?", "what colour?")])
        assert (decoded, len(answers)) == ([photos[0]], 3)

    def test_a_bad_pair_is_raised(self, client: Any, fake_server: FakeServer, photos: list[Path]) -> None:
        with pytest.raises(ImageError, match=r"missing\.jpg"):
            client.ask_batch([(photos[0], "what?"), ("missing.jpg", "what?")])
        with pytest.raises(QuestionError, match="expected words"):
            client.ask_batch([(photos[0], " ")])
        assert fake_server.shapes == []

    def test_or_returned_in_its_place(self, client: Any, fake_server: FakeServer, photos: list[Path]) -> None:
        pairs = [(b"", "what?"), (photos[0], "what?"), (photos[1], ""), (photos[2], "what?")]
        bad_image, first, bad_question, second = client.ask_batch(pairs, return_errors=True)
        assert isinstance(bad_image, ImageError)
        assert isinstance(bad_question, QuestionError)
        assert [first, second] == client.ask_batch([pairs[1], pairs[3]])
        assert fake_server.shapes[0][0][0] == 2

    def test_threads_share_a_client(self, client: Any, fake_server: FakeServer, photos: list[Path]) -> None:
        pairs = [(photos[index % 5], f"is this number {index}?") for index in range(40)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda pair: client.ask(*pair), pairs))
        assert [answer.answer for answer in answers] == [expected_label(*pair) for pair in pairs]

    def test_every_candidate_of_a_large_batch(self, client: Any, fake_server: FakeServer) -> None:
        fake_server.labels = tuple(f"answer number {number}" for number in range(3_000))
        pairs = [(Image.new("RGB", (40, 40)), "what?")] * tensors.MAX_BATCH_SIZE
        answers = client.ask_batch(pairs, top=3_000)  # 5.6 MB, over gRPC's own limit of 4 MiB for a reply
        assert {len(answer.candidates) for answer in answers} == {3_000}


def test_a_name_with_several_addresses_shares_the_load(fake_server: FakeServer) -> None:
    """Without the option of the channel, gRPC would send everything to the first of them."""
    from vizwiz_client._protocol import connection_arguments
    from vizwiz_client._settings import Settings

    other = FakeServer()
    server, _ = serve(other)
    arguments = connection_arguments(Settings(fake_server.url, 20, 0, None, {}, False))
    arguments["url"] = f"ipv4:{fake_server.url},{other.url}"  # what a resolver makes of such a name
    try:
        with InferenceServerClient(**arguments) as channel:
            for _ in range(50):  # the second connection may come a moment after the first
                channel.get_model_config(tensors.ENSEMBLE)
    finally:
        server.stop(None).wait()
    assert min(fake_server.config_reads, other.config_reads) > 10


def test_the_first_question_sees_the_photo_as_the_second_does(client: Any, tmp_path: Path) -> None:
    """Before the first, the photo is decoded without knowing the server: a phone's photo must not be turned twice."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / "phone.jpg"
    Image.effect_noise((64, 48), 90).save(path, exif=exif)
    first, second = (client.ask(path, "what is this?") for _ in range(2))
    assert first.answer == second.answer
