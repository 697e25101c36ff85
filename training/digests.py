"""Digests of photos, remembered while the files do not change, so that a fit need not read every photo again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from training import ranks
from training.artifacts import disk_full_names, staged_file, stream_digest
from vizwiz_client.contract.errors import ImageError
from vizwiz_client.contract.image import open_file

_READERS = 4  # threads: hashlib releases the interpreter's lock
# A file that changed this short a time ago may change again without its times changing, which tick coarsely.
_SETTLED_AFTER_S = 2.0

_Entry = tuple[int, int, int, str]  # bytes, modification time, change time (both ns), SHA-256


def photo_digests(paths: Sequence[Path], cache: Path) -> tuple[dict[Path, str], list[str]]:
    """SHA-256 of each photo, and the problems of those that cannot be read.

    ``cache`` keeps size and times of each file beside its digest, as git's index does; a file is read again when they
    differ. Under ``torchrun`` each process reads its share.
    """
    folder = paths[0].parent.absolute()
    index = cache / "photos" / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.json"
    known = _read(index)
    mine = paths[ranks.rank() :: ranks.world_size()]
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(lambda path: _entry(path, known.get(path.name)), mine))
    entries: dict[Path, _Entry] = {}
    problems: list[str] = []
    for share, shared_problems in ranks.gather(
        (
            {path: entry for path, entry in zip(mine, found, strict=True) if not isinstance(entry, str)},
            [entry for entry in found if isinstance(entry, str)],
        )
    ):
        entries |= share
        problems += shared_problems
    if ranks.rank() == 0:
        with disk_full_names(cache, "--cache"):
            _write(index, known, entries)
    return {path: entry[3] for path, entry in entries.items()}, problems


def _entry(path: Path, known: _Entry | None) -> _Entry | str:
    try:
        stat = path.stat()
        state = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if known and known[:3] == state:
            return known
        with open_file(path) as file:
            return (*state, stream_digest(file))
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"


def _read(index: Path) -> dict[str, _Entry]:
    try:
        return {name: tuple(entry) for name, entry in json.loads(index.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}


def _write(index: Path, known: dict[str, _Entry], entries: dict[Path, _Entry]) -> None:
    settled = time.time_ns() - int(_SETTLED_AFTER_S * 1e9)
    fresh = {path.name: entry for path, entry in entries.items() if max(entry[1:3]) < settled}
    if (merged := known | fresh) != known:
        with staged_file(index) as staging:
            staging.write_text(json.dumps(merged), encoding="utf-8")
