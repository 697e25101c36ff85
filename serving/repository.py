"""A model repository: its lock, its ensemble, and the digests of its models.

``export`` writes repositories. A rollout to another head changes the configuration of the ensemble alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from serving import ServingError
from vizwiz_client.contract import tensors

DEFAULT_REPOSITORY = Path("triton_models")
CONFIG_FILE = "config.pbtxt"
GRAPH_FILE = "model.onnx"
VERSION = "1"  # the only one: models are immutable
DIGESTS_FILE = "SHA256SUMS"  # of a model's files but config.pbtxt, which may be tuned; `sha256sum --check` reads it
MADE_FROM_FILE = "made_from.json"  # of an immutable model; a head's holds all keys of its encoders'
IMMUTABLE_MODEL = re.compile(
    f"({tensors.IMAGE_ENCODER_PREFIX}|{tensors.TEXT_ENCODER_PREFIX}|{tensors.HEAD_PREFIX})[0-9a-f]{{12}}"
)


class RepositoryError(ServingError):
    """A model repository that cannot be read or written."""


def check_repository(repository: Path) -> None:
    """Check that ``repository`` has the ensemble that clients ask.

    Raises:
        RepositoryError: the folder or the ensemble is missing.
    """
    if (repository / tensors.ENSEMBLE / CONFIG_FILE).is_file():
        return
    got = "does not exist" if not repository.exists() else f"has no model {tensors.ENSEMBLE}"
    raise RepositoryError(
        f"the model repository {repository} {got}: publish one with `python -m export.to_onnx`, or name another with "
        "--repository"
    )


def read_ensemble(repository: Path) -> Any:
    """Configuration of the ensemble that clients ask: one image encoder, one text encoder and one head.

    Raises:
        RepositoryError: it is missing, cannot be parsed, or lacks one of these models.
    """
    remedy = "publish one with `python -m export.to_onnx`, or name another repository with --repository"
    try:
        config = read_config(repository / tensors.ENSEMBLE)
    except RepositoryError as error:
        raise RepositoryError(f"{error}: {remedy}") from None
    for prefix in (tensors.IMAGE_ENCODER_PREFIX, tensors.TEXT_ENCODER_PREFIX, tensors.HEAD_PREFIX):
        if sum(name.startswith(prefix) for name in steps(config)) != 1:
            raise RepositoryError(
                f"{repository / tensors.ENSEMBLE} references {', '.join(steps(config)) or 'no models'}, expected one "
                f"{prefix}<digest>: {remedy}"
            )
    return config


def steps(ensemble: Any) -> list[str]:
    """The models that the configuration of an ensemble references."""
    return [step.model_name for step in ensemble.ensemble_scheduling.step]


def step_of(ensemble: Any, prefix: str) -> str:
    """The model with this ``prefix`` that the configuration of an ensemble references."""
    return next(name for name in steps(ensemble) if name.startswith(prefix))


def read_config(folder: Path) -> Any:
    """Parse the configuration of the model in ``folder``.

    Raises:
        RepositoryError: it is missing, or cannot be parsed.
    """
    path = folder / CONFIG_FILE
    try:
        # drops the fields that only a newer Triton knows; of what is read, only the ensemble is written back
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig(), allow_unknown_field=True)
    except (FileNotFoundError, NotADirectoryError):
        raise RepositoryError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise RepositoryError(f"{path} cannot be read ({error})") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def verify_digests(folder: Path) -> list[str]:
    """Verify the SHA-256 of the files of the model in ``folder`` against its configuration and its ``SHA256SUMS``.

    Returns:
        One message per file that is missing, differs or cannot be read.
    """
    try:
        recorded = _recorded_digests(folder)
    except RepositoryError as error:
        return [str(error)]
    found = []
    for path, digests in sorted(recorded.items()):
        if not path.is_file():
            found.append(f"{path} is missing")
        elif digests != {_sha256(path)}:
            found.append(f"{path} is damaged or replaced: its SHA-256 differs from the recorded one")
    return found


def _recorded_digests(folder: Path) -> dict[Path, set[str]]:
    """The SHA-256 of the files of the model in ``folder``: in its configuration (graph, labels) and ``SHA256SUMS``."""
    config = read_config(folder)
    recorded: dict[Path, set[str]] = {}
    for key, value in config.parameters.items():
        if key == tensors.MODEL_DIGEST_PARAMETER:
            path = folder / VERSION / GRAPH_FILE
        elif key.startswith(tensors.LABELS_DIGEST_PARAMETER):
            path = folder / key.removeprefix(tensors.LABELS_DIGEST_PARAMETER)
        else:
            continue
        recorded[path] = {value.string_value}
    sums = folder / DIGESTS_FILE
    try:
        lines = sums.read_text(encoding="utf-8").splitlines() if sums.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{sums} cannot be read ({error})") from None
    for digest, _, name in (line.partition("  ") for line in lines):
        recorded.setdefault(folder / name, set()).add(digest)
    return recorded


def find_head(repository: Path, wanted: str) -> str:
    """The name of the head in ``repository`` whose name is ``wanted``, or whose digest begins with it.

    Raises:
        RepositoryError: none matches, or more than one.
    """
    heads = sorted(path.parent.name for path in repository.glob(f"{tensors.HEAD_PREFIX}*/{CONFIG_FILE}"))
    found = [head for head in heads if head.startswith(tensors.HEAD_PREFIX + wanted.removeprefix(tensors.HEAD_PREFIX))]
    if len(found) != 1:
        raise RepositoryError(
            f"{len(found) or 'no'} heads in {repository} have a digest that begins with {wanted!r}: there are "
            f"{', '.join(head.removeprefix(tensors.HEAD_PREFIX) for head in heads) or 'none'}"
        )
    return found[0]


def with_head(repository: Path, ensemble: Any, head: str) -> Any:
    """Configuration of an ``ensemble`` with ``head`` and the encoders that it was fitted on.

    Raises:
        RepositoryError: those encoders are no longer in ``repository``.
    """
    changed = pb.ModelConfig()
    changed.CopyFrom(ensemble)
    for step in changed.ensemble_scheduling.step:
        step.model_name = _replacement(repository, step.model_name, head)
    _copy_dims(repository, changed)
    config = read_config(repository / head)
    _copy_optional_outputs(config, changed)
    _copy_parameters(config, changed)
    return changed


def write_config(folder: Path, config: Any) -> None:
    """Replace the configuration of the model in ``folder`` atomically.

    The caller holds the repository's lock, so no other process writes to the staging file.
    """
    path = folder / CONFIG_FILE
    staging = path.with_name(f".{path.name}.partial")
    try:
        with staging.open("w", encoding="utf-8") as file:
            file.write(text_format.MessageToString(config))
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(repository: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock (flock) of ``repository``, which exports, prunings and rollouts take.

    Args:
        repository: the folder to lock.
        report: called when another process holds the lock.
    """
    descriptor = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another export, pruning or rollout of {repository} to end")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _replacement(repository: Path, name: str, head: str) -> str:
    """The model that replaces ``name`` in an ensemble whose head becomes ``head``."""
    if name.startswith(tensors.HEAD_PREFIX):
        return head
    for prefix in (tensors.IMAGE_ENCODER_PREFIX, tensors.TEXT_ENCODER_PREFIX):
        if name.startswith(prefix):
            return _encoder(repository, prefix, name, head)
    return name


