"""Who may still come: the bounds on publishers and subscribers, and what the ends of a service must have.

Theory of operation
    Numbers are counted per principal, who has come by a gateway perhaps, and per channel. Who would be one
    too many is refused before anything is attached, and told by the bound's name; so what a principal
    takes, it takes from itself, and what a channel bounds harms no other channel.

    A control page bounds as well: a reader has a slot for each source that it follows. Elsewhere a source
    takes precedence over a reader without a slot, which is told (``channels``). But an intake, and the ends
    of a service, others depend on: there it is the source that is refused.

Invariants
    Nothing here changes but the counts, by :meth:`Admission.add_source` and its like, each once for each end.
    The core's own ends count for their principal and are refused by nothing here.

Not here: what attaching does (``channels``), ids (``sessions``).
"""

from __future__ import annotations

from collections.abc import Mapping

from towpath.errors import InvalidArgument, LimitExceeded

from .commands import ReaderRole, SourceRole
from .ids import SourceId
from .limits import Limits
from .pairs import Reader, Source, Topic
from .quotas import Tally


class Admission:
    """The counts of sources and readers by principal, and the refusals that follow from them."""

    def __init__(self) -> None:
        self._sources = Tally("sources_per_principal_max", "publishers")
        self._readers = Tally("readers_per_principal_max", "subscribers")
        self._patterns = Tally("patterns_per_principal_max", "subscriptions to patterns")

    def add_source(self, source: Source) -> None:
        """Count a source that has come."""
        self._sources.add(source.principal)

    def remove_source(self, source: Source) -> None:
        """Count a source no more."""
        self._sources.remove(source.principal)

    def add_reader(self, reader: Reader) -> None:
        """Count a reader that has come."""
        self._readers.add(reader.principal)
        if reader.topic is None:
            self._patterns.add(reader.principal)

    def remove_reader(self, reader: Reader) -> None:
        """Count a reader no more."""
        self._readers.remove(reader.principal)
        if reader.topic is None:
            self._patterns.remove(reader.principal)

    def check_source(
        self,
        topic: Topic,
        source_id: SourceId,
        principal: str,
        limits: Limits,
        role: SourceRole = SourceRole.PUBLISHER,
    ) -> None:
        """Refuse one publisher more where there are as many as there may be.

        Raises:
            LimitExceeded, QuotaExceeded: says of what.
        """
        if role is not SourceRole.ANSWERER and topic.publishers >= limits.publishers_per_channel_max:
            raise LimitExceeded(
                f"channel {topic.name!r} has {topic.publishers} publishers:"
                f" publishers_per_channel_max is {limits.publishers_per_channel_max}"
            )
        self._sources.check(principal, limits.sources_per_principal_max)
        if topic.intake is not None and not topic.intake.has_slot_for(source_id):
            raise LimitExceeded(
                f"channel {topic.name!r} has as many publishers as the core can read, with those that left"
                " and were not read to the end",
                hint="a subscriber does not read; towpath status shows the channel's subscribers",
            )

    def check_reader(
        self, topic: Topic | None, principal: str, limits: Limits, role: ReaderRole, patterns: int
    ) -> None:
        """Refuse one subscriber more where there are as many as there may be.

        Args:
            topic: None for a pattern.
            patterns: subscriptions to patterns that there are.

        Raises:
            LimitExceeded, QuotaExceeded: says of what.
        """
        self._readers.check(principal, limits.readers_per_principal_max)
        if topic is None:
            self._patterns.check(principal, limits.patterns_per_principal_max)
            if patterns >= limits.patterns_max:
                raise LimitExceeded(
                    f"there are {patterns} subscriptions to patterns: patterns_max is {limits.patterns_max}"
                )
        elif role is not ReaderRole.REPLIES and topic.subscribers >= limits.subscribers_per_channel_max:
            raise LimitExceeded(
                f"channel {topic.name!r} has {topic.subscribers} subscribers:"
                f" subscribers_per_channel_max is {limits.subscribers_per_channel_max}"
            )

    def check_service(self, source: Source, sources: Mapping[SourceId, Source]) -> None:
        """Refuse an end of a service that lacks the ends that go with it, or a slot at those.

        After a restart of the core an answerer may come sooner than the caller whom it answers. So one that
        names a reader which is not there is let be: they are paired when the reader comes.

        Args:
            sources: all that are attached.

        Raises:
            InvalidArgument: a reader that it names is not what it must be, or is answered already.
            LimitExceeded: a page has no slot for it.
        """
        is_answerer = source.role is SourceRole.ANSWERER
        own = source.topic.readers.get(source.own_reader)
        role = ReaderRole.SERVER if is_answerer else ReaderRole.REPLIES
        if own is None or own.session is not source.session or own.role is not role:
            raise InvalidArgument(
                f"reader {source.own_reader} is none of the session's on {source.topic.name!r} that"
                f" {'takes requests' if is_answerer else 'takes replies'}"
            )
        if is_answerer:
            peer = source.topic.readers.get(source.peer)
            if peer is not None and peer.role is not ReaderRole.REPLIES:
                raise InvalidArgument(f"reader {source.peer} takes no replies on {source.topic.name!r}")
            if any(
                each.peer == source.peer and each.own_reader == source.own_reader
                for each in map(sources.__getitem__, source.session.sources)
                if each.role is SourceRole.ANSWERER
            ):
                raise InvalidArgument(f"reader {source.peer} is answered by the session already")
        for reader in source.topic.readers.values():
            if reader.wants(source) and not reader.has_slot_for(source.id):
                raise LimitExceeded(
                    f"a {reader.role.name.lower()} of {source.topic.name!r} has no slot left",
                    hint="a server reads as many callers as it can; those that leave make room",
                )

    def assert_consistent(self, sources: int, readers: int, patterns: int) -> None:
        """Assert that the counts are those of what there is; for tests."""
        assert self._sources.total() == sources
        assert self._readers.total() == readers
        assert self._patterns.total() == patterns
