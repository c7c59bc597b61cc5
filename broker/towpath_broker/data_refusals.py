"""Why a call cannot be on a channel, as far as the lanes of the data plane do not know of that channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from towpath.errors import ChannelNotFound, InvalidArgument, TowpathError

from .core.commands import Kind
from .core.data import commands as c
from .core.roles import wrong_kind

_OF_A_QUEUE: Final = c.Consume
_OF_A_STATE: Final = c.GetValue | c.SetValue | c.DeleteValue | c.WatchValue | c.AttachValue

KindOf = Callable[[str], Kind | None]


def hindrance(
    command: c.CommitTransaction, is_durable: Callable[[str], bool], kind_of: KindOf
) -> TowpathError | None:
    """Return why a transaction cannot be: what is in memory is in none. None: nothing is in its way.

    Args:
        is_durable: whether a channel is in the durable lane.
        kind_of: that of a channel; None: there is none.
    """
    names = [
        *(each.channel for each in command.publishes),
        *(each.channel for each in command.values),
        *(each.channel for each in command.deletions),
        *(each.channel for each in command.places),
    ]
    for name in dict.fromkeys(names):
        if not is_durable(name) and (kind := kind_of(name)) is not None:
            if kind is Kind.SERVICE:
                return wrong_kind(name, kind, "and can be in no transaction")
            return InvalidArgument(
                f"channel {name!r} is not durable, and can be in no transaction",
                hint="undeclare it, and declare it with --durable",
            )
    for settlement in command.settlements:
        if settlement.consumer and settlement.consumer % 2 == 0:
            return InvalidArgument(
                "a delivery of a queue that is not durable can be in no transaction",
                hint="undeclare the queue, and declare it with --durable",
            )
    return None


def foreign(channel: str, command: c.ClientCommand, kind_of: KindOf) -> TowpathError:
    """Return why a call cannot be on a channel that is in neither lane."""
    if (kind := kind_of(channel)) is None:
        hint = f"declare it first: towpath declare {channel}"
        return ChannelNotFound(f"no channel {channel!r}", hint=hint)
    if isinstance(command, _OF_A_QUEUE):
        return wrong_kind(channel, kind, "not a queue")
    if isinstance(command, _OF_A_STATE):
        return wrong_kind(channel, kind, "not a state")
    if kind is not Kind.TOPIC:
        return wrong_kind(channel, kind, "not a durable topic")
    return InvalidArgument(
        f"channel {channel!r} is a topic that is not durable: nothing of it is kept",
        hint="undeclare it, and declare it with --durable",
    )
