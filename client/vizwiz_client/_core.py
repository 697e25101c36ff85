"""All of the client but its input and output: the synchronous and the asynchronous client run this same code.

Its coroutines await the methods of an :class:`Io` alone. Those of the synchronous client never suspend, so that it can
drive the coroutines without an event loop.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from vizwiz_client import _prepare
from vizwiz_client._answer import Answer, Timings
from vizwiz_client._failures import Failure, backoff_delays, speaks_http, to_exception
from vizwiz_client._model_info import ModelInfo, read_model_info
from vizwiz_client._prepare import Item
from vizwiz_client._settings import Settings
from vizwiz_client._status import Status, read_status
from vizwiz_client.contract import tensors
from vizwiz_client.contract.errors import ContractMismatch, ImageError, ServerError, VizwizError
from vizwiz_client.contract.image import Photo

STREAM_BATCH = 16  # questions in a request of ask_many: keeps a server busy, and few photos wait in memory
GROUPS_UNDER_WAY = 3  # of ask_many: one computed, one waiting at the server, one in preparation
PROBE_S = 1.0  # how long an address that does not speak gRPC is asked whether it speaks HTTP

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Pair = tuple[Photo, str]
Kept = tuple[Photo | ImageError, str]
Outcome = Answer | VizwizError


class Job(Awaitable[T_co], Protocol[T_co]):
    """Work that goes on beside the caller's."""

    def done(self) -> bool:
        """Whether it ended, so that awaiting it takes no time."""

    def cancel(self) -> object:
        """Give it up: nobody will wait for it."""


class Io(Protocol):
    """What the two clients do differently."""

    async def call(self, method: str, arguments: dict[str, Any]) -> Any:
        """Call this method of tritonclient's client. Raises Failure."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def work(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run tasks, several at once, and return what each returns."""

    def start(self, job: Callable[[], Coroutine[Any, Any, T]]) -> Job[T]:
        """Begin a job."""


