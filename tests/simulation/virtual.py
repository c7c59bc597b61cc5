"""An event loop whose time is made up, and whose executors run in it: what happens depends on a seed alone.

Theory of operation
    When nothing is ready the loop's selector does not wait: it moves the time on to what is due next. What is
    handed to an executor is carried out after a delay that the seed gives, and its result is told after
    another: a crash in between finds it done and nobody told of it. What an earlier life of the daemon had
    handed over is not carried out any more once that life is over.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final

BASE_NS: Final = 1_700_000_000_000_000_000


class _Selector(selectors.BaseSelector):
    """Watches nothing."""

    def __init__(self) -> None:
        self.loop: VirtualLoop
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = self._keys[fileobj] = selectors.SelectorKey(fileobj, 0, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits, and for nothing"
        self.loop.seconds += timeout
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class VirtualLoop(asyncio.SelectorEventLoop):
    """Args: random: gives the delays of what executors do."""

    def __init__(self, random: Random) -> None:
        self.seconds = 0.0
        self.life = 0
        self._random = random
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.seconds

    def now_ns(self) -> int:
        """The time as a clock of the daemon tells it."""
        return BASE_NS + round(self.seconds * 1e9)

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self.create_future()
        self.call_later(self._random.expovariate(200.0), self._execute, future, self.life, func, args)
        return future

    def _execute(
        self, future: asyncio.Future[Any], life: int, func: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        if life != self.life:
            return
        try:
            result, error = func(*args), None
        except Exception as failure:  # passed on, to whoever waits for it
            result, error = None, failure
        self.call_later(self._random.expovariate(500.0), self._tell, future, life, result, error)

    def _tell(self, future: asyncio.Future[Any], life: int, result: Any, error: Exception | None) -> None:
        if life != self.life or future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
