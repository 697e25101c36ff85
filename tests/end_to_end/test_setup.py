"""The Makefile's search for a Python that can run the project."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def find_python(*candidates: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", ROOT / "find_python.sh", *candidates], capture_output=True, text=True, check=False)


def test_the_first_python_that_works_is_found() -> None:
    found = find_python("python-that-is-not-here", "false", sys.executable, sys.executable)
    assert (found.returncode, found.stdout, found.stderr) == (0, f"{sys.executable}\n", "")


def test_where_none_works_every_reason_and_the_remedy_are_shown() -> None:
    found = find_python("python-that-is-not-here", "false")
    assert (found.returncode, found.stdout) == (1, "")
    for part in ("python-that-is-not-here: ", "not found", "  false: ", "apt install", "make PYTHON="):
        assert part in found.stderr


@pytest.mark.parametrize("version", ["3.9", "3.13", "3.14"])
def test_a_python_that_triton_cannot_use_is_not_taken(version: str) -> None:
    command = f"python{version}"
    if not shutil.which(command) or subprocess.run([command, "-V"], capture_output=True).returncode:
        pytest.skip(f"no {command} here")
    assert f"{command}: is {version}" in find_python(command).stderr
