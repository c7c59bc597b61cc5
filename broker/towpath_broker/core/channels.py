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
        reader stalls     its source asks: ReaderGone to the source, SourceDetached to the reader; a second
                          ReaderGone when the reader has gone

    A source and a reader that follow each other are a *pair*, which has a slot in the reader's control
    page. A pair is live while its source is; after that it is kept, slot and all, until the reader releases
    it, because the reader still reads there. A reader that resumes brings its pairs along (``held``): a
    source that comes back later than its reader finds its slot as it was.

    ``Source.paired`` is who follows the source; ``Source.known`` is who the source was told of.
    FetchReaders tells the difference. Both map to the reader's record, not just its id, since a reader that
    was resumed in between has the same id and another page. ``Source.starts`` has where readers begin that
    the source was not told of yet.

Patterns
    A reader of a pattern follows the sources of all topics that the pattern stands for, those declared later
    too. It is not listed in any of them: what there is of it is its pairs, which its slots bound, and a
    number in each topic (``patterns``). So a pattern costs no memory for channels that nobody publishes on,
    and raises only the cells that some source looks at. Attaching one goes over all topics once; declaring
    a channel, and attaching a source, over all pattern readers, which ``patterns_max`` bounds.

A stalled pair
    is parted at the source's request, because only the source sees that the reader does not move. It may
    ask that of its own pairs alone, so it harms nobody but who listens to it. The pair comes back only when
    one of both attaches anew.

Services
    have ends of other roles (``roles``), which meet by the same rules: ``Reader.wants`` says who reads whom.
    A caller is told of each server that comes and goes at once (``Source.is_told_at_once``): it sleeps on its
    replies, not on its ring, and must learn that a server died without asking.

The core's own ends
    A topic may have a source and a reader of the core's own (``own``), which count in no number told to
    people. With such a reader, the *intake*, ordinary readers and ordinary sources never meet: each is
    paired with the core (``Reader.wants``). An own source is told of its readers at once.

Invariants
    In ``paired`` of a source are readers that want it, and all of them but those it was parted from.
    A reader's slots in use and free are disjoint, and together all of them.
    Every change of ``paired`` that the source was not told of raises its topic's cell. In one run cells are
    never set back, whichever channel has them.

