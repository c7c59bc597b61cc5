"""What an end is on its channel, who reads whom, and on which kind of channel each may be. Pure.

Theory of operation
    On a topic there are publishers and subscribers. A service has two ends at each side, because its
    messages go both ways and a reply concerns one caller alone::

        caller     (source) ──requests──▶ server  (reader)    every server reads every caller; a request
                                                              names the one that it is for
        answerer   (source) ──replies───▶ replies (reader)    the one reader that the answerer names

    So the requests of a caller can be read by all servers of the service, and its replies by nobody else.
    An answerer belongs to a server, a caller to a reader of replies: to a reader of the same session, in
    ``own_reader``. Who reads an end is told that, so that nobody answers in another's name.

Not here: the pairs themselves (``pairs``, ``channels``), what requests and replies look like (the clients).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from towpath.errors import InvalidArgument

from .commands import Kind, ReaderRole, SourceRole

READS: Final = {
    ReaderRole.SUBSCRIBER: SourceRole.PUBLISHER,
    ReaderRole.SERVER: SourceRole.CALLER,
    ReaderRole.REPLIES: SourceRole.ANSWERER,
}
"""Whose sources a reader of each role is for."""

_KINDS: Final[dict[IntEnum, Kind]] = {
    SourceRole.PUBLISHER: Kind.TOPIC,
    SourceRole.CALLER: Kind.SERVICE,
    SourceRole.ANSWERER: Kind.SERVICE,
    ReaderRole.SUBSCRIBER: Kind.TOPIC,
    ReaderRole.SERVER: Kind.SERVICE,
    ReaderRole.REPLIES: Kind.SERVICE,
}

_USES: Final = {
    Kind.TOPIC: ("a topic", "publish on it, or subscribe to it"),
    Kind.QUEUE: ("a queue", "publish on it, or consume from it"),
    Kind.STATE: ("a state", "set, get or watch it"),
    Kind.SERVICE: ("a service", "call it, or serve it"),
}


def check_kind(name: str, kind: Kind, role: SourceRole | ReaderRole) -> None:
    """Refuse an end that channels of this kind do not have.

    Raises:
        InvalidArgument: says what the channel is for.
    """
    if kind is not _KINDS[role]:
        word = "caller" if role is ReaderRole.REPLIES else role.name.lower()  # its caller comes next
        raise wrong_kind(name, kind, f"and takes no {word}")


def wrong_kind(name: str, kind: Kind, why: str) -> InvalidArgument:
    """Return what to refuse a call with that channels of this kind do not take.

    Args:
        why: goes on after "channel 'x' is a queue, ".
    """
    what, use = _USES[kind]
    return InvalidArgument(f"channel {name!r} is {what}, {why}", hint=use)
