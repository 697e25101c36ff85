"""Photos decoded in worker processes, ahead of the encoder that wants them.

A worker is a plain child that runs this file: it reads one request per line and answers with pixels. It imports neither
PyTorch nor the program's main module, uses no shared memory (containers give little), is safe beside CUDA and threads,
since nothing is forked, and ends with its parent, also one that is killed: its input ends then.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from vizwiz_client.contract.errors import ImageError
from vizwiz_client.contract.image import load_photo, to_pixels

TURNS = (0, 90, 180, 270)  # degrees, counter-clockwise, of the upright photo
_TRANSPOSES = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}

Pixels = npt.NDArray[np.uint8]


def turned_pixels(path: str | Path, side: int, turns: Sequence[int]) -> Pixels:
    """Decode a photo once and crop each of its ``turns`` (degrees, of TURNS): uint8 [len(turns), side, side, 3].

    Raises:
        ImageError: the photo cannot be read.
    """
    upright = load_photo(path)
    views = (upright.transpose(_TRANSPOSES[turn]) if turn else upright for turn in turns)
    return np.stack([to_pixels(view, side) for view in views])


class Decoder:
    """A pool of worker processes; use it in a ``with`` statement."""

    def __init__(self, workers: int) -> None:
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._workers = [_Worker() for _ in range(workers)]
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers)  # each waits for one worker

    def submit(self, path: Path, turns: Sequence[int], pixels: Pixels) -> Future[str | None]:
        """Decode ``path`` into ``pixels``, uint8 [len(turns), side, side, 3], contiguous.

        The future's result is None, or the reason why the photo cannot be read.
        """
        return self._threads.submit(self._decode, path, turns, pixels)

    def _decode(self, path: Path, turns: Sequence[int], pixels: Pixels) -> str | None:
        worker = self._idle.get()
        try:
            return worker.decode(path, turns, pixels)
        finally:
            self._idle.put(worker)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.stop()


class _Worker:
    """One child process; a new one takes its place when a photo kills it."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "training.decoding"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def decode(self, path: Path, turns: Sequence[int], pixels: Pixels) -> str | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"path": str(path), "side": pixels.shape[1], "turns": list(turns)}
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            if not (reply := self._process.stdout.readline()):
                raise EOFError
            problem: str | None = json.loads(reply)
            if problem is None and self._read(pixels) != pixels.nbytes:
                raise EOFError
            return problem
        except (EOFError, BrokenPipeError):
            self.stop()
            code = self._process.returncode
            self._start()
            return f"{path}: decoding it ended the worker process (exit status {code})"

    def _read(self, pixels: Pixels) -> int:
        assert isinstance(self._process.stdout, io.BufferedReader)
        return self._process.stdout.readinto(pixels.data.cast("B"))

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer each line of ``requests`` with a line (null, or a problem) and, without a problem, the pixels."""
    for line in requests:
        request = json.loads(line)
        try:
            pixels = turned_pixels(request["path"], request["side"], request["turns"])
        except (ImageError, MemoryError) as error:
            replies.write(json.dumps(str(error) or f"{request['path']}: out of memory").encode() + b"\n")
        else:
            replies.write(b"null\n")
            replies.write(pixels.data)
        replies.flush()


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; its end ends the requests
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not mix with pixels
    try:
        serve(sys.stdin.buffer, replies)
    except BrokenPipeError:  # the parent is gone
        os._exit(1)


if __name__ == "__main__":
    _main()
