"""Runs the asyncio client from a test's thread, so that one suite serves both clients.

Every coroutine method is awaited on one loop for the whole run, in a thread; asynchronous iterators become
plain ones. Attributes that are no coroutines are passed through.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import inspect
import threading
from collections.abc import Iterator
from typing import Any

import towpath.aio
from towpath.aio.api import AsyncHandle


class LoopThread:
    """An event loop in a thread, until the process ends: so what is closed can still be asked."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="test-loop", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        async def called() -> Any:
            return function(*args, **kwargs)

        return self.run(called())

    def _stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@functools.cache
def loop_thread() -> LoopThread:
    """The loop of all clients."""
    return LoopThread()


class Blocking:
    """An object of the asyncio client, used from a thread."""

    def __init__(self, thread: LoopThread, inner: Any) -> None:
        self._thread = thread
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value):
            return value

        def called(*args: Any, **kwargs: Any) -> Any:
            result = self._thread.call(value, *args, **kwargs)
            if inspect.isawaitable(result):
                result = self._thread.run(_awaited(result))
            return Blocking(self._thread, result) if isinstance(result, AsyncHandle) else result

        return called

    def __iter__(self) -> Iterator[Any]:
        iterator = self._thread.call(self._inner.__aiter__)
        while True:
            try:
                yield self._thread.run(_awaited(iterator.__anext__()))
            except StopAsyncIteration:
                return

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.run(self._inner.close())


class BlockingClient(Blocking):
    """`towpath.aio.connect()` on the loop of all clients."""

    def __init__(self, url: str, **options: Any) -> None:
        thread = loop_thread()
        super().__init__(thread, thread.run(towpath.aio.connect(url, **options)))


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
