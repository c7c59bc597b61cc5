"""Runs the asyncio client from a test's thread, so that one suite serves both clients.

Every coroutine method is awaited on a loop of its own thread; asynchronous iterators become plain ones.
Attributes that are no coroutines are passed through.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from typing import Any

import towpath.aio


class LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        async def called() -> Any:
            return function(*args, **kwargs)

        return self.run(called())

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


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
            is_handle = type(result).__module__.startswith("towpath.aio")
            return Blocking(self._thread, result) if is_handle else result

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
    """`towpath.aio.connect()` with a loop of its own."""

    def __init__(self, url: str) -> None:
        thread = LoopThread()
        try:
            super().__init__(thread, thread.run(towpath.aio.connect(url)))
        except BaseException:
            thread.stop()
            raise

    def close(self) -> None:
        if not self._thread.loop.is_closed():
            self._thread.run(self._inner.close())
            self._thread.stop()

    def __exit__(self, *_: object) -> None:
        self.close()


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
