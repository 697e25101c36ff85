"""Every state of the page in a real browser: axe finds nothing, and the live region says what a person needs."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.browser import Visit
from tests.gateway.conftest import Asked
from tests.gateway.processes import Gateway

TEXT_FILE = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no photo"}
LARGE_FILE = {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": bytes(3_000_000)}


@pytest.fixture(scope="module")
def strict(live_server: Any) -> Iterator[Gateway]:
    """A gateway that admits one request, and does not wait for Triton."""
    with Gateway(live_server.grpc_url, "--max-requests=1", "--answer-timeout=0.001") as gateway:
        yield gateway


@contextmanager
def stopped(gateway: Gateway) -> Iterator[None]:
    """The gateway does not answer."""
    os.kill(gateway.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(gateway.pid, signal.SIGCONT)


def no_question(visit: Visit, asked: Asked) -> None:
    visit.ask(asked.photo, "  ")


def no_photo(visit: Visit, asked: Asked) -> None:
    visit.ask(None, asked.question)


def not_a_photo(visit: Visit, asked: Asked) -> None:
    visit.ask(TEXT_FILE, asked.question)


def too_large(visit: Visit, asked: Asked) -> None:
    visit.ask(LARGE_FILE, asked.question)


def question_too_long(visit: Visit, asked: Asked) -> None:
    visit.ask(asked.photo, "why " * 2_000)


def question_of_30_kb(visit: Visit, asked: Asked) -> None:
    visit.ask(asked.photo, "why " * 7_500)


def lost(visit: Visit, asked: Asked) -> None:
    visit.page.context.set_offline(True)
    visit.ask(asked.photo, asked.question)


class TestStates:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_a_fresh_page(self, visit: Callable[..., Visit], demo_gateway: Gateway, scheme: str) -> None:
        fresh = visit(color_scheme=scheme).open(demo_gateway.url)
        assert fresh.violations() == []
        text = fresh.text("main")
        assert text.index("Do not rely on them for medicines, money, food safety or traffic.") < text.index("Answer\n")
        assert "Demo: this model has learnt drawn pictures only." in text

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("outcome", ["answered", "unsure", "declined"])
    def test_an_answer(
        self, visit: Callable[..., Visit], demo_gateway: Gateway, asked: dict[str, Asked], outcome: str, scheme: str
    ) -> None:
        expected = asked[outcome]
        shown = visit(color_scheme=scheme).open(demo_gateway.url).ask(expected.photo, expected.question)
        text = shown.wait_for(outcome)
        assert text == "\n".join(expected.words.lines)
        assert shown.page.locator("#details ol li").all_inner_texts() == list(expected.words.guesses)
        assert shown.said() == [f"Photo: {expected.photo.name}", text.replace("\n", " ")]
        assert shown.focus() == "question"
        assert shown.violations() == []

    @pytest.mark.parametrize(
        ("do", "sentence", "focus"),
        [
            (no_photo, "There is no photo. Take or choose one, then press Ask.", "take"),
            (no_question, "There is no question. Type one, such as “what is this?”, then press Ask.", "question"),
            (not_a_photo, "This file is not a photo. Choose a JPEG or PNG file", "choose"),
            (too_large, "The photo is too large: it has more than 2 MB. Choose a smaller one", "choose"),
            (question_too_long, "The question is too long: only about its first 50 words", "question"),
            (question_of_30_kb, "The question is too long: only about its first 50 words", "question"),
            (lost, "No answer came: the connection was lost", "question"),
        ],
    )
    def test_an_error_of_the_form(
        self,
        visit: Callable[..., Visit],
        demo_gateway: Gateway,
        asked: dict[str, Asked],
        do: Callable[[Visit, Asked], None],
        sentence: str,
        focus: str,
    ) -> None:
        shown = visit().open(demo_gateway.url)
        do(shown, asked["answered"])
        assert shown.wait_for("error").startswith(sentence)
        assert shown.said()[-1].startswith(sentence)
        assert shown.focus() == focus
        if focus != "question" or "question" in sentence:  # the control says why, whenever a person comes back to it
            described = shown.page.get_attribute(f"#{focus}", "aria-describedby")
            assert described == f"{'question' if focus == 'question' else 'photo'}-hint result"
        assert shown.violations() == []
        shown.page.context.set_offline(False)
        shown.ask(asked["answered"].photo, asked["answered"].question).wait_for("answered")
        assert shown.page.locator("[aria-invalid], [aria-describedby~=result]").count() == 0

    def test_a_gateway_that_is_full_or_slow(
        self, visit: Callable[..., Visit], strict: Gateway, asked: dict[str, Asked]
    ) -> None:
        question = asked["answered"]
        shown = visit().open(strict.url)
        with socket.create_connection((strict.http.base_url.host, strict.http.base_url.port or 80)) as upload:
            head = "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=x\r\n"
            upload.sendall(f"{head}content-length: 1000\r\n\r\n--x\r\n".encode())
            shown.ask(question.photo, question.question)
            assert shown.wait_for("error").startswith("Too many people are asking at the moment.")
            assert shown.violations() == []
        shown.page.click("#ask")
        shown.page.get_by_text("No answer came in time. Press Ask again in a minute.").wait_for()
        assert shown.violations() == []

    def test_waiting_and_a_lost_connection(self, visit: Callable[..., Visit], asked: dict[str, Asked]) -> None:
        question = asked["answered"]
        with Gateway("127.0.0.1:1") as gateway:  # no Triton is there
            shown = visit().open(gateway.url).ask(question.photo, question.question)
            assert shown.wait_for("error").startswith("The server that answers is not available. Press Ask again")
            assert shown.violations() == []
            with stopped(gateway):
                shown.page.click("#ask")
                shown.page.get_by_text("Still waiting for the answer. Please wait.").wait_for()
                assert shown.violations() == []
                gateway.kill()
            assert shown.wait_for("error").startswith("No answer came: the connection was lost")
            assert shown.page.is_enabled("#ask")

    def test_a_wait_is_announced_and_then_the_answer(
        self, visit: Callable[..., Visit], demo_gateway: Gateway, asked: dict[str, Asked]
    ) -> None:
        first, second = asked["answered"], asked["declined"]
        shown = visit().open(demo_gateway.url)
        with stopped(demo_gateway):
            shown.ask(first.photo, first.question)
            shown.page.get_by_text("Still waiting for the answer.").wait_for()
            shown.page.click("#ask")  # again: nothing is sent twice
            shown.page.wait_for_timeout(200)
            assert shown.said()[1:] == ["Still waiting for the answer. Please wait."] * 2
            assert len([url for url in shown.requests if url == f"{demo_gateway.url}/"]) == 2  # page and question
            shown.ask(second.photo, second.question)  # another one replaces it
        assert shown.wait_for("declined").startswith(second.words.headline)
        assert " ".join(first.words.lines) not in shown.said()


class TestWithoutScript:
    @pytest.mark.parametrize("outcome", ["answered", "declined"])
    def test_an_answer(
        self, visit: Callable[..., Visit], demo_gateway: Gateway, asked: dict[str, Asked], outcome: str
    ) -> None:
        expected = asked[outcome]
        shown = visit()
        shown.page.route("**/page.js", lambda route: route.abort())
        shown.open(demo_gateway.url)
        assert shown.violations() == []
        shown.ask(expected.photo, expected.question)
        assert shown.wait_for(outcome) == "\n".join(expected.words.lines)
        assert shown.page.title() == expected.words.headline
        shown.page.locator("#answer-heading:focus").wait_for()  # autofocus, after the load
        assert shown.page.input_value("#question") == expected.question
        assert "The photo has to be chosen again" in shown.text("#details")
        assert shown.violations() == []

    def test_errors(self, visit: Callable[..., Visit], demo_gateway: Gateway, asked: dict[str, Asked]) -> None:
        shown = visit(java_script_enabled=False)
        shown.page.goto(demo_gateway.url)
        whole = asked["answered"].photo.read_bytes()
        half = {"name": "half.jpg", "mimeType": "image/jpeg", "buffer": whole[: len(whole) // 2]}
        for photo, question, sentence in (
            (None, "", "There is no photo."),
            (asked["answered"].photo, " ", "There is no question."),
            (TEXT_FILE, "a <b> question", "This file is not a photo."),
            (LARGE_FILE, "why?", "The photo is too large: it has more than 2 MB."),
            (half | {"buffer": b""}, "why?", "This photo is an empty file. Choose it again, or take another one."),
            (half, "why?", "This photo is damaged or incomplete. Choose it again, or take another one."),
        ):
            shown.ask(photo, question)
            shown.page.get_by_text(sentence).wait_for()
            assert shown.page.title().startswith(f"Error: {sentence}")
            field = "question" if "question" in sentence else "photo"
            assert (
                shown.page.locator("[aria-invalid]").first.get_attribute("aria-describedby") == f"{field}-hint result"
            )


@pytest.fixture
def asked_page(visit: Callable[..., Visit], demo_gateway: Gateway, asked: dict[str, Asked]) -> Visit:
    """A page with an answer."""
    shown = visit().open(demo_gateway.url)
    shown.ask(asked["answered"].photo, asked["answered"].question).wait_for("answered")
    return shown


def test_nothing_is_stored_and_no_third_party_is_asked(asked_page: Visit, demo_gateway: Gateway) -> None:
    assert asked_page.page.context.cookies() == []
    assert asked_page.page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 0]
    assert asked_page.requests
    assert [
        url for url in asked_page.requests if not url.startswith((demo_gateway.url, f"blob:{demo_gateway.url}"))
    ] == []


def test_another_question_about_the_same_photo(asked_page: Visit, asked: dict[str, Asked]) -> None:
    first = asked["answered"]
    asked_page.page.click("#another-question")
    assert asked_page.focus() == "question"
    asked_page.page.keyboard.press("Enter")  # the same one again is announced again
    asked_page.page.wait_for_selector("#visit:not([hidden]) li")
    assert asked_page.wait_for("answered") == "\n".join(first.words.lines)
    assert asked_page.said()[1:] == [" ".join(first.words.lines)] * 2
    assert asked_page.text("#earlier") == f"{first.question} {first.words.headline} ({first.photo.name})"
    assert asked_page.violations() == []


def test_another_photo(asked_page: Visit, asked: dict[str, Asked], tmp_path: Path) -> None:
    with asked_page.page.expect_file_chooser() as chooser:
        asked_page.page.click("#another-photo")
    assert asked_page.focus() == "choose"
    chooser.value.set_files(asked["declined"].photo)
    assert asked_page.said()[-1] == f"Photo: {asked['declined'].photo.name}"
    asked_page.ask(None, asked["declined"].question)
    assert asked_page.wait_for("declined").startswith(asked["declined"].words.headline)
