"""The client without its input and output: shared by the synchronous and the asynchronous client.

Coroutines here await the methods of an :class:`Io` alone. The synchronous client's methods never suspend, so it drives
these coroutines without an event loop (``_threads.run``).

A question goes through :meth:`Core._ask_group`: `_prepare` (decode, resize, tokenise), `_infer` (request), `_call`
(retries within the deadline).
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Protocol, TypeVar

import numpy as np

from vizwiz_client._failures import Failure, backoff_delays, to_exception
from vizwiz_client._prepare import AnyPhoto, Item, copy_photo, find_refusals, prepare_timed
from vizwiz_client._results import Answer, ModelInfo, Timings
from vizwiz_client._settings import Settings
from vizwiz_client.contract import tensors
from vizwiz_client.contract.errors import ContractMismatch, ImageError, ServerError, VizwizError
from vizwiz_client.contract.prepared import PreparedPhoto
from vizwiz_client.contract.tokenizer import pad

STREAM_BATCH = 16  # questions in a request of ask_many: enough to keep a server busy, few enough to hold in memory
REFRESH_AFTER_S = 10.0  # seconds between two reads of the configuration for the same unexpected head
MAX_GROUPS = 3  # requests of ask_many in progress: one computed, one queued at the server, one in preparation

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Pair = tuple[AnyPhoto, str]
Copied = tuple[AnyPhoto | ImageError, str]
Outcome = Answer | VizwizError


class Job(Awaitable[T_co], Protocol[T_co]):
    """A coroutine running in the background."""

    def done(self) -> bool:
        """Whether awaiting it takes no time."""

    def cancel(self) -> object:
        """Cancel it; its result is not needed."""


class Io(Protocol):
    """Input and output of a client: ``ThreadIo`` or ``TaskIo``."""

    async def call(self, method: str, arguments: dict[str, Any]) -> Any:
        """Call this method of tritonclient's client. Raises Failure."""

    async def sleep(self, seconds: float) -> None:
        """Sleep."""

    async def work(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run functions in parallel threads, and return their results in order."""

    def start(self, job: Callable[[], Coroutine[Any, Any, T]]) -> Job[T]:
        """Run a coroutine in the background."""


@dataclass(frozen=True)
class Request:
    """Options of the requests of one call.

    Raises:
        ValueError: ``top`` is not an integer of at least 1, or ``id`` is not printable ASCII of 1 to 128 characters.
    """

    top: int
    id: str | None = None  # in the server's log; None for a random one

    def __post_init__(self) -> None:
        if isinstance(self.top, bool) or not isinstance(self.top, int) or self.top < 1:
            raise ValueError(f"got top={self.top!r}, expected a whole number of candidate answers, 1 or more")
        if self.id is not None and not (isinstance(self.id, str) and re.fullmatch("[ -~]{1,128}", self.id)):
            raise ValueError(f"got request_id={self.id!r}, expected 1 to 128 printable ASCII characters")


class Core:
    """The questions of one client; the model's configuration is read with the first."""

    def __init__(self, settings: Settings, io: Io) -> None:
        self.settings = settings
        self._io = io
        self._model_info: ModelInfo | None = None
        self._refreshed = ("", 0.0)  # digest of the unexpected head that _refresh saw last, and when

    async def check(self) -> ModelInfo:
        """Read the served model's configuration, even if it is known already."""
        self._model_info = None
        return await self._get_model_info(self._deadline())

    async def call(self, method: str, arguments: dict[str, Any]) -> Any:
        """Call this method of tritonclient's client, with retries, within a deadline. Raises a ServerError."""
        reply, _ = await self._call(method, arguments, self._deadline())
        return reply

    async def ask(self, image: AnyPhoto, question: str, top: int, request_id: str | None = None) -> Answer:
        """Ask one question."""
        request = Request(top, request_id)
        pair = await self._copy(image), question  # a file object can be read once, a question may be sent again
        (outcome,) = await self._ask_group([pair], request, self._deadline(), strict=True)
        return _raise_error(outcome)

    async def ask_batch(
        self, pairs: AsyncIterator[Pair], top: int, return_errors: bool, request_id: str | None
    ) -> list[Any]:
        """Ask about all pairs within one deadline."""
        outcomes: list[Outcome] = []
        stream = self._stream(pairs, Request(top, request_id), None, self._deadline(), strict=not return_errors)
        try:
            async for outcome in stream:
                if isinstance(outcome, ServerError) or not return_errors:
                    _raise_error(outcome)
                outcomes.append(outcome)
        finally:
            await stream.aclose()
        return outcomes

    def ask_many(self, pairs: AsyncIterator[Pair], top: int) -> AsyncGenerator[Outcome, None]:
        """Ask about a stream of pairs; each request has a deadline of its own."""
        return self._stream(pairs, Request(top), STREAM_BATCH, None, strict=False)

    async def _stream(
        self, pairs: AsyncIterator[Pair], request: Request, size: int | None, deadline: float | None, *, strict: bool
    ) -> AsyncGenerator[Outcome, None]:
        """Yield outcomes in order, with up to MAX_GROUPS requests in progress.

        ``size``: pairs in a request; None for the model's max_batch_size.
        """
        jobs: deque[Job[list[Outcome]]] = deque()
        groups = self._groups(pairs, size, deadline)
        try:
            async for group in groups:
                jobs.append(self._io.start(partial(self._ask_group, group, request, deadline, strict=strict)))
                del group  # frees its photos while the next group is read
                while jobs and (len(jobs) == MAX_GROUPS or jobs[0].done()):
                    for outcome in await jobs.popleft():
                        yield outcome
            while jobs:
                for outcome in await jobs.popleft():
                    yield outcome
        finally:
            for job in jobs:
                job.cancel()
            await groups.aclose()

    async def _groups(
        self, pairs: AsyncIterator[Pair], size: int | None, deadline: float | None
    ) -> AsyncGenerator[list[Copied], None]:
        group: list[Copied] = []
        async for image, question in pairs:
            if size is None:
                size = (await self._get_model_info(deadline or self._deadline())).max_batch_size
            group.append((await self._copy(image), question))
            if len(group) == size:
                yield group
                group = []
        if group:
            yield group

    async def _copy(self, image: AnyPhoto) -> AnyPhoto | ImageError:
        """A copy that the caller cannot change or close."""
        if isinstance(image, str | os.PathLike | bytes | PreparedPhoto):
            return image
        try:
            (copy,) = await self._io.work([partial(copy_photo, image)])
        except ServerError:  # the client is closed: the request reports it
            return image
        return copy

    async def _ask_group(
        self, pairs: Sequence[Copied], request: Request, deadline: float | None, *, strict: bool
    ) -> list[Outcome]:
        """Ask about ``pairs``; an error takes the place of every answer that it prevents.

        ``strict``: if a pair is refused, nothing is sent, and the first error is the only outcome.
        """
        start = time.perf_counter()
        deadline = deadline or self._deadline()
        prepared: Sequence[Item | VizwizError | None] = [None] * len(pairs)
        resends_left, reread = max(self.settings.retries, 1), False  # a changed model is no fault: retries may be 0
        try:
            while True:
                prepared = await self._prepare(pairs, deadline)
                info = self._model_info
                if strict and (refused := [item for item in prepared if isinstance(item, VizwizError)]):
                    return [refused[0]]
                items = [item for item in prepared if isinstance(item, Item)]
                try:
                    answers = iter(await self._infer(items, request, deadline, start))
                    break
                except ContractMismatch:
                    resends_left, reread = resends_left - 1, not reread
                    if resends_left < 0:
                        raise
                    # Behind one address, replicas may serve different models in turn. Reading the configuration before
                    # every request would meet the same two replicas each time.
                    if not reread:
                        self._model_info = info
                    elif not await self._inputs_changed(items, deadline) and not self.settings.retries:
                        raise
        except ServerError as error:
            return [item if isinstance(item, VizwizError) else error for item in prepared]
        return [item if isinstance(item, VizwizError) else next(answers) for item in prepared]

    async def _inputs_changed(self, items: Sequence[Item], deadline: float) -> bool:
        """Whether the served model's image inputs differ from those of the refused request."""
        return items[0].photo.inputs != (await self._get_model_info(deadline)).images

    async def _prepare(self, pairs: Sequence[Copied], deadline: float) -> Sequence[Item | VizwizError]:
        """Tokenise the questions and turn the photos into pixels; a refused pair becomes its error."""
        photos: dict[int, AnyPhoto | ImageError] = {}  # a photo with several questions is decoded once
        questions: dict[int, list[str]] = {}
        for image, question in pairs:
            photos[id(image)] = image
            questions.setdefault(id(image), []).append(question)
        fast = self.settings.fast_decode
        if self._model_info is None:
            # A single photo is decoded before the model's image inputs are known: a refused one never waits for the
            # server. fast_decode needs the image sizes to decode.
            decodes = len(photos) == 1 and not fast
            checks = [partial(find_refusals, photos[key], questions[key], decodes=decodes) for key in photos]
            checked = dict(zip(photos, await self._io.work(checks), strict=True))
            refusals = _in_order(pairs, {key: errors for key, (_, errors) in checked.items()})
            if all(refusals):
                return [error for error in refusals if error]
            photos = {key: image for key, (image, _) in checked.items()}
        inputs = (await self._get_model_info(deadline)).images
        tasks = [partial(prepare_timed, photos[key], questions[key], inputs, fast, deadline) for key in photos]
        try:
            items = await self._io.work(tasks)
        except Failure as failure:
            raise self._to_exception(failure, None) from None
        return _in_order(pairs, dict(zip(photos, items, strict=True)))

    async def _infer(self, items: Sequence[Item], request: Request, deadline: float, start: float) -> list[Answer]:
        from vizwiz_client import _protocol

        answers: list[Answer] = []
        size = (await self._get_model_info(deadline)).max_batch_size if items else 1
        for first in range(0, len(items), size):
            batch, request_id = items[first : first + size], request.id or os.urandom(8).hex()
            inputs = {name: np.stack([item.photo.pixels[name] for item in batch]) for name in batch[0].photo.pixels}
            inputs[tensors.TOKENS.name] = np.stack([pad(item.tokens.ids, tensors.CONTEXT_LENGTH) for item in batch])
            info = await self._get_model_info(deadline)
            result, request_s = await self._request(inputs, request.top, info, deadline, request_id)
            replies = _protocol.read_reply(result, self.settings.url, request.top)
            info = await self._refresh(info, replies[0]["head_id"], deadline)
            total_s = time.perf_counter() - start
            answers += [
                Answer(
                    **reply,
                    question_truncated=item.tokens.truncated,
                    request_id=request_id,
                    timings=Timings(item.prepare_s, request_s, total_s),
                    thresholds=info.thresholds,
                    demo=info.demo,
                )
                for item, reply in zip(batch, replies, strict=True)
            ]
        return answers

    async def _request(
        self, inputs: Mapping[str, Any], top: int, info: ModelInfo, deadline: float, request_id: str
    ) -> tuple[Any, float]:
        """Send one request; return the reply and its seconds.

        A server that was rolled back to a head without quality, or a replica of it, refuses a request for that output.
        The request is then sent again without it.
        """
        from vizwiz_client._protocol import infer_arguments

        arguments = infer_arguments(inputs, top, info.serves_quality) | {"request_id": request_id}
        try:
            return await self._call("infer", arguments, deadline, request_id)
        except ContractMismatch as error:
            if not info.serves_quality or f"{tensors.QUALITY.name!r}" not in str(error):
                raise
        arguments = infer_arguments(inputs, top, with_quality=False) | {"request_id": request_id}
        return await self._call("infer", arguments, deadline, request_id)

    async def _get_model_info(self, deadline: float) -> ModelInfo:
        info = self._model_info  # read once: another thread may reset it meanwhile
        return info or await self._read_model_info(deadline)

    async def _read_model_info(self, deadline: float) -> ModelInfo:
        response, _ = await self._call("get_model_config", {"model_name": tensors.ENSEMBLE}, deadline)
        from vizwiz_client._protocol import read_model_info

        self._model_info = info = read_model_info(response.config, self.settings.url)
        return info

    async def _refresh(self, info: ModelInfo, head_id: str, deadline: float) -> ModelInfo:
        """The configuration of the head that answered: read again if ``info`` is that of another head.

        One read per head and ``REFRESH_AFTER_S``: replicas of one address may serve different heads for a while. If the
        read fails, the complete answer is worth more, and ``info`` is returned.
        """
        info = self._model_info or info  # another thread or task may have read it meanwhile
        if tensors.HEAD_PREFIX + head_id in info.models:
            return info
        now, (known, refreshed) = time.monotonic(), self._refreshed
        if head_id == known and now - refreshed < REFRESH_AFTER_S:
            return info
        self._refreshed = head_id, now  # before the read, so that others do not read too
        try:
            return await self._read_model_info(deadline)
        except ServerError:
            self._model_info = None  # the next question reads it, and reports what is wrong
            return info

    async def _call(
        self, method: str, arguments: dict[str, Any], deadline: float, request_id: str | None = None
    ) -> tuple[Any, float]:
        """Call with retries; return the reply and the seconds of the last attempt.

        Other errors than an unavailable server, and timeouts, are not retried.
        """
        arguments = arguments | {"headers": dict(self.settings.headers)}
        for delay in chain(backoff_delays(self.settings.retries), [None]):
            start = time.monotonic()
            try:
                if start >= deadline:
                    raise Failure("DEADLINE_EXCEEDED", "the time was up before the request")
                reply = await self._io.call(method, arguments | {"client_timeout": deadline - start})
                return reply, time.monotonic() - start
            except Failure as failure:
                # NOT_FOUND of a model whose configuration was read: the server is stopping, or restarting
                retryable = failure.retryable or (failure.status == "NOT_FOUND" and method == "infer")
                if not retryable or delay is None or delay >= deadline - time.monotonic():
                    raise self._to_exception(failure, request_id) from None
            await self._io.sleep(delay)
        raise AssertionError("unreachable")

    def _to_exception(self, failure: Failure, request_id: str | None) -> ServerError:
        error = to_exception(failure, self.settings, tensors.ENSEMBLE, request_id)
        if isinstance(error, ContractMismatch):
            self._model_info = None  # the model was replaced: read its configuration before the next question
        return error

    def _deadline(self) -> float:
        return time.monotonic() + self.settings.timeout_s


def _in_order(pairs: Sequence[Copied], results: Mapping[int, Iterable[T]]) -> list[T]:
    """The result of each pair, from those of each photo's questions."""
    iterators = {key: iter(found) for key, found in results.items()}
    return [next(iterators[id(image)]) for image, _ in pairs]


def _raise_error(outcome: Outcome) -> Answer:
    if isinstance(outcome, VizwizError):
        raise outcome
    return outcome
