"""Input and output of the synchronous client: threads decode photos and wait for replies."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vizwiz_client import _forks
from vizwiz_client._failures import ABANDONED_S, MAX_ABANDONED, Failure, client_closed, deadline_passed
from vizwiz_client._settings import Settings

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

MAX_JOBS = 256  # threads, started on demand; most of them wait for a reply

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends: one that awaits only :class:`ThreadIo`'s methods."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError(f"{coroutine} awaits something else than ThreadIo")


def iterate(stream: AsyncGenerator[T, None]) -> Iterator[T]:
    """Iterate over an asynchronous generator that never suspends; it is closed with the iterator."""
    try:
        while True:
            try:
                item = run(stream.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        run(stream.aclose())


async def to_async_iterator(items: Iterable[T]) -> AsyncIterator[T]:
    """Wrap ``items`` for an ``async for``."""
    for item in items:
        yield item


class ThreadJob(Generic[T]):
    """A coroutine running in another thread; awaiting it blocks this one."""

    def __init__(self, future: Future[T]) -> None:
        self._future = future
        self._process = os.getpid()

    def done(self) -> bool:
        """Whether awaiting it takes no time."""
        return self._is_inherited() or self._future.done()

    def cancel(self) -> None:
        """Cancel it, unless it has begun."""
        if not self._is_inherited():
            self._future.cancel()

    def __await__(self) -> Generator[Any, None, T]:
        yield from ()
        if self._is_inherited():
            raise _forks.error()
        return self._future.result()

    def _is_inherited(self) -> bool:
        """Whether this is a forked child, which has no such thread; the locks it held stay locked."""
        return self._process != os.getpid()


class ThreadIo:
    """A connection and thread pools, created on first use. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._closed = threading.Event()
        self.reset()
        _forks.register(self)

    def reset(self) -> None:
        """Drop connection, threads and locks without touching them: they are the parent's in a forked child."""
        was_closed = self._closed.is_set()
        self._closed = threading.Event()  # the old one's lock may be held by a thread that the child lacks
        if was_closed:
            self._closed.set()
        self._lock = threading.RLock()  # reentrant: a signal handler may close the client during a call
        self._connection: Any = None
        self._abandoned: set[Future[Any]] = set()
        self._decoders: ThreadPoolExecutor | None = None
        self._jobs: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """End the calls in progress, then the threads."""
        with self._lock:
            self._closed.set()
            if self._connection is not None:
                self._connection.close()
        if self._decoders is not None:
            self._decoders.shutdown(cancel_futures=True)
        if self._jobs is not None:
            self._jobs.shutdown()  # pending jobs raise when they start

    async def call(self, method: str, arguments: dict[str, Any]) -> Any:
        """Call this method of tritonclient's client. Raises Failure, or ServerUnavailable when closed or forked."""
        connection = self._connect()
        from tritonclient.utils import InferenceServerException

        try:
            if method == "infer":
                return self._infer(connection, **arguments)
            return getattr(connection, method)(**arguments)
        except Exception as error:
            self._check()  # a closed channel raises different errors in each phase
            if isinstance(error, InferenceServerException):
                raise Failure.from_triton(error) from error
            raise

    def _infer(self, connection: Any, *, client_timeout: float, **arguments: Any) -> Any:
        """Wait for the reply until the timeout, and abandon the call then: see ``ABANDONED_S``."""
        from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait

        deadline = time.monotonic() + client_timeout
        while len(abandoned := self._without_reply()) >= MAX_ABANDONED and time.monotonic() < deadline:
            wait(abandoned, deadline - time.monotonic(), FIRST_COMPLETED)
        if (left := deadline - time.monotonic()) <= 0:
            raise deadline_passed(len(abandoned))
        reply: Future[Any] = Future()

        def finish(result: Any, error: Exception | None) -> None:
            if error is None:
                reply.set_result(result)
            else:
                reply.set_exception(error)

        connection.async_infer(callback=finish, client_timeout=left + ABANDONED_S, **arguments)
        try:
            return reply.result(left)
        except TimeoutError:
            raise deadline_passed(len(abandoned)) from None
        finally:
            if not reply.done():
                with self._lock:
                    self._abandoned.add(reply)

    def _without_reply(self) -> set[Future[Any]]:
        """The abandoned calls that are still at the server."""
        with self._lock:
            self._abandoned = {call for call in self._abandoned if not call.done()}
            return self._abandoned.copy()

    async def sleep(self, seconds: float) -> None:
        """Sleep. Raises ServerUnavailable as soon as the client is closed."""
        self._closed.wait(seconds)
        self._check()

    async def work(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run functions in as many threads as there are cores; Pillow releases the GIL while it decodes."""
        self._check()
        if len(tasks) == 1:
            return [tasks[0]()]
        from concurrent.futures import CancelledError

        with self._open():
            self._decoders = self._decoders or _pool(os.cpu_count() or 1, "vizwiz-decode")
            futures = [self._decoders.submit(task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except CancelledError:
            raise client_closed() from None

    def start(self, job: Callable[[], Coroutine[Any, Any, T]]) -> ThreadJob[T]:
        """Run a coroutine in another thread."""
        with self._open():
            self._jobs = self._jobs or _pool(MAX_JOBS, "vizwiz-request")
            return ThreadJob(self._jobs.submit(lambda: run(job())))

    def _connect(self) -> Any:
        self._check()
        _forks.check_connectable()
        from tritonclient.grpc import InferenceServerClient

        from vizwiz_client import _protocol

        with self._open():
            if self._connection is None:
                self._connection = InferenceServerClient(**_protocol.connection_arguments(self._settings))
            return self._connection

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._lock:
            self._check()
            yield

    def _check(self) -> None:
        if self._closed.is_set():
            raise client_closed() from None


def _pool(threads: int, name: str) -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor  # imports logging, which a single question does not need

    return ThreadPoolExecutor(threads, name)
