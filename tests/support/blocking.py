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
from towpath.locks.aio import AsyncBarrier, AsyncGuard, AsyncLock, AsyncSemaphore
from towpath.locks.elections_aio import AsyncElection
from towpath.locks.guarded_aio import AsyncGuarded, AsyncReadGuard, AsyncWriteGuard
from towpath.locks.latches import AsyncLatch
from towpath.queues import Delivery
from towpath.result import Ok
from towpath.services.aio_api import AsyncRequest
from towpath.transactions import TransactionBase

LIVING = (
    AsyncHandle,
    Delivery,
    TransactionBase,
    AsyncRequest,
    AsyncLock,
    AsyncGuard,
    AsyncSemaphore,
    AsyncBarrier,
    AsyncGuarded,
    AsyncReadGuard,
    AsyncWriteGuard,
    AsyncElection,
    AsyncLatch,
)
"""What is wrapped when it is handed out: it is used on the loop, too."""


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

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_thread", "_inner"):
            super().__setattr__(name, value)
        else:
            setattr(self._inner, name, value)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value):
            return value

        def called(*args: Any, **kwargs: Any) -> Any:
            result = self._thread.call(value, *map(_inner, args), **kwargs)
            if inspect.isasyncgen(result):
                return _generated(self._thread, result)
            if inspect.isawaitable(result):
                result = self._thread.run(_awaited(result))
            return self._wrapped(result)

        return called

    def _wrapped(self, result: Any) -> Any:
        match result:
            case list():
                return [self._wrapped(each) for each in result]
            case Ok(value):
                return Ok(self._wrapped(value))
        return Blocking(self._thread, result) if isinstance(result, LIVING) else result

    def __iter__(self) -> Iterator[Any]:
        iterator = self._thread.call(self._inner.__aiter__)
        while True:
            try:
                yield self._wrapped(self._thread.run(_awaited(iterator.__anext__())))
            except StopAsyncIteration:
                return

    def __enter__(self) -> Any:
        entered = self._thread.run(_awaited(self._inner.__aenter__()))
        return self if entered is self._inner else self._wrapped(entered)

    def __exit__(self, *raised: object) -> None:
        self._thread.run(self._inner.__aexit__(*raised))


def _generated(thread: LoopThread, generator: Any) -> Iterator[Any]:
    """A plain generator of what an asynchronous one gives."""
    try:
        while True:
            try:
                yield thread.run(_awaited(generator.__anext__()))
            except StopAsyncIteration:
                return
    finally:
        thread.run(_awaited(generator.aclose()))


class BlockingClient(Blocking):
    """`towpath.aio.connect()` on the loop of all clients."""

    def __init__(self, url: str, **options: Any) -> None:
        thread = loop_thread()
        super().__init__(thread, thread.run(towpath.aio.connect(url, **options)))


def _inner(argument: Any) -> Any:
    """What a wrapped argument, or a list of such, is for the client."""
    if isinstance(argument, list):
        return [_inner(each) for each in argument]
    return argument._inner if isinstance(argument, Blocking) else argument


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
