"""What the asynchronous client has beyond the synchronous one, whose tests it passes too (``connect``)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.client.stand_in import StandIn
from vizwiz_client import AsyncVizwizClient


def test_tasks_are_answered_side_by_side(stand_in: StandIn, photos: list[Path]) -> None:
    stand_in.delay_s = 0.5

    async def ask() -> float:
        async with AsyncVizwizClient(stand_in.url) as client:
            await client.check()
            start = time.monotonic()
            await asyncio.gather(*(client.ask(photo, "what?") for photo in photos[:4]))
            return time.monotonic() - start

    assert asyncio.run(ask()) < 4 * 0.5


def test_the_event_loop_goes_on_meanwhile(stand_in: StandIn, photos: list[Path]) -> None:
    stand_in.delay_s = 0.3

    async def ask() -> int:
        ticks = 0
        async with AsyncVizwizClient(stand_in.url) as client:
            question = asyncio.create_task(client.ask(photos[0], "what?"))
            while not question.done():
                await asyncio.sleep(0.01)
                ticks += 1
            await question
        return ticks

    assert asyncio.run(ask()) >= 10


def test_pairs_may_be_asynchronous(stand_in: StandIn, photos: list[Path]) -> None:
    async def pairs() -> AsyncIterator[tuple[Path, str]]:
        for photo in photos:
            await asyncio.sleep(0)
            yield photo, "what?"

    async def ask() -> None:
        async with AsyncVizwizClient(stand_in.url) as client:
            expected = [await client.ask(photo, "what?") for photo in photos]
            assert await client.ask_batch(pairs()) == expected
            assert [outcome async for outcome in client.ask_many(pairs())] == expected

    asyncio.run(ask())


def test_a_cancelled_task_cancels_its_request(stand_in: StandIn, photos: list[Path]) -> None:
    stand_in.delay_s = 1.0

    async def ask() -> float:
        async with AsyncVizwizClient(stand_in.url) as client:
            await client.check()
            start = time.monotonic()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.ask(photos[0], "what?"), 0.2)
            return time.monotonic() - start

    assert asyncio.run(ask()) < 1.0


def test_a_stream_left_early_ends_with_the_client(stand_in: StandIn, photos: list[Path]) -> None:
    async def ask() -> None:
        async with AsyncVizwizClient(stand_in.url) as client:
            async for _ in client.ask_many((photo, "what?") for photo in photos * 20):
                stand_in.delay_s = 1.0
                break
            start = time.monotonic()
        assert time.monotonic() - start < 1.0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(ask())


def test_another_event_loop_is_refused(stand_in: StandIn, photos: list[Path]) -> None:
    client = AsyncVizwizClient(stand_in.url)

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
