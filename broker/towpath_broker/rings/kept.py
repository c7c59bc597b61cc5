"""What the core has the supervisor keep, so that its successor can go on: names, and what they mean.

Theory of operation
    Of each channel in total order five things outlive the core (host/store.py holds them): its ring, open
    for writing; the control page of its intake, likewise; the control page of each subscriber, so that none
    is overtaken before it has come back; the ring of each publisher, so that what is in there is taken in
    even if it never does; and the receiving end of each doorbell, so that whoever has the other rings it
    still. They are stored as they come and removed as they go.

Invariants
    What was kept is checked like what a stranger offers before it is used; what makes no sense is let go.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from towpath import _ring, wire
from towpath_broker.core.commands import OwnFound
from towpath_broker.core.ids import ReaderId, SourceId

RING: Final = "ring"
PAGE: Final = "page"
SUBSCRIBER: Final = "subscriber"
PUBLISHER: Final = "publisher"
BELL: Final = "bell"

_LAST_SEQ: Final = struct.Struct("<Q")
_LAST_SEQ_OFFSET: Final = 136  # in a ring's header: clients/c/towpath_ring_layout.h


@dataclass(slots=True)
class Kept:
    """What was kept of one channel; subscribers and publishers with their slots."""

    ring: wire.Descriptor | None = None
    page: wire.Descriptor | None = None
    subscribers: dict[ReaderId, tuple[int, wire.Descriptor]] = field(default_factory=dict)
    publishers: dict[SourceId, tuple[int, wire.Descriptor]] = field(default_factory=dict)
    bells: dict[tuple[int, int], wire.Descriptor] = field(default_factory=dict)

    def last_seq(self) -> int:
        """The seq of the newest message in the ring."""
        assert self.ring is not None
        seq: int = _LAST_SEQ.unpack(os.pread(self.ring.fd, _LAST_SEQ.size, _LAST_SEQ_OFFSET))[0]
        return seq


class Keeper:
    """Stores and removes descriptors, by what they are.

    Args:
        store: has the supervisor keep a descriptor, which it closes, under a name; False when it cannot.
        remove: has it forget a name.
    """

    def __init__(self, store: Callable[[str, int], bool], remove: Callable[[str], object]) -> None:
        self._store = store
        self._remove = remove

    def keep_own(self, channel: str, what: str, descriptor: int) -> bool:
        """Keep the core's ring or page; takes over the descriptor."""
        return self._store(f"{what} {channel}", descriptor)

    def keep_other(self, channel: str, what: str, identifier: int, slot: int, descriptor: int) -> bool:
        """Keep a publisher's ring or a subscriber's page (with its slot), or the doorbell of a source and a
        reader; the descriptor stays the caller's.
        """
        return self._store(f"{what} {channel} {identifier} {slot}", os.dup(descriptor))

    def keep_lock_page(self, name: str, descriptor: int) -> bool:
        """Keep a lock page, which is no channel's; takes over the descriptor."""
        return self._store(name, descriptor)

    def remove_lock_page(self, name: str) -> None:
        """Forget one."""
        self._remove(name)

    def remove_own(self, channel: str) -> None:
        """Forget the core's ring and page."""
        for what in (RING, PAGE):
            self._remove(f"{what} {channel}")

    def remove_other(self, channel: str, what: str, identifier: int, slot: int) -> None:
        """Forget what :meth:`keep_other` kept."""
        self._remove(f"{what} {channel} {identifier} {slot}")

    def remove_all(self, channel: str, kept: Kept) -> None:
        """Forget all that was kept of a channel."""
        self.remove_own(channel)
        for reader, (slot, _) in kept.subscribers.items():
            self.remove_other(channel, SUBSCRIBER, reader, slot)
        for source, (slot, _) in kept.publishers.items():
            self.remove_other(channel, PUBLISHER, source, slot)
        for pair in kept.bells:
            self.remove_other(channel, BELL, *pair)


def sort_out(stored: Mapping[str, int]) -> dict[str, Kept]:
    """Put what was stored together by channel; takes over the descriptors, and closes what has no meaning."""
    by_channel: dict[str, Kept] = {}
    for name, descriptor in stored.items():
        owned = wire.Descriptor(descriptor)
        match name.split(" "):
            case ["ring", channel]:
                by_channel.setdefault(channel, Kept()).ring = owned
            case ["page", channel]:
                by_channel.setdefault(channel, Kept()).page = owned
            case ["subscriber", channel, reader, slot]:
                by_channel.setdefault(channel, Kept()).subscribers[ReaderId(int(reader))] = int(slot), owned
            case ["publisher", channel, source, slot]:
                by_channel.setdefault(channel, Kept()).publishers[SourceId(int(source))] = int(slot), owned
            case ["bell", channel, source, reader]:
                by_channel.setdefault(channel, Kept()).bells[int(source), int(reader)] = owned
    return by_channel


def found_in(by_channel: Mapping[str, Kept]) -> Iterable[OwnFound]:
    """Say of each channel that was kept whole what the machine must know of it."""
    for channel, kept in by_channel.items():
        if kept.ring is None or kept.page is None:
            continue
        try:
            ring, page = _read_only(kept.ring), _read_only(kept.page)
            source, ring_bytes = _ring.check_ring(ring.fd)
            reader, _ = _ring.check_control(page.fd)
        except (OSError, _ring.RingError):
            continue
        held = {publisher: slot for publisher, (slot, _) in kept.publishers.items()}
        yield OwnFound(channel, SourceId(source), ring_bytes, ReaderId(reader), held)


def _read_only(descriptor: wire.Descriptor) -> wire.Descriptor:
    return wire.Descriptor(os.open(f"/proc/self/fd/{descriptor.fd}", os.O_RDONLY | os.O_CLOEXEC))
