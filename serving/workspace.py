"""What a server leaves on the machine while it runs, and how that goes away, even after ``kill -9``.

A server has one temporary folder. Its shared memory bears the folder's name, and the folder is locked (flock) by each
process of the server: a folder whose lock is free is a dead server's. The lock also keeps systemd-tmpfiles from tidying
the folder away under a server that runs for weeks.
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

PREFIX = "vizwiz-serving-"
LOG_FILE = "server.log"
KEPT_LOGS = 5  # of servers that failed, for this user

_LOG_SUFFIX = ".log"
_SHARED_MEMORY = Path("/dev/shm")


class Workspace:
    """The temporary folder of one server; as a context manager, it removes folder and shared memory at the end."""

    def __init__(self) -> None:
        unlocked = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=_temporary_folder()))
        self.lock = _lock(unlocked)
        """The descriptor that holds the lock, to be passed on to each process of the server."""
        # only now does it get a name that `remove_leftovers` looks at
        self.folder = unlocked.rename(unlocked.with_name(unlocked.name.removeprefix(".")))

    @property
    def shared_memory_prefix(self) -> str:
        """How the names of the server's shared memory begin."""
        return f"{self.folder.name}_"

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        _remove(self.folder)
        os.close(self.lock)

    def close_shared_memory(self) -> None:
        """Let no other user read the photos in it: the Python backend makes it readable, whatever the umask is."""
        for region in _regions(self.folder):
            with suppress(FileNotFoundError):
                region.chmod(0o600)

    def keep_log(self, *parts: Path) -> Path:
        """Copy the ``parts`` of the log to a file that outlives the server; one of the next starts removes it."""
        return _copy_log(parts)

    def remove_shared_memory(self) -> None:
        """Remove what the processes of the server left, once all have ended."""
        _remove_shared_memory(self.folder)


def _copy_log(parts: Iterable[Path]) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=PREFIX, suffix=_LOG_SUFFIX, dir=_temporary_folder())
    with os.fdopen(descriptor, "wb") as copy:
        for part in parts:
            with suppress(FileNotFoundError), part.open("rb") as file:
                shutil.copyfileobj(file, copy)
    return Path(name)


def remove_leftovers() -> None:
    """Remove the folders and the shared memory of this user's servers of which no process is left; copy their logs."""
    for folder in _folders():
        try:
            lock = _lock(folder)
        except OSError:  # alive, or just removed
            continue
        if parts := sorted(folder.glob(f"{LOG_FILE}*"), reverse=True):  # the older one ends in .1
            with suppress(OSError):
                _copy_log(parts)
        _remove(folder)
        os.close(lock)
    with suppress(FileNotFoundError):  # another start removes them too
        for log in sorted(_own(f"{PREFIX}*{_LOG_SUFFIX}"), key=lambda log: log.stat().st_mtime)[:-KEPT_LOGS]:
            log.unlink()


def live_folders() -> list[Path]:
    """The folders of servers that run, of this user; the one that started last comes last."""
    folders = []
    for folder in _folders():
        with suppress(FileNotFoundError):  # just removed
            try:
                os.close(_lock(folder))
            except BlockingIOError:  # some process of its server holds the lock
                folders.append((folder.stat().st_mtime, folder))
    return [folder for _, folder in sorted(folders)]


def _folders() -> Iterator[Path]:
    """The temporary folders of this user's servers."""
    return (path for path in _own(f"{PREFIX}*") if path.is_dir())


def _own(pattern: str, folder: Path | None = None) -> Iterator[Path]:
    """What this user owns in ``folder``, by default the one for temporary files.

    Any user may make a file of any name there, and only its owner may change or remove it.
    """
    for path in (folder or _temporary_folder()).glob(pattern):
        with suppress(FileNotFoundError):
            if path.lstat().st_uid == os.geteuid():
                yield path


def _lock(folder: Path) -> int:
    """Lock ``folder`` and return the descriptor whose closing frees it.

    Raises:
        OSError: the folder is locked already, or cannot be opened.
    """
    import fcntl  # not at the top: on Windows the command is to say what it needs, not that this module is missing

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _temporary_folder() -> Path:
    """The system's folder for temporary files, unless a space in it would cut the stub's command line in two."""
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
