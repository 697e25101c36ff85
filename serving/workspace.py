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
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PREFIX = "vizwiz-serving-"

_SHARED_MEMORY = Path("/dev/shm")


class Workspace:
    """The temporary folder of one server; as a context manager, it removes folder and shared memory at the end."""

    def __init__(self) -> None:
        unlocked = Path(tempfile.mkdtemp(prefix=f".{PREFIX}{os.getpid()}-", dir=_temporary_folder()))
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

    def remove_shared_memory(self) -> None:
        """Remove what the processes of the server left, once all have ended."""
        _remove_shared_memory(self.folder)


def remove_leftovers() -> None:
    """Remove the folders and the shared memory of this user's servers of which no process is left."""
    for folder in _folders():
        try:
            lock = _lock(folder)
        except OSError:  # alive, or just removed
            continue
        _remove(folder)
        os.close(lock)


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
    """The temporary folders of this user's servers; anybody may make one with such a name, and write what they like."""
    for folder in _temporary_folder().glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):
            if folder.lstat().st_uid == os.getuid():
                yield folder


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


def _regions(folder: Path) -> list[Path]:
    return list(_SHARED_MEMORY.glob(f"{glob.escape(folder.name)}_*"))
