"""What Triton's log says about a start: what is loading, why it failed, what it complains of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_TAIL = 12  # lines
_FRAME = re.compile(r" *\d+# ")  # of the stack, where Triton crashed
_LINE_LENGTH = 400  # characters: an error repeats itself in each line that follows from it


@dataclass(frozen=True)
class Log:
    """The log at ``path`` of a server whose models are at ``models``, a link to ``repository``."""

    path: Path
    models: Path
    repository: Path

    def text(self) -> str:
        """All of it, with the repository's path as the user knows it."""
        text = self.path.read_text(encoding="utf-8", errors="replace")
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
