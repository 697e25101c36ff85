"""What lies in a model repository: published whole or not at all, by one process at a time.

Replacing the configuration of ``vizwiz_vqa`` is the commit point of a publication: it comes last, so whoever finds a
model named there finds everything else of its publication in place.
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

from export.repository import CONFIG_FILE, GRAPH_FILE, PYTHON_FILE, VERSION, write_config
from training.artifacts import file_digest, flush_folder, publish_folder, remove_abandoned, workspace
from vizwiz_client.contract import tensors

MADE_FROM_FILE = "made_from.json"

_GIB = 1 << 30


class RepositoryError(Exception):
    """A model repository that cannot be written or read as asked."""


@contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Let one process at a time change ``repository``, which is made when it is not there.

    What killed processes left half-written in it or beside it is removed.

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
        _remove_litter(repository)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """Yield an empty folder, gone afterwards, from which folders can be renamed into the locked ``repository``."""
    with workspace(_beside(repository)) as folder:
        yield folder


def check_room(repository: Path, needed: int) -> None:
    """Check that ``needed`` bytes fit beside ``repository``.

    Raises:
        RepositoryError: they do not.
    """
    free = shutil.disk_usage(repository).free
    if free < needed:
        raise RepositoryError(
            f"{repository} has room for {free / _GIB:.2f} GiB, the export needs about {needed / _GIB:.2f}: make room, "
            "with --prune for example, or name another place with --repository"
        )


def seal(folder: Path, config: Any) -> None:
    """Finish the model in ``folder``: write its configuration, which states the digest of every file in it."""
    stated = _stated(folder, config).values()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in stated:
            key = tensors.FILE_DIGEST_PARAMETER + str(path.relative_to(folder))
            config.parameters[key].string_value = file_digest(path)
    write_config(folder / CONFIG_FILE, config)


def problems(folder: Path) -> list[str]:
    """What is wrong with the model in ``folder``: files that are missing or are not those it was published with."""
    try:
        config = read_config(folder)
    except RepositoryError as error:
        return [str(error)]
    if tensors.MODEL_DIGEST_PARAMETER not in config.parameters:
        return [f"{folder / CONFIG_FILE} states no digest of its graph"]
    found = []
    for key, path in _stated(folder, config).items():
        if not path.is_file():
            found.append(f"{path} is missing")
        elif config.parameters[key].string_value != file_digest(path):
            found.append(f"{path} was altered: its digest is not the one in {CONFIG_FILE}")
    return found


def is_published(repository: Path, name: str) -> bool:
    """Whether ``repository`` holds this model whole and unaltered."""
    return not problems(repository / name)


def read_config(folder: Path) -> Any:
    """Parse the configuration of the model in ``folder``.

    Raises:
        RepositoryError: it is missing, or is not a configuration.
    """
    path = folder / CONFIG_FILE
    try:
        text = path.read_text(encoding="utf-8")
        return text_format.Parse(
            text, pb.ModelConfig(), allow_unknown_field=True
        )  # of a newer Triton, in others' models
    except (FileNotFoundError, NotADirectoryError):
        raise RepositoryError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise RepositoryError(f"{path} cannot be read ({error})") from None


def publish(repository: Path, models: Mapping[str, Path], trash: Path) -> None:
    """Move finished models into ``repository``; a damaged one of the same name goes into ``trash``."""
    for name, folder in models.items():
        if (repository / name).exists():
            flush_folder(folder)  # before, so that nothing lies between the two renames
            (repository / name).replace(trash / f"{name}.damaged")
        publish_folder(folder, repository / name)


def commit(repository: Path, configs: Sequence[Any]) -> None:
    """Make the models that the ensembles' ``configs`` name the ones that answer, one ensemble after the other."""
    for config in configs:
        folder = repository / config.name
        version = folder / VERSION  # Triton wants one, though an ensemble has no files
        version.mkdir(parents=True, exist_ok=True)
        if not (version / ".keep").exists():
            (version / ".keep").touch()  # git, archives and object stores drop empty folders
        write_config(folder / CONFIG_FILE, config)


def _stated(folder: Path, config: Any) -> dict[str, Path]:
    """The parameters of ``config`` that state digests, each with its file."""
    files = {}
    for key in config.parameters:
        if key == tensors.MODEL_DIGEST_PARAMETER:
            files[key] = folder / VERSION / (PYTHON_FILE if config.backend == "python" else GRAPH_FILE)
        for prefix in (tensors.LABELS_DIGEST_PARAMETER, tensors.FILE_DIGEST_PARAMETER):
            if key.startswith(prefix):
                files[key] = folder / key.removeprefix(prefix)
    return files


def _beside(repository: Path) -> Path:
    """What the staging folder lies beside: the repository, or its content where that is a volume of its own."""
    parent = repository.parent
    same_volume = parent.stat().st_dev == repository.stat().st_dev
    return repository if same_volume else repository / repository.name


def _remove_litter(repository: Path) -> None:
    """Delete what killed processes left half-written; the caller holds the lock of ``repository``."""
    remove_abandoned(_beside(repository).parent)
    for name in tensors.ENSEMBLES:  # a reload writes there too, under the same lock
        for leftover in (repository / name).glob(".*.partial"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _not_writable(repository: Path, reason: str) -> RepositoryError:
    return RepositoryError(
        f"{repository} cannot be written ({reason}): name a folder that can be, with --repository, or change its rights"
    )
