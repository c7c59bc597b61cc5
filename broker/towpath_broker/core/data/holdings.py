"""The channels of one data machine, found by name and kind, and what each holds.

Theory of operation
    A command names a channel and expects a kind. What is not there, or of another kind, is refused here
    with the same words whoever asks, so that the handlers of commands can be about what they do.

Not here: how channels come and go (``machine``), what they do (``queues``, ``values``, ``logs``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from towpath.errors import ChannelNotFound
from towpath_broker.core.commands import Kind
from towpath_broker.core.roles import wrong_kind

from .logs import Log
from .queues import Queue
from .statistics import ChannelStatistics
from .values import State

Channel = Queue | State | Log
CLASSES: Final[Mapping[Kind, type[Queue] | type[State] | type[Log]]] = {
    Kind.QUEUE: Queue,
    Kind.STATE: State,
    Kind.TOPIC: Log,
}
"""What is made for a channel of a kind; other kinds are not the data plane's."""


class Holdings(dict[str, Channel]):
    """Channels by name."""

    def require(self, name: str) -> Channel:
        """Return a channel.

        Raises:
            ChannelNotFound: there is none of that name.
        """
        channel = self.get(name)
        if channel is None:
            raise ChannelNotFound(f"no channel {name!r}", hint=f"declare it first: towpath declare {name}")
        return channel

    def queue(self, name: str) -> Queue:
        """Return a queue.

        Raises:
            ChannelNotFound, InvalidArgument: there is no queue of that name.
        """
        channel = self.require(name)
        if not isinstance(channel, Queue):
            raise wrong_kind(name, _kind(channel), "not a queue")
        return channel

    def state(self, name: str) -> State:
        """Return a state.

        Raises:
            ChannelNotFound, InvalidArgument: there is no state of that name.
        """
        channel = self.require(name)
        if not isinstance(channel, State):
            raise wrong_kind(name, _kind(channel), "not a state")
        return channel

    def log(self, name: str) -> Log:
        """Return a durable topic.

        Raises:
            ChannelNotFound, InvalidArgument: there is no durable topic of that name.
        """
        channel = self.require(name)
        if not isinstance(channel, Log):
            raise wrong_kind(name, _kind(channel), "not a durable topic")
        return channel

    def statistics(self, name: str) -> ChannelStatistics | None:
        """Return what a channel holds; None: it is not one of this machine's."""
        channel = self.get(name)
        match channel:
            case Queue():
                return ChannelStatistics(
                    channel.messages,
                    channel.content_bytes,
                    len(channel.line.waiting),
                    len(channel.consumers),
                    sum(each.unsettled for each in channel.consumers.values()),
                    next_seq=channel.next_seq,
                )
            case Log():
                return ChannelStatistics(
                    channel.messages,
                    channel.content_bytes,
                    oldest_seq=channel.oldest_seq,
                    next_seq=channel.next_seq,
                )
            case State():
                return ChannelStatistics(
                    int(channel.value.is_set), len(channel.value.payload), 0, len(channel.watchers)
                )
        return None


def _kind(channel: Channel) -> Kind:
    return next(kind for kind, its in CLASSES.items() if its is type(channel))
