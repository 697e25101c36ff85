"""``vizwiz-client`` behind closed streams, full disks, pipes and terminals: no answer is lost without a word."""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.fake_server import FakeServer
from vizwiz_client.cli import _output
from vizwiz_client.contract.streams import OUTPUT_LOST

PROGRAM = "import sys; from vizwiz_client.cli import main; sys.exit(main())"
ROWS = 40  # three requests

pytestmark = pytest.mark.skipif(os.name == "nt" or shutil.which("bash") is None, reason="redirections of a POSIX shell")


@pytest.fixture
def folder(photos: list[Path]) -> Path:
    """Photos, and questions.csv about them."""
    lines = [f"{number},photo{number % 5}.png,what is this?" for number in range(ROWS)]
    photos[0].with_name("questions.csv").write_text("\n".join(["id,photo,question", *lines, ""]))
    return photos[0].parent


@pytest.fixture
def shell(fake_server: FakeServer, folder: Path):
    """Run a bash script in ``folder`` that calls ``vizwiz-client`` as ``client``; a pipe fails where a part does."""

    def run(script: str) -> subprocess.CompletedProcess[str]:
        script = f'set -o pipefail\nclient() {{ "$PYTHON" -c "$PROGRAM" "$@"; }}\n{script}'
        variables = {"PYTHON": sys.executable, "PROGRAM": PROGRAM, "VIZWIZ_URL": fake_server.url}
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=100
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def ids(text: str) -> list[str]:
    """The column id of the rows that have an answer."""
    return [row["id"] for row in csv.DictReader(io.StringIO(text)) if row["answer"]]


ALL = [str(number) for number in range(ROWS)]


class TestClosedAndFull:
    @pytest.mark.parametrize("unbuffered", ["", "1"])  # Python then fails at another place
    @pytest.mark.parametrize("output", [">&-", "> /dev/full"])
    @pytest.mark.parametrize(
        "command",
        [
            "--help",
            "--version",
            "status",
            "ask photo0.png 'what is this?'",
            "ask photo0.png 'what is this?' --json",
            "batch questions.csv",
        ],
    )
    def test_output_that_cannot_be_written_is_an_error(self, shell, command: str, output: str, unbuffered: str) -> None:
        if output == "> /dev/full" and not Path("/dev/full").exists():
            pytest.skip("no /dev/full here")
        done = shell(f"PYTHONUNBUFFERED={unbuffered} client {command} {output}")
        assert done.returncode == OUTPUT_LOST
        assert "standard output: cannot be written (" in done.stderr
        assert "Exception ignored" not in done.stderr
        assert done.stdout == ""

    @pytest.mark.parametrize("error", ["2>&-", "2> /dev/full"])
    def test_errors_that_cannot_be_written_change_nothing_else(
        self, shell, fake_server: FakeServer, error: str
    ) -> None:
        if error == "2> /dev/full" and not Path("/dev/full").exists():
            pytest.skip("no /dev/full here")
        fake_server.labels = ("banana",)
        done = shell(f"client ask photo0.png missing.png -q 'what is this?' {error}")
        assert (done.returncode, done.stdout) == (_output.SOME_FAILED, "photo0.png: Banana. Fairly sure, 50%.\n")
        done = shell(f"client batch questions.csv {error}")
        assert (done.returncode, ids(done.stdout)) == (_output.OK, ALL)
        assert shell(f"client ask {error}").returncode == _output.USAGE

    @pytest.mark.parametrize("command", ["batch -", "batch /dev/stdin", "ask - what?"])
    def test_a_closed_input(self, shell, command: str) -> None:
        done = shell(f"client {command} <&-")
        assert (done.returncode, done.stdout) == (_output.USAGE, "")
        assert "standard input is closed" in done.stderr or "/dev/stdin is empty" in done.stderr

    def test_files_do_not_take_the_place_of_closed_streams(self, shell, folder: Path) -> None:
        done = shell("client batch questions.csv -o answers.csv <&- >&- 2>&-")
        assert done.returncode == _output.OK
        assert ids((folder / "answers.csv").read_text()) == ALL

    def test_a_reader_that_left(self, shell) -> None:
        done = shell("client batch questions.csv | true")
        assert (done.returncode, done.stderr) == (OUTPUT_LOST, "")


