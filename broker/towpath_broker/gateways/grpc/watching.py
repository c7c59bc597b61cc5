"""One watch of the registry for all the peers that watch it.

Theory of operation
    A session may have only a few watches, and each costs the core; peers may be many. So the gateway watches
    once, while any peer does, and keeps what it was told: a peer that comes later gets that state first, then
    ``current``, and then the changes, as if it had a watch of its own. A channel's counts (publishers, ...)
    are those of when it was told of.

    A follower's queue is bounded. One that does not read ends with SLOW_CONSUMER; the others do not notice.
    When the connection to the daemon breaks, every follower ends with CONNECTION_LOST, because revisions
    count anew with the next.

Invariants
    Without followers there is no watch and no state.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Final

from towpath.convert import watch_event_to_proto
from towpath.errors import ConnectionLost, SlowConsumer
from towpath.v1 import registry_pb2

if TYPE_CHECKING:
    from towpath.aio import AsyncClient
    from towpath.model import WatchEvent

CHANGES_QUEUED_MAX: Final = 4_096
"""Changes that may wait for one follower, beside the state that it was told first."""


class Follower:
    """One peer's share of the watch; a context manager, which leaves the watch at its end."""

    def __init__(self, watch: RegistryWatch) -> None:
        self._watch = watch
        self._items: deque[registry_pb2.WatchResponse] = deque()
        self._items_max = 0
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        self.is_current = False

    def tell_state(self, state: list[registry_pb2.WatchResponse], revision: int) -> None:
        """Queue the state as it stands and then ``current``; from now on it is told changes."""
        self._items.extend(state)
        self._items.append(registry_pb2.WatchResponse(revision=revision, current=registry_pb2.WatchCurrent()))
        self._items_max = len(self._items) + CHANGES_QUEUED_MAX
        self.is_current = True
        self._changed.set()

    def tell(self, change: registry_pb2.WatchResponse) -> None:
        """Queue a change, or end with SLOW_CONSUMER when too many wait."""
        if len(self._items) >= self._items_max:
            self.fail(SlowConsumer(f"{len(self._items)} changes of the registry were not read"))
            return
        self._items.append(change)
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """End it; what is queued is not told any more."""
        self._items.clear()
        self._failure = error
        self._watch.leave(self)
        self._changed.set()

    async def receive(self) -> registry_pb2.WatchResponse:
        """Wait for the next item.

        Raises:
            SlowConsumer: too much was left unread.
            ConnectionLost: the connection to the daemon broke.
        """
        while not self._items:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        return self._items.popleft()

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.leave(self)


class RegistryWatch:
    """The gateway's watch.

    Args:
        client: watches.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._followers: set[Follower] = set()
        self._task: asyncio.Task[None] | None = None
        self._state: dict[tuple[str, str | int], registry_pb2.WatchResponse] = {}
        self._revision = 0
        self._is_current = False

    def follow(self) -> Follower:
        """Join the watch."""
        follower = Follower(self)
        self._followers.add(follower)
        if self._task is None:
            self._task = asyncio.create_task(self._read(), name="grpc-registry-watch")
            self._task.add_done_callback(self._ended)
        elif self._is_current:
            follower.tell_state(list(self._state.values()), self._revision)
        return follower

    def leave(self, follower: Follower) -> None:
        """Leave the watch; more than once is fine. The last one ends it."""
        self._followers.discard(follower)
        if not self._followers and self._task is not None:
            self._task.cancel()
            self._forget()

    def _forget(self) -> None:
        self._task = None
        self._state.clear()
        self._is_current = False

    def _ended(self, task: asyncio.Task[None]) -> None:
        # Cancelled: by leave(), which has forgotten it, and another may run by now.
        if task.cancelled():
            return
        self._forget()
        error = task.exception() or ConnectionLost("the daemon ended the watch")
        for follower in list(self._followers):
            follower.fail(error)

    async def _read(self) -> None:
        watch = self._client.watch()
        try:
            while True:
                self._take(await watch.receive())
        finally:
            await watch.close()

    def _take(self, event: WatchEvent) -> None:
        if event.kind == "reset":
            raise ConnectionLost(
                "the gateway's connection to the daemon was made anew",
                hint="watch again to be told everything",
            )
        self._revision = max(self._revision, event.revision)
        if event.kind == "current":
            self._is_current = True
            for follower in self._followers:
                follower.tell_state(list(self._state.values()), self._revision)
            return
        change = watch_event_to_proto(event)
        self._note(event, change)
        for follower in [each for each in self._followers if each.is_current]:
            follower.tell(change)

    def _note(self, event: WatchEvent, change: registry_pb2.WatchResponse) -> None:
        if event.channel is not None:
            key: tuple[str, str | int] = ("channel", event.channel.name)
        else:
            assert event.binding is not None
            key = ("binding", event.binding.id)
        if event.kind in ("channel_declared", "binding_created"):
            self._state[key] = change
        else:
            self._state.pop(key, None)
