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
from dataclasses import dataclass
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
        try:
            if not path.is_file():
                found.append(f"{path} is missing")
            elif digests != {_sha256(path)}:
                found.append(f"{path} is damaged or replaced: its SHA-256 differs from the recorded one")
        except OSError as error:
            found.append(f"{path} cannot be read ({error.strerror})")
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
    config, clips = read_config(repository / head), _clips(repository, head)
    ensemble = pb.ModelConfig(name=tensors.ENSEMBLE, platform="ensemble", max_batch_size=tensors.MAX_BATCH_SIZE)
    for image in dict.fromkeys(clip.image for clip in clips):
        ensemble.input.add(name=image.name, data_type=pb.TYPE_UINT8, dims=(image.image_size, image.image_size, 3))
    tokens = read_config(repository / clips[0].text_encoder).input[0]
    ensemble.input.add(name=tensors.TOKENS.name, data_type=tokens.data_type, dims=tokens.dims)
    shapes = {spec.name: spec.shape for spec in (*tensors.HEAD_OUTPUTS, *tensors.OPTIONAL_OUTPUTS)}
    for tensor in config.output:
        ensemble.output.add(name=tensor.name, data_type=tensor.data_type, dims=shapes[tensor.name])
    for clip in clips:
        _add_step(
            ensemble,
            clip.image_encoder,
            {tensors.IMAGE.name: clip.image.name},
            {tensors.IMAGE_FEATURES.name: clip.image_features},
        )
        _add_step(
            ensemble,
            clip.text_encoder,
            {tensors.TOKENS.name: tensors.TOKENS.name},
            {tensors.TEXT_FEATURES.name: clip.text_features},
        )
    features, outputs = [tensor.name for tensor in config.input], [tensor.name for tensor in config.output]
    _add_step(ensemble, head, dict(zip(features, features, strict=True)), dict(zip(outputs, outputs, strict=True)))
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


@dataclass(frozen=True)
class _Clip:
    """The encoders of one CLIP of a head, and the ensemble's tensors that they read and write."""

    image_encoder: str
    text_encoder: str
    image: tensors.ImageInput
    image_features: str
    text_features: str


def _clips(repository: Path, head: str) -> list[_Clip]:
    """The CLIPs that ``head`` was fitted on. Raises RepositoryError."""
    encoders = _encoders(repository, head)
    preprocessing = []  # image size, and whether photos are squashed to it
    for image, _ in encoders:
        config = read_config(repository / image)
        squash = config.parameters[tensors.RESIZE_PARAMETER].string_value == tensors.SQUASH
        preprocessing.append((int(config.input[0].dims[0]), squash))
    inputs = {(each.image_size, each.squash): each for each in tensors.image_inputs(preprocessing)}
    names = (
        [spec.name for spec in tensors.of_each_clip(each, len(encoders))]
        for each in (tensors.IMAGE_FEATURES, tensors.TEXT_FEATURES)
    )
    return [
        _Clip(image, text, inputs[key], *features)
        for (image, text), key, *features in zip(encoders, preprocessing, *names, strict=True)
    ]


def _add_step(ensemble: Any, model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Add a model; its inputs and outputs are mapped to tensors of the ensemble."""
    step = ensemble.ensemble_scheduling.step.add(model_name=model, model_version=-1)
    step.input_map.update(inputs)
    step.output_map.update(outputs)


def _encoders(repository: Path, head: str) -> list[tuple[str, str]]:
    """Names of the image and the text encoder of each CLIP that ``head`` was fitted on."""
    path = repository / head / MADE_FROM_FILE
    if not (made_from := read_object(path)):
        raise RepositoryError(f"{path} is missing or damaged: export the run of {head} again")
    try:
        pairs = [(str(image), str(text)) for image, text in made_from[ENCODERS_KEY]]
    except (KeyError, TypeError, ValueError):
        raise RepositoryError(
            f"{path} does not name the encoders that {head} was fitted on: export its run again"
        ) from None
    for name in (name for pair in pairs for name in pair):
        if not (repository / name / CONFIG_FILE).is_file():
            raise RepositoryError(
                f"the encoder {name} that {head} was fitted on is no longer in {repository}: export its run again"
            )
    return pairs
