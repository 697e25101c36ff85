"""Answers: admission, decoding in threads, and calls to Triton that nothing cancels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from http import HTTPStatus

from vizwiz_client import Answer, AsyncVizwizClient, ContractMismatch, ModelInfo, Timings, VizwizError
from vizwiz_client.contract import tensors
from vizwiz_client.contract.prepared import PreparedPhoto, prepare
from vizwiz_gateway.metrics import Metrics
from vizwiz_gateway.problems import ProblemError, from_client, problem
from vizwiz_gateway.settings import Settings
from vizwiz_gateway.uploads import Upload

# Deadline of a call to Triton, seconds: far beyond any answer, because Triton 2.51 can crash when a call is cancelled.
TRITON_TIMEOUT_S = 600.0
DRAIN_TIMEOUT_S = 60.0  # for calls to Triton to end when the gateway stops
PROBE_TIMEOUT_S = 5.0  # of a request for the model's configuration
MAX_RESENDS = 3  # of a request that a rollout to other image inputs met


class Service:
    """The questions of one gateway process; bound to its event loop.

    Args:
        settings: limits and Triton's address.

    Raises:
        WrongServer: Triton's address is not "host:port".
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = AsyncVizwizClient(settings.triton, timeout_s=TRITON_TIMEOUT_S)
        self._probe = AsyncVizwizClient(settings.triton, timeout_s=PROBE_TIMEOUT_S, retries=0)
        self._decoders = ThreadPoolExecutor(settings.decode_threads, "decode")
        self._info: ModelInfo | None = None
        self._admitted = 0
        self.metrics = Metrics(lambda: self._admitted)
        self._tasks: set[asyncio.Task[list[Answer]]] = set()

    async def close(self) -> None:
        """Wait for the calls to Triton, then close connections and threads."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_TIMEOUT_S)
        await self._client.close()
        await self._probe.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def admit(self) -> ExitStack:
        """Admit one request, until the returned stack is closed; ``pop_all`` hands the admission over.

        Raises:
            ProblemError: 503, ``max_requests`` are admitted already.
        """
        if self._admitted >= self._settings.max_requests:
            raise problem(HTTPStatus.SERVICE_UNAVAILABLE, "busy", "too many photos are waiting; ask again in a moment")
        self._admitted += 1
        admission = ExitStack()
        admission.callback(self._release)
        return admission

    async def check(self) -> ModelInfo:
        """Read the served model's configuration.

        Raises:
            ProblemError: Triton is unavailable, or its model does not fit.
        """
        try:
            self._info = await self._probe.check()
        except VizwizError as error:
            raise from_client(error) from None
        return self._info

    @property
    def demo(self) -> bool | None:
        """Whether the served head was fitted on drawn pictures alone; None before Triton's configuration was read."""
        return self._info.demo if self._info else None

    async def ask(self, upload: Upload, request_id: str, admission: ExitStack) -> list[Answer]:
        """Answer the questions of ``upload``.

        Args:
            upload: the fields of the request; the photo is removed from it.
            request_id: the request's id.
            admission: released when the call to Triton ends, which may be after the caller's deadline.

        Raises:
            ProblemError: photo or question is missing or refused (415, 422), Triton fails (502) or is overloaded (503),
                or the answer timeout passes (504).
        """
        if upload.photo is None:
            raise problem(
                HTTPStatus.UNPROCESSABLE_ENTITY, "no-photo", f"{upload.got}, expected a photo in the field photo"
            )
        if not upload.questions:
            raise problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "no-question",
                f"{upload.got}, expected a question in the field question, and not a blank one",
            )
        task = asyncio.create_task(self._answer(upload, request_id, admission.pop_all()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait([task], timeout=self._settings.answer_timeout_s)  # does not cancel the task
        if not task.done():
            task.add_done_callback(lambda task: task.exception())  # retrieves it, or asyncio would log it
            raise problem(
                HTTPStatus.GATEWAY_TIMEOUT,
                "too-slow",
                f"no answer came within {self._settings.answer_timeout_s:g} s; ask again in a while",
            )
        for answer in task.result():
            self.metrics.answers.labels("true" if answer.declined else "false").inc()
        return task.result()

    async def _answer(self, upload: Upload, request_id: str, admission: ExitStack) -> list[Answer]:
        """Decode and ask. Nothing cancels this once it has started: the process waits for it when it stops."""
        with admission:
            assert upload.photo is not None
            photo, upload.photo = upload.photo, None
            start = time.perf_counter()
            try:
                info = self._info or await self.check()
                prepared = await self._decode(photo, info)
                decoded = time.perf_counter()
                for attempt in range(MAX_RESENDS + 1):
                    try:
                        answers = await self._ask(prepared, upload, request_id)
                        break
                    except ContractMismatch:  # a model of other image inputs was rolled out
                        if attempt == MAX_RESENDS:
                            raise
                        info = self._info = await self._client.check()  # not the probe's: its replica may be another
                        prepared = await self._decode(photo, info)
                self.metrics.triton.observe(time.perf_counter() - decoded)
                if any(tensors.HEAD_PREFIX + answer.head_id not in info.models for answer in answers):
                    self._info = None  # another model was rolled out
                    with suppress(ProblemError):  # the answers are complete
                        await self.check()
            except VizwizError as error:
                raise from_client(error) from None  # its text may quote the photo, and causes are logged
            prepare_s, total_s = decoded - start, time.perf_counter() - start
            return [_with_timings(answer, prepare_s, total_s) for answer in answers]

    async def _ask(self, photo: PreparedPhoto, upload: Upload, request_id: str) -> Sequence[Answer]:
        pairs = [(photo, question) for question in upload.questions]
        return await self._client.ask_batch(pairs, top=upload.top, request_id=request_id)

    async def _decode(self, photo: bytes, info: ModelInfo) -> PreparedPhoto:
        """The resized photo: small, so that a request that waits for Triton holds no decoded photo of full size."""
        submitted = time.perf_counter()

        def decode() -> tuple[PreparedPhoto, float, float]:
            start = time.perf_counter()
            return prepare(photo, info.images), start, time.perf_counter()

        prepared, start, end = await asyncio.get_running_loop().run_in_executor(self._decoders, decode)
        self.metrics.queue.observe(start - submitted)
        self.metrics.decode.observe(end - start)
        return prepared

    def _release(self) -> None:
        self._admitted -= 1


def _with_timings(answer: Answer, prepare_s: float, total_s: float) -> Answer:
    """``answer``, with the decoding and the waiting of the gateway."""
    client = answer.timings
    return replace(answer, timings=Timings(prepare_s + client.prepare_s, client.request_s, total_s))
