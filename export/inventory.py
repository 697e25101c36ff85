"""What is in a model repository, whether it is what a run would publish, and what no ensemble names any more."""

from __future__ import annotations

import json
import re
from dataclasses import astuple, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from export import publication, repository, store
from export.publication import ExportError, check_contract, model_names, sizes
from export.store import RepositoryError
from export.targets import TARGETS
from training.artifacts import file_digest
from training.run import ANSWERS_FILE, Run
from vizwiz_client.contract import tensors

_PREFIXES = {
    tensors.PREPROCESS_PREFIX: "preprocess",
    tensors.IMAGE_ENCODER_PREFIX: "image encoder",
    tensors.TEXT_ENCODER_PREFIX: "text encoder",
    tensors.HEAD_PREFIX: "head",
}
_OURS = re.compile(rf"({'|'.join(_PREFIXES)})[0-9a-f]{{{tensors.DIGEST_LENGTH}}}")
_EXPORT = "`python -m export.to_onnx`"
_MIB = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One model of a repository."""

    name: str
    kind: str  # "ensemble", "preprocess", "image encoder", "text encoder", "head"; "other": not written by export
    bytes: int
    named_by: list[str]  # the ensembles whose steps name it
    steps: list[str]  # of an ensemble
    made_from: dict[str, Any]  # as its own file says; empty where there is none


def inventory(folder: Path) -> list[Entry]:
    """The models in the repository ``folder``, ensembles first.

    Raises:
        RepositoryError: there is no such folder, or the configuration of an ensemble cannot be read.
    """
    ensembles = _ensembles(folder)
    entries = [_entry(path, ensembles) for path in sorted(folder.iterdir()) if _is_model(path)]
    return sorted(entries, key=lambda entry: (entry.kind != "ensemble", entry.name))


def check_repository(folder: Path, run: Run | None) -> list[str]:
    """What is wrong with the repository ``folder``: each problem with its remedy; empty when all is well.

    Args:
        run: what it should serve; None checks the repository alone.
    """
    try:
        configs = {name: store.read_config(folder / name) for name in tensors.ENSEMBLES}
    except RepositoryError as error:
        return [f"{error}: nothing can be served; publish with {_EXPORT}"]
    steps = {name: [step.model_name for step in config.ensemble_scheduling.step] for name, config in configs.items()}
    found = [
        f"{problem}; publish it again with {_EXPORT}"
        for name in dict.fromkeys(chain(*steps.values()))
        for problem in store.problems(folder / name)
    ]
    for ensemble, config in configs.items():
        if not (folder / ensemble / repository.VERSION).is_dir():
            found.append(
                f"{folder / ensemble / repository.VERSION} is missing, though empty: Triton loads no ensemble without "
                f"a version (some ways of copying drop empty folders); publish with {_EXPORT}"
            )
        version = config.parameters[tensors.CONTRACT_VERSION_PARAMETER].string_value
        if version != str(tensors.CONTRACT_VERSION):
            found.append(
                f"{ensemble} is of contract version {version or 'none'}, this version's clients speak "
                f"{tensors.CONTRACT_VERSION}; publish with {_EXPORT}"
            )
    if not {*steps[tensors.ENSEMBLE]} <= {*steps[tensors.RAW_ENSEMBLE]}:
        found.append(
            f"{tensors.RAW_ENSEMBLE} answers with other models than {tensors.ENSEMBLE}: a publication was interrupted "
            f"just before its end; publish again with {_EXPORT}"
        )
    return found + (_differences(folder, configs, steps[tensors.ENSEMBLE], run) if run else [])


def prune(folder: Path) -> list[Entry]:
    """Remove the models that no ensemble names from the repository ``folder``; returns what went.

    An export at the same time ends first. What export did not write is left alone. A server that has loaded a removed
    model goes on answering with it.

    Raises:
        RepositoryError: no ensemble says what is needed, or ``folder`` cannot be written.
    """
    if not folder.is_dir():  # locking would make it
        raise _missing(folder)
    folder = folder.resolve()
    with store.locked(folder), store.staging(folder) as trash:
        entries = inventory(folder)
        if not any(entry.kind == "ensemble" for entry in entries):
            raise RepositoryError(
                f"{folder} has no ensemble, so nothing says which models are needed: publish one with {_EXPORT}, or "
                "delete the folder by hand"
            )
        unnamed = [entry for entry in entries if entry.kind in _PREFIXES.values() and not entry.named_by]
        for entry in unnamed:
            (folder / entry.name).replace(trash / entry.name)  # at once; deleting it file by file may be interrupted
    return unnamed


def describe(entries: list[Entry]) -> str:
    """The inventory as a table for people."""
    lines = []
    for entry in entries:
        if entry.kind == "ensemble":
            note = "= " + " + ".join(entry.steps)
        elif entry.kind == "other":
            note = "not written by export"
        else:
            origin = ", ".join(f"{key} {_short(value)}" for key, value in entry.made_from.items())
            note = f"{'named by ' + ', '.join(entry.named_by) if entry.named_by else 'not in use'}; {origin or '?'}"
        lines.append(f"{entry.name:<26}{entry.kind:<15}{entry.bytes / _MIB:>9.1f} MiB  {note}")
    return "\n".join(lines) or "no models: publish with `python -m export.to_onnx`"


def _ensembles(folder: Path) -> dict[str, list[str]]:
    """Each ensemble's name with the models of its steps."""
    if not folder.is_dir():
        raise _missing(folder)
    ensembles = {}
    for path in sorted(folder.glob(f"[!.]*/{repository.CONFIG_FILE}")):
        if not _OURS.fullmatch(path.parent.name):
            config = store.read_config(path.parent)
            if config.HasField("ensemble_scheduling"):
                ensembles[path.parent.name] = [step.model_name for step in config.ensemble_scheduling.step]
    return ensembles


