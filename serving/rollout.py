"""Roll a newly published head out to a running Triton, with no failed request and no mixed answer.

Models are immutable, so the new ones are loaded beside the old. The golden request is sent through them step by step.
Only then is the ensemble reloaded, which is when clients get the new head; the old models are unloaded last. An error
or an interrupt before the reloaded ensemble has answered the golden request rolls everything back.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from tritonclient.grpc import MAX_GRPC_MESSAGE_SIZE, InferenceServerClient
from tritonclient.utils import InferenceServerException

from serving import ServingError
from serving.access import GRPC_HEADER, KEY_VARIABLE, find_server, find_servers
from serving.golden import Feed, GoldenRequest, input_tensors, read_golden
from serving.repository import (
    IMMUTABLE_MODEL,
    ensemble_config,
    find_head,
    locked,
    read_config,
    read_ensemble,
    step_of,
    steps,
    verify_digests,
    write_config,
)
from vizwiz_client.contract.tensors import ENSEMBLE, HEAD_PREFIX, parse_image_input

LOAD_TIMEOUT_S = 600  # a large CLIP's file takes a while to read and optimise
INFER_TIMEOUT_S = 120  # of one request, to a model that has never answered
UNLOAD_TIMEOUT_S = 60  # a model first answers its requests in flight
# They replace tritonclient's own arguments, so its message limits are repeated. A proxy would resolve localhost to its
# own machine.
DIRECT_CHANNEL = [
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.enable_http_proxy", 0),
]

_CALL_TIMEOUT_S = 10
_POLL_INTERVAL_S = 0.1
_RESTRICTED = "This protocol is restricted"  # Triton's message without the admin key


@dataclass(frozen=True)
class Rollout:
    """Result of a rollout."""

    head: str  # which the ensemble references now
    loaded: list[str]  # new models
    unloaded: list[str]  # old models
    seconds: float

    def __str__(self) -> str:
        """Summarise the rollout in one line."""
        changes = (("loaded", self.loaded), ("unloaded", self.unloaded))
        summary = "; ".join(f"{verb} {', '.join(names)}" for verb, names in changes if names) or "nothing was new"
        return f"{ENSEMBLE} serves {self.head}, after {self.seconds:.1f} s: {summary}"


def rollout(
    url: str | None = None,
    repository: Path | None = None,
    *,
    to: str | None = None,
    key: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Rollout:
    """Let a running Triton serve what the ensemble of its repository references now.

    Waits, without limit, until no export or other rollout holds the lock of the repository.

    Args:
        url: gRPC address, ``host:port``; None finds the embedded server of this user on this machine.
        repository: the repository that it serves; None asks the embedded server.
        to: digest of a head, or its first digits: first let the ensemble of the repository reference that head.
        key: admin key; None takes the embedded server's, or the one in the environment variable
            ``VIZWIZ_SERVING_ADMIN_KEY``.
        report: called with each step.

    Returns:
        The head that is served, and what was loaded and unloaded.

    Raises:
        ServingError: the server cannot be found, or the new models are damaged, do not load, or answer the golden
            request wrongly. The server serves as before, unless the message says that the rollback is incomplete.
        OSError: ``repository`` cannot be opened.
    """
    server = find_server(url, repository)
    if server is None and (url is None or repository is None):
        raise ServingError(_describe_servers(url, repository))
    folder = repository or Path(server.repository if server else "")
    key = key or (server.key if server else os.environ.get(KEY_VARIABLE))
    start = time.monotonic()
    with locked(folder, report), Control(url or (server.grpc if server else ""), key) as control:
        before = read_ensemble(folder)
        after = ensemble_config(folder, find_head(folder, to)) if to else before
        served = control.config(ENSEMBLE) if control.states().get(ENSEMBLE) == "READY" else None
        loaded: list[str] = []
        committing = False
        try:
            _load(control, folder, after, loaded, report)
            committing = True
            _commit(control, folder, before, after, report)
        except BaseException as error:  # KeyboardInterrupt too
            failed = _roll_back(control, folder, before, served, loaded, committing=committing)
            outcome = f"the rollback is incomplete: {'; '.join(failed)}" if failed else "the server serves as before"
            if not isinstance(error, Exception):
                report(f"interrupted: {outcome}")
                raise
            raise ServingError(_refusal(after, error, committing, outcome)) from error
        unloaded = _unload_stale(control, after, report)
    return Rollout(step_of(after, HEAD_PREFIX), loaded, unloaded, time.monotonic() - start)


class Control:
    """Model control of a Triton, embedded or not, over gRPC.

    Every method raises ServingError when the server refuses or does not answer in time.

    Args:
        url: gRPC address, ``host:port``.
        key: admin key; None if the server has none.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url
        self._headers = {GRPC_HEADER: key} if key else {}
        self._client = InferenceServerClient(url, channel_args=DIRECT_CHANNEL)

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def states(self) -> dict[str, str]:
        """Model -> "READY", "LOADING", "UNLOADING" or "UNAVAILABLE"; "" if it was never loaded."""
        index = self._call(
            self._client.get_model_repository_index, headers=self._headers, client_timeout=_CALL_TIMEOUT_S
        )
        return {model.name: model.state for model in index.models}

    def load(self, model: str, config: Any = None) -> None:
        """Load ``model``, with the ModelConfig message ``config`` instead of its repository's, if given."""
        text = json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)) if config else None
        self._call(self._client.load_model, model, headers=self._headers, config=text, client_timeout=LOAD_TIMEOUT_S)

    def unload(self, models: Sequence[str]) -> list[str]:
        """Unload ``models``; return those that still answer requests after ``UNLOAD_TIMEOUT_S``."""
        for model in models:
            self._call(self._client.unload_model, model, headers=self._headers, client_timeout=_CALL_TIMEOUT_S)
        deadline = time.monotonic() + UNLOAD_TIMEOUT_S
        remaining = list(models)
        while remaining and time.monotonic() < deadline:
            states = self.states()
            remaining = [model for model in remaining if states.get(model) == "UNLOADING"]
            time.sleep(_POLL_INTERVAL_S if remaining else 0)
        return remaining

    def config(self, model: str) -> Any:
        """ModelConfig message with which the ready ``model`` is served."""
        return self._call(self._client.get_model_config, model, client_timeout=_CALL_TIMEOUT_S).config

    def infer(self, model: str, inputs: Sequence[Any], outputs: Sequence[Any] | None = None) -> Any:
        """Return the answer of ``model`` to ``inputs``, as tritonclient's ``InferResult``."""
        return self._call(self._client.infer, model, inputs, outputs=outputs, client_timeout=INFER_TIMEOUT_S)

    def _call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return method(*arguments, **options)
        except InferenceServerException as error:
            text = error.message().strip()
            if _RESTRICTED in text:
                needed = "another admin key" if self._headers else "an admin key"
                text = f"it needs {needed}: set the environment variable {KEY_VARIABLE}"
            raise ServingError(f"the server at {self._url}: {text}") from error


