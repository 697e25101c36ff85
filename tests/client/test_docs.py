"""docs/client.md: every example runs, and every command, option, variable and exit status is there."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vizwiz_client.cli import _parser
from vizwiz_client.contract import errors

DOCS = (Path(__file__).parents[2] / "docs" / "client.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
SHELL = re.findall(r"```sh\n(.*?)```", DOCS, re.DOTALL)


@pytest.fixture(scope="module")
def place(live_server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a photo."""
    place = tmp_path_factory.mktemp("docs")
    shutil.copy(next((live_server.data / "val").glob("*.jpg")), place / "img.jpg")
    return place


def test_the_examples_are_found() -> None:
    assert len(PYTHON) >= 5
    assert len(SHELL) >= 3
    assert DOCS.count("```") == 2 * (len(PYTHON) + len(SHELL))


def test_examples_in_python(live_server, place: Path) -> None:
    """In one process, in the order of the page, as a reader would."""
    program = "\n".join(PYTHON)
    assert "localhost:8001" in program
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program.replace("localhost:8001", live_server.grpc_url)],
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for said in (
        "refused: missing.jpg",
        "take another photo: the photo: not a picture",
        "latency True an answer takes",
    ):
        assert said in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_examples_of_the_shell(live_server, place: Path) -> None:
    environment = os.environ | {
        "VIZWIZ_URL": live_server.grpc_url,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for script in SHELL:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=place, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{script}\n{done.stderr}"
        assert "Error" not in done.stderr
    answers = (place / "answers.csv").read_text(encoding="utf-8").splitlines()
    assert answers[0].startswith("id,photo,question,answer,confidence")
    assert len(answers) == 3


class TestNothingIsLeftOut:
    def parsers(self) -> dict[str, argparse.ArgumentParser]:
        parser = _parser.build_parser()
        (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        return {"": parser, **commands.choices}

    def test_commands(self) -> None:
        assert set(self.parsers()) == {"", *_parser.COMMANDS}
        for command in _parser.COMMANDS:
            assert f"vizwiz-client {command} " in DOCS

    def test_options(self) -> None:
        for command, parser in self.parsers().items():
            for action in parser._actions:
                flags = [flag for flag in action.option_strings if flag not in ("-h", "--help", "--version")]
                assert not flags or any(re.search(rf"{flag}\b", DOCS) for flag in flags), f"{command} {flags}"
                assert action.help or action.dest == "command", f"{command} {action.option_strings}"

    def test_variables_with_their_options(self) -> None:
        for option in _parser.OPTIONS:
            assert re.search(rf"^\| .*`{option.flag} .*`{option.variable}`", DOCS, re.MULTILINE), option.flag
        assert _parser.HEADERS_VARIABLE in DOCS

    def test_errors(self) -> None:
        kinds = {kind for kind in vars(errors).values() if isinstance(kind, type)}
        for kind in kinds:
            assert f"`{kind.__name__}" in DOCS
