"""Input and output of the asynchronous client: tasks wait for replies, threads decode photos."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, TypeVar

from vizwiz_client._failures import Failure
from vizwiz_client._settings import Settings

T = TypeVar("T")


class TaskIo:
    """One connection and the tasks and threads beside it, of the event loop in which it is first used."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: Any = None
        self._jobs: set[asyncio.Task[Any]] = set()
        self._threads = ThreadPoolExecutor(os.cpu_count(), "vizwiz-decode")  # none starts before its first task

    async def close(self) -> None:
        """End what is under way, then the threads."""
        self._closed = True
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        if self._connection is not None:
            await self._connection.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def call(self, method: str, arguments: dict[str, Any]) -> Any:
        """Call this method of tritonclient's client. Raises Failure."""
        connection = await self._connect()
        from tritonclient.utils import InferenceServerException

        try:
            return await getattr(connection, method)(**arguments)
        except InferenceServerException as error:
            raise Failure.of(error) from error

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def work(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run tasks in as many threads as there are cores; Pillow decodes without the interpreter's lock."""
        loop = self._own_loop()
        return await asyncio.gather(*(loop.run_in_executor(self._threads, task) for task in tasks))

    def start(self, job: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """Begin a job as a task."""
        task = self._own_loop().create_task(job())
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return task

    async def _connect(self) -> Any:
        if self._connection is None:
            # imported in a thread: it takes a sixth of a second, in which the event loop has better things to do
            (aio,) = await self.work([lambda: import_module("tritonclient.grpc.aio")])
            from vizwiz_client import _wire

            if self._connection is None:  # no other task was faster
                self._connection = aio.InferenceServerClient(**_wire.connection_arguments(self._settings))
        self._own_loop()
        return self._connection

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise RuntimeError("this client is closed; make a new one")
        if self._loop not in (None, loop):
            raise RuntimeError("this client belongs to another event loop; make one in each loop")
        self._loop = loop
        return loop
