"""Topics: who publishes and who subscribes on each channel, now.

Theory of operation
    On a topic a subscriber maps the ring of each publisher, and each publisher maps the subscriber's
    control page. The core is not on the path of messages; it only decides who may map what, and tells both
    sides::

        source attaches   every reader there is: ReaderAdded to the source, SourceAdded to the reader
        reader attaches   cell + 1, then every source there is: SourceAdded to the reader; a source that sees
                          its channel's cell change asks with FetchReaders, and gets ReaderAdded
        reader detaches   cell + 1; sources get ReaderGone when they ask
        source detaches   SourceGone to each reader, which drains the ring and then frees the slot

    A source and a reader that follow each other are a *pair*, which has a slot in the reader's control
    page. A pair is live while its source is; after that it is kept, slot and all, until the reader releases
    it, because the reader still reads there. A reader that resumes brings its pairs along (``held``): a
    source that comes back later than its reader finds its slot as it was.

    ``Source.paired`` is who follows the source; ``Source.known`` is who the source was told of.
    FetchReaders tells the difference. Both map to the reader's record, not just its id, since a reader that
    was resumed in between has the same id and another page.

Invariants
    A reader is in ``paired`` of each source of its topic whose origin it wants, and of no other.
    A reader's slots in use and free are disjoint, and together all of them.
    Every change of a topic's readers raises its cell. In one run cells are never set back, whichever
    channel has them.

Not here: which channels exist and may be used (``registry``), who may use which id (``sessions``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from towpath.errors import ChannelUndeclared, InvalidArgument, LimitExceeded, TowpathError

from .effects import (
    BumpGeneration,
    DropReader,
    DropSource,
    Effect,
    Notice,
    PublicationEnded,
    ReaderAdded,
    ReaderGone,
    SourceAdded,
    SourceGone,
    SubscriptionEnded,
)
from .ids import ReaderId, SourceId
from .limits import CELLS_MAX, SLOTS_MAX, Limits
from .quotas import Tally
from .registry import NOBODY, Presence
from .sessions import Session


@dataclass(slots=True, eq=False)
class Topic:
    """One channel's publishers and subscribers."""

    name: str
    cell: int
    sources: dict[SourceId, Source] = field(default_factory=dict)
    readers: dict[ReaderId, Reader] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Source:
    """A publisher. Quotas are charged to ``principal``."""

    id: SourceId
    session: Session
    principal: str
    topic: Topic
    origin: str
    paired: dict[ReaderId, Reader] = field(default_factory=dict)
    known: dict[ReaderId, Reader] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Reader:
    """A subscriber. Bit i of ``free`` is set while slot i serves no source; ``slots`` has the others."""

    id: ReaderId
    session: Session
    principal: str
    topic: Topic
    exclude_origin: str
    wants_doorbell: bool
    free: int
    slots: dict[SourceId, int] = field(default_factory=dict)

    def wants(self, origin: str) -> bool:
        """Whether sources of this origin are for this reader (no echo)."""
        return not self.exclude_origin or origin != self.exclude_origin

    def has_slot_for(self, source: SourceId) -> bool:
        """Whether :meth:`take` can give the source a slot."""
        return self.free != 0 or source in self.slots

    def take(self, source: SourceId) -> int:
        """Return the source's slot: the one it had, else the lowest that is free."""
        slot = self.slots.get(source)
        if slot is None:
            lowest = self.free & -self.free
            assert lowest
            self.free ^= lowest
            slot = self.slots[source] = lowest.bit_length() - 1
        return slot