class Core:
    """The questions of one client; what it knows of the server is read with the first."""

    def __init__(self, settings: Settings, io: Io) -> None:
        self._settings = settings
        self._io = io
        self._model_info: ModelInfo | None = None

    async def check(self) -> ModelInfo:
        """Read the server's configuration, whether or not it is known already."""
        self._model_info = None
        return await self._contract(self._deadline())

    async def status(self, max_latency_s: float) -> Status:
        """Check server, models, contract and latency."""
        return await read_status(self, self._settings.url, max_latency_s)

    async def call(self, method: str, arguments: dict[str, Any]) -> Any:
        """Call this method of tritonclient's client, with retries, within a deadline. Raises a ServerError."""
        reply, _ = await self._call(method, arguments, self._deadline())
        return reply

    async def ask(self, image: Photo, question: str, top: int) -> Answer:
        """Ask one question."""
        _check_top(top)
        (outcome,) = await self._ask_group([(image, question)], top, self._deadline(), strict=True)
        return _answer(outcome)

    async def ask_batch(self, pairs: AsyncIterator[Pair], top: int, return_errors: bool) -> list[Any]:
        """Ask about all pairs within one deadline."""
        outcomes: list[Outcome] = []
        stream = self._stream(pairs, top, None, self._deadline(), strict=not return_errors)
        try:
            async for outcome in stream:
                if isinstance(outcome, ServerError) or not return_errors:
                    _answer(outcome)
                outcomes.append(outcome)
        finally:
            await stream.aclose()
        return outcomes

    def ask_many(self, pairs: AsyncIterator[Pair], top: int) -> AsyncGenerator[Outcome, None]:
        """Ask about pairs as they come, each request within a deadline of its own."""
        return self._stream(pairs, top, STREAM_BATCH, None, strict=False)

    async def _stream(
        self, pairs: AsyncIterator[Pair], top: int, size: int | None, deadline: float | None, *, strict: bool
    ) -> AsyncGenerator[Outcome, None]:
        """Answer in order, while the next groups are under way. ``size``: of a group; None is what the server takes."""
        _check_top(top)
        jobs: deque[Job[list[Outcome]]] = deque()
        groups = self._groups(pairs, size, deadline)
        try:
            async for group in groups:
                jobs.append(self._io.start(partial(self._ask_group, group, top, deadline, strict=strict)))
                del group  # its photos need not wait until the next group is read
                while jobs and (len(jobs) == GROUPS_UNDER_WAY or jobs[0].done()):
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
    ) -> AsyncGenerator[list[Kept], None]:
        group: list[Kept] = []
        async for image, question in pairs:
            if size is None:
                size = (await self._contract(deadline or self._deadline())).max_batch_size
            group.append((_prepare.materialized(image), question))
            if len(group) == size:
                yield group
                group = []
        if group:
            yield group

    async def _ask_group(
        self, pairs: Sequence[Kept], top: int, deadline: float | None, *, strict: bool
    ) -> list[Outcome]:
        """Answer ``pairs``; an error stands in the place of each answer that it prevents.

        ``strict``: the first pair that cannot be used is all that is returned, and nothing is asked.
        """
        start = time.perf_counter()
        deadline = deadline or self._deadline()
        prepared: Sequence[Item | VizwizError | None] = [None] * len(pairs)
        try:
            prepared = await self._prepare(pairs, deadline)
            if strict and (refused := [item for item in prepared if isinstance(item, VizwizError)]):
                return [refused[0]]
            answers = iter(
                await self._infer([item for item in prepared if isinstance(item, Item)], top, deadline, start)
            )
        except ServerError as error:
            return [item if isinstance(item, VizwizError) else error for item in prepared]
        return [item if isinstance(item, VizwizError) else next(answers) for item in prepared]

    async def _prepare(self, pairs: Sequence[Kept], deadline: float) -> Sequence[Item | VizwizError]:
        start = time.perf_counter()
        (tokens,) = await self._io.work([partial(_prepare.tokens, [question for _, question in pairs])])
        token_s = time.perf_counter() - start
        photos = {id(image): image for image, _ in pairs}  # asked about several times, a photo is decoded once
        # what is wrong with a single photo is said before the server is called, unless its decoding needs the side
        if self._model_info is None and len(pairs) == 1 and not self._settings.fast_decode:
            photos = dict(zip(photos, await self._io.work([partial(_prepare.loaded, *photos.values())]), strict=True))
        refusals = [_refusal(ids, photos[id(image)]) for ids, (image, _) in zip(tokens, pairs, strict=True)]
        if all(refusals):
            return [error for error in refusals if error]
        side = (await self._contract(deadline)).image_size
        tasks = [
            partial(_in_time, deadline, partial(_prepare.pixels, photo, side, self._settings.fast_decode))
            for photo in photos.values()
        ]
        try:
            pixels = dict(zip(photos, await self._io.work(tasks), strict=True))
        except Failure as failure:
            raise await self._explain(failure, 0, None) from None
        return [_prepare.item(pixels[id(image)], ids, token_s) for ids, (image, _) in zip(tokens, pairs, strict=True)]

    async def _infer(self, items: Sequence[Item], top: int, deadline: float, start: float) -> list[Answer]:
        from vizwiz_client import _protocol

        answers: list[Answer] = []
        size = (await self._contract(deadline)).max_batch_size if items else 1
        for first in range(0, len(items), size):
            batch, request_id = items[first : first + size], os.urandom(8).hex()
            arguments = _protocol.infer_arguments(*_prepare.stack(batch), top) | {"request_id": request_id}
            result, request_s = await self._call("infer", arguments, deadline, request_id)
            replies = _protocol.read_reply(result, self._settings.url)
            total_s = time.perf_counter() - start
            answers += [
                Answer(
                    **reply,
                    question_truncated=item.tokens.truncated,
                    request_id=request_id,
                    timings=Timings(item.prepare_s, request_s, total_s),
                )
                for item, reply in zip(batch, replies, strict=True)
            ]
        return answers

    async def _contract(self, deadline: float) -> ModelInfo:
        served = self._model_info  # read once: another thread may forget it meanwhile
        if served is None:
            response, _ = await self._call("get_model_config", {"model_name": tensors.ENSEMBLE}, deadline)
            self._model_info = served = read_model_info(response.config, self._settings.url)
        return served

    async def _call(
        self, method: str, arguments: dict[str, Any], deadline: float, request_id: str | None = None
    ) -> tuple[Any, float]:
        """Call until it is answered, refused, or too late; return the reply and the seconds of the last attempt."""
        arguments = arguments | {"headers": dict(self._settings.headers)}
        for pause in [*backoff_delays(self._settings.retries), None]:
            start = time.monotonic()
            try:
                if start >= deadline:
                    raise Failure("DEADLINE_EXCEEDED", "the time was up before the request")
                reply = await self._io.call(method, arguments | {"client_timeout": deadline - start})
                return reply, time.monotonic() - start
            except Failure as failure:
                left_s = deadline - time.monotonic()
                # a model whose configuration was read, and is away: its server stops, or repairs itself
                may_pass = failure.retryable or (failure.status == "NOT_FOUND" and method == "infer")
                if not may_pass or pause is None or pause >= left_s:
                    raise await self._explain(failure, left_s, request_id) from None  # its text says it all
            await self._io.sleep(pause)
        raise AssertionError("unreachable")

    async def _explain(self, failure: Failure, left_s: float, request_id: str | None) -> ServerError:
        http = False
        if failure.retryable and not failure.queue_full and self._settings.tls is None:
            (http,) = await self._io.work([partial(speaks_http, self._settings.url, max(0.1, min(PROBE_S, left_s)))])
        error = to_exception(failure, self._settings, tensors.ENSEMBLE, http, request_id)
        if isinstance(error, ContractMismatch):
            self._model_info = None  # another model is served now: its configuration is read before the next question
        return error

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.timeout_s


def _in_time(deadline: float, task: Callable[[], T]) -> T:
    if time.monotonic() >= deadline:
        raise Failure("DEADLINE_EXCEEDED", "the time was up before all photos were decoded")
    return task()


def _refusal(tokens: object, photo: object) -> VizwizError | None:
    return next((each for each in (tokens, photo) if isinstance(each, VizwizError)), None)


def _answer(outcome: Outcome) -> Answer:
    if isinstance(outcome, VizwizError):
        raise outcome
    return outcome


def _check_top(top: int) -> None:
    if top < 1:
        raise ValueError(f"got top={top}, expected 1 or more candidate answers")
