"""The public clients, synchronous and asynchronous.

The reference of shared methods is written once, in :class:`VizwizClient`; :class:`AsyncVizwizClient` copies it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from vizwiz_client._results import Answer, ModelInfo, Status
from vizwiz_client._settings import (
    DEFAULT_MAX_LATENCY_S,
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    Settings,
    Tls,
)
from vizwiz_client._threads import ThreadIo, iterate, run, to_async_iterator
from vizwiz_client.contract.errors import VizwizError

if TYPE_CHECKING:
    from vizwiz_client._prepare import AnyPhoto as Photo

    Pairs = Iterable[tuple[Photo, str]]
    AsyncPairs = Pairs | AsyncIterable[tuple[Photo, str]]


F = TypeVar("F", bound=Callable[..., Any])

_ARGUMENTS = f"""
    A photo (``Photo`` in signatures) is str | os.PathLike[str] (a path), bytes | bytearray | memoryview (a file's
    content), BinaryIO, PIL.Image.Image, a NumPy array uint8 [H, W, 3] (RGB) or [H, W] (grey), or what
    ``vizwiz_client.contract.prepared.prepare`` returns. A question is text of at most 5,000 characters; the model reads
    the first 75 tokens, about 50 words.

    Args:
        url: "host:port", Triton's gRPC port; by default "{DEFAULT_URL}".
        timeout_s: deadline of a call in seconds, retries included; by default {DEFAULT_TIMEOUT_S:g} s. It covers the
            whole of ``ask`` and ``ask_batch``, and each request of ``ask_many``.
        retries: maximum number of retries if the server is unavailable or its queue is full, with exponential backoff;
            by default {DEFAULT_RETRIES}. Other errors and timeouts are not retried.
        tls: certificates of an encrypted connection; None (the default) sends photos and questions unencrypted.
        headers: metadata of every request, such as ``{{"authorization": "Bearer ..."}}``. Names have letters, digits,
            "_", "-" and "."; they neither start with "grpc-" nor end in "-bin". Values are printable ASCII.
        fast_decode: let the JPEG decoder shrink large photos: several times faster, but the pixels differ slightly.

    Raises:
        WrongServer: ``url`` is not "host:port".
        ValueError: another argument is invalid.
        TypeError: an argument has another type.
    """


def _same_docs(original: Callable[..., Any]) -> Callable[[F], F]:
    """Give a method the docstring of ``original``."""

    def copy(method: F) -> F:
        method.__doc__ = original.__doc__
        return method

    return copy


class VizwizClient:
    __doc__ = f"""Client of a Triton server that answers questions about photos. Thread-safe.

        with VizwizClient("localhost:8001") as client:
            answer = client.ask("img.jpg", "what is this?")

    The connection opens with the first question, which also verifies that the served model fits this client. Create a
    client once and share it between threads.
    {_ARGUMENTS}"""

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
        from vizwiz_client._core import Core  # imports NumPy and Pillow

        settings = Settings(url, timeout_s, retries, tls, headers or {}, fast_decode)
        self._io = ThreadIo(settings)
        self._core = Core(settings, self._io)

    def __enter__(self) -> VizwizClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the background work. Calls in progress raise ServerUnavailable.

        Requests whose timeout has passed, and that the server still works on, are cancelled.
        """
        self._io.close()

    def check(self) -> ModelInfo:
        """Read the served model's configuration and verify that it fits this client.

        Returns:
            The configuration: ``model`` (name of the ensemble), ``contract_version``, ``images`` (inputs, each with its
            ``image_size`` in pixels), ``max_batch_size`` (questions in a request), ``models`` (names of encoders and
            head), and ``demo`` (whether the head was fitted on drawn pictures alone).

        Raises:
            ServerError: the server is unavailable, or its model does not fit (ContractMismatch, ModelMissing).
        """
        return run(self._core.check())

    def status(self, *, max_latency_s: float = DEFAULT_MAX_LATENCY_S) -> Status:
        """Check server, models, contract and latency, by asking about a built-in photo.

        Args:
            max_latency_s: the largest median latency, in seconds, that passes the latency check; by default 1 s.

        Returns:
            ``checks`` (each failed one says what to do), ``ok``, ``latency_s`` (seconds) and ``head_id``. A ServerError
            becomes a failed check.

        Raises:
            ValueError: ``max_latency_s`` is 0 or less.
        """
        from vizwiz_client._status import read_status

        return run(read_status(self._core, max_latency_s))

    def ask(self, image: Photo, question: str, *, top: int = 1, request_id: str | None = None) -> Answer:
        """Ask one question about one photo.

        Args:
            image: the photo: path, bytes, file object, PIL image or NumPy array uint8 [H, W, 3] or [H, W].
            question: the question, at most 5,000 characters.
            top: number of candidate answers to return; there are fewer if the head has fewer answers.
            request_id: the request's id in the server's log and in errors; None for a random one.

        Returns:
            The answer, with its ``top`` most probable candidates.

        Raises:
            ImageError: the photo cannot be used.
            QuestionError: the question is empty or too long.
            ServerError: the server is unavailable, overloaded, too slow, or failed.
            ValueError: ``top`` is not an integer of at least 1, or ``request_id`` is not printable ASCII of 1 to 128
                characters.
        """
        return run(self._core.ask(image, question, top, request_id))

    @overload
    def ask_batch(
        self, pairs: Pairs, *, top: int = ..., return_errors: Literal[False] = ..., request_id: str | None = ...
    ) -> list[Answer]: ...

    @overload
    def ask_batch(
        self, pairs: Pairs, *, top: int = ..., return_errors: bool, request_id: str | None = ...
    ) -> list[Answer | VizwizError]: ...

    def ask_batch(
        self, pairs: Pairs, *, top: int = 1, return_errors: bool = False, request_id: str | None = None
    ) -> list[Any]:
        """Ask about a list of (photo, question) pairs, in requests as large as the server accepts.

        Args:
            pairs: an iterable of photos and questions, as for :meth:`ask`; of an AsyncVizwizClient also an asynchronous
                iterable.
            top: number of candidate answers to return for each pair; there are fewer if the head has fewer answers.
            return_errors: put the ImageError or QuestionError of a refused pair in its place, and answer the others.
            request_id: id of all requests of this call, in the server's log and in errors; None for a random one each.

        Returns:
            For each pair, in order, its answer, or its error if ``return_errors`` is True. Answers equal those of
            :meth:`ask`.

        Raises:
            ImageError, QuestionError: a pair was refused, and ``return_errors`` is False.
            ServerError: the server is unavailable, overloaded, too slow, or failed; raised with ``return_errors`` too.
            ValueError: ``top`` is not an integer of at least 1, or ``request_id`` is not printable ASCII of 1 to 128
                characters.
        """
        return run(self._core.ask_batch(to_async_iterator(pairs), top, return_errors, request_id))

    def ask_many(self, pairs: Pairs, *, top: int = 1) -> Iterator[Answer | VizwizError]:
        """Ask about a stream of (photo, question) pairs of any length, in bounded memory.

        Photos are decoded while the server computes. ``pairs`` is read a few dozen ahead, so it must not wait for
        answers. File objects, PIL images and arrays are copied when they are read from ``pairs``.

        Args:
            pairs: photos and questions, as for :meth:`ask_batch`.
            top: number of candidate answers for each pair; there are fewer if the head has fewer answers.

        Yields:
            For each pair, in order, its answer or its error. A ServerError takes the place of every answer of its
            request (16 pairs); later requests are still sent.

        Raises:
            ValueError: ``top`` is not an integer of at least 1.
        """
        return iterate(self._core.ask_many(to_async_iterator(pairs), top))


