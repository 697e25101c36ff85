"""Forks of a process that has a client: ``python -m tests.client.forks SCENARIO KIND URL`` prints the outcomes as JSON.

It is a process of its own because a fork takes along whatever else the tests have running.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from PIL import Image
from tritonclient.grpc import InferenceServerClient

from tests.client.blocking_client import BlockingClient
from vizwiz_client import VizwizClient

LIMIT_S = 60  # a child that takes longer hangs, and is killed
RED, BLUE = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
PAIRS = [(RED, "what is this?"), (BLUE, "what is this?"), (RED, "what color is it?")] * 8
METHODS = ("ask", "ask_batch", "ask_many", "check", "status")
Outcomes = dict[str, str]  # what was tried -> "fine", or the error


class Tasks(BlockingClient):
    """An asynchronous client whose children have an event loop, too."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        os.register_at_fork(after_in_child=self.start_loop)


def fork(task: Callable[[], Any], leave: Callable[[int], Any] = os._exit) -> str:
    """What came of ``task`` in a child that then calls ``leave(0)``."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(LIMIT_S)
        os.write(write, outcome(task).encode())
        leave(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return text if code == 0 else f"{text}, then exit code {code}"


def outcome(task: Callable[[], str | None]) -> str:
    """The text that ``task`` returns, or its error's; else "fine"."""
    try:
        return task() or "fine"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def ask(client: Any, method: str) -> None:
    """Ask about ``PAIRS``, and raise what came in place of an answer."""
    if method == "status":
        results = [check.error for check in client.status(max_latency_s=LIMIT_S).checks]
    elif method == "check":
        results = [client.check()]
    else:
        results = [client.ask(*PAIRS[0])] if method == "ask" else list(getattr(client, method)(PAIRS))
    for result in results:
        if isinstance(result, Exception):
            raise result


def ask_in_child(client: Any, method: str = "ask_batch") -> str:
    return fork(lambda: ask(client, method))


def ask_in_process(client: Any) -> str:
    """The same by multiprocessing, whose children end differently."""
    queue = multiprocessing.get_context("fork").SimpleQueue()
    process = multiprocessing.get_context("fork").Process(
        target=lambda: signal.alarm(LIMIT_S) or queue.put(outcome(lambda: ask(client, "ask_batch")))
    )
    process.start()
    process.join()
    return queue.get() if process.exitcode == 0 else f"exit code {process.exitcode}"


def unused(client: Any, url: str) -> Outcomes:
    """As of a server that loads its application, and then forks its workers."""
    outcomes = {method: ask_in_child(client, method) for method in METHODS}
    outcomes["process"] = ask_in_process(client)
    return outcomes | {"grandchild": fork(lambda: ask_in_child(client))}


def used(client: Any, url: str) -> Outcomes:
    ask(client, "ask_batch")
    outcomes = {method: ask_in_child(client, method) for method in METHODS}
    outcomes["process"] = ask_in_process(client)
    outcomes["grandchild"] = fork(lambda: ask_in_child(client))
    return outcomes | {"new client": fork(lambda: ask(type(client)(url), "ask_batch"))}


def left(client: Any, url: str) -> Outcomes:
    """Children that end as a script does, with all destructors."""
    ask(client, "ask_batch")
    clients = [type(client)(url)]
    ask(clients[0], "ask_batch")
    return {
        "at once": fork(lambda: None, sys.exit),
        "closed": fork(client.close, sys.exit),
        "end of the with block": fork(lambda: client.__exit__(None, None, None), sys.exit),
        "dropped": fork(lambda: clients.clear(), sys.exit),
    }


def in_flight(client: Any, url: str) -> Outcomes:
    """While threads of the parent ask, in all ways."""
    done = threading.Event()
    errors: list[str] = []

    def keep_asking(method: str) -> None:
        while not done.is_set():
            errors.extend(error for error in [outcome(lambda: ask(client, method))] if error != "fine")

    ask(client, "check")
    threads = [threading.Thread(target=keep_asking, args=[method]) for method in METHODS]
    for thread in threads:
        thread.start()
    outcomes = {f"child {number}": ask_in_child(client, METHODS[number % 3]) for number in range(9)}
    done.set()
    for thread in threads:
        thread.join()
    return outcomes | {f"parent {number}": error for number, error in enumerate(errors)}


def stream(client: Any, url: str) -> Outcomes:
    """The rest of a stream that the parent began."""
    answers = client.ask_many(itertools.cycle(PAIRS))
    next(answers)
    outcomes = {"rest": fork(lambda: any(isinstance(each, Exception) for each in answers))}
    outcomes["closed"] = fork(answers.close)
    next(answers)
    answers.close()
    return outcomes


def foreign(client: Any, url: str) -> Outcomes:
    """Something else has used gRPC before the fork."""
    with InferenceServerClient(url) as triton:
        triton.get_server_metadata()
        return {method: ask_in_child(client, method) for method in METHODS}


if __name__ == "__main__":
    signal.alarm(5 * LIMIT_S)
    scenario, kind, url = sys.argv[1:]
    client = {"threads": VizwizClient, "tasks": Tasks}[kind](url)
    outcomes = globals()[scenario](client, url)
    print(json.dumps(outcomes | {"parent": outcome(lambda: ask(client, "ask_batch"))}))
    client.close()