class TestPipes:
    @pytest.mark.parametrize(
        "script",
        [
            "client batch <(cat questions.csv)",
            "cat questions.csv | client batch /dev/stdin",
            "cat questions.csv | client batch -",
            "client batch /dev/stdin < questions.csv",
            "client batch - < questions.csv",
            "mkfifo pipe; cat questions.csv > pipe & client batch pipe",
            "client batch <(cat questions.csv) -o answers.csv && cat answers.csv",
        ],
    )
    def test_every_row_is_answered(self, shell, script: str) -> None:
        done = shell(script)
        assert (done.returncode, done.stderr) == (0, f"{ROWS} of {ROWS} rows answered\n")
        assert ids(done.stdout) == ALL

    def test_an_error_in_it_preserves_earlier_answers_and_the_rows_resume(
        self, shell, fake_server: FakeServer, folder: Path
    ) -> None:
        done = shell("(cat questions.csv; echo 40,photo0.png) | client batch - -o answers.csv")
        assert done.returncode == _output.USAGE
        assert f"line {ROWS + 2}: got 2 cells, expected 3" in done.stderr
        assert f"Stopped after {ROWS} rows; the same command resumes from answers.csv.part" in done.stderr
        other = shell("sed s/what/who/ questions.csv | client batch - -o answers.csv")
        assert (other.returncode, "was begun with other input" in other.stderr) == (_output.USAGE, True)
        fake_server.shapes.clear()
        done = shell("client batch <(cat questions.csv; echo 40,photo0.png,what?) -o answers.csv")
        assert (done.returncode, ids((folder / "answers.csv").read_text())) == (0, [*ALL, str(ROWS)])
        assert [image[0] for image, _ in fake_server.shapes] == [1]


class TestSameFile:
    @pytest.mark.parametrize(
        "script",
        [
            "client batch questions.csv -o questions.csv",
            "client batch - -o questions.csv < questions.csv",
            "client batch questions.csv >> questions.csv",
            "ln questions.csv a.csv.part; client batch a.csv.part -o a.csv",
        ],
    )
    def test_input_and_output(self, shell, folder: Path, script: str) -> None:
        before = (folder / "questions.csv").read_text()
        done = shell(script)
        assert done.returncode == _output.USAGE
        assert "is also the output; choose another output" in done.stderr
        assert (folder / "questions.csv").read_text() == before

    @pytest.mark.parametrize("content", ["my novel, part one", '{"title": "my novel"}\n', "\n"])
    def test_a_part_that_batch_did_not_make_is_left_alone(self, shell, folder: Path, content: str) -> None:
        part = folder / "answers.csv.part"
        part.write_text(content)
        done = shell("client batch questions.csv -o answers.csv")
        assert done.returncode == _output.USAGE
        assert "answers.csv.part begins with" in done.stderr
        assert part.read_text() == content


class TestFullDisk:
    """A limit on the size of files stands in for a full disk."""

    def test_the_answers_so_far_are_kept(self, shell, fake_server: FakeServer, folder: Path) -> None:
        done = shell("ulimit -f 8; client batch questions.csv -o answers.csv")
        assert done.returncode == OUTPUT_LOST
        assert "Error: answers.csv.part: cannot be written (File too large); make room there, and run" in done.stderr
        assert "Stopped after " in done.stderr
        kept = (folder / "answers.csv.part").read_bytes().splitlines(keepends=True)[1:]
        whole = sum(line.endswith(b"\n") for line in kept)
        assert 0 < whole < ROWS
        assert not (folder / "answers.csv").exists()
        fake_server.shapes.clear()
        assert shell("client batch questions.csv -o answers.csv").returncode == 0
        assert ids((folder / "answers.csv").read_text()) == ALL
        assert sum(image[0] for image, _ in fake_server.shapes) == ROWS - whole


class TestControlCharacters:
    NAME = "a\x1b[2J\n.png"

    def test_they_are_escaped_in_words(self, shell, fake_server: FakeServer, photos: list[Path], folder: Path) -> None:
        photos[0].rename(folder / self.NAME)
        fake_server.labels = ("ban\x1b]0;ana",)
        done = shell("client ask a*.png missing$'\\e'.png photo1.png -q 'what\u202e is this?' -q why?")
        assert r"a\x1b[2J\n.png: what\u202e is this?: Ban\x1b]0;ana. Fairly sure, 50%." in done.stdout.splitlines()
        assert done.stderr.startswith(r"Error: missing\x1b.png: cannot be read")
        assert not {"\x1b", "\u202e"} & set(done.stdout + done.stderr)

    def test_options_and_names_of_files(self, shell) -> None:
        for command in ("ask --a$'\\e\\nError: b'", "batch none$'\\e\\nError: b'", "status --url $'\\e:1\\nError: b'"):
            done = shell(f"client {command}")
            assert done.returncode != 0
            assert "\x1b" not in done.stdout + done.stderr
            assert "\nError: b" not in done.stdout + done.stderr

    def test_csv_keeps_them(self, shell, photos: list[Path], folder: Path) -> None:
        photos[0].rename(folder / self.NAME)
        row = {"photo": self.NAME, "question": 'wh\x1bat,\r\n"is" this?', "id": "\x07\x9b"}
        with (folder / "q.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)
        assert shell("client batch q.csv -o a.csv").returncode == 0
        (found,) = csv.DictReader(io.StringIO((folder / "a.csv").read_bytes().decode(), newline=""))
        assert {name: found[name] for name in row} == row