class AsyncVizwizClient:
    __doc__ = f""":class:`VizwizClient` for asyncio: same arguments, same answers, same errors.

        async with AsyncVizwizClient("localhost:8001") as client:
            answer = await client.ask("img.jpg", "what is this?")

    Share it between the tasks of one event loop; its methods raise RuntimeError in another one. Threads decode the
    photos, so the loop keeps running. A cancelled task, or leaving an ``async for`` over ``ask_many`` early, does not
    cancel a request that was sent: Triton 2.51 can crash of that.
    {_ARGUMENTS}"""

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
        from vizwiz_client._core import Core  # imports NumPy and Pillow
        from vizwiz_client._tasks import TaskIo  # imports asyncio

        settings = Settings(url, timeout_s, retries, tls, headers or {}, fast_decode)
        self._io = TaskIo(settings)
        self._core = Core(settings, self._io)

    async def __aenter__(self) -> AsyncVizwizClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @_same_docs(VizwizClient.close)
    async def close(self) -> None:
        await self._io.close()

    @_same_docs(VizwizClient.check)
    async def check(self) -> ModelInfo:
        return await self._core.check()

    @_same_docs(VizwizClient.status)
    async def status(self, *, max_latency_s: float = DEFAULT_MAX_LATENCY_S) -> Status:
        from vizwiz_client._status import read_status

        return await read_status(self._core, max_latency_s)

    @_same_docs(VizwizClient.ask)
    async def ask(self, image: Photo, question: str, *, top: int = 1, request_id: str | None = None) -> Answer:
        return await self._core.ask(image, question, top, request_id)

    @overload
    async def ask_batch(
        self, pairs: AsyncPairs, *, top: int = ..., return_errors: Literal[False] = ..., request_id: str | None = ...
    ) -> list[Answer]: ...

    @overload
    async def ask_batch(
        self, pairs: AsyncPairs, *, top: int = ..., return_errors: bool, request_id: str | None = ...
    ) -> list[Answer | VizwizError]: ...

    @_same_docs(VizwizClient.ask_batch)
    async def ask_batch(
        self, pairs: AsyncPairs, *, top: int = 1, return_errors: bool = False, request_id: str | None = None
    ) -> list[Any]:
        return await self._core.ask_batch(_to_async_iterator(pairs), top, return_errors, request_id)

    @_same_docs(VizwizClient.ask_many)
    def ask_many(self, pairs: AsyncPairs, *, top: int = 1) -> AsyncGenerator[Answer | VizwizError, None]:
        return self._core.ask_many(_to_async_iterator(pairs), top)


def _to_async_iterator(pairs: AsyncPairs) -> AsyncIterator[tuple[Photo, str]]:
    return aiter(pairs) if isinstance(pairs, AsyncIterable) else to_async_iterator(pairs)
