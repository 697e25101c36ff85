"""Files and folders that are either whole or absent, and the digests that tie them to what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STAGING_SUFFIX = ".partial"  # of what is half-written: .NAME.PROCESS.partial


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}{STAGING_SUFFIX}")
    try:
        yield staging
        _flush(staging)
        staging.replace(path)
        _flush(path.parent)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; on success it is flushed to disk and renamed to ``path``."""
    with workspace(path) as staging:
        yield staging
        publish_folder(staging, path)


@contextmanager
def workspace(beside: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``beside``, on the same file system; it is gone afterwards."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(beside.parent)
    folder = beside.with_name(f".{beside.name}.{os.getpid()}{STAGING_SUFFIX}")
    shutil.rmtree(folder, ignore_errors=True)  # in a container, a killed process had the number that this one has
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish_folder(staging: Path, path: Path) -> None:
    """Flush a finished folder to disk and rename it to ``path``.

    Raises:
        FileExistsError: ``path`` exists: what is published is never written over.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    flush_folder(staging)
    staging.replace(path)
    _flush(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush a folder and all in it to disk."""
    for entry in sorted(folder.rglob("*"), reverse=True):
        _flush(entry)
    _flush(folder)


def _remove_abandoned(folder: Path) -> None:
    """Delete what killed processes left half-written in ``folder``; what a living process writes is left alone."""
    for leftover in folder.glob(f".*{STAGING_SUFFIX}"):
        owner = leftover.name.removesuffix(STAGING_SUFFIX).rpartition(".")[2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all; NaN, which JSON does not know, becomes null."""
    value = json.loads(json.dumps(value), parse_constant=lambda _: None)
    with staged_file(path) as staging:
        staging.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def digest_of(*parts: bytes | str) -> str:
    """SHA-256 of the parts, in hex; each is preceded by its length, so that no two lists of parts read alike."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