def _describe_servers(url: str | None, repository: Path | None) -> str:
    """Error message: which servers run here, and how to select one."""
    remedy = "for another Triton, give its gRPC address with --url and the repository that it serves with --repository"
    servers = ", ".join(f"{server.grpc} (serves {server.repository})" for server in find_servers())
    if not servers:
        return f"no embedded server runs here: start `python -m serving`, or, {remedy}"
    if url:
        return f"{url} is not the gRPC address of an embedded server here, which are {servers}; {remedy}"
    if repository and not any(Path(server.repository) == repository.resolve() for server in find_servers()):
        return f"no embedded server here serves {repository}; there are {servers}; {remedy}"
    return f"several embedded servers match: {servers}; select one with --url"


def _load(control: Control, repository: Path, after: Any, loaded: list[str], report: Callable[[str], None]) -> None:
    """Load the models that the server lacks and send the golden request through them; append them to ``loaded``."""
    states = control.states()
    new = [name for name in steps(after) if states.get(name) != "READY"]
    if errors := [error for name in new for error in verify_digests(repository / name)]:
        raise ServingError("; ".join(errors))
    for name in new:
        report(f"loading {name}")
        loaded.append(name)
        control.load(name)
    _infer_steps(control, repository, after)
    report("the golden request passes")


def _infer_steps(control: Control, repository: Path, ensemble: Any) -> None:
    """Send the golden request through the steps of ``ensemble``, one by one, as Triton would."""
    golden, values = _golden(repository, ensemble)
    for step in ensemble.ensemble_scheduling.step:
        config = read_config(repository / step.model_name)
        inputs = input_tensors(config, {name: values[key] for name, key in step.input_map.items()})
        if step.model_name == golden.head:
            _check_answer(golden, control.infer(step.model_name, inputs, golden.outputs()), step.model_name)
            continue
        result = control.infer(step.model_name, inputs)
        values = {**values, **{key: result.as_numpy(name) for name, key in step.output_map.items()}}


