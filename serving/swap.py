"""Bring what a repository's ensembles name into a running server, without a failed request or a mixed answer.

Models are immutable, and the new ones are loaded beside the old. Only when the golden request has come through them,
step by step, are the ensembles loaded again, which is when their clients get the new head; the old models go last.
Whatever fails or interrupts the swap before it is done, it is rolled back: the server answers as it did before.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from serving.control import Control
from serving.errors import ServingError
from serving.golden import GoldenRequest, input_tensors, read_golden
from serving.repository import (
    Configs,
    damages,
    ensembles,
    find_head,
    locked,
    models_named,
    read_config,
    steps,
    with_head,
    write_config,
)
from vizwiz_client.contract import tensors

ERROR = "error"  # the output of a model that decodes for its clients: empty when all is well

_IMMUTABLE = re.compile(
    f"({tensors.PREPROCESS_PREFIX}|{tensors.IMAGE_ENCODER_PREFIX}|{tensors.TEXT_ENCODER_PREFIX}|{tensors.HEAD_PREFIX})"
    "[0-9a-f]{12}"
)


@dataclass(frozen=True)
class Swap:
    """What a swap did."""

    ensembles: list[str]  # those that answer
    heads: list[str]  # which of them answers, one or more
    loaded: list[str]
    unloaded: list[str]
    seconds: float


def swap(
    repository: Path,
    url: str,
    key: str | None = None,
    *,
    to: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Swap:
    """Let the Triton at ``url`` answer with what the ensembles of ``repository``, which it serves, name.

    Args:
        url: its gRPC address, host:port.
        key: what its model control asks for (:mod:`serving.admin`).
        to: the digest of a head, or how it begins: the ensembles name that one from now on, in the repository too.
        report: told each step.

    Raises:
        ServingError: the new models are damaged, do not load, or answer the golden request wrongly. The server answers
            with what it answered with before.
    """
    start = time.monotonic()
    with locked(repository, report), Control(url, key) as server:
        before = _ensembles(repository)
        after = with_head(repository, before, find_head(repository, to)) if to else before
        states = server.states()
        served = {name: server.config(name) for name in after if states.get(name) == "READY"}
        loaded: list[str] = []
        touched: list[str] = []
        try:
            _load(server, repository, after, loaded, report)
            _commit(server, repository, before, after, touched, report)
        except BaseException as error:  # Ctrl-C and SIGTERM too
            failed = _roll_back(server, repository, before, served, loaded, touched)
            outcome = f"not all could be undone: {'; '.join(failed)}" if failed else "the server answers as before"
            if not isinstance(error, Exception):
                report(f"interrupted: {outcome}")
                raise
            raise ServingError(_refusal(after, error, touched, outcome)) from error
        stale = _unload_stale(server, served, after, report)
    heads = [name for name in models_named(after) if name.startswith(tensors.HEAD_PREFIX)]
    return Swap(list(after), heads, loaded, stale, time.monotonic() - start)


def _ensembles(repository: Path) -> Configs:
    if not (found := ensembles(repository)):
        raise ServingError(
            f"{repository} has no ensemble with a head: publish one with `python -m export.to_onnx`, or name another "
            "repository with --repository"
        )
    return found


def _load(server: Control, repository: Path, after: Configs, loaded: list[str], report: Callable[[str], None]) -> None:
    """Load what the server lacks and ask it the golden request, before any ensemble is touched; fills ``loaded``."""
    states = server.states()
    new = [name for name in models_named(after) if states.get(name) != "READY"]
    if found := [damage for name in new for damage in damages(repository / name)]:
        raise ServingError("; ".join(found))
    for name in new:
        report(f"loading {name}")
        loaded.append(name)
        server.load(name)
    for config in after.values():
        _probe(server, repository, config)
    report("the golden request is answered as expected")


def _probe(server: Control, repository: Path, ensemble: Any) -> None:
    """Walk through the steps of ``ensemble`` as Triton would, with the golden request of its head."""
    golden = _golden(repository, ensemble)
    values = dict(golden.feed(*_sizes(repository, ensemble)))
    for step in ensemble.ensemble_scheduling.step:
        config = read_config(repository / step.model_name)
        feed = {name: values[key] for name, key in step.input_map.items()}
        if step.model_name == golden.head:
            _check(golden, server.ask(step.model_name, input_tensors(config, feed), golden.outputs()), step.model_name)
            continue
        result = server.ask(step.model_name, input_tensors(config, feed))
        values |= {key: result.as_numpy(name) for name, key in step.output_map.items()}
        if ERROR in step.output_map and (text := result.as_numpy(ERROR).ravel()[0]):
            raise ServingError(f"{step.model_name} refuses the golden request: {text.decode(errors='replace')}")


def _commit(
    server: Control,
    repository: Path,
    before: Configs,
    after: Configs,
    touched: list[str],
    report: Callable[[str], None],
) -> None:
    """Let the ensembles name the new models: in the repository, then in the server; ask each the golden request.

    Fills ``touched`` with the names of the ensembles that may have changed.
    """
    for name, config in after.items():
        if config != before[name]:
            touched.append(name)
            write_config(repository / name, config)
    for name, config in after.items():
        report(f"loading {name}")
        touched.append(name)
        server.load(name)
        golden = _golden(repository, config)
        inputs = input_tensors(config, golden.feed(*_sizes(repository, config)))
        _check(golden, server.ask(name, inputs, golden.outputs()), name)


def _roll_back(
    server: Control,
    repository: Path,
    before: Configs,
    served: Configs,
    loaded: Sequence[str],
    touched: Sequence[str],
) -> list[str]:
    """Undo a swap, each part whatever became of the others; returns what could not be undone."""
    failed = []
    ensembles = list(dict.fromkeys(touched))
    actions: list[Callable[[], None]] = [partial(_restore, repository / name, before[name]) for name in ensembles]
    # as it was served, which may differ from what the repository says
    actions += [partial(server.load, name, served[name]) for name in ensembles if name in served]
    for action in actions:
        try:
            action()
        except Exception as error:
            failed.append(_text(error))
    # an encoder that was loaded again, because it was not ready, is named by an ensemble that answers
    new = [name for name in (*ensembles, *loaded) if name not in served and name not in models_named(served)]
    with suppress(Exception):  # the next swap unloads them
        server.unload(new)
    return failed


def _restore(folder: Path, config: Any) -> None:
    if config != read_config(folder):
        write_config(folder, config)


def _refusal(after: Configs, error: Exception, touched: Sequence[str], outcome: str) -> str:
    """Why a swap was refused, and what to do."""
    if touched:
        return f"{_text(error)}; {outcome}"
    return (
        f"refused {_heads(after)}: {_text(error)}. No ensemble was touched, {outcome}; but the "
        "repository names it, and a server that starts would serve it: publish again with "
        "`python -m export.to_onnx`, or go back with `python -m serving reload --to DIGEST`"
    )


def _text(error: Exception) -> str:
    """The message of ``error``, with its type where that alone would not be understood."""
    return str(error) if isinstance(error, ServingError | OSError) else f"{type(error).__name__}: {error}"


def _unload_stale(server: Control, served: Configs, after: Configs, report: Callable[[str], None]) -> list[str]:
    """Unload what no ensemble names any more; returns the names. The swap is done: a failure is told, not raised."""
    try:
        stale = _stale(server, served, after)
        for name in server.unload(stale):
            report(f"{name} still has requests to answer; it goes with the last of them")
    except BaseException as error:
        cause = _text(error) if isinstance(error, Exception) else "interrupted"
        report(f"the new head answers, but old models are loaded still ({cause}): the next reload unloads them")
        if not isinstance(error, Exception):
            raise
        return []
    return stale


def _stale(server: Control, served: Configs, after: Configs) -> list[str]:
    """The models of the old ensembles, and of swaps that were killed, that no ensemble names any more."""
    ready = [name for name, state in server.states().items() if state == "READY"]
    ours = {*models_named(served), *(name for name in ready if _IMMUTABLE.fullmatch(name))}
    return sorted((ours & {*ready}) - {*models_named(after)})


def _golden(repository: Path, ensemble: Any) -> GoldenRequest:
    return read_golden(repository, next(name for name in steps(ensemble) if name.startswith(tensors.HEAD_PREFIX)))


def _sizes(repository: Path, ensemble: Any) -> tuple[int, int]:
    """S and T of the pictures [S, S, 3] and the tokens [T] that the encoders of ``ensemble`` take; T may be -1: any."""
    sizes = []
    for prefix in (tensors.IMAGE_ENCODER_PREFIX, tensors.TEXT_ENCODER_PREFIX):
        found = [name for name in steps(ensemble) if name.startswith(prefix)]
        if not found:
            raise ServingError(f"{ensemble.name} has no step {prefix}...: publish it with `python -m export.to_onnx`")
        sizes.append(int(read_config(repository / found[0]).input[0].dims[0]))
    return sizes[0], sizes[1]


def _check(golden: GoldenRequest, result: Any, model: str) -> None:
    if found := golden.problems(result):
        raise ServingError(f"{model} answers the golden request wrongly: {'; '.join(found)}")


def _heads(configs: Configs) -> str:
    return ", ".join(name for name in models_named(configs) if name.startswith(tensors.HEAD_PREFIX))
