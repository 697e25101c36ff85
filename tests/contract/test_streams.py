"""Closed and full standard streams, for every command of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vizwiz_client.contract.streams import OUTPUT_LOST

PROGRAM = """
import argparse
import sys
from vizwiz_client.contract import streams

def main():
    times = int(sys.argv.pop(1))
    argparse.ArgumentParser().parse_args()
    print("scores" * times)
    with open("written", "w") as file:
        print("a warning", file=sys.stderr)
        file.write(str(file.fileno() > 2))
    return 0

raise SystemExit(streams.run(main))
"""

pytestmark = pytest.mark.skipif(os.name == "nt" or shutil.which("sh") is None, reason="redirections of a POSIX shell")


def run(folder: Path, redirections: str, *arguments: str, times: int = 1) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", PROGRAM, str(times)]
    command = ["sh", "-c", f'exec "$@" {redirections}', "sh", *program, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_a_closed_output_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    done = run(tmp_path, ">&-", *arguments)
    assert (done.returncode, done.stdout) == (OUTPUT_LOST, "")
    assert done.stderr == "error: standard output is closed; send it to a file, or to /dev/null\n"
    assert list(tmp_path.iterdir()) == []
    assert run(tmp_path, ">&- 2>&-", *arguments).returncode == OUTPUT_LOST


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_a_full_disk_is_an_error(tmp_path: Path, arguments: list[str]) -> None:
    done = run(tmp_path, ">/dev/full", *arguments)
    assert done.returncode == OUTPUT_LOST
    assert re.sub(r"\(.*\)", "(...)", done.stderr.splitlines()[-1]) == "error: standard output cannot be written (...)"
    assert "Exception ignored" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_fails_in_the_middle(tmp_path: Path) -> None:
    done = run(tmp_path, ">/dev/full", times=10_000)  # more than Python buffers
    assert done.returncode == OUTPUT_LOST
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("redirections", ["2>&-", "<&-", "<&- 2>&-"])
def test_other_closed_streams_change_nothing(tmp_path: Path, redirections: str) -> None:
    done = run(tmp_path, redirections)
    assert (done.returncode, done.stdout) == (0, "scores\n")
    assert (tmp_path / "written").read_text() == "True"  # it has not the number of a standard stream
