"""The registry as the gateway knows it: one watch of the daemon's, shared by whoever wants to follow.

Theory of operation
    One task follows the registry and keeps what it was told. ``sub`` and ``push`` hear of channels through
    a listener object; each peer's ``watch_request`` gets a :class:`FeedWatch` of its own, which begins with
    the state as it is known and goes on with the changes. So a thousand peers that watch cost the daemon
    one watch (it allows a session only a few).

    When the connection to the daemon was made anew everything is told again. Listeners get the difference; a
    watch ends with ConnectionLost, because revisions count within one run of the daemon only.

Invariants
    A watch holds at most ``EVENTS_MAX`` changes that were not taken; then it ends with SlowConsumer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from towpath.errors import ConnectionLost, SlowConsumer, TowpathError
from towpath.model import BindingInfo, ChannelInfo, WatchEvent

if TYPE_CHECKING:
    from towpath.aio import AsyncClient

EVENTS_MAX: Final = 10_000

_NO_CHANNEL: Final = "_towpath."


class Listener(Protocol):
    """Who wants to know which channels there are: the ``sub`` and the ``push`` endpoint."""

    def channel_declared(self, channel: str) -> None: ...

    def channel_undeclared(self, channel: str) -> None: ...

    def channels_replaced(self, channels: Iterable[str]) -> None: ...


async def catch_up(client: AsyncClient) -> None:
    """Wait until what the registry had when this was called is known here.

    The answer to any call comes behind the changes that were made before it: one connection, one order.

    Raises:
        TowpathError: the daemon cannot be asked now.
    """
    await client.channels(_NO_CHANNEL)


class FeedWatch:
    """One follower's events, in order."""

    def __init__(self) -> None:
        self._state: Sequence[WatchEvent] = ()
        self._state_taken = 0
        self._changes: deque[WatchEvent] = deque()
        self._ended: TowpathError | None = None
        self._changed = asyncio.Event()

    async def receive(self) -> WatchEvent:
        """Return the next event.

        Raises:
            ConnectionLost: the daemon was restarted; watch again.
            SlowConsumer: too many changes were not taken.
        """
        while True:
            if self._state_taken < len(self._state):
                self._state_taken += 1
                return self._state[self._state_taken - 1]
            self._state, self._state_taken = (), 0
            if self._changes:
                return self._changes.popleft()
            if self._ended is not None:
                raise self._ended
            self._changed.clear()
            await self._changed.wait()

    def put_state(self, events: Sequence[WatchEvent]) -> None:
        """The state as it stands, which may be of any length; it is shared between watches."""
        self._state = events
        self._changed.set()

    def put(self, event: WatchEvent) -> None:
        """One change."""
        if len(self._changes) >= EVENTS_MAX:
            self.end(SlowConsumer(f"over {EVENTS_MAX} changes of the registry were not taken"))
        elif self._ended is None:
            self._changes.append(event)
            self._changed.set()

    def end(self, error: TowpathError) -> None:
        """No more events will come."""
        if self._ended is None:
            self._ended = error
            self._changed.set()


class RegistryFeed:
    """Follows the registry.

    Args:
        client: whose watch it is.
        listeners: hear of channels.
    """

    def __init__(self, client: AsyncClient, listeners: Iterable[Listener]) -> None:
        self._client = client
        self._listeners = tuple(listeners)
        self._channels: dict[str, ChannelInfo] = {}
        self._bindings: dict[int, BindingInfo] = {}
        self._revision = 0
        self._state: Sequence[WatchEvent] | None = None
        self._is_current = False
        self._watches: set[FeedWatch] = set()

    async def run(self) -> None:
        """Follow the registry until the client is closed."""
        watch = self._client.watch()
        try:
            async for event in watch:
                self._take(event)
        finally:
            await watch.close()

    async def watch(self) -> FeedWatch:
        """Begin to follow; give it back to :meth:`forget`.

        Raises:
            TowpathError: the daemon cannot be asked now.
        """
        await catch_up(self._client)
        watch = FeedWatch()
        if self._is_current:
            watch.put_state(self._current_state())
        self._watches.add(watch)
        return watch

    def forget(self, watch: FeedWatch) -> None:
        """Follow no more."""
        self._watches.discard(watch)

    def _current_state(self) -> Sequence[WatchEvent]:
        if self._state is None:
            channels, bindings = self._channels.values(), self._bindings.values()
            self._state = (
                *(WatchEvent("channel_declared", self._revision, channel=each) for each in channels),
                *(WatchEvent("binding_created", self._revision, binding=each) for each in bindings),
                WatchEvent("current", self._revision),
            )
        return self._state

    def _take(self, event: WatchEvent) -> None:
        self._state = None
        if event.kind == "reset":
            self._is_current = False
            self._channels.clear()
            self._bindings.clear()
            watches, self._watches = self._watches, set()
            for watch in watches:
                watch.end(
                    ConnectionLost(
                        "the gateway's connection to the daemon was made anew",
                        hint="watch again to be told everything",
                    )
                )
            return
        self._revision = event.revision
        self._remember(event)
        if event.kind == "current":
            self._is_current = True
            for listener in self._listeners:
                listener.channels_replaced(self._channels)
            for watch in self._watches:
                watch.put_state(self._current_state())
        elif self._is_current:
            for watch in self._watches:
                watch.put(event)

    def _remember(self, event: WatchEvent) -> None:
        channel, binding = event.channel, event.binding
        if event.kind == "channel_declared" and channel is not None:
            self._channels[channel.name] = channel
            for listener in self._listeners:
                listener.channel_declared(channel.name)
        elif event.kind == "channel_undeclared" and channel is not None:
            self._channels.pop(channel.name, None)
            for listener in self._listeners:
                listener.channel_undeclared(channel.name)
        elif event.kind == "binding_created" and binding is not None:
            self._bindings[binding.id] = binding
        elif event.kind == "binding_deleted" and binding is not None:
            self._bindings.pop(binding.id, None)
