"""The command ``vizwiz-client``: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import grpc
import pytest

from tests.client.stand_in import StandIn
from vizwiz_client import VizwizClient, cli

QUESTION = "what is this?"


@pytest.fixture
def ask(stand_in: StandIn, capsys: pytest.CaptureFixture[str]):
    """Run ``vizwiz-client ask``; return exit status, lines on standard output, lines on standard error."""

    def run(*arguments: object) -> tuple[int, list[str], list[str]]:
        status = cli.main(["ask", *map(str, arguments), "--url", stand_in.url])
        output = capsys.readouterr()
        return status, output.out.splitlines(), output.err.splitlines()

    return run


class TestPlain:
    def test_one_question_is_one_line(self, ask, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.labels = ("banana",)
        assert ask(photos[0], QUESTION) == (0, ["banana, 50% sure"], [])

    def test_more_candidates(self, ask, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.labels = ("banana", "lemon", "unanswerable")
        assert ask(photos[0], QUESTION, "--top", 3)[1] == ["banana, 50% sure; or lemon, 25% sure"]

    def test_a_declined_answer_says_so(self, ask, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.labels, stand_in.answerable = ("banana",), 0.2
        expected = "The photo probably cannot answer this. Best guess: banana, 50% sure"
        assert ask(photos[0], QUESTION) == (0, [expected], [])

    @pytest.mark.parametrize("answerable", [0.2, 0.8])
    @pytest.mark.parametrize("label", ["unanswerable", "unsuitable", "unsuitable image"])
    def test_unanswerable_is_no_guess(
        self, ask, stand_in: StandIn, photos: list[Path], label: str, answerable: float
    ) -> None:
        stand_in.labels, stand_in.answerable = (label, "banana"), answerable
        assert ask(photos[0], QUESTION)[1] == ["The photo probably cannot answer this."]
        line = "The photo probably cannot answer this. Best guess: banana, 25% sure"
        assert ask(photos[0], QUESTION, "--top", 2)[1] == [line]

    def test_several_photos_are_named(self, ask, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.labels = ("banana",)
        assert ask(*photos[:2], QUESTION)[1] == [f"{photo}: banana, 50% sure" for photo in photos[:2]]

    def test_several_questions_are_repeated(self, ask, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.labels = ("banana",)
        lines = ask(photos[0], "-q", QUESTION, "--question", "is it ripe")[1]
        assert lines == ["what is this?: banana, 50% sure", "is it ripe: banana, 50% sure"]

    def test_every_question_about_every_photo(self, ask, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.labels = ("banana",)
        lines = ask(*photos[:2], "-q", QUESTION, "-q", "is it ripe?")[1]
        pairs = [(photo, question) for photo in photos[:2] for question in (QUESTION, "is it ripe?")]
        assert lines == [f"{photo}: {question}: banana, 50% sure" for photo, question in pairs]

    def test_options_may_stand_between_photo_and_question(self, ask, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.labels = ("banana", "lemon")
        expected = (0, ["banana, 50% sure; or lemon, 25% sure"], [])
        for arguments in ([photos[0], "--top", 2, QUESTION], ["--top", 2, photos[0], QUESTION]):
            assert ask(*arguments) == expected

    def test_a_question_too_long_is_noted_once(self, ask, photos: list[Path]) -> None:
        status, lines, notes = ask(*photos[:2], "what is this " * 60)
        assert (status, len(lines)) == (0, 2)
        question = "what is this what is this what is this what is this what..."
        assert notes == [f"Note: the question '{question}' is too long; its end was not read."]

    def test_a_question_is_repeated_on_one_short_line(self, ask, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.labels = ("banana",)
        lines = ask(photos[0], "-q", QUESTION, "-q", "is it\nripe? " + "tell me " * 9)[1]
        assert lines[1] == "is it ripe? tell me tell me tell me tell me tell me tell...: banana, 50% sure"


class TestJson:
    def test_one_object_a_line(self, ask, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.labels = ("café", "tea")
        status, lines, notes = ask(*photos[:2], "-q", QUESTION, "-q", "hot?", "--json", "--top", 2)
        assert (status, notes) == (0, [])
        assert "café" in lines[0]
        records = [json.loads(line) for line in lines]
        pairs = [(str(photo), question) for photo in photos[:2] for question in (QUESTION, "hot?")]
        assert [(record.pop("photo"), record.pop("question")) for record in records] == pairs
        with VizwizClient(stand_in.url) as client:
            expected = client.ask(photos[0], QUESTION, top=2).to_dict()
        assert set(records[0]) == set(expected)
        for key in expected.keys() - {"request_id", "timings"}:  # each request has its own
            assert records[0][key] == expected[key]

    def test_a_pair_that_cannot_be_used_has_a_record(self, ask, photos: list[Path], tmp_path: Path) -> None:
        bad = tmp_path / "bad.jpg"
        bad.write_text("words")
        status, lines, notes = ask(bad, photos[0], QUESTION, "--json")
        first, second = map(json.loads, lines)
        assert status == 2
        assert set(first) == {"photo", "question", "error"}
        assert "bad.jpg: not a picture" in first["error"]
        assert notes == [f"Error: {first['error']}"]
        assert second["answer"]


class TestExitStatus:
    def test_one_bad_photo_loses_no_other_answer(self, ask, photos: list[Path]) -> None:
        status, lines, notes = ask(photos[0], "missing.jpg", photos[1], "-q", QUESTION, "-q", "is it ripe?")
        assert (status, len(lines)) == (2, 4)
        assert len(notes) == 1  # said once, though two questions were asked about it
        assert notes[0].startswith("Error: missing.jpg: cannot be read (No such file or directory)")

    def test_a_bad_question_is_said_once(self, ask, photos: list[Path]) -> None:
        status, lines, notes = ask(*photos, "-q", "  ", "-q", QUESTION)
        assert (status, len(lines), len(notes)) == (2, 5, 1)
        assert "expected words" in notes[0]

    def test_server_trouble_ends_it(self, ask, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.failure = (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        status, lines, notes = ask(*photos, QUESTION)
        assert (status, lines, len(notes)) == (1, [], 1)
        assert "too many requests waiting" in notes[0]

    def test_too_slow(self, ask, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.delay_s = 0.5
        status, _, notes = ask(photos[0], QUESTION, "--timeout", 0.1)
        assert status == 1
        assert "within 0.1 s" in notes[0]

    def test_a_wrong_address(self, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["ask", str(photos[0]), QUESTION, "--url", "http://localhost:8001"]) == 1
        assert "expected host:port without http://" in capsys.readouterr().err

    def test_no_question(self, ask, photos: list[Path]) -> None:
        status, lines, notes = ask(photos[0])
        assert (status, lines) == (2, [])
        assert re.search(r"got '.*photo0.png' alone, expected at least one photo and then a question", notes[0])

    def test_a_photo_where_the_question_belongs(self, ask, photos: list[Path]) -> None:
        status, _, notes = ask(*photos)
        assert status == 2
        assert "is a file, expected a question; see ask --help" in notes[0]

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ([], "the following arguments are required: COMMAND"),
            (["ask"], "the following arguments are required: PHOTO"),
            (["ask", "a.jpg", "b", "--top", "0"], "got '0', expected a whole number, 1 or more"),
            (["ask", "a.jpg", "b", "--top", "many"], "got 'many', expected a whole number, 1 or more"),
            (["ask", "a.jpg", "b", "--timeout", "-1"], "got '-1', expected a number of seconds over 0"),
            (["ask", "a.jpg", "b", "--timeout", "soon"], "got 'soon', expected a number of seconds over 0"),
            (["ask", "a.jpg", "b", "--colour"], "unrecognized arguments: --colour"),
        ],
    )
    def test_usage(self, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        assert text in capsys.readouterr().err

    def test_interrupted(self, monkeypatch: pytest.MonkeyPatch, photos: list[Path]) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(VizwizClient, "ask_batch", interrupt)
        assert cli.main(["ask", str(photos[0]), QUESTION]) == 130


class TestHelp:
    def help(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, "--help"])
        assert ended.value.code == 0
        return capsys.readouterr().out

    def test_it_teaches(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "ask questions about photos" in self.help(capsys)
        text = self.help(capsys, "ask")
        for part in ("examples:", "output:", "exit status:", "--top", "--json", "--url", "--timeout", "localhost:8001"):
            assert part in text

    def test_its_examples_parse(self, capsys: pytest.CaptureFixture[str]) -> None:
        import shlex

        examples = re.findall(r"^  vizwiz-client (ask [^>\n]+)", self.help(capsys, "ask"), re.MULTILINE)
        assert len(examples) == 5
        for example in examples:
            photos, questions = cli._photos_and_questions(cli._arguments(shlex.split(example)))
            assert all(photo.endswith(".jpg") for photo in photos)
            assert all(question.endswith("?") for question in questions)

    def test_its_output_lines_are_those_printed(
        self, ask, stand_in: StandIn, photos: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = self.help(capsys, "ask")
        stand_in.labels = ("banana",)
        shown = [ask(photos[0], QUESTION)[1][0]]
        stand_in.answerable = 0.1
        shown += ask(photos[0], QUESTION)[1]
        for line in shown:
            assert re.sub(r"\d+%", "", line) in re.sub(r"\d+%", "", text)

    def test_json_keys_are_listed(self, ask, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
        text = self.help(capsys, "ask")
        for key in json.loads(ask(photos[0], QUESTION, "--json")[1][0]):
            assert key in text

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            cli.main(["--version"])
        assert re.fullmatch(r"vizwiz-client \d+\.\d+\.\d+\n", capsys.readouterr().out)
