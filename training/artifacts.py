"""Atomic files and folders, and SHA-256 digests."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STAGING = re.compile(r"\..+\.[0-9a-f]{16}\.partial")  # .NAME.RANDOM.partial, a folder


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path, which is flushed and renamed to ``path`` on success."""
    with workspace(path) as folder:
        staging = folder / path.name
        yield staging
        _flush(staging)
        staging.replace(path)
        _flush(path.parent)


@contextmanager
def staged_files(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, whose files are flushed and renamed into ``folder`` on success."""
    with workspace(folder / "files") as staging:
        yield staging
        flush_folder(staging)
        for file in sorted(staging.iterdir()):
            file.replace(folder / file.name)
        _flush(folder)


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Write a folder atomically: yield a temporary one, which is flushed and renamed to ``path`` on success."""
    with workspace(path) as staging:
        yield staging
        publish_folder(staging, path)


@contextmanager
def workspace(beside: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``beside``, on the same file system; it is deleted afterwards.

    The folder is locked (flock) while its process lives. Unlike a process id, the lock is visible to other containers
    that share the volume: they delete only workspaces that are not locked.
    """
    beside.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(beside.parent)
    folder, lock = _locked_folder(beside)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def explain_full_disk(folder: Path, option: str) -> Iterator[None]:
    """Add ``folder`` and the ``option`` that selects it to the error of a full disk, which names no file.

    Raises:
        OSError: the disk is full. It has no errno, so that an enclosing ``explain_full_disk`` leaves the message as it
            is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise OSError(
            f"{folder} cannot be written ({error.strerror}): make room there, or name another folder with {option}"
        ) from error


def publish_folder(staging: Path, path: Path) -> None:
    """Flush a finished folder to disk and rename it to ``path``.

    Raises:
        FileExistsError: ``path`` exists; published folders are never overwritten.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    flush_folder(staging)
    try:
        staging.replace(path)
    except OSError as error:  # another process has published it since: not empty, or not a folder
        if path.exists():
            raise FileExistsError(f"{path} exists already") from error
        raise
    _flush(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush a folder and its content to disk."""
    for entry in sorted(folder.rglob("*"), reverse=True):
        _flush(entry)
    _flush(folder)


def remove_stale(folder: Path) -> None:
    """Delete the workspaces of killed processes in ``folder``; those of running processes are kept."""
    for stale in folder.glob(".*.partial"):
        if _STAGING.fullmatch(stale.name) and (lock := _try_lock(stale)) is not None:
            shutil.rmtree(stale, ignore_errors=True)
            os.close(lock)


def _locked_folder(beside: Path) -> tuple[Path, int]:
    """Make a workspace beside ``beside``; returns it and the descriptor that holds its lock."""
    while True:
        folder = beside.with_name(f".{beside.name}.{secrets.token_hex(8)}.partial")
        folder.mkdir()
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another process deleted it as stale before it was locked
            continue
        with suppress(OSError):  # a file system without locks: workspaces are never stale
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)  # deleted while this process waited for the lock


def _try_lock(folder: Path) -> int | None:
    """Lock ``folder``; returns the descriptor, or None if it is locked or cannot be."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as :func:`to_json` does, atomically."""
    with staged_file(path) as staging:
        staging.write_text(to_json(value) + "\n", encoding="utf-8")


def to_json(value: Any) -> str:
    """Indented JSON; NaN and infinity, which JSON lacks, become null."""
    value = json.loads(json.dumps(value), parse_constant=lambda _: None)
    return json.dumps(value, indent=2, ensure_ascii=False)


def digest_of(*parts: bytes | str) -> str:
    """SHA-256 of the parts, in hex; each is preceded by its length, so that ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return stream_digest(file)


def stream_digest(file: BinaryIO) -> str:
    """SHA-256 of the rest of ``file``, in hex."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
