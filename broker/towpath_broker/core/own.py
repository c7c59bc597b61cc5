"""The core's own sources and readers: where it writes itself, and where it puts messages in order.

Theory of operation
    The core writes on a channel when somebody publishes there over the socket, and on each channel with
    ``order = "total"``, where it stands between publishers and subscribers::

        publishers ──rings──▶ the core's reader (the intake)      the core's source ──ring──▶ subscribers

    Both are ordinary ends of ordinary pairs, of a session that is the core's own, has no connection and
    counts for no quota. Two things differ (``pairs``, ``channels``). On a channel with an intake its readers
    are paired with the core's source alone, and its other sources with the intake alone. And an own source is
    told of its readers at once: it shares the core's process, so there is nothing to fetch.

    An own source is made when it is first needed. On a channel in total order it stays until the channel is
    undeclared; elsewhere the shell says when it has been idle for long (``CloseOwnSource``).

    No echo: where the core stands between, a reader that excludes an origin cannot be kept from that
    origin's ring. It is told the ids of such sources (``SourceExcluded``), and leaves out their records.

Recovery
    The memory of both outlives the process (the shell sees to that), with the ids in it. ``RecoverOwn`` says
    what was found: each channel that is still declared, in total order and of that size goes on as it was,
    with the slots that sources held in the intake's page.

Invariants
    An own source and an intake have ids of the same sequence as everybody's; none is used twice.
    A channel has an intake only if it has an own source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from towpath.errors import LimitExceeded

from .channels import Topics
from .commands import Order, OwnFound
from .effects import Effect, OpenOwnReader, OpenOwnSource
from .ids import ReaderId, SourceId
from .limits import Limits
from .pairs import Source
from .registry import ChannelDefinition
from .sessions import Session, Sessions

CORE: Final = "core"
"""The principal of the core itself."""
INTAKE_SLOTS: Final = 1024
"""Publishers that an intake reads at a time, those included that are gone and not read to the end."""


class OwnEnds:
    """Makes the core's own sources and readers, of the topics and sessions given."""

    def __init__(self, topics: Topics, sessions: Sessions) -> None:
        self._topics = topics
        self._sessions = sessions
        self._session: Session | None = None

    def start(self) -> None:
        """Begin a run."""
        self._session = None

    def _own_session(self) -> Session:
        if self._session is None:
            self._session = self._sessions.make_own(CORE)
        return self._session

    def ensure_source(self, channel: ChannelDefinition, limits: Limits) -> tuple[Source, list[Effect]]:
        """Return the core's source on a channel, and what making it brings about.

        Raises:
            LimitExceeded: there are as many as there may be, or no ids are left.
        """
        own = self._topics.topics[channel.name].own
        if own is not None:
            return own, []
        if len(self._own_session().sources) >= limits.own_sources_max:
            raise LimitExceeded(
                f"the core publishes on {limits.own_sources_max} channels itself: own_sources_max is reached",
                hint="these are channels with order=total, and those published on over the socket",
            )
        identifier = SourceId(self._sessions.take_own_id())
        effects = self._open_source(channel, identifier, limits, is_recovered=False)
        return self._topics.sources[identifier], effects

    def ensure_intake(self, channel: ChannelDefinition, limits: Limits) -> list[Effect]:
        """See to it that a channel in total order has the core between its publishers and subscribers.

        Raises:
            LimitExceeded: as for :meth:`ensure_source`.
        """
        if channel.options.order is not Order.TOTAL or self._topics.topics[channel.name].intake is not None:
            return []
        _, effects = self.ensure_source(channel, limits)
        identifier = ReaderId(self._sessions.take_own_id())
        return [*effects, *self._open_intake(channel, identifier, {}, limits, is_recovered=False)]

    def recover(self, found: OwnFound, channel: ChannelDefinition | None, limits: Limits) -> list[Effect]:
        """Go on with what an earlier core had on a channel, if it still fits what the channel is."""
        if (
            channel is None
            or channel.options.order is not Order.TOTAL
            or channel.options.ring_bytes != found.ring_bytes
            or self._topics.topics[channel.name].own is not None
            or not all(map(self._sessions.was_given, (found.source, found.reader)))
        ):
            return []
        return [
            *self._open_source(channel, found.source, limits, is_recovered=True),
            *self._open_intake(channel, found.reader, found.held, limits, is_recovered=True),
        ]

    def _open_source(
        self, channel: ChannelDefinition, identifier: SourceId, limits: Limits, *, is_recovered: bool
    ) -> list[Effect]:
        session = self._own_session()
        opened = OpenOwnSource(channel.name, identifier, session.id, channel.options, is_recovered)
        effects = self._topics.attach_source(
            topic=self._topics.topics[channel.name],
            source_id=identifier,
            session=session,
            principal=CORE,
            origin=CORE,
            is_resumed=is_recovered,
            limits=limits,
        )
        return [opened, *effects]

    def _open_intake(
        self,
        channel: ChannelDefinition,
        identifier: ReaderId,
        held: Mapping[SourceId, int],
        limits: Limits,
        *,
        is_recovered: bool,
    ) -> list[Effect]:
        effects = self._topics.attach_reader(
            name=channel.name,
            reader_id=identifier,
            session=self._own_session(),
            principal=CORE,
            slots=INTAKE_SLOTS,
            held=held,
            exclude_origin="",
            wants_doorbell=True,
            has_history=lambda _: False,
            limits=limits,
        )
        return [OpenOwnReader(channel.name, identifier, INTAKE_SLOTS, is_recovered), *effects]
