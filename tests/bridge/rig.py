"""What the bridge's tests share: a channel in memory, and an adapter between it and the host's real
mechanisms.

Waiting is always for a condition, with a deadline. Programs on the far side are real processes and real
descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Self

from tests.support.deadlines import DEADLINE_S as DEADLINE_S  # handed on
from towpath.bindings import FIFO, PIPE
from towpath.errors import TowpathError
from towpath.model import NO_HEADERS, BindingState, Direction, Headers
from towpath_broker.gateways.bridge.adapters.fifo import FifoAdapter
from towpath_broker.gateways.bridge.adapters.pipe import PipeAdapter
from towpath_broker.gateways.bridge.inotify import PathWatcher
from towpath_broker.gateways.bridge.keeping import BindingKeeping, Keeping
from towpath_broker.gateways.bridge.ports import Adapter, ReceivedMessage, Taker
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.stop import Stop
from towpath_broker.gateways.bridge.tasks import cancel

P = ParamSpec("P")


def on_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an asynchronous test on a loop of its own, within the deadline."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def within_deadline() -> None:
            async with asyncio.timeout(2 * DEADLINE_S):
                await test(*args, **kwargs)

        asyncio.run(within_deadline())

    return run


def open_descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


_children_before: set[str] = set()


def _children() -> set[str]:
    """The processes that this one has started and not waited for, zombies too."""
    found: set[str] = set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found.update((thread / "children").read_text().split())
    return found


def remember_children() -> None:
    """Those of now are not the test's: daemons of fixtures that live longer."""
    _children_before.clear()
    _children_before.update(_children())


def has_children() -> bool:
    """Whether the test has a child, alive or a zombie."""
    return bool(_children() - _children_before)


