"""``vizwiz-client batch``: files in and out, and that a run goes on where the last one ended, however it ended."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.client.fake_server import FakeServer
from vizwiz_client import VizwizClient, cli
from vizwiz_client.cli import _batch, _output
from vizwiz_client.cli._batch import COLUMNS, JOURNAL_SUFFIX, lock

PROGRAM = [sys.executable, "-c", "import sys; from vizwiz_client.cli import main; sys.exit(main())"]
MANY = 400  # rows: 25 requests, so that a run is under way for a while
Row = dict[str, Any]


def write_csv(path: Path, rows: list[Row]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json_lines(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[Row]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    return [json.loads(line) for line in text.splitlines()]


def questions(photos: list[Path], count: int) -> list[Row]:
    """Rows with a column of their own, which takes a comma, a quote, a line break and a letter beyond ASCII."""
    return [
        {"id": f'{number}, "ñ"\nx', "photo": photos[number % len(photos)].name, "question": f"what is this? {number}"}
        for number in range(count)
    ]


def wait_for_rows(process: subprocess.Popen[Any], output: Path, count: int = 2) -> None:
    """Wait until ``process`` has kept more than ``count`` rows; it must not have ended by then."""
    journal = output.with_name(output.name + JOURNAL_SUFFIX)
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") <= count + 1:
        assert process.poll() is None
        assert time.monotonic() < deadline, f"it does not come to {count} rows"
        time.sleep(0.005)


@contextmanager
def running(*command: str, stderr: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that outlives no test."""
    with subprocess.Popen(command, stderr=stderr, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def batch(fake_server: FakeServer, capsys: pytest.CaptureFixture[str]):
    """Run ``vizwiz-client batch``; return exit status, standard output, lines on standard error."""

    def run(*arguments: object) -> tuple[int, str, list[str]]:
        status = cli.main(["batch", *map(str, arguments), "--url", fake_server.url])
        output = capsys.readouterr()
        return status, output.out, output.err.splitlines()

    return run


class TestFormats:
    @pytest.mark.parametrize("quality", [None, {"blur": 0.7, "dark": 0.2}])
    def test_quality_in_csv(
        self, batch, fake_server: FakeServer, photos: list[Path], quality: dict[str, float] | None
    ) -> None:
        fake_server.quality, fake_server.wording = quality, json.dumps({"advise_from": {"blur": 0.6}})
        _, out, _ = batch(write_csv(photos[0].parent / "q.csv", questions(photos, 1)))
        (row,) = csv.DictReader(io.StringIO(out, newline=""))
        assert row["quality"] == ("" if quality is None else json.dumps(quality))
        advice = ["The photo is blurred. Hold the phone still, and move it a little away."]
        assert row["advice"] == ("" if quality is None else json.dumps(advice))
        assert row["sentence"].endswith(" Not sure, 50%.")

    @pytest.mark.parametrize("output", ["answers.csv", "answers.jsonl", "answers.ndjson", "answers.txt"])
    @pytest.mark.parametrize("write", [write_csv, write_json_lines])
    def test_every_row_is_kept_and_answered(self, batch, photos: list[Path], write, output: str) -> None:
        folder = photos[0].parent
        rows = questions(photos, 7)
        path = write(folder / f"questions.{'csv' if write is write_csv else 'jsonl'}", rows)
        status, out, notes = batch(path, "-o", folder / output)
        assert (status, out, notes) == (0, "", ["7 of 7 rows answered"])
        written = folder / output
        if output.endswith("txt"):  # the suffix says nothing: as the input
            written = written.rename(folder / f"answers{path.suffix}")
        found = read(written)
        assert [{name: row[name] for name in rows[0]} for row in found] == rows
        assert list(found[0]) == [*rows[0], *COLUMNS]
        assert all(row["answer"] and not row["error"] for row in found)
        assert not list(folder.glob("*.part")) + list(folder.glob(".*"))

    def test_answers_are_the_librarys(self, batch, fake_server: FakeServer, photos: list[Path]) -> None:
        rows = questions(photos, 5)
        path = write_json_lines(photos[0].parent / "q.jsonl", rows)
        _, out, _ = batch(path, "--top", 2)
        with VizwizClient(fake_server.url) as client:
            for row, line in zip(rows, out.splitlines(), strict=True):
                expected = client.ask(photos[0].parent / row["photo"], row["question"], top=2).to_dict()
                found = json.loads(line)
                for name in set(COLUMNS) - {"error", "request_id"}:
                    assert found[name] == expected[name]

    def test_csv_from_a_pipe_to_a_pipe(self, fake_server: FakeServer, photos: list[Path]) -> None:
        rows = questions(photos, 3)
        given = write_csv(photos[0].parent / "q.csv", rows).read_bytes()
        command = [*PROGRAM, "batch", "-", "--photos", str(photos[0].parent), "--url", fake_server.url]
        environment = os.environ | {"PYTHONIOENCODING": "ascii"}  # a file has its own encoding
        done = subprocess.run(command, input=b"\xef\xbb\xbf" + given, capture_output=True, check=True, env=environment)
        found = list(csv.DictReader(io.StringIO(done.stdout.decode(), newline="")))
        assert [row["id"] for row in found] == [row["id"] for row in rows]
        assert done.stderr == b"3 of 3 rows answered\n"  # no progress where there is no terminal

    def test_the_column_may_be_called_image_as_vizwiz_does(self, batch, photos: list[Path], tmp_path: Path) -> None:
        path = write_json_lines(tmp_path / "q.jsonl", [{"image": photos[0].name, "question": "what?", "n": {"m": [1]}}])
        assert batch(path, "-o", tmp_path / "a.csv")[0] == 0
        assert read(tmp_path / "a.csv")[0]["n"] == '{"m": [1]}'

    def test_rows_with_different_keys(self, batch, photos: list[Path], tmp_path: Path) -> None:
        rows = [{"photo": photos[0].name, "question": "what?", name: 1} for name in "ab"]
        batch(write_json_lines(tmp_path / "q.jsonl", rows), "-o", tmp_path / "a.csv")
        assert list(read(tmp_path / "a.csv")[0])[:4] == ["photo", "question", "a", "b"]

    def test_no_rows(self, batch, tmp_path: Path) -> None:
        (tmp_path / "q.csv").write_text("id,photo,question\n")
        assert batch(tmp_path / "q.csv", "-o", tmp_path / "a.csv") == (0, "", ["0 of 0 rows answered"])
        assert (tmp_path / "a.csv").read_text() == ",".join(["id", "photo", "question", *COLUMNS]) + "\n"
        status, out, _ = batch(tmp_path / "q.csv")
        assert (status, out.splitlines()) == (0, [",".join(["id", "photo", "question", *COLUMNS])])
        (tmp_path / "q.jsonl").touch()
        assert batch(tmp_path / "q.jsonl") == (0, "", ["0 of 0 rows answered"])


class TestErrors:
    def test_they_have_a_column_and_an_exit_code(self, batch, photos: list[Path], tmp_path: Path) -> None:
        rows = questions(photos, 4)
        rows[1]["photo"], rows[2]["question"] = "missing.jpg", " "
        path = write_csv(tmp_path / "q.csv", rows)
        status, _, notes = batch(path, "-o", tmp_path / "a.csv")
        assert status == _output.SOME_FAILED
        assert notes == [f"2 of 4 rows answered; see the column error of {tmp_path / 'a.csv'}"]
        found = read(tmp_path / "a.csv")
        assert [bool(row["answer"]) for row in found] == [True, False, False, True]
        assert "missing.jpg: cannot be read (No such file" in found[1]["error"]
        assert "expected words" in found[2]["error"]

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            ("a,b\n1,2\n", "line 1: got the columns 'a', 'b', expected photo or image, and question"),
            ("photo, question\n", "line 1: got the columns 'photo', ' question', expected"),
            (
                "id;photo;question\n",
                "line 1: got the columns 'id;photo;question', expected photo or image, and question, sep",
            ),
            ("photo,id,question,id\n", "line 1: more than one column 'id'; rename or remove all but one"),
            ("", "is empty, expected a CSV header or JSON Lines"),
            (" \n\n", "is empty"),
            ("photo,question\na.jpg\n", "line 2: got 1 cells, expected 2 as in the header"),
            ("photo,question\na.jpg,what, now?\n", "line 2: got 3 cells, expected 2"),
            ('\ufeff\nphoto,question\n\na.jpg,"what\nis\nthis?"\n\na.jpg\n', "line 8: got 1 cells"),
            ('photo,question\na.jpg,b\na.jpg,"what\nis this\n', "line 4: not CSV: unexpected end of data"),
            pytest.param("a" * 10_000_001, "line 1: longer than 10,000,000 bytes; is it text?", id="long line"),
            ("photo,question,answer\na.jpg,b,c\n", "the answers need the column answer; rename it in the input"),
            ('{"photo": "a.jpg", "question": "b"}\n{"photo"', "line 2: not JSON"),
            ('{"photo": "a.jpg", "question": "b"}\n[1]\n', "line 2: got [1], expected a JSON object"),
            ('{"photo": "a.jpg", "question": 3}\n', "line 1: question is 3, expected text"),
            ('\n{"photo": "a.jpg", "question": "b"}\n\n{"photo": "a.jpg"}\n', "line 4: got the columns 'photo'"),
            pytest.param(
                '{"photo": "a.jpg", "question": "b", "n": ' + "[" * 100_000, "line 1: not JSON (", id="deep list"
            ),
            ('[{"photo": "a.jpg"}]', "a JSON array, expected one object a line: jq -c '.[]' converts it"),
            ("photo,question\r\na.jpg,b\r\n\r\na.jpg,señor\n", "line 4: byte 0xf1 is not UTF-8; save it as UTF-8"),
        ],
    )
    def test_a_file_that_cannot_be_used_is_refused_whole(
        self, batch, fake_server: FakeServer, tmp_path: Path, content: str, text: str
    ) -> None:
        path = tmp_path / "q"
        path.write_text(content, encoding="latin-1" if "ñ" in content else "utf-8")
        status, out, notes = batch(path, "-o", tmp_path / "a.csv")
        assert (status, out, fake_server.config_reads) == (_output.USAGE, "", 0)
        assert text in notes[0]
        assert os.listdir(tmp_path) == ["q"]  # noqa: PTH208 - nothing else was written

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
    def test_utf_16(self, batch, tmp_path: Path, encoding: str) -> None:
        (tmp_path / "q").write_text("photo,question\na.jpg,b\n", encoding=encoding)
        status, _, notes = batch(tmp_path / "q")
        assert status == _output.USAGE
        assert "save it as UTF-8 (in Excel: CSV UTF-8; in PowerShell: -Encoding utf8)" in notes[0]

    def test_an_output_that_is_there_already(self, batch, photos: list[Path], tmp_path: Path) -> None:
        path, output = write_csv(tmp_path / "q.csv", questions(photos, 1)), tmp_path / "a.csv"
        output.write_text("mine")
        expected = [f"Error: {output} exists; remove it, or choose another output"]
        assert batch(path, "-o", output) == (_output.USAGE, "", expected)
        assert output.read_text() == "mine"

    def test_an_output_that_is_a_folder(self, batch, photos: list[Path], tmp_path: Path) -> None:
        path = write_csv(tmp_path / "q.csv", questions(photos, 1))
        for output in (".", "/", "./", "..", tmp_path):
            notes = [f"Error: got -o {output}, a folder; expected a file"]
            assert batch(path, "-o", output) == (_output.USAGE, "", notes)
        assert not list(tmp_path.glob(f"*{JOURNAL_SUFFIX}"))


