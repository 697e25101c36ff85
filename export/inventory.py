"""The commands ``--list``, ``--check`` and ``--prune`` on a model repository."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import publish, repository
from export.parity import PARITY_FILE
from export.publish import ExportError, check_contract, labels, model_names
from export.targets import GRAPH_KINDS
from serving.cache_folder import remove_cached
from serving.repository import (
    CONFIG_FILE,
    ENCODERS_KEY,
    IMMUTABLE_MODEL,
    MADE_FROM_FILE,
    VERSION,
    RepositoryError,
    ensemble_config,
    read_config,
    read_object,
)
from serving.repository import steps as model_steps
from training.run import Run
from vizwiz_client.contract import tensors

_PREFIXES = {
    tensors.IMAGE_ENCODER_PREFIX: "image encoder",
    tensors.TEXT_ENCODER_PREFIX: "text encoder",
    tensors.HEAD_PREFIX: "head",
}
_EXPORT = "`python -m export.to_onnx`"
_MIB = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One model of a repository."""

    name: str
    kind: str  # "ensemble", "image encoder", "text encoder", "head"; "other": not written by export
    bytes: int
    referenced: bool  # by the ensemble
    steps: list[str]  # the models that the ensemble references; empty for other models
    made_from: dict[str, Any]  # content of its made_from.json; empty where there is none
    parity_verified: bool | None  # of a head: whether parity was computed in the precision that its graphs request


def list_models(folder: Path) -> list[Entry]:
    """List the models of the repository ``folder``, the ensemble first.

    Raises:
        RepositoryError: there is no such folder, or the ensemble's configuration cannot be read.
    """
    if not folder.is_dir():
        raise _missing(folder)
    ensemble = folder / tensors.ENSEMBLE
    steps = model_steps(read_config(ensemble)) if (ensemble / CONFIG_FILE).exists() else []
    entries = [
        _entry(path, steps) for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")
    ]
    return sorted(entries, key=lambda entry: (entry.kind != "ensemble", entry.name))


def check_repository(folder: Path, run: Run | None) -> list[str]:
    """Check that the repository is complete and unaltered, and serves ``run``.

    Args:
        folder: the model repository.
        run: the run that it should serve; None checks the repository alone.

    Returns:
        Problems, each with its remedy; empty when there are none.
    """
    try:
        config = read_config(folder / tensors.ENSEMBLE)
    except RepositoryError as error:
        return [f"{error}: nothing can be served; publish with {_EXPORT}"]
    steps = model_steps(config)
    problems = [
        f"{problem}; publish it again with {_EXPORT}"
        for name in steps
        for problem in repository.verify_digests(folder / name)
    ]
    if not (version_folder := folder / tensors.ENSEMBLE / VERSION).is_dir():
        problems.append(
            f"{version_folder} is missing: Triton loads no ensemble without a version folder, even an empty one, and "
            f"some ways of copying drop empty folders; publish with {_EXPORT}"
        )
    version = config.parameters[tensors.CONTRACT_VERSION_PARAMETER].string_value
    if version != str(tensors.CONTRACT_VERSION):
        problems.append(
            f"{tensors.ENSEMBLE} has contract version {version or 'none'}, this version's clients speak "
            f"{tensors.CONTRACT_VERSION}; publish with {_EXPORT}"
        )
    return problems + (_differences_from(run, folder, config, steps) if run else [])


def prune(folder: Path) -> list[Entry]:
    """Remove the exported models that the ensemble does not reference, and what the embedded server caches of them.

    Waits for a running export. Leaves other folders alone. A server that has loaded a removed model keeps it in
    memory.

    Args:
        folder: the model repository.

    Returns:
        The removed models.

    Raises:
        RepositoryError: there is no ensemble, or ``folder`` cannot be written.
    """
    if not folder.is_dir():  # the lock would create it
        raise _missing(folder)
    folder = folder.resolve()
    with repository.lock(folder), repository.staging_folder(folder) as trash:
        entries = list_models(folder)
        if not any(entry.kind == "ensemble" for entry in entries):
            raise RepositoryError(
                f"{folder} has no ensemble, so every model would be removed: publish one with {_EXPORT}, or "
                "delete the folder yourself"
            )
        unused = [entry for entry in entries if entry.kind in _PREFIXES.values() and not entry.referenced]
        for entry in unused:
            (folder / entry.name).replace(trash / entry.name)  # atomic; deleting file by file may be interrupted
    remove_cached(entry.name for entry in unused)
    return unused


