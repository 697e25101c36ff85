"""Publish models into a Triton model repository, atomically and under its lock.

A publication commits by replacing the configuration of ``vizwiz_vqa``. That comes last, so every model that the
configuration references is complete.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import serving.repository
from serving.repository import CONFIG_FILE, DIGESTS_FILE, GRAPH_FILE, VERSION, RepositoryError, write_config
from training.artifacts import file_digest, flush_folder, publish_folder, remove_stale, workspace
from vizwiz_client.contract import tensors

_GIB = 1 << 30


@contextmanager
def lock(repository: Path) -> Iterator[None]:
    """Lock ``repository`` for writing, and create it where it is missing.

    Waits, without limit, for another export or rollout to end. Removes the stale files of killed ones.

    Raises:
        RepositoryError: ``repository`` cannot be written.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(repository, error.strerror or str(error)) from None
    if not os.access(repository, os.R_OK | os.W_OK | os.X_OK):
        raise _not_writable(repository, "no permission to read and write in it")
    with serving.repository.locked(repository, lambda line: print(line, file=sys.stderr)):
        _remove_stale_files(repository)
        yield


@contextmanager
def staging_folder(repository: Path) -> Iterator[Path]:
    """Yield a temporary folder in the locked ``repository``: the folder that holds it may be another mount."""
    with workspace(repository / repository.name) as folder:
        yield folder


def check_free_space(repository: Path, needed: int) -> None:
    """Check that ``needed`` bytes fit beside ``repository``.

    Raises:
        RepositoryError: the disk has less free space.
    """
    free = shutil.disk_usage(repository).free
    if free < needed:
        raise RepositoryError(
            f"{repository} has {free / _GIB:.2f} GiB free, the export needs about {needed / _GIB:.2f}: free some, with "
            "--prune for example, or choose another folder with --repository"
        )


def label_file(labels: Sequence[str]) -> bytes:
    """Content of a Triton label file: one label a line, in the order of the output."""
    return "".join(f"{label}\n" for label in labels).encode()


def finish_model(folder: Path, config: Any) -> None:
    """Write the SHA-256 of every file in ``folder``, and then the model's configuration, which may be tuned."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{file_digest(path)}  {path.relative_to(folder)}\n" for path in files]
    (folder / DIGESTS_FILE).write_text("".join(lines), encoding="utf-8")
    write_config(folder, config)


def verify_digests(folder: Path) -> list[str]:
    """As :func:`serving.repository.verify_digests`, but both must have a SHA-256 of the graph: they may be empty."""
    if found := serving.repository.verify_digests(folder):
        return found
    sums, config = folder / DIGESTS_FILE, folder / CONFIG_FILE
    if not sums.is_file():
        return [f"{sums} is missing"]
    if f"  {VERSION}/{GRAPH_FILE}" not in sums.read_text(encoding="utf-8"):
        return [f"{sums} has no SHA-256 of {VERSION}/{GRAPH_FILE}: it is damaged"]
    if tensors.MODEL_DIGEST_PARAMETER not in serving.repository.read_config(folder).parameters:
        return [f"{config} lacks the parameter {tensors.MODEL_DIGEST_PARAMETER}: it is damaged"]
    return []


def is_published(repository: Path, name: str) -> bool:
    """Whether ``repository`` holds the model ``name``, complete and unaltered."""
    return not verify_digests(repository / name)


def publish_models(repository: Path, models: Mapping[str, Path], trash: Path) -> None:
    """Move finished model folders into ``repository``; damaged ones of the same name go to ``trash``."""
    for name, folder in models.items():
        if (repository / name).exists():
            flush_folder(folder)  # slow, so before the first rename: the model is absent between the two
            (repository / name).replace(trash / f"{name}.damaged")
        publish_folder(folder, repository / name)


def commit(repository: Path, config: Any, staging: Path) -> None:
    """Switch the ensemble to new models: the commit point.

    Args:
        repository: the locked repository.
        config: the ensemble's configuration.
        staging: a folder of :func:`staging_folder`. A new ensemble is built there: on a full disk it is not published
            without its configuration.
    """
    published = repository / config.name
    folder = published if published.exists() else staging / config.name
    (folder / VERSION).mkdir(parents=True, exist_ok=True)  # Triton wants a version, though an ensemble has no files
    if not (folder / VERSION / ".keep").exists():
        (folder / VERSION / ".keep").touch()  # git, archives and object stores drop empty folders
    write_config(folder, config)
    if folder != published:
        publish_folder(folder, published)


def _remove_stale_files(repository: Path) -> None:
    """Delete incomplete files of killed processes; the caller holds the lock."""
    remove_stale(repository)
    for stale in (repository / tensors.ENSEMBLE).glob(".*.partial"):  # of write_config
        stale.unlink()


def _not_writable(repository: Path, reason: str) -> RepositoryError:
    return RepositoryError(
        f"{repository} cannot be written ({reason}): change its permissions, or choose another folder with --repository"
    )