def _entry(path: Path, ensembles: dict[str, list[str]]) -> Entry:
    ours = _OURS.fullmatch(path.name) if not path.is_symlink() else None
    return Entry(
        name=path.name,
        kind="ensemble" if path.name in ensembles else _PREFIXES[ours[1]] if ours else "other",
        bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        named_by=[name for name, steps in ensembles.items() if path.name in steps],
        steps=ensembles.get(path.name, []),
        made_from=_made_from(path),
    )


def _is_model(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _made_from(folder: Path) -> dict[str, Any]:
    try:
        made_from = json.loads((folder / store.MADE_FROM_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return made_from if isinstance(made_from, dict) else {}


def _differences(folder: Path, configs: dict[str, Any], steps: list[str], run: Run) -> list[str]:
    """How what the ensembles name differs from what ``run`` would publish, for whichever target it was exported."""
    try:
        check_contract(run)
    except ExportError as error:
        return [str(error)]
    by_target = {target: model_names(run, target) for target in TARGETS}
    names = next((names for names in by_target.values() if names.head in steps), None)
    if names is None:
        head = next((_made_from(folder / step) for step in steps if step.startswith(tensors.HEAD_PREFIX)), {})
        if head.get("run_sha256") == run.digest:
            return [
                f"{tensors.ENSEMBLE} serves {run.folder.name} as export format {head.get('export_format')}, this "
                f"version writes {publication.EXPORT_FORMAT}: publish it again with {_export(run)}"
            ]
        return [
            f"{tensors.ENSEMBLE} serves the run {head.get('run', '?')}, not {run.folder.name}: publish that with "
            f"{_export(run)}, or name the run that it should serve with --run"
        ]
    found = [
        f"{folder / expected.name / repository.CONFIG_FILE} is not what export writes for {run.folder.name} "
        f"({' + '.join(astuple(names))}); publish it again with {_export(run)}"
        for expected in repository.ensemble_configs(names, sizes(run))
        if configs[expected.name] != expected
    ]
    labels = folder / names.head / f"{tensors.ANSWER.name}.txt"
    if labels.is_file() and file_digest(labels) != run.config["files"][ANSWERS_FILE]:
        found.append(f"{labels} is not the answer list of {run.folder.name}; publish it again with {_export(run)}")
    return found


def _short(value: object) -> str:
    text = str(value)
    return text[: tensors.DIGEST_LENGTH] if re.fullmatch("[0-9a-f]{64}", text) else text


def _missing(folder: Path) -> RepositoryError:
    return RepositoryError(f"{folder} is not a folder: publish a model repository with {_EXPORT}")


def _export(run: Run) -> str:
    return f"`python -m export.to_onnx --run {run.folder}`"
