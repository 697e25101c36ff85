"""Exports a run as the command does, and kills itself (SIGKILL) just before a chosen change to the file system.

    python tests/export/killed_export.py KILL_AT RUN REPOSITORY

``KILL_AT`` is the number of the change, counted from 1, or a text: the first change whose path contains it. A number
that is never reached prints how many changes there were.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from export import publish, to_onnx

CHANGES = {
    "open": 0,
    "os.rename": 1,
    "os.mkdir": 0,
    "os.remove": 0,
    "os.rmdir": 0,
}  # event -> the path among its values


def main(kill_at: str, run: str, repository: str) -> int:
    beside = str(Path(repository).parent)
    changes = 0

    def watch(event: str, values: tuple[Any, ...]) -> None:
        nonlocal changes
        if event not in CHANGES or (event == "open" and not (isinstance(values[2], int) and values[2] & os.O_ACCMODE)):
            return
        path = values[CHANGES[event]]
        if isinstance(path, str | bytes | os.PathLike) and (name := os.fsdecode(path)).startswith(beside):
            changes += 1
            if changes == int(kill_at) if kill_at.isdigit() else kill_at in name:
                os.kill(os.getpid(), signal.SIGKILL)

    publish.EXPORT_FORMAT = os.environ.get("EXPORT_FORMAT", publish.EXPORT_FORMAT)
    sys.addaudithook(watch)
    code = to_onnx.main(["--run", run, "--repository", repository])
    print(f"changes: {changes}")
    return code


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