Not here: which channels exist and may be used (``registry``), who may use which id (``sessions``),
how many may come (``admission``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Final

from towpath.errors import (
    ChannelUndeclared,
    InvalidArgument,
    LimitExceeded,
    SlowConsumer,
    SubscriptionInUse,
    SubscriptionNotFound,
    TowpathError,
)
from towpath.names import is_pattern, matcher

from .admission import Admission
from .commands import ReaderRole, SourceRole
from .effects import (
    BumpGeneration,
    DropReader,
    DropSource,
    Effect,
    Notice,
    PublicationEnded,
    ReaderGone,
    SourceDetached,
    StartAt,
    SubscriptionEnded,
)
from .ids import ReaderId, SourceId
from .limits import CELLS_MAX, Limits
from .pairs import (
    Reader,
    Source,
    Topic,
    free_after,
    reader_added,
    source_added,
    source_excluded,
    source_gone,
)
from .registry import NOBODY, Presence
from .sessions import Session

NO_READER: Final = ReaderId(0)


class Topics:
    """The topics of all channels, and the cells of the generation table."""

    def __init__(self) -> None:
        self.topics: dict[str, Topic] = {}
        self.sources: dict[SourceId, Source] = {}
        self.readers: dict[ReaderId, Reader] = {}
        self._patterns: dict[ReaderId, Reader] = {}
        self._generations: list[int] = []
        self._free_cells: list[int] = []
        self.admission = Admission()

    def start(self) -> None:
        """Begin a run: its generation table is new, with every cell at zero."""
        assert not self.sources and not self.readers
        self._generations = [0] * len(self._generations)

    def is_live(self, identifier: int) -> bool:
        """Whether the id is that of an attached source or reader."""
        return identifier in self.sources or identifier in self.readers

    def presence(self, name: str) -> Presence:
        """Return who is on a channel now."""
        topic = self.topics.get(name)
        if topic is None or not (topic.publishers or topic.subscribers or topic.patterns):
            return NOBODY
        return Presence(topic.publishers, topic.subscribers, topic.patterns)

    def generation(self, topic: Topic) -> int:
        """Return the value of a topic's cell."""
        return self._generations[topic.cell]

    # ---- topics come and go --------------------------------------------------------------------------------

    def open(self, name: str) -> None:
        """Make the topic of a new channel; pattern readers that match it follow it. O(patterns)."""
        if self._free_cells:
            cell = self._free_cells.pop()
        else:
            cell = len(self._generations)
            assert cell < CELLS_MAX
            self._generations.append(0)
        patterns = sum(reader.matches(name) for reader in self._patterns.values())
        self.topics[name] = Topic(name, cell, patterns)

    def close(self, name: str) -> list[Effect]:
        """End a topic: everybody on it is told, and a publisher that waits for a subscriber wakes up.

        A subscription to the channel ends; one to a pattern loses the publishers that were here, and goes on.
        """
        topic = self.topics[name]
        told: list[Effect] = []
        dropped: list[Effect] = []
        for source in tuple(topic.sources.values()):
            error: TowpathError = ChannelUndeclared(f"channel {name!r} was undeclared")
            told.append(Notice(source.session.id, PublicationEnded(source.id, error)))
            told.extend(
                source_gone(source, (reader for reader in source.paired.values() if reader.topic is None))
            )
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
        role: SourceRole = SourceRole.PUBLISHER,
        own_reader: ReaderId = NO_READER,
        peer: ReaderId = NO_READER,
    ) -> list[Effect]:
        """Make a session a publisher and tell the subscribers and it of each other.

        A subscriber whose control page has no slot left loses its subscription; the publisher is not
        disturbed. Of a service it is the other way round: who comes is refused.

        Raises:
            LimitExceeded, QuotaExceeded: there are as many publishers as there may be.
            InvalidArgument: see :meth:`Admission.check_service`.
        """
        if not session.is_own:
            self.admission.check_source(topic, source_id, principal, limits, role)
        source = Source(source_id, session, principal, topic, origin, role, own_reader, peer)
        if role is not SourceRole.PUBLISHER:
            self.admission.check_service(source, self.sources)
        wanting = [reader for reader in self._readers_at(topic) if reader.wants(source)]
        effects: list[Effect] = []
        for reader in [reader for reader in wanting if not reader.has_slot_for(source_id)]:
            error = LimitExceeded(
                f"a subscription to {reader.name!r} has no slot left for one more publisher",
                hint="subscribe with more slots, and read on: so the slots of publishers that left are freed",
            )
            effects.append(Notice(reader.session.id, SubscriptionEnded(reader.id, error)))
            effects.extend(self.detach_reader(reader))
            wanting.remove(reader)
        self.sources[source_id] = topic.sources[source_id] = source
        topic.answerers += role is SourceRole.ANSWERER
        if session.is_own:
            topic.own = source
        session.sources[source_id] = None
        self.admission.add_source(source)
        excluding = [reader for reader in self._readers_at(topic) if reader.excludes(source)]
        effects.extend(source_excluded(source, reader) for reader in excluding)
        start = StartAt.TAIL if is_resumed else StartAt.START
        for reader in wanting:
            reader.take(source_id)
            reader.parted.discard(source_id)
            source.paired[reader.id] = source.known[reader.id] = reader
            effects.append(reader_added(source, reader, start))
            effects.append(source_added(source, reader, start))
        return effects

    def _readers_at(self, topic: Topic) -> Iterable[Reader]:
        """All readers that could follow a source of this topic."""
        return chain(topic.readers.values(), self._patterns.values())

    def detach_own(self, topic: Topic) -> list[Effect]:
        """Take the core's own ends off a topic; what it wrote is drained as any ring is."""
        effects = [] if topic.intake is None else self.detach_reader(topic.intake)
        return effects if topic.own is None else [*effects, *self.detach_source(topic.own)]

    def detach_source(self, source: Source) -> list[Effect]:
        """End a publisher; its subscribers drain its ring and free the slot."""
        self._remove_source(source)
        return [*source_gone(source, source.paired.values()), DropSource(source.id)]

    def fetch_readers(self, source: Source) -> list[Effect]:
        """Tell a publisher how its subscribers differ from those it was told of."""
        session = source.session.id
        known, paired = source.known, source.paired
        effects: list[Effect] = [
            Notice(session, ReaderGone(source.id, reader, return_ms=record.return_ms))
            for reader, record in known.items()
            if paired.get(reader) is not record
        ]
        effects.extend(
            reader_added(source, record, source.starts[reader])
            for reader, record in paired.items()
            if known.get(reader) is not record
        )
        source.known = dict(paired)
        source.starts.clear()
        return effects

    def detach_stalled(self, source: Source, reader_id: ReaderId, stall_ms_max: int) -> list[Effect]:
        """Part a publisher from a subscriber that does not move, at the publisher's request.

        The cell stays as it is: the source is told at once, and its other readers are no other. The slot
        stays the pair's until the reader releases it, as when the source leaves.

        Raises:
            SubscriptionNotFound: the reader does not follow this source (any more).
        """
        reader = source.paired.pop(reader_id, None)
        if reader is None:
            raise SubscriptionNotFound(f"source {source.id} has no subscriber {reader_id}")
        source.starts.pop(reader_id, None)
        effects: list[Effect] = []
        if source.known.pop(reader_id, None) is not None:
            effects.append(Notice(source.session.id, ReaderGone(source.id, reader_id, is_parted=True)))
            reader.parted = {each for each in reader.parted if each in self.sources} | {source.id}
        error = SlowConsumer(
            f"this subscription took nothing from publisher {source.id} of {source.topic.name!r} for"
            f" {stall_ms_max} ms while it waited, and is detached from it",
            hint="what was not read of that publisher is lost; subscribe again to follow it again",
        )
        effects.append(Notice(reader.session.id, SourceDetached(reader_id, source.id, error)))
        return effects

    # ---- readers -------------------------------------------------------------------------------------------

    def attach_reader(
        self,
        *,
        name: str,
        reader_id: ReaderId,
        session: Session,
        principal: str,
        slots: int,
        held: Mapping[SourceId, int],
        exclude_origin: str,
        wants_doorbell: bool,
        has_history: Callable[[str], bool],
        limits: Limits,
        role: ReaderRole = ReaderRole.SUBSCRIBER,
        place: str = "",
    ) -> list[Effect]:
        """Make a session a subscriber: raise the cell, then tell it of each publisher.

        The cell is raised first: a publisher that has not seen it raised may write on, and the subscriber
        starts at the tail as the shell finds it when it tells it of that publisher. So whoever is told that
        the subscriber is there, and publishes then, reaches it.

        Args:
            name: a channel's name, or a pattern. O(channels) for a pattern.
            has_history: whether this reader begins with the history of the channel of this name.
            place: the name that it goes by; whoever went by it on this channel ends.

        Raises:
            InvalidArgument: the slots are too many, or those held are not slots of this page, or are so
            twice.
            LimitExceeded, QuotaExceeded: there are as many subscribers as there may be, or the page has too
                few slots for the publishers there are.
        """
        free = free_after(slots, held)
        topic = None if is_pattern(name) else self.topics[name]
        if not session.is_own:
            self.admission.check_reader(topic, principal, limits, role, len(self._patterns))
        reader = Reader(
            id=reader_id,
            session=session,
            principal=principal,
            name=name,
            topic=topic,
            matches=matcher(name),
            exclude_origin=exclude_origin,
            wants_doorbell=wants_doorbell,
            free=free,
            slots=dict(held),
            role=role,
            place=place if topic else "",
        )
        matching = [topic] if topic else [each for each in self.topics.values() if reader.matches(each.name)]
        wanted = _fitting(reader, matching, slots)
        ended = self._end_place(topic, place)
        self._add_reader(reader, matching)
        # Whoever comes for replies changes nothing for who is there already: a service's cell stays as it is,
        # and the other callers need not ask.
        is_news = wanted if role is ReaderRole.REPLIES else True
        effects = ended + [self._bump(each) for each in matching if is_news and (topic or each.sources)]
        effects.extend(
            source_excluded(source, reader)
            for each in matching
            for source in each.sources.values()
            if reader.excludes(source)
        )
        for source in wanted:
            start = StartAt.HISTORY if has_history(source.topic.name) else StartAt.TAIL
            if role is ReaderRole.REPLIES and source.id not in held:
                start = StartAt.START  # the answer may be there already
            effects.extend(self._pair(source, reader, start))
        return effects

    def _pair(self, source: Source, reader: Reader, start: StartAt) -> list[Effect]:
        """Have a reader that has just come follow a source, which learns of it at once or when it asks."""
        reader.take(source.id)
        source.paired[reader.id] = reader
        source.starts[reader.id] = start
        effects = self.fetch_readers(source) if source.is_told_at_once else []
        return [*effects, source_added(source, reader, start)]

    def detach_reader(self, reader: Reader) -> list[Effect]:
        """End a subscriber; publishers learn of it when they see the cell raised. The ends of a service are
        told, and what belongs to the reader ends with it.
        """
        ended: list[Effect] = []
        if reader.role is not ReaderRole.SUBSCRIBER:
            touched = []
            for source in [self.sources[each] for each in reader.session.sources]:
                if source.own_reader == reader.id:
                    ended.extend(self.detach_source(source))
        elif reader.topic is not None:
            touched = [reader.topic]
        else:
            paired = (source for source in self._sources_of(reader) if reader.id in source.paired)
            touched = list({source.topic.name: source.topic for source in paired}.values())
        waiting = [source for source in self._sources_of(reader) if source.is_told_at_once]
        self._remove_reader(reader)
        told = [effect for source in waiting for effect in self.fetch_readers(source)]
        told.extend(
            Notice(self.sources[each].session.id, ReaderGone(each, reader.id))
            for each in sorted(reader.parted)
            if each in self.sources
        )
        return [*map(self._bump, touched), *told, DropReader(reader.id), *ended]

    def release_slot(self, reader: Reader, source: SourceId) -> None:
        """Free the slot of a pair whose source is gone; nothing to do where there is no such pair.

        Raises:
            InvalidArgument: the source is live.
        """
        live = self.sources.get(source)
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
        source.topic.answerers -= source.role is SourceRole.ANSWERER
        if source.session.is_own:
            source.topic.own = None
        self.admission.remove_source(source)

    def _end_place(self, topic: Topic | None, place: str) -> list[Effect]:
        """End the reader that goes by a name on a topic, if there is one."""
        holder = topic.places.get(place) if topic else None
        if holder is None:
            return []
        error = SubscriptionInUse(f"another program took over the subscription {place!r} of {holder.name!r}")
        return [Notice(holder.session.id, SubscriptionEnded(holder.id, error)), *self.detach_reader(holder)]

    def _add_reader(self, reader: Reader, matching: Iterable[Topic]) -> None:
        self.readers[reader.id] = reader
        reader.session.readers[reader.id] = None
        self.admission.add_reader(reader)
        if reader.topic is not None:
            reader.topic.readers[reader.id] = reader
            if reader.place:
                reader.topic.places[reader.place] = reader
            reader.topic.replies += reader.role is ReaderRole.REPLIES
            if reader.session.is_own:
                reader.topic.intake = reader
            return
        self._patterns[reader.id] = reader
        for topic in matching:
            topic.patterns += 1

    def _remove_reader(self, reader: Reader) -> None:
        for source in self._sources_of(reader):
            source.paired.pop(reader.id, None)
            source.starts.pop(reader.id, None)
        del self.readers[reader.id]
        del reader.session.readers[reader.id]
        self.admission.remove_reader(reader)
        if reader.topic is not None:
            del reader.topic.readers[reader.id]
            if reader.place:
                del reader.topic.places[reader.place]
            reader.topic.replies -= reader.role is ReaderRole.REPLIES
            if reader.session.is_own:
                reader.topic.intake = None
            return
        del self._patterns[reader.id]
        for topic in self.topics.values():
            topic.patterns -= reader.matches(topic.name)

    def _sources_of(self, reader: Reader) -> list[Source]:
        """Return the live sources that have a slot of the reader's."""
        return [source for each in reader.slots if (source := self.sources.get(each)) is not None]

    def assert_consistent(self) -> None:
        """Assert the invariants; for tests. O(pairs)."""
        self.admission.assert_consistent(len(self.sources), len(self.readers), len(self._patterns))
        cells = [topic.cell for topic in self.topics.values()]
        assert sorted(cells + self._free_cells) == list(range(len(self._generations)))
        assert sum(len(topic.sources) for topic in self.topics.values()) == len(self.sources)
        listed = sum(len(topic.readers) for topic in self.topics.values())
        assert listed + len(self._patterns) == len(self.readers)
        for topic in self.topics.values():
            named = {reader.place: reader for reader in topic.readers.values() if reader.place}
            assert topic.places == named and len(named) == sum(bool(r.place) for r in topic.readers.values())
            assert topic.patterns == sum(reader.matches(topic.name) for reader in self._patterns.values())
        for source in self.sources.values():
            assert source.id in source.session.sources and source.topic.sources[source.id] is source
            for reader in source.paired.values():
                assert self.readers[reader.id] is reader and reader.wants(source)
                assert source.id in reader.slots
            untold = {each for each, reader in source.paired.items() if source.known.get(each) is not reader}
            assert source.starts.keys() == untold
        for reader in self.readers.values():
            assert reader.id in reader.session.readers
            home = self._patterns if reader.topic is None else reader.topic.readers
            assert home[reader.id] is reader
            used = sum(1 << slot for slot in reader.slots.values())
            assert used & reader.free == 0 and used.bit_count() == len(reader.slots)
            assert (used | reader.free) & ((used | reader.free) + 1) == 0


def _fitting(reader: Reader, matching: Iterable[Topic], slots: int) -> list[Source]:
    """The sources that a reader which comes is to follow.

    Raises:
        LimitExceeded: its page has too few slots for them.
    """
    wanted = [source for topic in matching for source in topic.sources.values() if reader.wants(source)]
    held, room = reader.slots, reader.free.bit_count()
    if reader.role is ReaderRole.REPLIES:  # who waits to answer it must not keep it from coming
        new = [source for source in wanted if source.id not in held][:room]
        wanted = [source for source in wanted if source.id in held] + new
    if sum(source.id not in held for source in wanted) > room:
        raise LimitExceeded(
            f"{reader.name!r} has {len(wanted)} publishers; of {slots} slots {room} are free",
            hint="subscribe with more slots",
        )
    return wanted
