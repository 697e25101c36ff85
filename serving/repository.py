"""A model repository: its lock, its ensemble, and the digests of its models.

``export`` writes repositories. A rollout to another head changes the configuration of the ensemble alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
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
MADE_FROM_FILE = "made_from.json"  # of an immutable model
ENCODERS_KEY = "encoders"  # in a head's: names of the image and the text encoder of each of its CLIPs
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
    """Configuration of the ensemble that clients ask: one head, and an image and a text encoder of each of its CLIPs.

    Raises:
        RepositoryError: it is missing, cannot be parsed, or lacks one of these models.
    """
    remedy = "publish one with `python -m export.to_onnx`, or name another repository with --repository"
    try:
        config = read_config(repository / tensors.ENSEMBLE)
    except RepositoryError as error:
        raise RepositoryError(f"{error}: {remedy}") from None
    prefixes = (tensors.IMAGE_ENCODER_PREFIX, tensors.TEXT_ENCODER_PREFIX, tensors.HEAD_PREFIX)
    images, texts, heads = (sum(name.startswith(prefix) for name in steps(config)) for prefix in prefixes)
    if heads != 1 or images < 1 or images != texts:
        raise RepositoryError(
            f"{repository / tensors.ENSEMBLE} references {', '.join(steps(config)) or 'no models'}, expected one "
            f"{tensors.HEAD_PREFIX}<digest>, and {' and '.join(f'{prefix}<digest>' for prefix in prefixes[:2])} of "
            f"each of its CLIPs: {remedy}"
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


def ensemble_config(repository: Path, head: str) -> Any:
    """Configuration of the ensemble of ``head`` and the encoders that it was fitted on, built from theirs.

    The lengths of answers and quality issues stay open, so that clients see no change between two heads.

    Raises:
        RepositoryError: the head, or an encoder of it, is missing or cannot be read.
    """
    config = read_config(repository / head)
    encoders = _encoders(repository, head)
    images, texts = ([read_config(repository / names[kind]) for names in encoders] for kind in range(2))
    ensemble = pb.ModelConfig(name=tensors.ENSEMBLE, platform="ensemble", max_batch_size=tensors.MAX_BATCH_SIZE)
    resizings = [_resizing(image) for image in images]
    for resized in tensors.image_inputs(resizings):
        shape = (resized.image_size, resized.image_size, 3)
        ensemble.input.add(name=resized.name, data_type=pb.TYPE_UINT8, dims=shape)
    ensemble.input.add(name=tensors.TOKENS.name, data_type=pb.TYPE_INT32, dims=texts[0].input[0].dims)
    outputs = {spec.name: spec for spec in (*tensors.HEAD_OUTPUTS, *tensors.OPTIONAL_OUTPUTS)}
    for tensor in config.output:
        dims = outputs[tensor.name].shape
        ensemble.output.add(name=tensor.name, data_type=tensor.data_type, dims=dims)

    def add_step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        step = ensemble.ensemble_scheduling.step.add(model_name=model, model_version=-1)
        step.input_map.update(inputs)
        step.output_map.update(outputs)

    image_names = {(each.image_size, each.squash): each.name for each in tensors.image_inputs(resizings)}
    features = [tensors.of_each_clip(spec, len(encoders)) for spec in (tensors.IMAGE_FEATURES, tensors.TEXT_FEATURES)]
    for resizing, (image, text), image_features, text_features in zip(resizings, encoders, *features, strict=True):
        image_input, image_output = {tensors.IMAGE.name: image_names[resizing]}, image_features.name
        add_step(image, image_input, {tensors.IMAGE_FEATURES.name: image_output})
        tokens = {tensors.TOKENS.name: tensors.TOKENS.name}
        add_step(text, tokens, {tensors.TEXT_FEATURES.name: text_features.name})
    names = [spec.name for pair in zip(*features, strict=True) for spec in pair]
    add_step(head, dict(zip(names, names, strict=True)), {tensor.name: tensor.name for tensor in config.output})
    ensemble.parameters[tensors.CONTRACT_VERSION_PARAMETER].string_value = str(tensors.CONTRACT_VERSION)
    for name in (tensors.DEMO_PARAMETER, tensors.WORDING_PARAMETER):  # what the head's says about the fit
        if name in config.parameters:
            ensemble.parameters[name].CopyFrom(config.parameters[name])
    return ensemble


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


def _resizing(image_encoder: Any) -> tuple[int, bool]:
    """Image size in pixels of an image encoder, and whether photos are squashed to it."""
    resize = image_encoder.parameters[tensors.RESIZE_PARAMETER].string_value
    return int(image_encoder.input[0].dims[0]), resize == tensors.SQUASH


def _encoders(repository: Path, head: str) -> list[tuple[str, str]]:
    """Names of the image and the text encoder of each CLIP that ``head`` was fitted on."""
    made_from = read_object(repository / head / MADE_FROM_FILE)
    recorded = made_from.get(ENCODERS_KEY)
    pairs = [tuple(pair) for pair in recorded] if recorded else [_recorded_alike(repository, made_from)]
    for name in (name for pair in pairs for name in pair):
        if not name or not (repository / name / CONFIG_FILE).is_file():
            raise RepositoryError(
                f"the encoder {name or ''} that {head} was fitted on is no longer in {repository}: export its run again"
            )
    return [(image, text) for image, text in pairs]


def _recorded_alike(repository: Path, made_from: Mapping[str, Any]) -> tuple[str, ...]:
    """The encoders of a head that an earlier version exported: all that they were made from is in ``made_from``."""

    def find(prefix: str) -> str:
        records = ((path.name, read_object(path / MADE_FROM_FILE)) for path in sorted(repository.glob(f"{prefix}*")))
        return next((name for name, record in records if record and record.items() <= made_from.items()), "")

    return find(tensors.IMAGE_ENCODER_PREFIX), find(tensors.TEXT_ENCODER_PREFIX)
