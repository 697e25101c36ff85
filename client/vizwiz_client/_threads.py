"""Input and output of the synchronous client: threads decode photos and wait for replies."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vizwiz_client._failures import Failure
from vizwiz_client._settings import Settings

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

MAX_JOBS = 256  # threads start as they are needed; most of them wait for a reply

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, because its input and output is :class:`ThreadIo`'s."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError(f"{coroutine} waits for an event loop")


def iterate(stream: AsyncGenerator[T, None]) -> Iterator[T]:
    """The items of a stream that never suspends; it is closed with the iterator."""
    try:
        while True:
            try:
                item = run(stream.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        run(stream.aclose())


async def as_async(items: Iterable[T]) -> AsyncIterator[T]:
    """``items``, for an ``async for``."""
    for item in items:
        yield item


class ThreadJob(Generic[T]):
    """A job in another thread; awaiting it blocks this one."""

    def __init__(self, future: Future[T]) -> None:
        self.done = future.done
        self.cancel = future.cancel
        self._result = future.result

    def __await__(self) -> Generator[Any, None, T]:
        yield from ()
        return self._result()


class ThreadIo:
    """One connection and the threads beside it, made when first needed; safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._connection: Any = None
        self._decoders: ThreadPoolExecutor | None = None
        self._jobs: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """End what is under way, then the threads."""
        with self._lock:
            self._closed.set()
            if self._connection is not None:
                self._connection.close()
        for pool in (self._jobs, self._decoders):
            if pool is not None:
                pool.shutdown(cancel_futures=True)

    async def call(self, method: str, arguments: dict[str, Any]) -> Any:
        """Call this method of tritonclient's client. Raises Failure."""
        from tritonclient.utils import InferenceServerException

        connection = self._connect()
        try:
            return getattr(connection, method)(**arguments)
        except InferenceServerException as error:
            raise Failure.of(error) from error
        except ValueError as error:  # what gRPC raises on a channel that was closed
            if self._closed.is_set():
                raise Failure("CANCELLED", str(error)) from error
            raise

    async def sleep(self, seconds: float) -> None:
        """Wait, but not longer than until the client is closed."""
        self._closed.wait(seconds)

    async def work(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run tasks in as many threads as there are cores; Pillow decodes without the interpreter's lock."""
        if len(tasks) == 1:
            return [tasks[0]()]
        with self._open():
            self._decoders = self._decoders or _pool(os.cpu_count() or 1, "vizwiz-decode")
            futures = [self._decoders.submit(task) for task in tasks]
        return [future.result() for future in futures]

    def start(self, job: Callable[[], Coroutine[Any, Any, T]]) -> ThreadJob[T]:
        """Begin a job in another thread."""
        with self._open():
            self._jobs = self._jobs or _pool(MAX_JOBS, "vizwiz-request")
            return ThreadJob(self._jobs.submit(lambda: run(job())))

    def _connect(self) -> Any:
        from tritonclient.grpc import InferenceServerClient

        from vizwiz_client import _wire

        with self._open():
            if self._connection is None:
                self._connection = InferenceServerClient(**_wire.connection_arguments(self._settings))
            return self._connection

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._lock:
            if self._closed.is_set():
                raise RuntimeError("this client is closed; make a new one")
            yield


def _pool(threads: int, name: str) -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor  # brings `logging`, which asking one question does without

    return ThreadPoolExecutor(threads, name)
