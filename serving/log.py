"""Triton's log: a file of bounded size, and what it says about a start.

A start appends to what earlier ones of the same server wrote. What is loading, why it failed and what Triton complains
of is read from the last start alone.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import IO

MAX_BYTES = 16 << 20  # then it is rotated; with the older part it takes twice as much

_TAIL = 12  # lines
_FRAME = re.compile(r" *\d+# ")  # of the stack, where Triton crashed
_LINE_LENGTH = 400  # characters: an error repeats itself in each line that follows from it


class Log:
    """The log at ``path`` of a server whose models are at ``models``, a link to ``repository``."""

    def __init__(self, path: Path, models: Path, repository: Path) -> None:
        self.path = path
        self.models = models
        self.repository = repository
        self._begin = 0  # where the last start begins, in bytes

    @property
    def older(self) -> Path:
        """The part that was rotated away; the one before it is gone."""
        return self.path.with_name(f"{self.path.name}.1")

    def open(self) -> IO[bytes]:
        """Open it for another start, which appends."""
        file = self.path.open("ab", buffering=0)
        self._begin = file.tell()
        return file

    def rotate(self) -> None:
        """Move a log that has grown too large aside. Triton goes on writing to the same file, so it is emptied."""
        if self.path.stat().st_size > MAX_BYTES:
            try:
                shutil.copyfile(self.path, self.older)
            except OSError:  # a full disk: the log must not grow on
                self.older.unlink(missing_ok=True)
            os.truncate(self.path, 0)  # Triton's file is open for appending: it goes on at the beginning
            self._begin = 0

    def size(self) -> int:
        """How many bytes the last start has written."""
        return self.path.stat().st_size - self._begin

    def text(self) -> str:
        """What the last start has written, with the repository's path as the user knows it."""
        with self.path.open("rb") as file:
            file.seek(self._begin)
            text = file.read().decode(errors="replace")
        return text.replace(str(self.models), str(self.repository.resolve()))

    def loading(self) -> list[str]:
        """The models that are still loading."""
        text = self.text()
        names = re.findall(r'"loading: (\S+):\d+"', text)
        return [name for name in names if f"successfully loaded '{name}'" not in text]

    def cause(self) -> str | None:
        """The first error about a model: those that follow are its consequences."""
        error = re.search(r'^E.* model_(?:lifecycle|repository_manager)\.cc:\d+\] "(.+)"$', self.text(), re.MULTILINE)
        return error[1].partition(r"\n")[0] if error else None

    def complaints(self) -> str:
        """The last lines that are neither information nor tables nor the addresses of a crash."""
        lines = [line for line in self.text().splitlines() if line and line[0] not in "I+|" and not _FRAME.match(line)]
        return "\n".join(f"  {line[:_LINE_LENGTH]}" for line in lines[-_TAIL:])
