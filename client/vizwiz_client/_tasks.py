"""Input and output of the asynchronous client: tasks wait for replies, threads decode photos."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, Generic, TypeVar

from vizwiz_client import _forks
from vizwiz_client._failures import ABANDONED_S, MAX_ABANDONED, Failure, client_closed, deadline_passed
from vizwiz_client._settings import Settings

T = TypeVar("T")


class TaskJob(Generic[T]):
    """A coroutine running as a task."""

    def __init__(self, task: asyncio.Task[T]) -> None:
        self.done = task.done
        self.cancel = task.cancel
        self._task = task
        self._process = os.getpid()

    def __await__(self) -> Generator[Any, None, T]:
        if self._process != os.getpid():
            raise _forks.error()
        return self._task.__await__()


class TaskIo:
    """A connection, tasks and a thread pool, bound to the event loop of the first call."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._closed = False
        self.reset()
        _forks.register(self)

    def reset(self) -> None:
        """Drop connection, threads and event loop: they are the parent's in a forked child."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Future[None] | None = None  # done when the client is closed
        self._connection: Any = None
        self._jobs: set[asyncio.Task[Any]] = set()
        self._abandoned: set[asyncio.Future[Any]] = set()
        self._threads = ThreadPoolExecutor(os.cpu_count(), "vizwiz-decode")  # starts no thread before its first task

    async def close(self) -> None:
        """End the calls in progress, then the threads."""
        self._closed = True
        if self._end is not None and not self._end.done():
            self._end.set_result(None)
        await asyncio.gather(*self._jobs, return_exceptions=True)
        for call in self._abandoned:
            call.cancel()
        await asyncio.gather(*self._abandoned, return_exceptions=True)
        if self._connection is not None:
            await self._connection.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def call(self, method: str, arguments: dict[str, Any]) -> Any:
        """Call this method of tritonclient's client. Raises Failure, or ServerUnavailable when closed or forked."""
        connection = await self._connect()
        from tritonclient.utils import InferenceServerException

        try:
            if method == "infer":
                return await self._infer(connection, **arguments)
            return await self._until_closed(getattr(connection, method)(**arguments))
        except InferenceServerException as error:
            raise Failure.from_triton(error) from error

    async def _infer(self, connection: Any, *, client_timeout: float, **arguments: Any) -> Any:
        """Wait for the reply until the timeout, or until this task is cancelled, and abandon the call then.

        ``ABANDONED_S`` says why it is not cancelled.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + client_timeout
        while len(self._abandoned) >= MAX_ABANDONED and loop.time() < deadline:
            await self._wait(self._abandoned, deadline - loop.time())
        abandoned = len(self._abandoned)
        if (left := deadline - loop.time()) <= 0:
            raise deadline_passed(abandoned)
        call = asyncio.ensure_future(connection.infer(client_timeout=left + ABANDONED_S, **arguments))
        # retrieves the exception, or asyncio logs that it never was
        call.add_done_callback(lambda call: call.cancelled() or call.exception())
        try:
            await self._wait({call}, left)
        finally:
            if not call.done():
                self._abandoned.add(call)
                call.add_done_callback(self._abandoned.discard)
        if not call.done():
            raise deadline_passed(abandoned)
        if self._closed and (call.cancelled() or call.exception()):
            raise client_closed()
        return call.result()

    async def _wait(self, calls: set[asyncio.Future[Any]], timeout_s: float) -> None:
        """Wait for one of ``calls``, or until the time is up. Raises ServerUnavailable when the client is closed."""
        assert self._end is not None
        done, _ = await asyncio.wait({*calls, self._end}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if self._closed and not done - {self._end}:
            raise client_closed()

    async def sleep(self, seconds: float) -> None:
        """Sleep. Raises ServerUnavailable as soon as the client is closed."""
        await self._until_closed(asyncio.sleep(seconds))

    async def work(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run functions in as many threads as there are cores; Pillow releases the GIL while it decodes."""
        loop = self._own_loop()
        return await self._until_closed(asyncio.gather(*(loop.run_in_executor(self._threads, task) for task in tasks)))

    def start(self, job: Callable[[], Coroutine[Any, Any, T]]) -> TaskJob[T]:
        """Run a coroutine as a task."""
        task = self._own_loop().create_task(job())
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return TaskJob(task)

    async def _connect(self) -> Any:
        self._own_loop()
        _forks.check_connectable()
        if self._connection is None:
            # imported in a thread: it would block the event loop for a sixth of a second
            (aio,) = await self.work([lambda: import_module("tritonclient.grpc.aio")])
            from vizwiz_client import _protocol

            if self._connection is None:  # no other task connected meanwhile
                self._connection = aio.InferenceServerClient(**_protocol.connection_arguments(self._settings))
        self._own_loop()
        return self._connection

    async def _until_closed(self, awaitable: Awaitable[T]) -> T:
        """Await; cancel it when this task is cancelled, and when the client is closed: then raise ServerUnavailable."""
        assert self._end is not None
        work = asyncio.ensure_future(awaitable)
        # retrieves the exception, or asyncio logs that it never was
        work.add_done_callback(lambda work: work.cancelled() or work.exception())
        try:
            await asyncio.wait((work, self._end), return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
        if self._closed and (not work.done() or work.cancelled() or work.exception()):
            raise client_closed()
        return work.result()

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise client_closed() from None
        if self._loop not in (None, loop):
            raise RuntimeError("this client belongs to another event loop; make one in each loop")
        if self._end is None:
            self._loop, self._end = loop, loop.create_future()
        return loop
