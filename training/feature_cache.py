"""The feature cache: shards of features, digests of photos, and the processes that share both under ``torchrun``.

A shard is a small ``.npy`` file, complete or absent. The shards of a split are concatenated to one memory map.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from training.artifacts import digest_of, explain_full_disk, staged_file, stream_digest
from vizwiz_client.contract.errors import ImageError
from vizwiz_client.contract.image import open_file

# Inputs of a shard, the most that a killed job loses: 7 to 10 minutes of ViT-L/14@336px on a CPU, for each rotation,
# because the shards of all rotations of a photo are finished together.
SHARD = 256
_DIGEST_THREADS = 4  # hashlib releases the interpreter's lock
# File times tick coarsely: a file younger than this may change again under the same times, so its digest is not cached.
_SETTLED_AFTER_S = 2.0
_GATHER_TIMEOUT = timedelta(days=7)  # a process may wait hours for the others; torchrun ends all when one dies

Features = npt.NDArray[np.float32]
_PhotoState = tuple[int, int, int, str]  # bytes, modification time and change time (ns), SHA-256
_T = TypeVar("_T")


def rank() -> int:
    """Number of this process among those of ``torchrun``, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that share the job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def gather(value: _T) -> list[_T]:
    """Wait for all processes; returns the value of each, by rank."""
    if world_size() == 1:
        return [value]
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_GATHER_TIMEOUT)
    values: list[_T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def chunks(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """Split ``items`` into pieces of ``size``; the last one may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def is_complete(path: Path, rows: int, embed_dim: int) -> bool:
    """Whether ``path`` holds fp32 [rows, embed_dim]; a truncated file does not."""
    try:
        array = np.load(path, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):
        return False
    return bool(array.shape == (rows, embed_dim) and array.dtype == np.float32)


def write_shard(path: Path, features: Features) -> None:
    """Write a shard atomically."""
    content = io.BytesIO()  # NumPy's own error for a full disk has no number
    np.save(content, features)
    with staged_file(path) as staging:
        staging.write_bytes(content.getvalue())  # getbuffer() can crash Python 3.12.1 if this fails (gh-111049)


def concatenate(folder: Path, shards: Sequence[Path], rows: npt.NDArray[np.intp], embed_dim: int) -> Features:
    """Map the matrix fp32 [len(rows), embed_dim] whose row i is row ``rows[i]`` of the concatenated shards.

    The matrix is written to a file of its own in constant memory, and mapped copy-on-write.
    """
    path = folder / "splits" / f"{digest_of(*(shard.stem for shard in shards), rows.astype('<i8').tobytes())}.npy"
    if not is_complete(path, len(rows), embed_dim):
        with staged_file(path) as staging:
            matrix = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
                staging, mode="w+", dtype=np.float32, shape=(len(rows), embed_dim)
            )
            with staging.open("r+b") as file:  # writing a mapped page to a full disk kills the process (SIGBUS)
                os.posix_fallocate(file.fileno(), 0, staging.stat().st_size)
            shard_of, row_in_shard = np.divmod(rows, SHARD)
            for number, shard in enumerate(shards):
                selected = np.flatnonzero(shard_of == number)
                matrix[selected] = np.load(shard)[row_in_shard[selected]]
            matrix.flush()
    mapped: Features = np.load(path, mmap_mode="c")
    return mapped


def photo_digests(paths: Sequence[Path], cache: Path) -> tuple[dict[Path, str], list[str]]:
    """SHA-256 of each photo by path, and the errors of photos that cannot be read.

    Like git's index, ``cache`` stores size and times of each file with its digest; a file is read again when they
    change. Each process of ``torchrun`` reads its share.
    """
    folder = paths[0].parent.absolute()
    index = cache / "photos" / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.json"
    known = _read_index(index)
    share = paths[rank() :: world_size()]
    with ThreadPoolExecutor(_DIGEST_THREADS) as pool:
        results = list(pool.map(lambda path: _photo_state(path, known.get(path.name)), share))
    states = {path: state for path, state in zip(share, results, strict=True) if not isinstance(state, str)}
    errors = [error for error in results if isinstance(error, str)]
    gathered = gather((states, errors))
    states = {path: state for share_states, _ in gathered for path, state in share_states.items()}
    if rank() == 0:
        with explain_full_disk(cache, "--cache"):
            _write_index(index, known, states)
    return {path: state[3] for path, state in states.items()}, [error for _, found in gathered for error in found]


def _photo_state(path: Path, known: _PhotoState | None) -> _PhotoState | str:
    try:
        stat = path.stat()
        times = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if known and known[:3] == times:
            return known
        with open_file(path) as file:
            return (*times, stream_digest(file))
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"


def _read_index(index: Path) -> dict[str, _PhotoState]:
    try:
        return {name: tuple(state) for name, state in json.loads(index.read_text(encoding="utf-8")).items()}
    except (FileNotFoundError, ValueError):  # missing, or damaged by a crash of the machine: the photos are read again
        return {}


def _write_index(index: Path, known: dict[str, _PhotoState], states: dict[Path, _PhotoState]) -> None:
    settled = time.time_ns() - int(_SETTLED_AFTER_S * 1e9)
    fresh = {path.name: state for path, state in states.items() if max(state[1:3]) < settled}
    if (merged := known | fresh) != known:
        with staged_file(index) as staging:
            staging.write_text(json.dumps(merged), encoding="utf-8")