class Topics:
    """The topics of all channels, and the cells of the generation table."""

    def __init__(self) -> None:
        self.topics: dict[str, Topic] = {}
        self.sources: dict[SourceId, Source] = {}
        self.readers: dict[ReaderId, Reader] = {}
        self._generations: list[int] = []
        self._free_cells: list[int] = []
        self._sources_tally = Tally("sources_per_principal_max", "publishers")
        self._readers_tally = Tally("readers_per_principal_max", "subscribers")

    def start(self) -> None:
        """Begin a run: its generation table is new, with every cell at zero."""
        assert not self.sources and not self.readers
        self._generations = [0] * len(self._generations)

    def is_live(self, identifier: int) -> bool:
        """Whether the id is that of an attached source or reader."""
        return identifier in self.sources or identifier in self.readers

    def presence(self, name: str) -> Presence:
        """Return who uses a channel now."""
        topic = self.topics.get(name)
        if topic is None or not (topic.sources or topic.readers):
            return NOBODY
        return Presence(len(topic.sources), len(topic.readers))

    def generation(self, topic: Topic) -> int:
        """Return the value of a topic's cell."""
        return self._generations[topic.cell]

    # ---- topics come and go --------------------------------------------------------------------------------

    def open(self, name: str) -> None:
        """Make the topic of a new channel."""
        if self._free_cells:
            cell = self._free_cells.pop()
        else:
            cell = len(self._generations)
            assert cell < CELLS_MAX
            self._generations.append(0)
        self.topics[name] = Topic(name, cell)

    def close(self, name: str) -> list[Effect]:
        """End a topic: everybody on it is told, and a publisher that waits for a subscriber wakes up."""
        topic = self.topics[name]
        told: list[Effect] = []
        dropped: list[Effect] = []
        for source in tuple(topic.sources.values()):
            error: TowpathError = ChannelUndeclared(f"channel {name!r} was undeclared")
            told.append(Notice(source.session.id, PublicationEnded(source.id, error)))
            dropped.append(DropSource(source.id))
            self._remove_source(source)
        for reader in tuple(topic.readers.values()):
            error = ChannelUndeclared(f"channel {name!r} was undeclared")
            told.append(Notice(reader.session.id, SubscriptionEnded(reader.id, error)))
            dropped.append(DropReader(reader.id))
            self._remove_reader(reader)
        del self.topics[name]
        self._free_cells.append(topic.cell)
        return [*told, self._bump(topic), *dropped]

    # ---- sources -------------------------------------------------------------------------------------------

    def attach_source(
        self,
        *,
        topic: Topic,
        source_id: SourceId,
        session: Session,
        principal: str,
        origin: str,
        is_resumed: bool,
        limits: Limits,
    ) -> list[Effect]:
        """Make a session a publisher and tell the subscribers and it of each other.

        A subscriber whose control page has no slot left loses its subscription; the publisher is not
        disturbed.

        Raises:
            LimitExceeded, QuotaExceeded: there are as many publishers as there may be.
        """
        if len(topic.sources) >= limits.publishers_per_channel_max:
            raise LimitExceeded(
                f"channel {topic.name!r} has {len(topic.sources)} publishers:"
                f" publishers_per_channel_max is {limits.publishers_per_channel_max}"
            )
        self._sources_tally.check(principal, limits.sources_per_principal_max)
        source = Source(source_id, session, principal, topic, origin)
        wanting = [reader for reader in topic.readers.values() if reader.wants(origin)]
        effects: list[Effect] = []
        for reader in [reader for reader in wanting if not reader.has_slot_for(source_id)]:
            error = LimitExceeded(
                f"a subscription to {topic.name!r} has no slot left for one more publisher",
                hint="subscribe with more slots, and read on: so the slots of publishers that left are freed",
            )
            effects.append(Notice(reader.session.id, SubscriptionEnded(reader.id, error)))
            effects.extend(self.detach_reader(reader))
            wanting.remove(reader)
        self.sources[source_id] = topic.sources[source_id] = source
        session.sources[source_id] = None
        self._sources_tally.add(principal)
        from_start = not is_resumed
        for reader in wanting:
            slot = reader.take(source_id)
            source.paired[reader.id] = source.known[reader.id] = reader
            effects.append(_reader_added(source, reader, from_start=from_start))
            added = SourceAdded(reader.id, source_id, slot, from_start, origin)
            effects.append(Notice(reader.session.id, added))
        return effects

    def detach_source(self, source: Source) -> list[Effect]:
        """End a publisher; its subscribers drain its ring and free the slot."""
        self._remove_source(source)
        effects: list[Effect] = [
            Notice(reader.session.id, SourceGone(reader.id, source.id)) for reader in source.paired.values()
        ]
        effects.append(DropSource(source.id))
        return effects

    def fetch_readers(self, source: Source) -> list[Effect]:
        """Tell a publisher how its subscribers differ from those it was told of."""
        session = source.session.id
        known, paired = source.known, source.paired
        effects: list[Effect] = [
            Notice(session, ReaderGone(source.id, reader))
            for reader, record in known.items()
            if paired.get(reader) is not record
        ]
        effects.extend(
            _reader_added(source, record, from_start=False)
            for reader, record in paired.items()
            if known.get(reader) is not record
        )
        source.known = dict(paired)
        return effects

    # ---- readers -------------------------------------------------------------------------------------------

    def attach_reader(
        self,
        *,
        topic: Topic,
        reader_id: ReaderId,
        session: Session,
        principal: str,
        slots: int,
        held: Mapping[SourceId, int],
        exclude_origin: str,
        wants_doorbell: bool,
        limits: Limits,
    ) -> list[Effect]:
        """Make a session a subscriber: raise the cell, then tell it of each publisher.

        The cell is raised first: a publisher that has not seen it raised may write on, and the subscriber,
        which reads the tail after it was told, starts behind all that was published before.

        Raises:
            InvalidArgument: the slots are too many, or those held are not slots of this page, or are so
            twice.
            LimitExceeded, QuotaExceeded: there are as many subscribers as there may be, or the page has too
                few slots for the publishers there are.
        """
        free = _free_after(slots, held)
        if len(topic.readers) >= limits.subscribers_per_channel_max:
            raise LimitExceeded(
                f"channel {topic.name!r} has {len(topic.readers)} subscribers:"
                f" subscribers_per_channel_max is {limits.subscribers_per_channel_max}"
            )
        self._readers_tally.check(principal, limits.readers_per_principal_max)
        reader = Reader(
            reader_id, session, principal, topic, exclude_origin, wants_doorbell, free, dict(held)
        )
        wanted = [source for source in topic.sources.values() if reader.wants(source.origin)]
        needed = sum(source.id not in held for source in wanted)
        if needed > free.bit_count():
            raise LimitExceeded(
                f"channel {topic.name!r} has {len(topic.sources)} publishers; of {slots} slots"
                f" {free.bit_count()} are free",
                hint="subscribe with more slots",
            )
        self.readers[reader_id] = topic.readers[reader_id] = reader
        session.readers[reader_id] = None
        self._readers_tally.add(principal)
        effects: list[Effect] = [self._bump(topic)]
        for source in wanted:
            slot = reader.take(source.id)
            source.paired[reader_id] = reader
            added = SourceAdded(reader_id, source.id, slot, False, source.origin)
            effects.append(Notice(session.id, added))
        return effects

    def detach_reader(self, reader: Reader) -> list[Effect]:
        """End a subscriber; publishers learn of it when they see the cell raised."""
        self._remove_reader(reader)
        return [self._bump(reader.topic), DropReader(reader.id)]

    def release_slot(self, reader: Reader, source: SourceId) -> None:
        """Free the slot of a pair whose source is gone; nothing to do where there is no such pair.

        Raises:
            InvalidArgument: the source is live.
        """
        live = reader.topic.sources.get(source)
        if live is not None and reader.id in live.paired:
            raise InvalidArgument(f"source {source} still publishes: its slot cannot be released")
        slot = reader.slots.pop(source, None)
        if slot is not None:
            reader.free |= 1 << slot

    # ---- inner ---------------------------------------------------------------------------------------------

    def _bump(self, topic: Topic) -> BumpGeneration:
        self._generations[topic.cell] += 1
        return BumpGeneration(topic.cell, self._generations[topic.cell])

    def _remove_source(self, source: Source) -> None:
        del self.sources[source.id]
        del source.session.sources[source.id]
        del source.topic.sources[source.id]
        self._sources_tally.remove(source.principal)

    def _remove_reader(self, reader: Reader) -> None:
        del self.readers[reader.id]
        del reader.session.readers[reader.id]
        del reader.topic.readers[reader.id]
        for identifier in reader.slots:
            source = reader.topic.sources.get(identifier)
            if source is not None:
                source.paired.pop(reader.id, None)
        self._readers_tally.remove(reader.principal)

    def assert_consistent(self) -> None:
        """Assert the invariants; for tests. O(pairs)."""
        assert self._sources_tally.total() == len(self.sources)
        assert self._readers_tally.total() == len(self.readers)
        cells = [topic.cell for topic in self.topics.values()]
        assert sorted(cells + self._free_cells) == list(range(len(self._generations)))
        assert sum(len(topic.sources) for topic in self.topics.values()) == len(self.sources)
        assert sum(len(topic.readers) for topic in self.topics.values()) == len(self.readers)
        for topic in self.topics.values():
            for source in topic.sources.values():
                assert source.id in source.session.sources
                wanting = [reader for reader in topic.readers.values() if reader.wants(source.origin)]
                assert list(source.paired.values()) == wanting or set(source.paired) == {
                    r.id for r in wanting
                }
                assert all(source.id in reader.slots for reader in wanting)
            for reader in topic.readers.values():
                assert reader.id in reader.session.readers
                used = sum(1 << slot for slot in reader.slots.values())
                assert used & reader.free == 0 and used.bit_count() == len(reader.slots)
                assert (used | reader.free) & ((used | reader.free) + 1) == 0


def _reader_added(source: Source, reader: Reader, *, from_start: bool) -> Notice:
    body = ReaderAdded(
        source.id, reader.id, reader.slots[source.id], from_start, reader.session.id, reader.wants_doorbell
    )
    return Notice(source.session.id, body)


def _free_after(slots: int, held: Mapping[SourceId, int]) -> int:
    """Return the mask of free slots of a page of which some are held."""
    if not 1 <= slots <= SLOTS_MAX:
        raise InvalidArgument(f"a control page cannot have {slots} slots", hint=f"it has 1 to {SLOTS_MAX}")
    free = (1 << slots) - 1
    for source, slot in held.items():
        if not 0 <= slot < slots:
            raise InvalidArgument(f"source {source} cannot hold slot {slot}: the page has {slots} slots")
        if not free >> slot & 1:
            raise InvalidArgument(f"slot {slot} is held for two sources, {source} and another")
        free ^= 1 << slot
    return free
