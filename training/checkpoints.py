"""What a fit has reached, epoch by epoch, so that a killed one goes on with the same bits.

======================================  ================================================================
``runs/.unfinished/<digest>/``          the states of a fit, and what it writes down while it runs
``runs/.unfinished/<digest>.earlier/``  those of an interrupted one that was not gone on from, until the
                                        fit that started over has finished an epoch of its own
``runs/.unfinished/<digest>.lock``      held by the one fit that may touch both
======================================  ================================================================

The states are tensors, numbers and texts alone, and are read by ``torch.load``'s weights-only reader.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from training.artifacts import digest_of, staged_file

UNFINISHED = ".unfinished"  # folder within the runs; its name begins with a dot, so that it is never taken for a run
_UNREADABLE = (UnpicklingError, RuntimeError, EOFError)  # what torch.load raises on a damaged file


class FitRunningError(Exception):
    """Another process is fitting the same."""


class Checkpoints:
    """The states of one fit, in a folder that is named by what the fit is made from."""

    def __init__(self, runs: Path, made_from: dict[str, Any], *, resume: bool) -> None:
        """Find the folder among ``runs``.

        Without ``resume``, what an interrupted fit of the same left there is put aside until the first :meth:`save`.
        """
        self.folder = _folder(runs, made_from)
        self._earlier = self.folder.with_suffix(".earlier")
        if self._earlier.exists():
            self._settle()
        states = _states(self.folder)
        if resume and not states:
            print("nothing to resume: no fit of these settings and this data was interrupted; starting at epoch 1")
        elif states and not resume:
            print(
                f"not going on from an interrupted fit of the same (heads begun: {len(states)}, epochs finished: "
                f"{sum(map(_epochs, states))}), but starting over; --resume would go on from it, as long as this fit "
                "has not finished its first epoch",
                file=sys.stderr,
            )
            self.folder.rename(self._earlier)
        elif not states:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def load(self, name: str) -> dict[str, Any] | None:
        """Read the state ``name``; None where there is none, or where it cannot be read: the fit then starts over."""
        path = self.folder / f"{name}.pt"
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
        except FileNotFoundError:
            return None
        except _UNREADABLE as error:
            print(f"{path} cannot be read ({error}): starting over")
            return None
        return state

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Write the state ``name``, whole or not at all; what was put aside for it is deleted then."""
        content = io.BytesIO()  # written to a file, PyTorch's error of a full disk is a RuntimeError
        torch.save(state, content)
        with staged_file(self.folder / f"{name}.pt") as staging:
            staging.write_bytes(content.getbuffer())
        shutil.rmtree(self._earlier, ignore_errors=True)

    def clear(self) -> None:
        """Delete the states: the fit is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _settle(self) -> None:
        """Do what a fit that started over and was killed did not come to: of it and the earlier one, one is kept."""
        if _states(self.folder):
            shutil.rmtree(self._earlier)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._earlier.rename(self.folder)


@contextmanager
def locked_checkpoints(runs: Path, made_from: dict[str, Any], *, resume: bool) -> Iterator[Checkpoints]:
    """Yield the :class:`Checkpoints` of a fit, which no other process has meanwhile.

    Raises:
        FitRunningError: another process has them.
    """
    folder = _folder(runs, made_from)
    lock = folder.with_suffix(".lock")
    descriptor = _acquire(lock)
    try:
        yield Checkpoints(runs, made_from, resume=resume)
    finally:
        if not _states(folder):  # nothing to resume
            shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)  # while it is held, so that it is this fit's and not the next one's
        os.close(descriptor)
        with suppress(OSError):  # other fits have something there, or were the last to leave
            lock.parent.rmdir()


def _acquire(lock: Path) -> int:
    """Lock the file ``lock`` and return its descriptor; the lock ends with the process, also one that is killed."""
    lock.parent.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with suppress(FileExistsError):
            lock.parent.mkdir()
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # a fit that ended just now removed the folder
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise FitRunningError(
                f"a fit of the same settings and data is running (it holds {lock}): wait for it to end, or give this "
                "one another folder with --runs"
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        os.close(descriptor)  # a fit that ended just now removed the file: its lock keeps nobody out


def _folder(runs: Path, made_from: dict[str, Any]) -> Path:
    return runs / UNFINISHED / digest_of(json.dumps(made_from, sort_keys=True, default=str))[:16]


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pt"))


def _epochs(path: Path) -> int:
    """How many epochs there are in a state: none where it cannot be read."""
    try:
        return len(torch.load(path, weights_only=True, map_location="cpu", mmap=True).get("history", ()))
    except _UNREADABLE:
        return 0
