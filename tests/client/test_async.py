"""What the asynchronous client has beyond the synchronous one, whose tests it passes too (``connect``)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile

from tests.client.fake_server import FakeServer
from vizwiz_client import AsyncVizwizClient, QuestionError
from vizwiz_client._tasks import TaskIo
from vizwiz_client.contract.prepared import prepare


async def eventually(condition: Callable[[], bool]) -> bool:
    """Whether ``condition`` comes true, sooner or later: the machine may be busy."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return condition()


def test_tasks_are_answered_side_by_side(fake_server: FakeServer, photos: list[Path]) -> None:
    fake_server.gate.clear()

    async def ask() -> None:
        async with AsyncVizwizClient(fake_server.url, timeout_s=120) as client:
            questions = [asyncio.create_task(client.ask(photo, "what?")) for photo in photos[:4]]
            assert await eventually(lambda: len(fake_server.request_ids) == 4), "one waits for another's answer"
            fake_server.gate.set()
            await asyncio.gather(*questions)

    asyncio.run(ask())


@pytest.mark.parametrize("kind", ["file", "image"])
def test_questions_about_one_open_photo_at_once(kind: str, fake_server: FakeServer, photos: list[Path]) -> None:
    """A file has one position, and an image that is not loaded yet has such a file."""

    async def ask() -> None:
        async with AsyncVizwizClient(fake_server.url) as client:
            expected = await client.ask(photos[0], "what?")
            for _ in range(20):
                with photos[0].open("rb") as file, Image.open(photos[0]) as image:
                    shared = file if kind == "file" else image
                    assert await asyncio.gather(*[client.ask(shared, "what?") for _ in range(8)]) == [expected] * 8

    asyncio.run(ask())


def test_pairs_may_be_asynchronous(fake_server: FakeServer, photos: list[Path]) -> None:
    async def pairs() -> AsyncIterator[tuple[Path, str]]:
        for photo in photos:
            await asyncio.sleep(0)
            yield photo, "what?"

    async def ask() -> None:
        async with AsyncVizwizClient(fake_server.url) as client:
            expected = [await client.ask(photo, "what?") for photo in photos]
            assert await client.ask_batch(pairs()) == expected
            assert [outcome async for outcome in client.ask_many(pairs())] == expected

    asyncio.run(ask())


def test_a_cancelled_task_leaves_its_request_to_the_server(fake_server: FakeServer, photos: list[Path]) -> None:
    fake_server.gate.clear()

    async def ask() -> None:
        async with AsyncVizwizClient(fake_server.url, timeout_s=120) as client:
            question = asyncio.create_task(client.ask(photos[0], "what?"))
            assert await eventually(lambda: bool(fake_server.request_ids))
            question.cancel()
            with pytest.raises(asyncio.CancelledError):
                await question
            assert (await client.check()).max_batch_size == 64
            assert fake_server.over == [], "the request was cancelled"
            fake_server.gate.set()
            assert await eventually(lambda: fake_server.over == fake_server.request_ids)
            assert await client.ask(photos[0], "what?")

    asyncio.run(ask())


def test_a_stream_left_early_ends_with_the_client(fake_server: FakeServer, photos: list[Path]) -> None:
    async def ask() -> None:
        async with AsyncVizwizClient(fake_server.url, timeout_s=120) as client:
            async for _ in client.ask_many((photo, "what?") for photo in photos * 20):
                fake_server.gate.clear()
                break
            start = time.monotonic()
        assert time.monotonic() - start < 60, "it waited for answers that do not come"
        while asyncio.all_tasks() != {asyncio.current_task()}:  # Python ends the stream in a task of its own
            assert time.monotonic() - start < 60, "a task was left"
            await asyncio.sleep(0.01)

    asyncio.run(ask())


def test_one_hop_to_a_thread(fake_server: FakeServer, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each hop costs more than a short question's tokens; a long question would block the event loop."""
    hops: list[int] = []
    real = TaskIo.work

    async def work(io: TaskIo, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        hops.append(len(tasks))
        return await real(io, tasks)

    async def ask() -> None:
        async with AsyncVizwizClient(fake_server.url) as client:
            info = await client.check()
            monkeypatch.setattr(TaskIo, "work", work)
            for photo in (photos[0], prepare(photos[0], info.images)):
                hops.clear()
                assert await client.ask(photo, "what?")
                assert hops == [1]
            with pytest.raises(QuestionError):
                await client.ask(prepare(photos[0], info.images), " ")

    asyncio.run(ask())


@pytest.mark.parametrize("method", ["ask", "ask_batch", "ask_many"])
def test_the_event_loop_decodes_no_image(
    fake_server: FakeServer, photos: list[Path], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    threads: set[threading.Thread] = set()
    real = ImageFile.ImageFile.load

    def load(image: ImageFile.ImageFile) -> Any:
        threads.add(threading.current_thread())
        return real(image)

    async def ask() -> None:
        async with AsyncVizwizClient(fake_server.url) as client:
            monkeypatch.setattr(ImageFile.ImageFile, "load", load)
            images = [opened.enter_context(Image.open(photo)) for photo in photos]  # Pillow decodes on the first access
            if method == "ask":
                assert await client.ask(images[0], "what?")
            elif method == "ask_batch":
                assert len(await client.ask_batch((image, "what?") for image in images)) == len(images)
            else:
                assert len([answer async for answer in client.ask_many((image, "what?") for image in images)]) == 5

    with ExitStack() as opened:
        asyncio.run(ask())
    assert threads
    assert threading.current_thread() not in threads


def test_another_event_loop_is_refused(fake_server: FakeServer, photos: list[Path]) -> None:
    client = AsyncVizwizClient(fake_server.url)

    async def first() -> None:
        await client.ask(photos[0], "what?")

    async def second() -> None:
        with pytest.raises(RuntimeError, match="belongs to another event loop; make one in each loop"):
            await client.ask(photos[0], "what?")

    loop = asyncio.new_event_loop()
    loop.run_until_complete(first())
    asyncio.run(second())
    loop.run_until_complete(client.close())
    loop.close()