def _commit(control: Control, repository: Path, before: Any, after: Any, report: Callable[[str], None]) -> None:
    """Switch the ensemble to the new models, in the repository, then in the server; send it the golden request."""
    if after != before:
        write_config(repository / ENSEMBLE, after)
    report(f"loading {ENSEMBLE}")
    control.load(ENSEMBLE)
    golden, feed = _golden(repository, after)
    _check_answer(golden, control.infer(ENSEMBLE, input_tensors(after, feed), golden.outputs()), ENSEMBLE)


def _roll_back(
    control: Control, repository: Path, before: Any, served: Any, loaded: Sequence[str], *, committing: bool
) -> list[str]:
    """Undo each part of a rollout, whether or not the others can be undone; return what could not be.

    Args:
        control: the server.
        repository: the repository.
        before: configuration of the ensemble in the repository before the rollout.
        served: configuration with which the ensemble was served, which may be another one; None if it was not.
        loaded: the models that the rollout has loaded.
        committing: whether the ensemble may have changed.
    """
    failed = []
    actions: list[Callable[[], None]] = []
    if committing:
        actions.append(partial(_restore_config, repository / ENSEMBLE, before))
        if served is not None:
            actions.append(partial(control.load, ENSEMBLE, served))
    for action in actions:
        try:
            action()
        except Exception as error:
            failed.append(_message(error))
    # not an encoder that the served ensemble references: it was loaded because it was not ready
    new = [name for name in loaded if served is None or name not in steps(served)]
    with suppress(Exception):  # the next rollout unloads them
        control.unload([ENSEMBLE, *new] if committing and served is None else new)
    return failed


def _restore_config(folder: Path, config: Any) -> None:
    if config != read_config(folder):
        write_config(folder, config)


def _refusal(after: Any, error: Exception, committing: bool, outcome: str) -> str:
    """Why a rollout was refused, and what to do."""
    if committing:
        return f"{_message(error)}; {outcome}"
    return (
        f"refused {step_of(after, HEAD_PREFIX)}: {_message(error)}. The ensemble was not changed, {outcome}. If the "
        "repository references this head, a server that starts would serve it: publish again with "
        "`python -m export.to_onnx`, or go back with `python -m serving reload --to DIGEST`"
    )


def _message(error: Exception) -> str:
    """The message of ``error``, with its type unless the message alone is clear."""
    return str(error) if isinstance(error, ServingError | OSError) else f"{type(error).__name__}: {error}"


def _unload_stale(control: Control, after: Any, report: Callable[[str], None]) -> list[str]:
    """Unload and return the models that the ensemble no longer references.

    The new head answers by now, so a failure is reported, not raised.
    """
    try:
        stale = _stale_models(control, after)
        for name in control.unload(stale):
            report(f"{name} still answers requests; it is unloaded after the last one")
    except BaseException as error:
        cause = _message(error) if isinstance(error, Exception) else "interrupted"
        report(f"the new head is served, but old models remain loaded ({cause}): the next reload unloads them")
        if not isinstance(error, Exception):
            raise
        return []
    return stale


def _stale_models(control: Control, after: Any) -> list[str]:
    """Ready models that the old ensemble or a killed rollout left, and that the new ensemble does not reference."""
    ready = {name for name, state in control.states().items() if state == "READY"}
    return sorted({*filter(IMMUTABLE_MODEL.fullmatch, ready)} - {*steps(after)})


def _golden(repository: Path, ensemble: Any) -> tuple[GoldenRequest, Feed]:
    """The golden request of the head of ``ensemble``, and its tensors."""
    golden = read_golden(repository, step_of(ensemble, HEAD_PREFIX))
    parsed = (parse_image_input(tensor.name, tensor.dims) for tensor in ensemble.input)
    return golden, golden.feed([image for image in parsed if image])


def _check_answer(golden: GoldenRequest, result: Any, model: str) -> None:
    if found := golden.differences(result):
        raise ServingError(f"{model} answers the golden request wrongly: {'; '.join(found)}")
