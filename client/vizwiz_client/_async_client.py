"""The asynchronous client: photos and questions in, answers out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

from vizwiz_client._answer import Answer
from vizwiz_client._settings import DEFAULT_RETRIES, DEFAULT_TIMEOUT_S, DEFAULT_URL, Settings, Tls
from vizwiz_client._status import DEFAULT_MAX_LATENCY_S, Status
from vizwiz_client._threads import as_async
from vizwiz_client.contract.errors import VizwizError

if TYPE_CHECKING:
    from vizwiz_client._model_info import ModelInfo
    from vizwiz_client.contract.image import Photo

    Pairs = Iterable[tuple[Photo, str]] | AsyncIterable[tuple[Photo, str]]


class AsyncVizwizClient:
    """:class:`vizwiz_client.VizwizClient` for asyncio: same arguments, same answers, same errors.

        async with AsyncVizwizClient("localhost:8001") as client:
            answer = await client.ask("img.jpg", "what is this?")

    Safe to share between the tasks of one event loop, which goes on while threads decode photos. Cancelling a task
    cancels its request.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        fast_decode: bool = False,
    ) -> None:
        from vizwiz_client._core import Core  # NumPy, Pillow and asyncio load with the first client, not the package
        from vizwiz_client._tasks import TaskIo

        settings = Settings(url, timeout_s, retries, tls, headers or {}, fast_decode)
        self._io = TaskIo(settings)
        self._core = Core(settings, self._io)

    async def __aenter__(self) -> AsyncVizwizClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection and end its tasks and threads."""
        await self._io.close()

    async def check(self) -> ModelInfo:
        """Read from the server what it serves, and check that it fits. Raises a ServerError."""
        return await self._core.check()

    async def status(self, *, max_latency_s: float = DEFAULT_MAX_LATENCY_S) -> Status:
        """Whether the server is all right: see :meth:`vizwiz_client.VizwizClient.status`."""
        return await self._core.status(max_latency_s)

    async def ask(self, image: Photo, question: str, *, top: int = 1) -> Answer:
        """Ask one question about one photo; ``top`` is how many candidate answers to return.

        Raises ImageError, QuestionError or a ServerError.
        """
        return await self._core.ask(image, question, top)

    @overload
    async def ask_batch(self, pairs: Pairs, *, top: int = ..., return_errors: Literal[False] = ...) -> list[Answer]: ...

    @overload
    async def ask_batch(self, pairs: Pairs, *, top: int = ..., return_errors: bool) -> list[Answer | VizwizError]: ...

    async def ask_batch(self, pairs: Pairs, *, top: int = 1, return_errors: bool = False) -> list[Any]:
        """Ask one question about each photo: see :meth:`vizwiz_client.VizwizClient.ask_batch`.

        ``pairs`` may be asynchronous.
        """
        return await self._core.ask_batch(_as_async(pairs), top, return_errors)

    def ask_many(self, pairs: Pairs, *, top: int = 1) -> AsyncGenerator[Answer | VizwizError, None]:
        """Ask about any number of pairs: see :meth:`vizwiz_client.VizwizClient.ask_many`.

        ``pairs`` may be asynchronous. Leaving the ``async for`` early leaves a few requests under way until the client
        is closed, unless the generator is closed (``contextlib.aclosing``).
        """
        return self._core.ask_many(_as_async(pairs), top)


def _as_async(pairs: Pairs) -> AsyncIterator[tuple[Photo, str]]:
    return aiter(pairs) if isinstance(pairs, AsyncIterable) else as_async(pairs)