def describe(entries: list[Entry]) -> str:
    """The list of models as a table."""
    lines = []
    for entry in entries:
        if entry.kind == "ensemble":
            note = "= " + " + ".join(entry.steps)
        elif entry.kind == "other":
            note = "not written by export"
        else:
            made_from = {key: value for key, value in entry.made_from.items() if key != ENCODERS_KEY}
            origin = ", ".join(f"{key} {_short(value)}" for key, value in made_from.items())
            note = f"{'in use' if entry.referenced else 'not in use'}; {origin or '?'}"
            if entry.parity_verified is False:
                note += f"; parity not verified for {entry.made_from.get('target', '?')}: see {PARITY_FILE}"
        lines.append(f"{entry.name:<26}{entry.kind:<15}{entry.bytes / _MIB:>9.1f} MiB  {note}")
    return "\n".join(lines) or f"no models: publish with {_EXPORT}"


def _entry(path: Path, steps: list[str]) -> Entry:
    exported = IMMUTABLE_MODEL.fullmatch(path.name) if not path.is_symlink() else None
    is_ensemble = path.name == tensors.ENSEMBLE and bool(steps)
    kind = "ensemble" if is_ensemble else _PREFIXES[exported[1]] if exported else "other"
    report = read_object(path / PARITY_FILE) if kind == "head" else {}
    return Entry(
        name=path.name,
        kind=kind,
        bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        referenced=path.name in steps,
        steps=steps if is_ensemble else [],
        made_from=read_object(path / MADE_FROM_FILE),
        parity_verified=report.get("passed") is True if report else None,
    )


def _differences_from(run: Run, folder: Path, config: Any, steps: list[str]) -> list[str]:
    """Differences between the ensemble and what ``run`` would publish, in any kind of graph."""
    try:
        check_contract(run)
    except ExportError as error:
        return [str(error)]
    publish_again = f"`python -m export.to_onnx --run {run.folder}`"
    by_kind = (model_names(run, kind) for kind in GRAPH_KINDS)
    names = next((names for names in by_kind if names.head in steps), None)
    if names is None:
        heads = (step for step in steps if step.startswith(tensors.HEAD_PREFIX))
        origin = next((read_object(folder / head / MADE_FROM_FILE) for head in heads), {})
        if origin.get("run_sha256") == run.digest:
            return [
                f"{tensors.ENSEMBLE} serves {run.folder.name} in export format {origin.get('export_format')}, this "
                f"version writes {publish.EXPORT_FORMAT}: publish it again with {publish_again}"
            ]
        return [
            f"{tensors.ENSEMBLE} serves the run {origin.get('run', '?')}, not {run.folder.name}: publish that with "
            f"{publish_again}, or name the run that it should serve with --run"
        ]
    problems = []
    try:
        expected_config = ensemble_config(folder, names.head)
    except RepositoryError as error:
        return [f"{error}; publish it again with {publish_again}"]
    if config != expected_config:
        problems.append(
            f"{folder / tensors.ENSEMBLE / CONFIG_FILE} is not what export writes for {run.folder.name} "
            f"({' + '.join(names.all)}); publish it again with {publish_again}"
        )
    for spec, expected in labels(run).items():
        path = folder / names.head / f"{spec.name}.txt"
        if path.is_file() and path.read_bytes() != repository.label_file(expected):
            problems.append(f"{path} is not the list of {run.folder.name}; publish it again with {publish_again}")
    return problems


def _short(value: object) -> str:
    text = str(value)
    return text[: tensors.DIGEST_LENGTH] if re.fullmatch("[0-9a-f]{64}", text) else text


def _missing(folder: Path) -> RepositoryError:
    return RepositoryError(f"{folder} is not a folder: publish a model repository with {_EXPORT}")