class TestResume:
    @pytest.fixture
    def rows(self, photos: list[Path]) -> list[Row]:
        return questions(photos, 40)

    @pytest.fixture
    def path(self, rows: list[Row], tmp_path: Path) -> Path:
        return write_csv(tmp_path / "q.csv", rows)

    def test_a_server_error_ends_it_and_the_same_command_resumes(
        self, batch, fake_server: FakeServer, path: Path, tmp_path: Path, rows: list[Row]
    ) -> None:
        output = tmp_path / "a.csv"
        fake_server.failure, fake_server.failures_left = (grpc.StatusCode.INTERNAL, "out of memory"), 1
        status, _, notes = batch(path, "-o", output)
        assert status == _output.WRONG_SERVER
        assert re.sub(r"\d+", "N", notes[0]).startswith("Stopped after N rows; the same command resumes from ")
        assert notes[0].endswith("a.csv.part")
        assert "out of memory" in notes[1]
        assert not output.exists()
        assert batch(path, "-o", output)[0] == 0
        assert [row["id"] for row in read(output)] == [row["id"] for row in rows]

    def test_two_runs_do_not_share_a_file(self, batch, fake_server: FakeServer, path: Path, tmp_path: Path) -> None:
        output = tmp_path / "a.csv"
        with output.with_name("a.csv.part").open("a+b") as journal:
            lock(journal)
            status, _, notes = batch(path, "-o", output)
        assert status == _output.USAGE
        assert notes == [f"Error: {output}.part: another run is writing it; wait for it, or choose another output"]
        output.with_name("a.csv.part").unlink()
        assert batch(path, "-o", output)[0] == 0

    def test_a_file_system_without_locks(
        self, batch, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(file: object) -> None:
            raise OSError(errno.ENOTSUP, "Operation not supported")

        monkeypatch.setattr(_batch, "lock", refuse)
        assert batch(path, "-o", tmp_path / "a.csv")[0] == 0

    def test_the_answers_are_on_disk_before_the_journal_goes(
        self, batch, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[int] = []
        monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
        assert batch(path, "-o", tmp_path / "a.csv")[0] == 0
        assert synced[0] == (tmp_path / "a.csv").stat().st_size
        assert len(synced) == 2, "the folder too"

    def test_it_is_written_to_its_row_with_keep_going(
        self, batch, fake_server: FakeServer, path: Path, tmp_path: Path
    ) -> None:
        fake_server.failure, fake_server.failures_left = (grpc.StatusCode.INTERNAL, "out of memory"), 1
        status, _, _ = batch(path, "-o", tmp_path / "a.csv", "--keep-going")
        failed = [bool(row["error"]) for row in read(tmp_path / "a.csv")]
        assert status == _output.WRONG_SERVER
        assert 0 < sum(failed) < len(failed) == 40

    def test_after_kill_9(self, live_server, photos: list[Path], tmp_path: Path) -> None:
        rows = questions(photos, 300)
        rows[0]["photo"] = "missing.jpg"  # a failure of the first run counts in the last one's exit status
        path, output = write_csv(tmp_path / "q.csv", rows), tmp_path / "a.csv"
        journal = tmp_path / "a.csv.part"
        command = [*PROGRAM, "batch", str(path), "-o", str(output), "--url", live_server.grpc_url]
        kept: list[bytes] = []
        for _ in range(2):
            before = len(kept)
            with running(*command) as process:
                wait_for_rows(process, output, before + 20)
            kept = journal.read_bytes().splitlines()[:-1]  # the last may be torn
            assert before < len(kept) < len(rows)
        with journal.open("ab") as file:
            file.write(b'[{"id": "torn')
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == _output.SOME_FAILED
        assert done.stderr.startswith("299 of 300 rows answered; see the column error")
        found = read(output)
        assert [row["question"] for row in found] == [row["question"] for row in rows]
        requests = {json.loads(line)[1]["request_id"] for line in kept[1:]} - {None}
        assert requests < {row["request_id"] for row in found}  # these were not asked again
        assert not journal.exists()

    @pytest.mark.parametrize("damage", [b"5", b"\0\0", b'[{"id": "3"}, "text"]', b"[{}, {}]", b"[" * 100_000])
    def test_a_damaged_line_ends_the_journal(
        self, batch, fake_server: FakeServer, path: Path, tmp_path: Path, rows: list[Row], damage: bytes
    ) -> None:
        output, journal = tmp_path / "a.csv", tmp_path / "a.csv.part"
        fake_server.failure, fake_server.failures_left = (grpc.StatusCode.INTERNAL, "out of memory"), 1
        batch(path, "-o", output)
        with journal.open("ab") as file:
            file.write(damage + b"\n")
        assert batch(path, "-o", output)[0] == 0
        assert [row["id"] for row in read(output)] == [row["id"] for row in rows]

    def test_other_input_or_options_are_refused(
        self, batch, fake_server: FakeServer, photos: list[Path], tmp_path: Path
    ) -> None:
        path, output = write_csv(tmp_path / "q.csv", questions(photos, MANY)), tmp_path / "a.csv"
        fake_server.delay_s = 0.5
        with running(*PROGRAM, "batch", str(path), "-o", str(output), "--url", fake_server.url) as process:
            wait_for_rows(process, output)
        for other in (["--top", 3], ["--fast-decode"]):
            status, _, notes = batch(path, "-o", output, *other)
            assert status == _output.USAGE
            assert "resume with the options of its first run, or remove it" in notes[0]
        write_csv(path, [row | {"question": "another?"} for row in read(path)])
        status, _, notes = batch(path, "-o", output)
        assert status == _output.USAGE
        assert notes[0].endswith("a.csv.part was begun with other input; remove it to begin again")

    @pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
    def test_ctrl_c_prints_how_to_resume(self, fake_server: FakeServer, photos: list[Path], tmp_path: Path) -> None:
        path, output = write_csv(tmp_path / "q.csv", questions(photos, MANY)), tmp_path / "a.csv"
        fake_server.delay_s = 0.5
        heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell's & ignores it
        command = [*PROGRAM[:2], heeding + PROGRAM[2], "batch", str(path), "-o", str(output), "--url", fake_server.url]
        with running(*command, stderr=subprocess.PIPE) as process:
            wait_for_rows(process, output)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=60)[1]
        assert process.returncode == _output.INTERRUPTED
        assert re.fullmatch(r"Stopped after \d+ rows; the same command resumes from .*a.csv.part\n", said)


def test_progress_on_a_terminal(fake_server: FakeServer, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(photos[0].parent / "q.csv", questions(photos, 8))
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    cli.main(["batch", str(path), "-o", str(path.with_name("a.csv")), "--url", fake_server.url])
    shown = terminal.getvalue().split("\r")
    assert any("/8" in line for line in shown)
    assert shown[-1] == "8 of 8 rows answered\n"  # the bar is cleared
