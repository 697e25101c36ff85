"""Temporary folder, log and shared memory of a server, and their removal, even after ``kill -9``.

A server has one temporary folder, its workspace. The names of its shared memory begin with the folder's name. Every
process of the server holds the folder's lock (flock), so a workspace whose lock is free belongs to a dead server. The
lock also keeps systemd-tmpfiles from deleting the folder of a server that runs for weeks.
"""

from __future__ import annotations

import fcntl
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

PREFIX = "vizwiz-serving-"
LOG_FILE = "server.log"
MAX_LOG_BYTES = 16 << 20  # of the current part; a larger one is rotated, and one older part is kept
MAX_SAVED_LOGS = 5  # of servers that failed, for this user

_LOG_SUFFIX = ".log"
_SHARED_MEMORY = Path("/dev/shm")
_TAIL_LINES = 12
_MAX_LINE_LENGTH = 400  # characters: Triton repeats an error in each error that it causes
_STACK_FRAME = re.compile(r" *\d+# ")  # of Triton's crash report


class Workspace:
    """Temporary folder of one server. On exit, the context manager removes the folder and the shared memory."""

    def __init__(self) -> None:
        unlocked = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=_temporary_folder()))
        self.lock = _lock(unlocked)
        """File descriptor that holds the lock; every process of the server inherits it."""
        # renamed once it is locked: `remove_stale_workspaces` ignores hidden folders
        self.folder = unlocked.rename(unlocked.with_name(unlocked.name.removeprefix(".")))

    @property
    def shared_memory_prefix(self) -> str:
        """Prefix of the names of the server's shared memory."""
        return f"{self.folder.name}_"

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        _remove(self.folder)
        os.close(self.lock)

    def restrict_shared_memory(self) -> None:
        """Set mode 0600 on the shared memory: the Python backend makes it world-readable, whatever the umask."""
        for region in _regions(self.folder):
            with suppress(FileNotFoundError):
                region.chmod(0o600)

    def remove_shared_memory(self) -> None:
        """Remove the shared memory of processes that have ended."""
        _remove_shared_memory(self.folder)


class Log:
    """Triton's log file: appended to by every start, of bounded size.

    Args:
        path: the file.
        models: the link to the repository, which Triton's messages name.
        repository: the repository as the user named it.
    """

    def __init__(self, path: Path, models: Path, repository: Path) -> None:
        self.path = path
        self._models = models
        self._repository = repository
        self._start = 0  # offset of the last start, in bytes

    @property
    def _rotated(self) -> Path:
        return self.path.with_name(f"{self.path.name}.1")

    def open(self) -> IO[bytes]:
        """Open the file for another start, which appends."""
        file = self.path.open("ab", buffering=0)
        self._start = file.tell()
        return file

    def rotate(self) -> None:
        """Copy a log that has grown too large to ``server.log.1``, and truncate it: Triton keeps the file open."""
        if self.path.stat().st_size > MAX_LOG_BYTES:
            try:
                shutil.copyfile(self.path, self._rotated)
            except OSError:  # a full disk: drop the older part
                self._rotated.unlink(missing_ok=True)
            os.truncate(self.path, 0)  # Triton appends, so it continues at the beginning
            self._start = 0

    def save(self) -> Path:
        """Copy both parts of the log to a file that outlives the server; a later start removes it."""
        return _save_log([self._rotated, self.path])

    def size(self) -> int:
        """Bytes written since the last start."""
        return self.path.stat().st_size - self._start

    def text(self) -> str:
        """Text written since the last start, with the repository's path as the user knows it."""
        with self.path.open("rb") as file:
            file.seek(self._start)
            text = file.read().decode(errors="replace")
        return text.replace(str(self._models), str(self._repository.resolve()))

    def loading(self) -> list[str]:
        """Models that are still loading."""
        text = self.text()
        names = re.findall(r'"loading: (\S+):\d+"', text)
        return [name for name in names if f"successfully loaded '{name}'" not in text]

    def first_error(self) -> str | None:
        """The first error about a model: the others follow from it."""
        error = re.search(r'^E.* model_(?:lifecycle|repository_manager)\.cc:\d+\] "(.+)"$', self.text(), re.MULTILINE)
        return error[1].partition(r"\n")[0] if error else None

    def tail(self) -> str:
        """The last lines, without information, tables and stack frames."""
        lines = self.text().splitlines()
        lines = [line for line in lines if line and line[0] not in "I+|" and not _STACK_FRAME.match(line)]
        return "\n".join(f"  {line[:_MAX_LINE_LENGTH]}" for line in lines[-_TAIL_LINES:])


def remove_stale_workspaces() -> None:
    """Remove the workspaces and the shared memory of this user's dead servers; save their logs."""
    for folder in _workspaces():
        try:
            lock = _lock(folder)
        except OSError:  # alive, or just removed
            continue
        if parts := sorted(folder.glob(f"{LOG_FILE}*"), reverse=True):  # the older one ends in .1
            with suppress(OSError):
                _save_log(parts)
        _remove(folder)
        os.close(lock)
    with suppress(FileNotFoundError):  # another start removes them too
        logs = sorted(_own(f"{PREFIX}*{_LOG_SUFFIX}"), key=lambda log: log.stat().st_mtime)
        for log in logs[:-MAX_SAVED_LOGS]:
            log.unlink()


def live_workspaces() -> list[Path]:
    """The workspaces of this user's running servers, in the order of their starts."""
    folders = []
    for folder in _workspaces():
        with suppress(FileNotFoundError):  # just removed
            try:
                os.close(_lock(folder))
            except BlockingIOError:  # a process of its server holds the lock
                folders.append((folder.stat().st_mtime, folder))
    return [folder for _, folder in sorted(folders)]


def _save_log(parts: Iterable[Path]) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=PREFIX, suffix=_LOG_SUFFIX, dir=_temporary_folder())
    with os.fdopen(descriptor, "wb") as copy:
        for part in parts:
            with suppress(FileNotFoundError), part.open("rb") as file:
                shutil.copyfileobj(file, copy)
    return Path(name)


def _workspaces() -> Iterator[Path]:
    return (path for path in _own(f"{PREFIX}*") if path.is_dir())


def _own(pattern: str, folder: Path | None = None) -> Iterator[Path]:
    """Paths in ``folder`` (default: the temporary folder) that this user owns.

    Any user may create a file of any name there, and only its owner may change or remove it.
    """
    for path in (folder or _temporary_folder()).glob(pattern):
        with suppress(FileNotFoundError):
            if path.lstat().st_uid == os.geteuid():
                yield path


def _lock(folder: Path) -> int:
    """Lock ``folder`` and return the file descriptor that holds the lock.

    Raises:
        OSError: the folder is locked already, or cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _temporary_folder() -> Path:
    """The system's temporary folder, or /tmp if its path has a space, at which Triton splits the stub's arguments."""
    folder = tempfile.gettempdir()
    return Path("/tmp" if any(char.isspace() for char in folder) else folder)


def _remove(folder: Path) -> None:
    _remove_shared_memory(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_shared_memory(folder: Path) -> None:
    for region in _regions(folder):
        region.unlink(missing_ok=True)


def _regions(folder: Path) -> Iterator[Path]:
    return _own(f"{glob.escape(folder.name)}_*", _SHARED_MEMORY)
