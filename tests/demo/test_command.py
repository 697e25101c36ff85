"""``python -m demo`` where one of its commands fails, or the user ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.__main__ import run
from tests.conftest import ROOT


@pytest.mark.parametrize(("end", "code"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_it_ends_as_its_command_ended(end: str, code: int) -> None:
    with pytest.raises(SystemExit) as caught:
        run("-c", end)
    assert caught.value.code == code


def test_ctrl_c_prints_no_traceback_of_the_demo(tmp_path: Path) -> None:
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import runpy; "
    program += "runpy.run_module('demo', run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "client")])}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert any("training.fit" in line for line in process.stdout), process.communicate()[1]
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "demo/__main__" not in errors, errors
