"""Answers: admission, decoding in threads, and calls to Triton that nothing cancels."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
import numpy.typing as npt

from vizwiz_client import Answer, AsyncVizwizClient, ModelInfo, VizwizError
from vizwiz_client.contract.image import load_photo, to_pixels
from vizwiz_gateway.problems import from_client, problem
from vizwiz_gateway.settings import Settings
from vizwiz_gateway.uploads import Upload

# Deadline of a call to Triton, seconds: far beyond any answer, because Triton 2.51 can crash when a call is cancelled.
TRITON_TIMEOUT_S = 600.0
PROBE_TIMEOUT_S = 5.0  # of a request for the model's configuration


@dataclass(frozen=True)
class Reply:
    """What one request gets."""

    answers: Sequence[Answer]
    demo: bool | None


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
        self._tasks: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Wait for the calls to Triton, then close connections and threads."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._client.close()
        await self._probe.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def admit(self) -> Admission:
        """Admit one request.

        Raises:
            ProblemError: 503, ``max_requests`` are admitted already.
        """
        if self._admitted >= self._settings.max_requests:
            raise problem(HTTPStatus.SERVICE_UNAVAILABLE, "busy", "too many photos are waiting; ask again in a moment")
        self._admitted += 1
        return Admission(self)

    async def check(self) -> ModelInfo:
        """Read the served model's configuration.

        Raises:
            ProblemError: Triton is unavailable, or its model does not fit.
        """
        try:
            self._info = await self._probe.check()
        except VizwizError as error:
            raise from_client(error) from error
        return self._info

    @property
    def demo(self) -> bool | None:
        """Whether the served head has learnt drawn pictures only; None if Triton has not said yet."""
        return None

    async def ask(self, upload: Upload, request_id: str, admission: Admission) -> Reply:
        """Answer the questions of ``upload``.

        Args:
            upload: the fields of the request; the photo is removed from it.
            request_id: the request's id.
            admission: released when the call to Triton ends, which may be after the caller's deadline.

        Raises:
            ProblemError: no answer.
        """
        if upload.photo is None:
            raise problem(
                HTTPStatus.UNPROCESSABLE_ENTITY, "no-photo", "the form has no photo; add one in the field photo"
            )
        if not upload.questions:
            raise problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "no-question",
                "the form has no question; add one in the field question",
            )
        task = self._start(self._answer(upload, admission.take()))
        await asyncio.wait([task], timeout=self._settings.answer_timeout_s)  # does not cancel the task
        if not task.done():
            task.add_done_callback(lambda task: task.exception())  # retrieved, or asyncio would log it
            raise problem(
                HTTPStatus.GATEWAY_TIMEOUT,
                "too-slow",
                f"no answer came within {self._settings.answer_timeout_s:g} s; ask again in a while",
            )
        return task.result()

    def _start(self, work: Coroutine[Any, Any, Reply]) -> asyncio.Task[Reply]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, upload: Upload, admission: Admission) -> Reply:
        with admission:
            assert upload.photo is not None
            photo, upload.photo = upload.photo, None
            info = self._info or await self.check()
            try:
                loop = asyncio.get_running_loop()
                pixels = await loop.run_in_executor(self._decoders, _decode, photo, info.image_size)
                answers = await self._client.ask_batch(
                    [(pixels, question) for question in upload.questions], top=upload.top
                )
            except VizwizError as error:
                raise from_client(error) from error
            return Reply(answers, self.demo)

    def release(self) -> None:
        """End one admission."""
        self._admitted -= 1


class Admission:
    """One admitted request, as a context manager; :meth:`take` hands it over to another owner."""

    def __init__(self, service: Service) -> None:
        self._service: Service | None = service

    def take(self) -> Admission:
        """The same admission for a new owner; this one no longer releases it."""
        assert self._service is not None
        taken, self._service = Admission(self._service), None
        return taken

    def __enter__(self) -> Admission:
        return self

    def __exit__(self, *_: object) -> None:
        if self._service is not None:
            self._service.release()
            self._service = None


def _decode(photo: bytes, image_size: int) -> npt.NDArray[np.uint8]:
    """Pixels [image_size, image_size, 3]: small, so that a request that waits for Triton holds no decoded photo."""
    return to_pixels(load_photo(photo), image_size)
