"""A topic, its sources and its readers, and what each is told of the other. How they meet: ``channels``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from towpath.errors import InvalidArgument

from .commands import ReaderRole, SourceRole
from .effects import Effect, Notice, ReaderAdded, SourceAdded, SourceExcluded, SourceGone, StartAt
from .ids import ReaderId, SourceId
from .limits import SLOTS_MAX
from .roles import READS
from .sessions import Session


@dataclass(slots=True, eq=False)
class Topic:
    """One channel's publishers and subscribers.

    Attributes:
        patterns: how many pattern readers match it.
        own: the core's own source, if there is one; one of ``sources``.
        intake: the core's own reader, where it stands between publishers and subscribers; one of ``readers``.
        answerers, replies: how many of ``sources`` and of ``readers`` have these roles.
        places: those of ``readers`` that go by a name, by that.
    """

    name: str
    cell: int
    patterns: int = 0
    own: Source | None = None
    intake: Reader | None = None
    answerers: int = 0
    replies: int = 0
    sources: dict[SourceId, Source] = field(default_factory=dict)
    readers: dict[ReaderId, Reader] = field(default_factory=dict)
    places: dict[str, Reader] = field(default_factory=dict)

    @property
    def publishers(self) -> int:
        """How many sources there are that are not the core's own; of a service, how many callers."""
        return len(self.sources) - (self.own is not None) - self.answerers

    @property
    def subscribers(self) -> int:
        """How many readers there are that are not the core's own; of a service, how many servers."""
        return len(self.readers) - (self.intake is not None) - self.replies


@dataclass(slots=True, eq=False)
class Source:
    """A publisher. Quotas are charged to ``principal``; ``is_broken`` when one of its readers said so."""

    id: SourceId
    session: Session
    principal: str
    topic: Topic
    origin: str
    role: SourceRole = SourceRole.PUBLISHER
    own_reader: ReaderId = ReaderId(0)
    peer: ReaderId = ReaderId(0)
    paired: dict[ReaderId, Reader] = field(default_factory=dict)
    known: dict[ReaderId, Reader] = field(default_factory=dict)
    starts: dict[ReaderId, StartAt] = field(default_factory=dict)
    is_broken: bool = False

    @property
    def is_told_at_once(self) -> bool:
        """Whether it is told who reads it without asking. The core's own source shares its process; an end of
        a service waits for a reply, not for room, and would not ask.
        """
        return self.session.is_own or self.role is not SourceRole.PUBLISHER

    @property
    def is_taken_in(self) -> bool:
        """Whether only the core reads it, and puts its messages in order."""
        return self.topic.intake is not None and not self.session.is_own


@dataclass(slots=True, eq=False)
class Reader:
    """A subscriber.

    Attributes:
        name: the channel's, or the pattern.
        topic: the channel's; None for a pattern.
        matches: which channels it follows.
        free: bit i is set while slot i serves no source; ``slots`` has the others.
        parted: live sources that it was parted from, and that must hear when it has gone: it may hold loaned
            messages of theirs.
        place: the name that it alone goes by on its channel; empty: none.
        return_ms: once it has gone, for how long its publishers wait for it to come back.
    """

    id: ReaderId
    session: Session
    principal: str
    name: str
    topic: Topic | None
    matches: Callable[[str], bool]
    exclude_origin: str
    wants_doorbell: bool
    free: int
    slots: dict[SourceId, int] = field(default_factory=dict)
    role: ReaderRole = ReaderRole.SUBSCRIBER
    parted: set[SourceId] = field(default_factory=set)
    place: str = ""
    return_ms: int = 0

    def wants(self, source: Source) -> bool:
        """Whether the source is for this reader: its channel, role and side of the core, not its own echo."""
        return (
            self.matches(source.topic.name)
            and READS[self.role] is source.role
            and (source.role is not SourceRole.ANSWERER or source.peer == self.id)
            and (not self.exclude_origin or source.origin != self.exclude_origin)
            and (self.session.is_own is source.is_taken_in)
        )

    def excludes(self, source: Source) -> bool:
        """Whether it must leave out what the core took in from this source, to hear no echo."""
        return (
            self.exclude_origin != ""
            and source.origin == self.exclude_origin
            and source.is_taken_in
            and self.matches(source.topic.name)
        )

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


def source_added(source: Source, reader: Reader, start: StartAt) -> Notice:
    """Tell a reader of a source that it has a slot for."""
    body = SourceAdded(
        reader.id,
        source.id,
        reader.slots[source.id],
        start,
        source.origin,
        source.topic.name,
        source.session.id,
        source.own_reader,
        "" if source.role is SourceRole.PUBLISHER else source.principal,
    )
    return Notice(reader.session.id, body)


def source_excluded(source: Source, reader: Reader) -> Notice:
    """Tell a reader of a source whose messages, wherever it finds them, are its own echo."""
    return Notice(reader.session.id, SourceExcluded(reader.id, source.id))


def source_gone(source: Source, readers: Iterable[Reader]) -> list[Effect]:
    """Tell readers that a source is gone."""
    return [Notice(reader.session.id, SourceGone(reader.id, source.id)) for reader in readers]


def reader_added(source: Source, reader: Reader, start: StartAt) -> Notice:
    """Tell a source of a reader that has a slot for it."""
    body = ReaderAdded(
        source.id, reader.id, reader.slots[source.id], start, reader.session.id, reader.wants_doorbell
    )
    return Notice(source.session.id, body)


def free_after(slots: int, held: Mapping[SourceId, int]) -> int:
    """Return the mask of free slots of a page of which some are held.

    Raises:
        InvalidArgument: the slots are too many, or those held are not slots of this page, or are so twice.
    """
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
