"""What the asynchronous client has beyond the synchronous one, whose tests it passes too (``connect``)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.client.fake_server import FakeServer
from vizwiz_client import AsyncVizwizClient


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
