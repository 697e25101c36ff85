"""Write and read a Triton model repository: models are published atomically, by one process at a time.

Replacing the configuration of ``vizwiz_vqa`` is the commit point of a publication. It comes last, so every model that
it references is complete.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

import serving.repository
from serving.repository import CONFIG_FILE, DIGESTS_FILE, VERSION
from training.artifacts import (
    file_digest,
    flush_folder,
    publish_folder,
    remove_stale,
    staged_file,
    workspace,
)
from vizwiz_client.contract import tensors

_GIB = 1 << 30


class RepositoryError(Exception):
    """A model repository that cannot be written or read."""


@contextmanager
def lock(repository: Path) -> Iterator[None]:
    """Lock ``repository`` for writing, and create it where it is missing.

    Waits for another export to end, and removes the stale files of killed ones.

    Raises:
        RepositoryError: it cannot be written.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _not_writable(repository, error.strerror or str(error)) from None
    try:
        for folder in {repository, _beside(repository).parent}:
            if not os.access(folder, os.W_OK | os.X_OK):
                raise _not_writable(repository, f"no permission to write in {folder}")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another export into {repository} to end", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        _remove_stale_files(repository)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def staging_folder(repository: Path) -> Iterator[Path]:
    """Yield a temporary folder on the file system of the locked ``repository``."""
    with workspace(_beside(repository)) as folder:
        yield folder


def check_free_space(repository: Path, needed: int) -> None:
    """Check that ``needed`` bytes fit beside ``repository``.

    Raises:
        RepositoryError: they do not.
    """
    free = shutil.disk_usage(repository).free
    if free < needed:
        raise RepositoryError(
            f"{repository} has {free / _GIB:.2f} GiB free, the export needs about {needed / _GIB:.2f}: free some, with "
            "--prune for example, or choose another folder with --repository"
        )


def write_labels(path: Path, labels: Sequence[str]) -> None:
    """Write a Triton label file: one label a line, in the order of the output."""
    path.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def write_config(folder: Path, config: Any) -> None:
    """Finish a model: write the SHA-256 of every file in ``folder``, and then the configuration, which may be tuned."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{file_digest(path)}  {path.relative_to(folder)}\n" for path in files]
    (folder / DIGESTS_FILE).write_text("".join(lines), encoding="utf-8")
    write_config_file(folder / CONFIG_FILE, config)


def write_config_file(path: Path, config: Any) -> None:
    """Write a configuration as protobuf text, atomically."""
    with staged_file(path) as staging:
        staging.write_text(text_format.MessageToString(config), encoding="utf-8")


def read_config(folder: Path) -> Any:
    """Parse the configuration of the model in ``folder``.

    Raises:
        RepositoryError: it is missing, or not a configuration.
    """
    path = folder / CONFIG_FILE
    try:
        text = path.read_text(encoding="utf-8")
        # models of others may use fields of a newer Triton
        return text_format.Parse(text, pb.ModelConfig(), allow_unknown_field=True)
    except (FileNotFoundError, NotADirectoryError):
        raise RepositoryError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise RepositoryError(f"{path} cannot be read ({error})") from None


def verify_digests(folder: Path) -> list[str]:
    """Verify the files of the model in ``folder`` against their recorded SHA-256; returns the problems."""
    try:
        read_config(folder)
    except RepositoryError as error:
        return [str(error)]
    if not (folder / DIGESTS_FILE).is_file():
        return [f"{folder / DIGESTS_FILE} is missing"]
    return serving.repository.verify_digests(folder)


def is_published(repository: Path, name: str) -> bool:
    """Whether ``repository`` holds the model ``name``, complete and unaltered."""
    return not verify_digests(repository / name)


def publish_models(repository: Path, models: Mapping[str, Path], trash: Path) -> None:
    """Move finished model folders into ``repository``; damaged ones of the same name go to ``trash``."""
    for name, folder in models.items():
        if (repository / name).exists():
            flush_folder(folder)  # first, so that nothing happens between the two renames
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
    write_config_file(folder / CONFIG_FILE, config)
    if folder != published:
        publish_folder(folder, published)


def _beside(repository: Path) -> Path:
    """The path beside which staging folders are created: inside ``repository`` if that is a mounted volume."""
    parent = repository.parent
    same_volume = parent.stat().st_dev == repository.stat().st_dev
    return repository if same_volume else repository / repository.name


def _remove_stale_files(repository: Path) -> None:
    """Delete incomplete files of killed processes; the caller holds the lock."""
    remove_stale(_beside(repository).parent)
    for stale in (repository / tensors.ENSEMBLE).glob(".*.partial"):  # `serving reload` writes there too
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()


def _not_writable(repository: Path, reason: str) -> RepositoryError:
    return RepositoryError(
        f"{repository} cannot be written ({reason}): change its permissions, or choose another folder with --repository"
    )
