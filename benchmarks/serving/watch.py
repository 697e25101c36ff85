"""What a server and all processes that it started take of the machine, sampled while it is asked."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import NamedTuple

import psutil

INTERVAL_S = 0.25


class Sample(NamedTuple):
    """One look at a process and its descendants."""

    at: float  # s of the monotonic clock
    cpu_s: float  # computed since each of them started
    memory: int  # bytes resident, summed; what they share is counted once for each


class Watch:
    """Samples a process tree in a thread, as a context manager."""

    def __init__(self, pid: int, interval_s: float = INTERVAL_S) -> None:
        self._root = psutil.Process(pid)
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.samples: list[Sample] = []

    def __enter__(self) -> Watch:
        self.samples.append(look(self._root))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        with suppress(psutil.NoSuchProcess):
            self.samples.append(look(self._root))

    def _watch(self) -> None:
        with suppress(psutil.NoSuchProcess):
            while not self._done.wait(self._interval_s):
                self.samples.append(look(self._root))


def look(root: psutil.Process) -> Sample:
    """Sample ``root`` and its descendants now."""
    cpu_s, memory = 0.0, 0
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess), process.oneshot():
            times = process.cpu_times()
            cpu_s += times.user + times.system
            memory += process.memory_info().rss
    return Sample(time.monotonic(), cpu_s, memory)
