"""Load generator: clients that ask the ensemble in a closed loop, and record each reply."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonclient.grpc import InferenceServerClient, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from serving.golden import Feed, input_tensors
from serving.repository import read_ensemble
from vizwiz_client.contract import tensors

DEADLINE_S = 30  # of a request: the machine may be busy


@dataclass(frozen=True)
class Reply:
    """Answer or error of one request."""

    sent: float  # time.monotonic()
    head: str  # name of the head that answered; "" where an error came instead
    answers: Mapping[str, float] = field(default_factory=dict)  # label -> value
    error: str = ""


class Load:
    """As a context manager: ``clients`` threads that ask the server of ``repository`` at ``url``.

    Args:
        feed: the inputs of the ensemble.
        top: how many labelled answers to ask for.
    """

    def __init__(self, url: str, repository: Path, feed: Feed, *, top: int = 3, clients: int = 3) -> None:
        self.replies: list[Reply] = []
        self._end = threading.Event()
        self._url, self._feed, self._top = url, feed, top
        config = read_ensemble(repository)
        self._threads = [threading.Thread(target=self._ask, args=(config,), daemon=True) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(2 * DEADLINE_S)
            assert not thread.is_alive(), "a request hangs past its deadline"

    def wait_for(self, count: int) -> None:
        """Return when ``count`` more replies have come."""
        target, deadline = len(self.replies) + count, time.monotonic() + 2 * DEADLINE_S
        while len(self.replies) < target:
            assert time.monotonic() < deadline, "the server answers too slowly: the test proves nothing"
            time.sleep(0.01)

    def _ask(self, config: Any) -> None:
        with InferenceServerClient(self._url) as client:
            while not self._end.is_set():
                self.replies.append(ask_ensemble(client, config, self._feed, self._top))


def ask_ensemble(client: InferenceServerClient, config: Any, feed: Feed, top: int) -> Reply:
    """Ask the ensemble of this ``config`` for its ``top`` answers."""
    outputs = [
        InferRequestedOutput(tensors.ANSWER.name, class_count=top),
        InferRequestedOutput(tensors.HEAD_ID.name),
    ]
    sent = time.monotonic()
    try:
        result = client.infer(config.name, input_tensors(config, feed), outputs=outputs, client_timeout=DEADLINE_S)
    except InferenceServerException as error:
        return Reply(sent, "", error=f"{error.status()}: {error.message()}")
    head = tensors.head_digest(int(result.as_numpy(tensors.HEAD_ID.name)[0, 0]))
    classes = map(tensors.parse_label, result.as_numpy(tensors.ANSWER.name)[0])
    answers = {label or "": probability for probability, label in classes}
    return Reply(sent, tensors.HEAD_PREFIX + head, answers)


def errors(replies: Sequence[Reply]) -> set[str]:
    """The texts of those that failed."""
    return {reply.error for reply in replies if reply.error}