def _encoder(repository: Path, prefix: str, current: str, head: str) -> str:
    """The encoder that ``head`` was fitted on; the current one if the repository does not record it."""
    wanted = read_object(repository / head / MADE_FROM_FILE)
    candidates = [repository / current, *sorted(repository.glob(f"{prefix}*"))]
    for candidate in candidates:
        record = read_object(candidate / MADE_FROM_FILE)
        if record and record.items() <= wanted.items():
            return candidate.name
    if not read_object(repository / current / MADE_FROM_FILE):
        return current
    raise RepositoryError(
        f"the encoder {prefix}... that {head} was fitted on is no longer in {repository}: export its run again"
    )


def _copy_optional_outputs(head: Any, ensemble: Any) -> None:
    """Give ``ensemble`` those optional outputs that the configuration of its ``head`` has, and no others."""
    step = next(step for step in ensemble.ensemble_scheduling.step if step.model_name.startswith(tensors.HEAD_PREFIX))
    in_head = {tensor.name: tensor for tensor in head.output}
    for spec in tensors.OPTIONAL_OUTPUTS:
        step.output_map.pop(spec.name, None)
        for tensor in [tensor for tensor in ensemble.output if tensor.name == spec.name]:
            ensemble.output.remove(tensor)
        if spec.name in in_head:
            step.output_map[spec.name] = spec.name
            ensemble.output.add(name=spec.name, data_type=in_head[spec.name].data_type, dims=spec.shape)


def _copy_parameters(head: Any, ensemble: Any) -> None:
    """Give ``ensemble`` what the configuration of its ``head`` says about the fit, and nothing of another head."""
    for name in (tensors.DEMO_PARAMETER, tensors.WORDING_PARAMETER):
        ensemble.parameters.pop(name, None)
        if name in head.parameters:
            ensemble.parameters[name].CopyFrom(head.parameters[name])


def _copy_dims(repository: Path, ensemble: Any) -> None:
    """Set the dimensions of each input of ``ensemble`` to those of the model that takes it."""
    for step in ensemble.ensemble_scheduling.step:
        inputs = {tensor.name: tensor for tensor in read_config(repository / step.model_name).input}
        for name, key in step.input_map.items():
            for tensor in ensemble.input:
                if tensor.name == key and name in inputs:
                    tensor.dims[:] = inputs[name].dims
