"""Shards of features: small ``.npy`` files, each whole or absent, that are joined into one memory-mapped matrix."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from training.artifacts import digest_of, staged_file

# Inputs: what a killed job loses at most. Of ViT-L/14@336px on a CPU these are 7 to 10 minutes, for each view, since
# the views of a photo are decoded at once and their shards are complete at once.
SHARD = 256

Features = npt.NDArray[np.float32]
_T = TypeVar("_T")


def chunks(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """Cut ``items`` into pieces of ``size``; the last one may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def is_whole(path: Path, rows: int, width: int) -> bool:
    """Whether ``path`` holds fp32 [rows, width]; what a full disk or a careless copy cut short does not."""
    try:
        array = np.load(path, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):
        return False
    return bool(array.shape == (rows, width) and array.dtype == np.float32)


def write(path: Path, features: Features) -> None:
    """Write a shard, whole or not at all."""
    content = io.BytesIO()  # written to a file, NumPy's error of a full disk has no number
    np.save(content, features)
    with staged_file(path) as staging:
        staging.write_bytes(content.getbuffer())


def joined(folder: Path, shards: Sequence[Path], rows: npt.NDArray[np.intp], width: int) -> Features:
    """Map the matrix whose row i is row ``rows[i]`` of the shards put one after the other: fp32 [len(rows), width].

    The matrix is a file of its own, made in constant memory when it is not there. It is mapped copy-on-write: writing
    to the array never changes the file.
    """
    path = folder / "joined" / f"{digest_of(*(shard.stem for shard in shards), rows.astype('<i8').tobytes())}.npy"
    if not is_whole(path, len(rows), width):
        with staged_file(path) as staging:
            matrix = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
                staging, mode="w+", dtype=np.float32, shape=(len(rows), width)
            )
            with staging.open("r+b") as file:  # writing a mapped page to a full disk ends the process (SIGBUS)
                os.posix_fallocate(file.fileno(), 0, staging.stat().st_size)
            shard_of, row_in_shard = np.divmod(rows, SHARD)
            for number, shard in enumerate(shards):
                wanted = np.flatnonzero(shard_of == number)
                matrix[wanted] = np.load(shard)[row_in_shard[wanted]]
            matrix.flush()
    mapped: Features = np.load(path, mmap_mode="c")
    return mapped
