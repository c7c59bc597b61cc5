"""How much goes through the rings, without being on anybody's path.

Theory of operation
    On a direct topic the core sees no message. But it holds a read-only descriptor of every ring and
    control page, and a ring's header says where its tail is and how many messages there have been, a
    control page where each cursor is. So whoever asks is answered by a few preads, and whoever publishes or
    subscribes pays nothing and cannot tell. When a source leaves, what it published is added to its
    channel's past. Where the core puts messages in order its own ring has all of them, those of publishers'
    rings again: then that ring alone counts for the channel, and publishers' for their sessions.

Invariants
    What lies in a ring or page is its maker's word and may be a lie: numbers are bounded here, never
    trusted, and a lie is seen only in the figures of the channel and session that lie.
    A channel's figures only grow while it is there. At most ``PASTS_MAX`` channels have a past.

Not here: messages that other carriers refuse or drop (their gateways count those).
Source of the offsets: clients/c/towpath_ring_layout.h; a test compares them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from towpath import model, wire
from towpath_broker.core.ids import ReaderId, SourceId

PASTS_MAX: Final = 65_536
"""Channels whose past is remembered; above it the longest remembered is forgotten."""
COUNT_MAX: Final = (1 << 63) - 1
"""No figure is told above this, whatever a ring says."""

_TAIL_OFFSET: Final = 128
_TAIL_AND_SEQ: Final = struct.Struct("<QQ")
_FLAGS: Final = 7
_SLOTS_OFFSET: Final = 256
_SLOT_BYTES: Final = 64
_CURSOR_AND_SOURCE: Final = struct.Struct("<QQ")
_CURSOR_SET: Final = 1


@dataclass(slots=True, eq=False)
class _Ring:
    """A ring that counts, and what it had when it began to."""

    channel: str
    descriptor: wire.Descriptor
    seq_before: int
    tail_before: int
    is_whole: bool

    def tail_and_seq(self) -> tuple[int, int]:
        tail, seq = _TAIL_AND_SEQ.unpack(os.pread(self.descriptor.fd, _TAIL_AND_SEQ.size, _TAIL_OFFSET))
        return tail & ~_FLAGS, seq

    def traffic(self) -> model.Traffic:
        tail, seq = self.tail_and_seq()
        return model.Traffic(_bounded(seq - self.seq_before), _bounded(tail - self.tail_before))


class RingTraffic:
    """The rings and control pages that there are, by what they tell of themselves."""

    def __init__(self) -> None:
        self._rings: dict[SourceId, _Ring] = {}
        self._pages: dict[ReaderId, wire.Descriptor] = {}
        self._past: dict[str, model.Traffic] = {}
        self._whole: dict[str, SourceId] = {}

    def begin(
        self,
        source: SourceId,
        channel: str,
        ring: wire.Descriptor,
        *,
        is_resumed: bool,
        is_whole: bool = False,
    ) -> None:
        """Count what a source publishes; of one that comes back, from now on.

        Args:
            is_whole: its ring has all that the others of the channel have, until it leaves.
        """
        counted = _Ring(channel, ring, 0, 0, is_whole)
        if is_whole:
            self._whole[channel] = source
        if is_resumed:
            counted.tail_before, counted.seq_before = counted.tail_and_seq()
        self._rings[source] = counted

    def end(self, source: SourceId) -> None:
        """A source leaves; what it published stays its channel's."""
        ring = self._rings.pop(source, None)
        if ring is None:
            return
        counts = self._counts(source, ring)
        if ring.is_whole:
            del self._whole[ring.channel]
        traffic = ring.traffic()
        if counts and (traffic.messages or traffic.ring_bytes):
            self._past[ring.channel] = _sum((self._past.pop(ring.channel, model.Traffic()), traffic))
            if len(self._past) > PASTS_MAX:
                del self._past[next(iter(self._past))]

    def _counts(self, source: SourceId, ring: _Ring) -> bool:
        """Whether what a ring has counts for its channel."""
        return self._whole.get(ring.channel, source) == source

    def withdraw(self, source: SourceId) -> None:
        """A source was refused: it was never there."""
        self._rings.pop(source, None)

    def begin_reader(self, reader: ReaderId, page: wire.Descriptor) -> None:
        """Look at a reader's cursors when asked how far it is."""
        self._pages[reader] = page

    def end_reader(self, reader: ReaderId) -> None:
        self._pages.pop(reader, None)

    def tail(self, source: SourceId) -> int:
        """Where the tail of a source that is attached is, as its ring says: any number of 64 bits."""
        return self._rings[source].tail_and_seq()[0]

    def by_channel(self, channels: Iterable[str]) -> dict[str, model.Traffic]:
        """What was published on each channel; others are forgotten. O(channels + rings)."""
        parts = {name: [self._past[name]] if name in self._past else [] for name in channels}
        self._past = {name: past for name, past in self._past.items() if name in parts}
        for source, ring in self._rings.items():
            if ring.channel in parts and self._counts(source, ring):
                parts[ring.channel].append(ring.traffic())
        return {name: _sum(of_channel) for name, of_channel in parts.items()}

    def all_channels(self) -> dict[str, model.Traffic]:
        """What was published on each channel on which anything was. O(rings)."""
        names = {*self._past, *(ring.channel for ring in self._rings.values())}
        return {name: traffic for name, traffic in self.by_channel(names).items() if traffic.messages}

    def published(self, sources: Iterable[SourceId]) -> model.Traffic:
        """What these sources have published so far. O(sources)."""
        return _sum(self._rings[source].traffic() for source in sources if source in self._rings)

    def pending_bytes(self, readers: Iterable[tuple[ReaderId, Mapping[SourceId, int]]]) -> int:
        """What lies in rings for readers that they have not taken yet. O(slots).

        Args:
            readers: each with where in its control page the cursor of each source is.
        """
        pages = ((self._pages[reader], slots) for reader, slots in readers if reader in self._pages)
        return _bounded(sum(self._pending_of(page, slots) for page, slots in pages))

    def _pending_of(self, page: wire.Descriptor, slots: Mapping[SourceId, int]) -> int:
        live = [(source, slot) for source, slot in slots.items() if source in self._rings]
        size = _SLOT_BYTES * (1 + max((slot for _, slot in live), default=-1))
        cursors = os.pread(page.fd, size, _SLOTS_OFFSET)
        pending = 0
        for source, slot in live:
            word, owner = _CURSOR_AND_SOURCE.unpack_from(cursors, slot * _SLOT_BYTES)
            if owner == source and word & _FLAGS == _CURSOR_SET:
                tail, _ = self._rings[source].tail_and_seq()
                pending += max(tail - (word & ~_FLAGS), 0)
        return pending


def _bounded(number: int) -> int:
    return min(max(number, 0), COUNT_MAX)


def _sum(parts: Iterable[model.Traffic]) -> model.Traffic:
    messages = ring_bytes = 0
    for part in parts:
        messages += part.messages
        ring_bytes += part.ring_bytes
    return model.Traffic(_bounded(messages), _bounded(ring_bytes))
