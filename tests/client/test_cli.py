"""``vizwiz-client``: its command line, and the command ``ask``."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from tests.client.fake_server import FakeServer
from vizwiz_client import (
    VizwizClient,
)
from vizwiz_client.cli import _output, _parser
from vizwiz_client.cli._commands import connect, photos_and_questions

QUESTION = "what is this?"
DECLINED = "The photo cannot answer this. Take another photo, or ask another question."
PROGRAM = [sys.executable, "-c", "import sys; from vizwiz_client.cli import main; sys.exit(main())"]


pytestmark = pytest.mark.usefixtures("no_environment")


@pytest.fixture
def ask(run, fake_server: FakeServer):
    return lambda *arguments: run("ask", *arguments, "--url", fake_server.url)


class TestParser:
    @pytest.mark.parametrize(
        ("line", "photos", "questions"),
        [
            ("a.jpg 'what is this?'", ["a.jpg"], ["what is this?"]),
            ("a.jpg b.jpg what?", ["a.jpg", "b.jpg"], ["what?"]),
            ("a.jpg b.jpg -q what? --question why?", ["a.jpg", "b.jpg"], ["what?", "why?"]),
            ("--top 2 a.jpg what?", ["a.jpg"], ["what?"]),
            ("a.jpg --top 2 b.jpg --json what?", ["a.jpg", "b.jpg"], ["what?"]),
            ("a.jpg -q='- or +?'", ["a.jpg"], ["- or +?"]),
            ("a.jpg -- -why?", ["a.jpg"], ["-why?"]),
            ("--top 2 -- -a.jpg -q", ["-a.jpg"], ["-q"]),
            ("--top 2 a.jpg - what?", ["a.jpg", "-"], ["what?"]),
        ],
    )
    def test_photos_and_questions(self, line: str, photos: list[str], questions: list[str]) -> None:
        assert photos_and_questions(_parser.parse(["ask", *shlex.split(line)])) == (photos, questions)

    def test_wildcards_that_the_shell_left(self, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(photos[0].parent)
        found, _ = photos_and_questions(_parser.parse(["ask", "*.png", "none*.jpg", "what?"]))
        assert found == [*sorted(photo.name for photo in photos), "none*.jpg"]

    @pytest.mark.parametrize(
        ("line", "text"),
        [
            ("", "the following arguments are required: COMMAND"),
            ("answer", "invalid choice: 'answer'"),
            ("ask", "got nothing, expected at least one photo and then a question"),
            ("ask a.jpg", "got 'a.jpg' alone, expected at least one photo and then a question"),
            ("ask -q what?", "got no photo, expected at least one"),
            ("ask {photo} what is this?", "'what' is not a photo; if it is part of the question, put quotes around"),
            ("ask a.jpg {photo}", "is a file, expected a question"),
            ("ask - - what?", "got - more than once, but standard input can be read once"),
            ("ask a.jpg b --top 0", "got '0', expected a whole number from 1 to 999,999,999"),
            (f"ask a.jpg b --top {'9' * 5_000}", "expected a whole number from 1 to"),
            ("ask a.jpg b --retries -1", "got '-1', expected a whole number from 0 to"),
            ("ask a.jpg b --timeout soon", "got 'soon', expected a number of seconds over 0"),
            ("ask a.jpg b --timeout 1e10", "got '1e10', expected a number of seconds over 0, below 4,000,000"),
            ("ask a.jpg b --url http://localhost:8001", "expected host:port without http://"),
            ("ask a.jpg b --tls-cert cert.pem", "expected cert and key together"),
            ("ask a.jpg b --tls-ca none.pem", "none.pem'): cannot be read (No such file or directory)"),
            ("ask a.jpg b --header grpc-x:1", "got the header 'grpc-x'"),
            ("ask a.jpg b --colour", "unrecognized arguments: --colour"),
            ("ask a.jpg -why?", "unrecognized arguments: -why?; a question that starts with - is written -q=-..."),
            ("ask a.jpg -q -why?", "expected one argument; a question that starts with - is written -q=-..."),
            ("status here", "unrecognized arguments: here"),
            ("batch", "the following arguments are required: INPUT"),
            ("batch a.csv b.csv", "unrecognized arguments: b.csv"),
        ],
    )
    def test_mistakes_end_with_2(self, run, line: str, text: str, photos: list[Path]) -> None:
        code, out, err = run(*shlex.split(line.format(photo=photos[0])))
        assert (code, out) == (_output.USAGE, [])
        assert err[0].startswith("Error: ")
        assert text in err[0]

    def test_an_invalid_header_is_not_repeated(self, run) -> None:
        assert "hunter2" not in "\n".join(run("status", "--header", "hunter2")[2])

    def test_the_options_reach_the_client(self) -> None:
        line = "ask a what --url h:1 --timeout 3 --retries 5 --header a:b --fast-decode"
        with connect(_parser.parse(line.split())) as client:
            settings = client._core.settings
        assert (settings.url, settings.timeout_s, settings.retries, settings.tls) == ("h:1", 3, 5, None)
        assert (settings.headers, settings.fast_decode) == ({"a": "b"}, True)

    def test_environment_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = {"url": "there:1", "timeout": "3", "retries": "0", "tls_ca": "a", "tls_cert": "b", "tls_key": "c"}
        for name, value in values.items():
            monkeypatch.setenv(f"VIZWIZ_{name.upper()}", value)
        monkeypatch.setenv("VIZWIZ_HEADERS", "X-Key: 1:2\n\nauthorization:Bearer x\n")
        arguments = vars(_parser.parse(["status"]))
        assert {name: str(arguments[name]) for name in values} == values | {"timeout": "3.0"}
        assert arguments["header"] == [("x-key", "1:2"), ("authorization", "Bearer x")]
        arguments = vars(_parser.parse(["status", "--url", "here:2", "--header", "y:2", "--header", "z:3"]))
        assert (arguments["url"], arguments["header"]) == ("here:2", [("y", "2"), ("z", "3")])

    def test_an_empty_variable_is_not_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VIZWIZ_URL", "")
        arguments = _parser.parse(["status"])
        assert (arguments.url, arguments.timeout, arguments.retries, arguments.header) == ("localhost:8001", 60, 2, [])

    def test_an_invalid_variable_is_named(self, run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VIZWIZ_TIMEOUT", "soon")
        assert (
            "got 'soon', expected a number of seconds over 0, below 4,000,000 (the environment variable VIZWIZ_TIMEOUT"
            in (run("status")[2][0])
        )

    @pytest.mark.parametrize("command", _parser.COMMANDS)
    def test_the_examples_of_the_help_parse(self, run, command: str) -> None:
        code, out, _ = run(command, "--help")
        examples = re.findall(r"^  vizwiz-client ([^<>\n]+)", "\n".join(out), re.MULTILINE)
        assert code == 0
        assert len(examples) >= 3
        for example in examples:
            assert _parser.parse(shlex.split(example)).command == command


class TestAsk:
    def test_one_question_is_one_line(self, ask, fake_server: FakeServer, photos: list[Path]) -> None:
        fake_server.labels = ("banana",)
        assert ask(photos[0], QUESTION) == (0, ["Banana. Fairly sure, 50%."], [])

    def test_candidates(self, ask, fake_server: FakeServer, photos: list[Path]) -> None:
        fake_server.labels = ("banana", "unanswerable", "lemon")
        assert ask(photos[0], "--top", 3, QUESTION)[1] == ["Banana. Fairly sure, 50%. Or: lemon, 17%, only a guess."]
        assert ask(photos[0], QUESTION)[1] == ["Banana. Fairly sure, 50%."]

    def test_a_close_second_answer_is_said_without_asking_for_it(
        self, ask, fake_server: FakeServer, photos: list[Path]
    ) -> None:
        fake_server.labels = ("banana", "lemon")
        assert ask(photos[0], QUESTION)[1] == ["Maybe banana, or lemon. Not sure, 50%."]

    def test_a_declined_answer(self, ask, fake_server: FakeServer, photos: list[Path]) -> None:
        fake_server.labels, fake_server.answerable = ("banana",), 0.2
        expected = f"{DECLINED} Best guess: banana, 50%, fairly sure."
        assert ask(photos[0], QUESTION) == (0, [expected], [])

    @pytest.mark.parametrize("answerable", [0.2, 0.8])
    @pytest.mark.parametrize("label", ["unanswerable", "unsuitable", "unsuitable image"])
    def test_unanswerable_is_not_a_guess(
        self, ask, fake_server: FakeServer, photos: list[Path], label: str, answerable: float
    ) -> None:
        fake_server.labels, fake_server.answerable = (label, "banana"), answerable
        for top in (1, 2):
            assert ask(photos[0], QUESTION, "--top", top)[1] == [f"{DECLINED} Best guess: banana, 25%, not sure."]
        fake_server.labels = (label,)
        assert ask(photos[0], QUESTION)[1] == [DECLINED]

    def test_quality(self, ask, fake_server: FakeServer, photos: list[Path]) -> None:
        blurred = "The photo is blurred. Hold the phone still, and move it a little away."
        problems = "Photo: blurred, 70%; too dark, 20%."
        fake_server.labels, fake_server.quality = ("banana",), {"blur": 0.7, "dark": 0.2}
        fake_server.wording = json.dumps({"advise_from": {"blur": 0.6, "dark": 0.3}})
        assert ask(photos[0], QUESTION)[1] == ["Banana. Fairly sure, 50%."]
        assert ask(photos[0], QUESTION, "--quality") == (0, [f"Banana. Fairly sure, 50%. {blurred} {problems}"], [])
        fake_server.answerable = 0.2
        told = f"The photo cannot answer this. {blurred} Then take another photo. Best guess: banana, 50%, fairly sure."
        assert ask(photos[0], QUESTION) == (0, [told], [])
        assert ask(photos[0], QUESTION, "--quality") == (0, [f"{told} {problems}"], [])

    def test_quality_of_a_model_without_it(self, ask, fake_server: FakeServer, photos: list[Path]) -> None:
        fake_server.labels = ("banana",)
        _, lines, notes = ask(*photos[:2], QUESTION, "--quality")
        assert [line.partition(": ")[2] for line in lines] == ["Banana. Fairly sure, 50%."] * 2
        assert notes == ["Note: the served model was fitted without photo quality, so nothing is known about it."]
        assert ask(photos[0], QUESTION, "--quality", "--quiet")[2] == []

    def test_every_question_about_every_photo(self, ask, fake_server: FakeServer, photos: list[Path]) -> None:
        fake_server.labels = ("banana",)
        long = "is it\nripe? " + "tell me " * 9
        names = {QUESTION: QUESTION, long: "is it ripe? tell me tell me tell me tell me tell me tell..."}
        lines = ask(*photos[:2], "-q", QUESTION, "-q", long)[1]
        assert lines == [
            f"{photo}: {names[question]}: Banana. Fairly sure, 50%." for photo in photos[:2] for question in names
        ]
        assert ask(*photos[:2], QUESTION)[1] == [f"{photo}: Banana. Fairly sure, 50%." for photo in photos[:2]]

    def test_a_truncated_question_is_noted_once(self, ask, photos: list[Path]) -> None:
        status, lines, notes = ask(*photos[:2], "what is this " * 60)
        assert (status, len(lines)) == (0, 2)
        question = "what is this what is this what is this what is this what..."
        assert notes == [f"Note: the question '{question}' is too long; its end was ignored."]

    def test_json(self, ask, fake_server: FakeServer, photos: list[Path]) -> None:
        fake_server.labels = ("café", "tea")
        status, lines, notes = ask(*photos[:2], "-q", QUESTION, "-q", "hot?", "--json", "--top", 2)
        assert (status, notes) == (0, [])
        assert "café" in lines[0]
        records = [json.loads(line) for line in lines]
        pairs = [(str(photo), question) for photo in photos[:2] for question in (QUESTION, "hot?")]
        assert [(record.pop("photo"), record.pop("question")) for record in records] == pairs
        with VizwizClient(fake_server.url) as client:
            expected = client.ask(photos[0], QUESTION, top=2).to_dict()
        assert set(records[0]) == set(expected)
        for key in set(expected) - {"request_id", "timings"}:
            assert records[0][key] == expected[key]

    def test_a_refused_photo_in_json(self, ask, photos: list[Path], tmp_path: Path) -> None:
        bad = tmp_path / "bad.jpg"
        bad.write_text("words")
        status, lines, notes = ask(bad, photos[0], QUESTION, "--json")
        first, second = map(json.loads, lines)
        assert status == _output.SOME_FAILED
        assert set(first) == {"photo", "question", "error"}
        assert "bad.jpg: not a picture" in first["error"]
        assert notes == [f"Error: {first['error']}"]
        assert second["answer"]

    def test_one_bad_photo_loses_no_other_answer(self, ask, photos: list[Path]) -> None:
        status, lines, notes = ask(photos[0], "missing.jpg", photos[1], "-q", QUESTION, "-q", "is it ripe?")
        assert (status, len(lines)) == (_output.SOME_FAILED, 4)
        assert len(notes) == 1  # once, though there are two questions about it
        assert notes[0].startswith("Error: missing.jpg: cannot be read (No such file or directory)")

    def test_quiet_keeps_errors(self, ask, photos: list[Path]) -> None:
        status, lines, notes = ask(photos[0], "missing.jpg", "what is this " * 60, "--quiet")
        assert (status, len(lines), len(notes)) == (_output.SOME_FAILED, 1, 1)
        assert "missing.jpg" in notes[0]

    def test_server_errors_end_it(self, ask, fake_server: FakeServer, photos: list[Path]) -> None:
        fake_server.failure = (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        status, lines, notes = ask(*photos, QUESTION)
        assert (status, lines, len(notes)) == (_output.TRY_LATER, [], 1)
        assert "too many requests waiting" in notes[0]
        fake_server.contract_version = "99"
        status, lines, notes = ask(*photos, QUESTION)
        assert (status, lines, len(notes)) == (_output.WRONG_SERVER, [], 1)
        assert "contract version 99" in notes[0]

    def test_ctrl_c(self, run, monkeypatch: pytest.MonkeyPatch, photos: list[Path]) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(VizwizClient, "ask_many", interrupt)
        assert run("ask", photos[0], QUESTION) == (130, [], [])


class TestStandardInput:
    def give(self, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    def test_a_photo(self, ask, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        self.give(monkeypatch, photos[1].read_bytes())
        first, piped, file = map(json.loads, ask(photos[0], "-", photos[1], "-q", QUESTION, "--json")[1])
        assert piped["photo"] == "-"
        assert piped["answer"] == file["answer"] != first["answer"]
        self.give(monkeypatch, b"words")
        assert ask("-", QUESTION)[2][0].startswith("Error: standard input: the photo: not a picture")


class TestTerminals:
    @pytest.mark.parametrize(
        ("encoding", "expected"),
        [
            ("utf-8", "Crème brûlée 🍮".encode()),
            ("ascii", rb"Cr\xe8me br\xfbl\xe9e \U0001f36e"),
            ("cp1252", "Crème brûlée ".encode("cp1252") + rb"\U0001f36e"),
        ],
    )
    def test_what_the_encoding_lacks_is_escaped(
        self, fake_server: FakeServer, photos: list[Path], encoding: str, expected: bytes
    ) -> None:
        fake_server.labels = ("crème brûlée 🍮",)
        command = [*PROGRAM, "ask", str(photos[0]), QUESTION, "--url", fake_server.url]
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        plain = subprocess.run(command, capture_output=True, env=environment, check=True)
        assert (plain.stdout.split(b". Fairly sure, 50%.")[0], plain.stderr) == (expected, b"")
        in_json = subprocess.run([*command, "--json"], capture_output=True, env=environment, check=True)
        assert json.loads(in_json.stdout)["answer"] == "crème brûlée 🍮"