async def shell(script: str) -> bytes:
    """Run a script, and return what it wrote; it must succeed."""
    process = await asyncio.create_subprocess_exec("sh", "-c", script, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output


async def write_all(descriptor: int, data: bytes, blocked: asyncio.Event | None = None) -> None:
    """Write into a non-blocking descriptor, waiting for room; ``blocked`` is set when there was none."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            if blocked is not None:
                blocked.set()
            await _ready(descriptor, asyncio.get_running_loop().add_writer)
            asyncio.get_running_loop().remove_writer(descriptor)


async def read_bytes(descriptor: int, count: int) -> bytes:
    """Read exactly so many bytes from a non-blocking descriptor."""
    data = b""
    while len(data) < count:
        try:
            # An end of file just means that no writer is there yet.
            piece = os.read(descriptor, count - len(data))
        except BlockingIOError:
            piece = b""
        if not piece:
            await _ready(descriptor, asyncio.get_running_loop().add_reader)
            asyncio.get_running_loop().remove_reader(descriptor)
        data += piece
    return data


async def _ready(descriptor: int, add: Callable[..., None]) -> None:
    ready = asyncio.Event()
    add(descriptor, ready.set)
    await ready.wait()


@dataclass(frozen=True)
class MemoryMessage:
    """What a channel in memory hands out."""

    payload: bytes
    headers: Headers = NO_HEADERS

    @property
    def headers_raw(self) -> bytes | None:
        return b"some" if self.headers else None


class MemoryCarrier:
    """A channel in memory.

    Attributes:
        published: what an adapter brought.
        published_headers: of each of them.
        waiting: what it has not yet taken.
        is_settled: whether it stands for a queue.
        settled, rejected: payloads, in the order in which that was said.
        lost_count: as if the channel had dropped so many.
        open: cleared, publishers wait, as behind a full ring.
        has_waiting_publisher: one came while it was not open.
        error: raised by the next receive that would wait.
        publish_error: raised by every publish.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._arrived = asyncio.Event()
        self.message_bytes_max = 1 << 20
        self.published: list[bytes] = []
        self.published_headers: list[Headers | None] = []
        self.waiting: deque[MemoryMessage] = deque()
        self.is_settled = False
        self.settled: list[bytes] = []
        self.rejected: list[bytes] = []
        self.lost_count = 0
        self.open = asyncio.Event()
        self.open.set()
        self.has_waiting_publisher = False
        self.error: TowpathError | None = None
        self.publish_error: TowpathError | None = None

    @property
    def published_count(self) -> int:
        """How many were published."""
        return len(self.published)

    async def publish_many(
        self, payloads: Sequence[bytes], headers: Sequence[Headers | None] | None = None
    ) -> None:
        """As a publisher with a ring behind it."""
        assert all(len(payload) <= self.message_bytes_max for payload in payloads)
        if self.publish_error is not None:
            raise self.publish_error
        if not self.open.is_set():
            self.has_waiting_publisher = True
            self._on_change()
        await self.open.wait()
        self.published.extend(payloads)
        self.published_headers.extend(headers or [None] * len(payloads))
        self._on_change()

    def send(self, payloads: Sequence[bytes], headers: Headers = NO_HEADERS) -> None:
        """Messages come on the channel."""
        self.waiting.extend(MemoryMessage(payload, headers) for payload in payloads)
        self._arrived.set()

    def fail(self, error: TowpathError) -> None:
        """The subscription ends."""
        self.error = error
        self._arrived.set()

    def settle(self, messages: Sequence[ReceivedMessage]) -> None:
        """As a consumer."""
        self.settled.extend(message.payload for message in messages)
        self._on_change()

    def reject(self, messages: Sequence[ReceivedMessage], error: TowpathError) -> None:
        """As a consumer."""
        self.rejected.extend(message.payload for message in messages)
        self._on_change()

    def hand_on(self, taker: Taker) -> None:
        """There is no ring."""

    async def receive_many(self, count_max: int, bytes_max: int) -> Sequence[MemoryMessage]:
        """As a subscription."""
        while not self.waiting:
            if self.error is not None:
                raise self.error
            self._arrived.clear()
            await self._arrived.wait()
        messages: list[MemoryMessage] = []
        total = 0
        while self.waiting and len(messages) < count_max and total < bytes_max:
            messages.append(self.waiting.popleft())
            total += len(messages[-1].payload)
        self._on_change()
        return messages


class Rig:
    """One adapter at work. Use as an asynchronous context manager."""

    def __init__(self, keeping: BindingKeeping | None = None) -> None:
        self._changed = asyncio.Event()
        self.keeping = keeping or Keeping().of(1)
        self.states: list[BindingState] = []
        self.carrier = MemoryCarrier(self._changed.set)
        self.tally = Tally(self._on_change)
        self.stop_request = Stop()
        self.watcher = PathWatcher()
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.task is not None:
            await cancel(self.task)
        self.watcher.close()

    def start(self, adapter: Adapter) -> Self:
        """Start any adapter."""
        self.task = asyncio.create_task(adapter.run(self.stop_request))
        self.task.add_done_callback(lambda _: self._changed.set())
        return self

    def fifo(self, path: Path | str, direction: Direction, **options: str) -> Self:
        """Start a FIFO adapter."""
        adapter = FifoAdapter(
            str(path),
            direction,
            FIFO.parse_options(options),
            self.carrier,
            self.tally,
            self.watcher,
            self.keeping,
        )
        return self.start(adapter)

    def pipe(self, argv: Sequence[str], direction: Direction, **options: str) -> Self:
        """Start a pipe adapter."""
        adapter = PipeAdapter(
            argv, direction, PIPE.parse_options(options), self.carrier, self.tally, channel="test"
        )
        return self.start(adapter)

    def run(self, adapter: Adapter) -> Self:
        """Start any adapter."""
        self.task = asyncio.create_task(adapter.run(self.stop_request))
        self.task.add_done_callback(lambda _: self._changed.set())
        return self

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so of the tally or the channel; fails early when the adapter has ended."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                assert self.task is not None
                if self.task.done():
                    self.task.result()
                    raise AssertionError("the adapter ended")
                self._changed.clear()
                await self._changed.wait()

    async def until_state(self, state: BindingState) -> None:
        """Wait until the binding is in a state now."""
        await self.until(lambda: self.tally.state == state)

    async def until_published(self, count: int) -> list[bytes]:
        """Wait until so many messages were published."""
        await self.until(lambda: len(self.carrier.published) >= count)
        return self.carrier.published

    async def settle(self) -> None:
        """Let everything run that can, so that the adapter waits where it waits when nothing happens."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """Ask the adapter to stop, and wait until it has."""
        self.stop_request.set()
        await self.ended()

    async def ended(self) -> None:
        """Wait until the adapter ends; raises what it raised."""
        assert self.task is not None
        await within(asyncio.shield(self.task))

    def _on_change(self, _: bool) -> None:
        if not self.states or self.states[-1] != self.tally.state:
            self.states.append(self.tally.state)
        self._changed.set()


async def within(work: Awaitable[Any]) -> Any:
    """Await within the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        return await work


async def processes_gone(*pids: int) -> None:
    """Wait until processes have ended, whoever their parent is."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            await within(_ready(descriptor, asyncio.get_running_loop().add_reader))
            asyncio.get_running_loop().remove_reader(descriptor)
        finally:
            os.close(descriptor)
