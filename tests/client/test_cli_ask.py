"""``vizwiz-client ask``: what it prints, where, and how it ends."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from tests.client.stand_in import StandIn
from vizwiz_client import VizwizClient, cli
from vizwiz_client.cli import _exits, _help

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
        for key in set(expected) - {"request_id", "timings"}:
            assert records[0][key] == expected[key]

    def test_a_pair_that_cannot_be_used_has_a_record(self, ask, photos: list[Path], tmp_path: Path) -> None:
        bad = tmp_path / "bad.jpg"
        bad.write_text("words")
        status, lines, notes = ask(bad, photos[0], QUESTION, "--json")
        first, second = map(json.loads, lines)
        assert status == _exits.SOME_FAILED
        assert set(first) == {"photo", "question", "error"}
        assert "bad.jpg: not a picture" in first["error"]
        assert notes == [f"Error: {first['error']}"]
        assert second["answer"]


class TestStandardInput:
    def give(self, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    def test_a_photo(self, ask, stand_in: StandIn, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        self.give(monkeypatch, photos[1].read_bytes())
        lines = ask(photos[0], "-", photos[1], "-q", QUESTION, "--json")[1]
        first, piped, file = map(json.loads, lines)
        assert piped["photo"] == "-"
        assert piped["answer"] == file["answer"] != first["answer"]

    @pytest.mark.skipif(sys.platform == "win32", reason="there is no /dev/zero")
    def test_without_end(self, ask, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vizwiz_client.contract.image.MAX_FILE_BYTES", 1_000)
        with Path("/dev/zero").open() as zero:
            monkeypatch.setattr(sys, "stdin", zero)
            assert ask("-", QUESTION) == (
                _exits.SOME_FAILED,
                [],
                ["Error: standard input: the photo: the file has over 1,000 bytes, expected fewer; make it smaller"],
            )

    def test_it_is_named_in_words(
        self, ask, stand_in: StandIn, photos: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stand_in.labels = ("banana",)
        self.give(monkeypatch, photos[1].read_bytes())
        assert ask("-", photos[0], QUESTION)[1][0] == "standard input: banana, 50% sure"
        self.give(monkeypatch, b"words")
        assert ask("-", QUESTION)[2][0].startswith("Error: standard input: the photo: not a picture")

    @pytest.mark.parametrize("as_last", [True, False])
    def test_questions(
        self, ask, stand_in: StandIn, photos: list[Path], monkeypatch: pytest.MonkeyPatch, as_last: bool
    ) -> None:
        stand_in.labels = ("banana",)
        self.give(monkeypatch, "what is this?\n\n-is it ripe, señor?\r\n".encode())
        lines = ask(photos[0], *(["-"] if as_last else ["-q", "-"]))[1]
        assert lines == ["what is this?: banana, 50% sure", "-is it ripe, señor?: banana, 50% sure"]

    def test_no_question_in_it(self, ask, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        self.give(monkeypatch, b"\n")
        status, _, notes = ask(photos[0], "-")
        assert (status, notes) == (_exits.USAGE, ["Error: standard input holds no question, expected one a line"])


class TestTerminals:
    """What is shown where; run as a process, since that is what a terminal is attached to."""

    def run(self, stand_in: StandIn, *arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
        program = [sys.executable, "-c", "import sys; from vizwiz_client.cli import main; sys.exit(main())", "ask"]
        command = [*program, *map(str, arguments), "--url", stand_in.url]
        return subprocess.run(command, capture_output=True, env=os.environ | environment, check=True)

    @pytest.mark.parametrize(
        ("encoding", "expected"),
        [("utf-8", "crème brûlée 🍮".encode()), ("ascii", rb"cr\xe8me br\xfbl\xe9e \U0001f36e"), ("cp1252", None)],
    )
    def test_an_answer_that_it_cannot_show(
        self, stand_in: StandIn, photos: list[Path], encoding: str, expected: bytes | None
    ) -> None:
        stand_in.labels = ("crème brûlée 🍮",)
        expected = expected or "crème brûlée ".encode("cp1252") + rb"\U0001f36e"
        done = self.run(stand_in, photos[0], QUESTION, PYTHONIOENCODING=encoding)
        assert done.stdout.split(b", 50% sure")[0] == expected
        assert done.stderr == b""

    @pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
    def test_json_is_json_in_every_encoding(self, stand_in: StandIn, photos: list[Path], encoding: str) -> None:
        stand_in.labels = ("crème brûlée 🍮",)
        done = self.run(stand_in, photos[0], QUESTION, "--json", PYTHONIOENCODING=encoding)
        assert json.loads(done.stdout)["answer"] == "crème brûlée 🍮"

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
    @pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}])
    def test_no_colours_on_a_terminal_either(
        self, stand_in: StandIn, photos: list[Path], environment: dict[str, str]
    ) -> None:
        import pty

        program = "import sys; from vizwiz_client.cli import main; sys.exit(main())"
        ours, theirs = pty.openpty()
        subprocess.run(
            [sys.executable, "-c", program, "ask", str(photos[0]), "none.jpg", QUESTION, "--url", stand_in.url],
            stdout=theirs,
            stderr=theirs,
            env=os.environ | environment,
            timeout=60,
        )
        shown = os.read(ours, 10_000)
        assert b"sure" in shown
        assert b"Error: none.jpg" in shown
        assert b"\x1b" not in shown
        os.close(ours)
        os.close(theirs)

    def test_the_reader_left(self, stand_in: StandIn, photos: list[Path]) -> None:
        program = "import sys; from vizwiz_client.cli import main; sys.exit(main())"
        arguments = ["ask", *map(str, photos * 20), QUESTION, "--url", stand_in.url]
        command = [sys.executable, "-c", program, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stderr is not None
                process.stdout.close()
                assert (process.stderr.read(), process.wait(60)) == (b"", _exits.NOT_WRITTEN)
            finally:
                process.kill()


class TestExitStatus:
    def test_quiet_leaves_out_notes_but_no_errors(self, ask, photos: list[Path]) -> None:
        status, lines, notes = ask(photos[0], "missing.jpg", "what is this " * 60, "--quiet")
        assert (status, len(lines), len(notes)) == (_exits.SOME_FAILED, 1, 1)
        assert "missing.jpg" in notes[0]

    def test_one_bad_photo_loses_no_other_answer(self, ask, photos: list[Path]) -> None:
        status, lines, notes = ask(photos[0], "missing.jpg", photos[1], "-q", QUESTION, "-q", "is it ripe?")
        assert (status, len(lines)) == (_exits.SOME_FAILED, 4)
        assert len(notes) == 1  # said once, though two questions were asked about it
        assert notes[0].startswith("Error: missing.jpg: cannot be read (No such file or directory)")

    def test_a_bad_question_is_said_once(self, ask, photos: list[Path]) -> None:
        status, lines, notes = ask(*photos, "-q", "  ", "-q", QUESTION)
        assert (status, len(lines), len(notes)) == (_exits.SOME_FAILED, 5, 1)
        assert "expected words" in notes[0]

    def test_server_trouble_ends_it(self, ask, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.failure = (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        status, lines, notes = ask(*photos, QUESTION)
        assert (status, lines, len(notes)) == (_exits.TRY_LATER, [], 1)
        assert "too many requests waiting" in notes[0]

    def test_too_slow(self, ask, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.delay_s = 0.5
        status, _, notes = ask(photos[0], QUESTION, "--timeout", 0.1)
        assert status == _exits.TRY_LATER
        assert "within 0.1 s" in notes[0]

    def test_the_wrong_server(self, ask, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.contract_version = "99"
        status, lines, notes = ask(*photos, QUESTION)
        assert (status, lines, len(notes)) == (_exits.WRONG_SERVER, [], 1)
        assert "contract version 99" in notes[0]

    def test_interrupted(self, monkeypatch: pytest.MonkeyPatch, photos: list[Path]) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(VizwizClient, "ask_many", interrupt)
        assert cli.main(["ask", str(photos[0]), QUESTION]) == 130


class TestWhatHelpSays:
    def test_its_output_lines_are_those_printed(self, ask, stand_in: StandIn, photos: list[Path]) -> None:
        stand_in.labels = ("banana",)
        shown = [ask(photos[0], QUESTION)[1][0]]
        stand_in.answerable = 0.1
        shown += ask(photos[0], QUESTION)[1]
        for line in shown:
            assert line.split(",")[0] in _help.OUTPUT["ask"]

    def test_json_keys_are_listed(self, ask, photos: list[Path]) -> None:
        for key in json.loads(ask(photos[0], QUESTION, "--json")[1][0]):
            assert key in _help.OUTPUT["ask"]
