"""The asynchronous client with the synchronous one's methods, so that one test asks both the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

from vizwiz_client import AsyncVizwizClient


class BlockingClient:
    """An ``AsyncVizwizClient`` in an event loop of its own, in a thread of its own: calls from threads become tasks."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.client = AsyncVizwizClient(*arguments, **options)
        self._core = self.client._core
        self.start_loop()

    def start_loop(self) -> None:
        """Begin a loop; for a forked child as well, which has no thread of its parent's."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def close(self) -> None:
        self._run(self.client.close())

    def check(self) -> Any:
        return self._run(self.client.check())

    def status(self, *arguments: Any, **options: Any) -> Any:
        return self._run(self.client.status(*arguments, **options))

    def ask(self, *arguments: Any, **options: Any) -> Any:
        return self._run(self.client.ask(*arguments, **options))

    def ask_batch(self, *arguments: Any, **options: Any) -> Any:
        return self._run(self.client.ask_batch(*arguments, **options))

    def ask_many(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        stream = self.client.ask_many(*arguments, **options)
        try:
            while True:
                try:
                    yield self._run(stream.__anext__())
                except StopAsyncIteration:
                    return
        finally:
            self._run(stream.aclose())

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def awaited() -> Any:  # what __anext__ returns is no coroutine
            return await coroutine

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result()
