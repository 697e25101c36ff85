"""The command line of ``vizwiz-client``: how it is read, what it falls back on, and what it says when it is wrong."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vizwiz_client import DeadlineExceeded, ImageError, ModelMissing, Overloaded, ServerFault, ServerUnavailable, cli
from vizwiz_client.cli import _arguments, _exits, _settings
from vizwiz_client.cli._ask import photos_and_questions
from vizwiz_client.cli._connect import connect


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in (*_settings.SETTINGS, _settings.HEADERS):
        monkeypatch.delenv(setting.variable, raising=False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command line that argparse refuses; return what it says."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == _exits.USAGE
    return capsys.readouterr().err


class TestAsk:
    @pytest.mark.parametrize(
        ("line", "photos", "questions"),
        [
            ("a.jpg 'what is this?'", ["a.jpg"], ["what is this?"]),
            ("a.jpg b.jpg what?", ["a.jpg", "b.jpg"], ["what?"]),
            ("a.jpg b.jpg -q what? --question why?", ["a.jpg", "b.jpg"], ["what?", "why?"]),
            ("--top 2 a.jpg what?", ["a.jpg"], ["what?"]),
            ("a.jpg --top 2 b.jpg --json what?", ["a.jpg", "b.jpg"], ["what?"]),
            ("a.jpg -q='- or +?'", ["a.jpg"], ["- or +?"]),
            ("a.jpg --question=-why?", ["a.jpg"], ["-why?"]),
            ("a.jpg -- -why?", ["a.jpg"], ["-why?"]),
            ("--top 2 -- -a.jpg -q", ["-a.jpg"], ["-q"]),
            ("- what?", ["-"], ["what?"]),
            ("--top 2 a.jpg - what?", ["a.jpg", "-"], ["what?"]),
        ],
    )
    def test_photos_and_questions(self, line: str, photos: list[str], questions: list[str]) -> None:
        assert photos_and_questions(_arguments.parse(["ask", *shlex.split(line)])) == (photos, questions)

    def test_wildcards_that_the_shell_left(self, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(photos[0].parent)
        found, _ = photos_and_questions(_arguments.parse(["ask", "*.png", "none*.jpg", "what?"]))
        assert found == [*sorted(photo.name for photo in photos), "none*.jpg"]

    @pytest.mark.parametrize(
        ("line", "text"),
        [
            ("", "got nothing, expected at least one photo and then a question"),
            ("a.jpg", "got 'a.jpg' alone, expected at least one photo and then a question; see ask --help"),
            ("-q what?", "got no photo, expected at least one"),
            ("{photo} what is this?", "'what' is no photo; if it is part of the question, put quotes around all of it"),
            ("a.jpg {photo}", "is a file, expected a question; see ask --help"),
            ("- -", "got - more than once, but standard input can be read once; give a file instead"),
            ("a.jpg what? --url http://localhost:8001", "expected host:port without http://"),
            ("a.jpg what? --tls-cert cert.pem", "expected cert and key together"),
            ("a.jpg what? --tls-ca none.pem", "none.pem'): cannot be read (No such file or directory)"),
            ("a.jpg what? --header grpc-x:1", "got the header 'grpc-x'"),
        ],
    )
    def test_what_is_wrong_is_said(
        self, line: str, text: str, photos: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["ask", *shlex.split(line.format(photo=photos[0]))]) == _exits.USAGE
        assert text in capsys.readouterr().err


class TestRefusals:
    @pytest.mark.parametrize(
        ("line", "text"),
        [
            ("", "the following arguments are required: COMMAND"),
            ("answer", "invalid choice: 'answer'"),
            ("ask a.jpg b --top 0", "got '0', expected a whole number, 1 or more"),
            ("ask a.jpg b --top many", "got 'many', expected a whole number, 1 or more"),
            ("ask a.jpg b --retries -1", "got '-1', expected a whole number, 0 or more"),
            ("ask a.jpg b --timeout -1", "got '-1', expected a number of seconds over 0"),
            ("ask a.jpg b --timeout soon", "got 'soon', expected a number of seconds over 0"),
            ("ask a.jpg b --header secret", "expected NAME:VALUE, such as"),
            ("ask a.jpg b --colour", "unrecognized arguments: --colour"),
            ("ask a.jpg -why?", "unrecognized arguments: -why?; a question that starts with - is written -q=-... or"),
            ("ask a.jpg -q -why?", "expected one argument; a question that starts with - is written -q=-... or"),
            ("status here", "unrecognized arguments: here"),
            ("batch", "got 0 inputs, expected one file, or -"),
            ("batch a.csv b.csv", "got 2 inputs, expected one file, or -"),
        ],
    )
    def test_it_says_what_and_where_to_read_more(
        self, line: str, text: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        try:
            code = cli.main(shlex.split(line))
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr().err
        assert code == _exits.USAGE
        assert said.startswith("Error: ")
        assert text in said
        assert "--help" in said

    def test_a_header_that_is_wrong_is_not_repeated(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "hunter2" not in refused(capsys, "status", "--header", "hunter2")


class TestEnvironment:
    def test_it_stands_in_for_the_options(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = {"url": "there:1", "timeout": "3", "retries": "0", "tls_ca": "a", "tls_cert": "b", "tls_key": "c"}
        for name, value in values.items():
            monkeypatch.setenv(f"VIZWIZ_{name.upper()}", value)
        monkeypatch.setenv("VIZWIZ_HEADERS", "X-Key: 1:2\n\nauthorization:Bearer x\n")
        arguments = vars(_arguments.parse(["status"]))
        assert {name: str(arguments[name]) for name in values} == values | {"timeout": "3.0"}
        assert arguments["header"] == [("x-key", "1:2"), ("authorization", "Bearer x")]

    def test_the_command_line_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VIZWIZ_URL", "there:1")
        monkeypatch.setenv("VIZWIZ_HEADERS", "x:1")
        arguments = _arguments.parse(["status", "--url", "here:2", "--header", "y:2", "--header", "z:3"])
        assert (arguments.url, arguments.header) == ("here:2", [("y", "2"), ("z", "3")])

    def test_without_either(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VIZWIZ_URL", "")  # set to nothing is not set
        arguments = _arguments.parse(["status"])
        assert (arguments.url, arguments.timeout, arguments.retries, arguments.header) == ("localhost:8001", 60, 2, [])

    def test_a_wrong_one_is_named(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("VIZWIZ_TIMEOUT", "soon")
        text = "environment variable VIZWIZ_TIMEOUT: got 'soon', expected a number of seconds over 0"
        assert text in refused(capsys, "status")

    def test_all_reaches_the_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        line = "ask a what --url h:1 --timeout 3 --retries 5 --header a:b --fast-decode"
        with connect(_arguments.parse(line.split())) as client:
            settings = client._core._settings
        assert (settings.url, settings.timeout_s, settings.retries, settings.tls) == ("h:1", 3, 5, None)
        assert (settings.headers, settings.fast_decode) == ({"a": "b"}, True)


def test_every_error_has_its_exit_code() -> None:
    expected = {
        _exits.UsageError: 2,
        ImageError: 1,
        ServerUnavailable: 3,
        Overloaded: 3,
        DeadlineExceeded: 3,
        ModelMissing: 4,
        ServerFault: 4,
    }
    assert {kind: _exits.code(kind("")) for kind in expected} == expected
    assert set(_exits.MEANINGS) == {0, *expected.values(), _exits.NOT_WRITTEN, 130}


class TestHelp:
    def text(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, "--help"])
        assert ended.value.code == 0
        return capsys.readouterr().out

    @pytest.mark.parametrize("command", _arguments.COMMANDS)
    def test_it_teaches(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert _arguments.COMMANDS[command][:40] in self.text(capsys)
        text = self.text(capsys, command)
        for part in ("examples:", "output:", "environment:", "exit status:", "VIZWIZ_TLS_KEY", "localhost:8001"):
            assert part in text

    @pytest.mark.parametrize("command", _arguments.COMMANDS)
    def test_its_examples_parse(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        examples = re.findall(r"^  vizwiz-client ([^<>\n]+)", self.text(capsys, command), re.MULTILINE)
        assert len(examples) >= 3
        for example in examples:
            assert _arguments.parse(shlex.split(example)).command == command

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            cli.main(["--version"])
        assert re.fullmatch(r"vizwiz-client \d+\.\d+\.\d+\n", capsys.readouterr().out)


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
    def test_the_script_knows_commands_and_options(self, shell: str, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("shtab")
        with pytest.raises(SystemExit) as ended:
            cli.main(["--print-completion", shell])
        script = capsys.readouterr().out
        assert ended.value.code == 0
        for word in ("ask", "batch", "status", "--tls-ca" if shell != "tcsh" else "tls-ca", "keep-going"):
            assert word in script

    def test_bash_completes_with_it(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("shtab")
        if shutil.which("bash") is None:
            pytest.skip("no bash here")
        with pytest.raises(SystemExit):
            cli.main(["--print-completion", "bash"])
        script = tmp_path / "completion"
        script.write_text(capsys.readouterr().out, encoding="utf-8")
        asked = (
            f"source {script}; COMP_WORDS=(vizwiz-client batch --ke); COMP_CWORD=2; "
            "$(complete -p vizwiz-client | sed 's/.*-F \\([^ ]*\\).*/\\1/') vizwiz-client; echo ${COMPREPLY[@]}"
        )
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["--keep-going"]

    def test_without_shtab_it_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "shtab", None)
        assert "pip install 'vizwiz-client[completion]'" in refused(capsys, "--print-completion", "bash")
