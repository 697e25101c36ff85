"""Decode photos in worker processes.

A worker is a child process that runs this file. It reads one request per line and replies with pixels. Unlike the
workers of ``multiprocessing`` and PyTorch, it imports neither PyTorch nor the main module, needs no shared memory
(containers limit it), is not forked from a process with threads and CUDA, and ends when its parent is killed.
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

ROTATIONS = (0, 90, 180, 270)  # degrees, counter-clockwise, of the upright photo
_TRANSPOSES = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}

Pixels = npt.NDArray[np.uint8]


def rotated_pixels(path: str | Path, image_size: int, rotations: Sequence[int], *, squash: bool = False) -> Pixels:
    """Decode a photo once, rotate it by each of ``rotations`` (degrees) and resize it: uint8 [rotations, S, S, 3].

    Raises:
        ImageError: the photo cannot be read.
    """
    upright = load_photo(path)
    rotated = (upright.transpose(_TRANSPOSES[degrees]) if degrees else upright for degrees in rotations)
    return np.stack([to_pixels(photo, image_size, squash=squash) for photo in rotated])


class Decoder:
    """Pool of worker processes; a context manager.

    Args:
        workers: number of processes.
        squash: as in :func:`vizwiz_client.contract.image.to_pixels`.
    """

    def __init__(self, workers: int, *, squash: bool = False) -> None:
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._workers = [_Worker(squash) for _ in range(workers)]
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers)  # each waits for one worker

    def submit(self, path: Path, rotations: Sequence[int], pixels: Pixels) -> Future[str | None]:
        """Decode ``path`` into ``pixels``, contiguous uint8 [rotations, S, S, 3].

        The result of the future is None, or the error of a photo that cannot be read.
        """
        return self._threads.submit(self._decode, path, rotations, pixels)

    def _decode(self, path: Path, rotations: Sequence[int], pixels: Pixels) -> str | None:
        worker = self._idle.get()
        try:
            return worker.decode(path, rotations, pixels)
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
    """One child process; replaced when a photo crashes it."""

    def __init__(self, squash: bool) -> None:
        self._squash = squash
        self._start()

    def _start(self) -> None:
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "training.decoding"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def decode(self, path: Path, rotations: Sequence[int], pixels: Pixels) -> str | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {
            "path": str(path),
            "image_size": pixels.shape[1],
            "rotations": list(rotations),
            "squash": self._squash,
        }
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            if not (reply := self._process.stdout.readline()):
                raise EOFError
            error: str | None = json.loads(reply)
            if error is None and self._read(pixels) != pixels.nbytes:
                raise EOFError
            return error
        except (EOFError, BrokenPipeError):
            self.stop()
            code = self._process.returncode
            self._start()
            return f"{path}: the worker process crashed while decoding it (exit status {code})"

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
    """Reply to each line of ``requests`` with a line, null or an error, and after null with the pixels."""
    for line in requests:
        request = json.loads(line)
        try:
            pixels = rotated_pixels(**request)
        except (ImageError, MemoryError) as error:
            replies.write(json.dumps(str(error) or f"{request['path']}: out of memory").encode() + b"\n")
        else:
            replies.write(b"null\n")
            replies.write(pixels.data)
        replies.flush()


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C; its exit ends the requests
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not mix with pixels
    try:
        serve(sys.stdin.buffer, replies)
    except BrokenPipeError:  # the parent is gone
        os._exit(1)


if __name__ == "__main__":
    _main()
