"""Who publishes and subscribes: commands that attach and detach sources and readers, also the core's own.

Theory of operation
    Each command is judged here (is the id the session's, the kind the channel's, the size right), and then
    carried out by ``channels``, which pairs sources with readers, and ``own``, which puts the core between
    them where it must stand. What is said at attaching is all that is ever asked: messages pass by rings.

Invariants
    All is judged before anything is attached: a refusal leaves everything as it was.
    A session acts on its own sources and readers alone.
    A channel whose messages the core must see has its intake before a source is attached to it.

Not here: pairing (``channels``, ``pairs``), which ids there are (``sessions``), descriptors (the door).
"""

from __future__ import annotations

from towpath.errors import (
    InvalidArgument,
    LimitExceeded,
    PermissionDenied,
    SourceNotFound,
    SubscriptionInUse,
    SubscriptionNotFound,
    TowpathError,
)
from towpath.names import check_pattern, is_pattern
from towpath.wording import plural

from . import commands as c
from . import effects as e
from .commands import Caller
from .effects import Effect
from .ids import CallId, ReaderId, SourceId
from .limits import ORIGIN_CHARS_MAX, PLACE_BYTES_MAX
from .pairs import Reader, Source
from .parts import Handlers, Parts
from .roles import check_kind
from .sessions import Session


class Attaching:
    """Carries out what sources and readers need, on the parts given."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._registry = parts.registry
        self._sessions = parts.sessions
        self._topics = parts.topics
        self._own = parts.own

    def handlers(self) -> Handlers:
        """Return which commands are carried out here, and how."""
        return {
            c.AttachSource: self._attach_source,
            c.DetachSource: self._detach_source,
            c.AttachReader: self._attach_reader,
            c.DetachReader: self._detach_reader,
            c.FetchReaders: self._fetch_readers,
            c.ReleaseSlot: self._release_slot,
            c.DetachStalled: self._detach_stalled,
            c.ReportBrokenSource: self._report_broken_source,
            c.Publish: self._publish,
            c.PublishLetters: self._publish_letters,
            c.CloseOwnSource: self._close_own_source,
            c.ShowStored: lambda command: self._show_stored(command.channel),
            c.RecoverOwn: self._recover_own,
        }

    def _attach_source(self, command: c.AttachSource) -> list[Effect]:
        session = self._sessions.get(command.caller.session)
        if session is None:
            return []
        _check_origin(session, command.origin)
        self._check_id(session, command.source, is_resumed=command.resumed)
        channel = self._registry.require(command.channel)
        if command.ring_bytes != channel.options.ring_bytes:
            raise InvalidArgument(
                f"a ring of {command.ring_bytes} bytes is not for channel {channel.name!r}",
                hint=f"its rings have {channel.options.ring_bytes} bytes",
            )
        check_kind(channel.name, channel.options.kind, command.role)
        topic = self._topics.topics[channel.name]
        self._topics.admission.check_source(
            topic, command.source, command.caller.principal, self._registry.limits, command.role
        )
        mediating = self._own.ensure_intake(channel, self._registry.limits)
        effects = self._topics.attach_source(
            topic=topic,
            source_id=command.source,
            session=session,
            principal=command.caller.principal,
            origin=command.origin or f"session:{session.id}",
            is_resumed=command.resumed,
            limits=self._registry.limits,
            role=command.role,
            own_reader=command.own_reader,
            peer=command.peer,
        )
        self._sessions.use(command.source)
        body = e.SourceAttached(topic.cell, self._topics.generation(topic))
        return [*mediating, *effects, *self._parts.reply(command.caller, body)]

    def _detach_source(self, command: c.DetachSource) -> list[Effect]:
        source = self._source_of(command.caller, command.source)
        return [*self._topics.detach_source(source), *self._parts.reply(command.caller, e.Done())]

    def _attach_reader(self, command: c.AttachReader) -> list[Effect]:
        session = self._sessions.get(command.caller.session)
        if session is None:
            return []
        if len(command.exclude_origin) > ORIGIN_CHARS_MAX:
            raise InvalidArgument(f"an origin has at most {ORIGIN_CHARS_MAX} characters")
        if command.held and not command.resumed:
            raise InvalidArgument("only a subscription that is resumed holds slots")
        self._check_id(session, command.reader, is_resumed=command.resumed)
        check_pattern(command.channel)
        if not is_pattern(command.channel):
            check_kind(command.channel, self._registry.require(command.channel).options.kind, command.role)
        elif command.role is not c.ReaderRole.SUBSCRIBER:
            raise InvalidArgument(f"{command.channel!r} is a pattern: a service is served by its name")
        self._check_place(command, session)
        effects = self._topics.attach_reader(
            name=command.channel,
            reader_id=command.reader,
            session=session,
            principal=command.caller.principal,
            slots=command.slots,
            held=command.held,
            exclude_origin=command.exclude_origin,
            wants_doorbell=command.wants_doorbell,
            has_history=lambda name: not command.resumed and self._parts.options(name).history > 0,
            limits=self._registry.limits,
            role=command.role,
            place=command.place,
        )
        self._sessions.use(command.reader)
        return [*effects, *self._show_stored(command.channel), *self._parts.reply(command.caller, e.Done())]

    def _check_place(self, command: c.AttachReader, session: Session) -> None:
        """Let a reader go by a name that nobody else goes by, or whose holder it may end: its own
        principal's. To the kernel all of a gateway's peers are the daemon; they end each other's alone.

        Raises:
            InvalidArgument: it is no name.
            SubscriptionInUse: somebody else goes by it.
            PermissionDenied: and may not be ended by this principal.
        """
        place, topic = command.place, self._topics.topics.get(command.channel)
        if (size := len(place.encode())) > PLACE_BYTES_MAX:
            raise InvalidArgument(
                f"a subscription's name of {size} bytes; 1 to {PLACE_BYTES_MAX} are possible",
                hint="give it a shorter name",
            )
        holder = topic.places.get(place) if topic is not None else None
        if holder is None:
            return
        whose = f"subscription {place!r} of {command.channel!r}"
        if not command.takes_over:
            raise SubscriptionInUse(
                f"{whose} is in use, by {holder.session.name or 'a program'} (pid {holder.session.pid})"
            )
        is_same = bool(holder.session.gateway) is bool(session.gateway)
        is_admin = command.caller.is_admin and not session.gateway
        if not is_admin and not (is_same and holder.principal == command.caller.principal):
            raise PermissionDenied(f"{whose} is another's, {holder.principal}: only they can take it over")

    def _detach_reader(self, command: c.DetachReader) -> list[Effect]:
        reader = self._reader_of(command.caller, command.reader)
        return [*self._topics.detach_reader(reader), *self._parts.reply(command.caller, e.Done())]

    def _fetch_readers(self, command: c.FetchReaders) -> list[Effect]:
        source = self._source_of(command.caller, command.source)
        effects = self._topics.fetch_readers(source)
        body = e.ReadersFetched(self._topics.generation(source.topic))
        return [*effects, *self._parts.reply(command.caller, body)]

    def _release_slot(self, command: c.ReleaseSlot) -> list[Effect]:
        reader = self._reader_of(command.caller, command.reader)
        self._topics.release_slot(reader, command.source)
        return self._parts.reply(command.caller, e.Done())

    def _detach_stalled(self, command: c.DetachStalled) -> list[Effect]:
        source = self._source_of(command.caller, command.source)
        stall_ms_max = self._parts.options(source.topic.name).stall_ms_max
        if stall_ms_max == 0:
            raise PermissionDenied(
                f"channel {source.topic.name!r} has stall_ms_max = 0: its publishers wait for ever",
                hint="declare it with a stall_ms_max above 0",
            )
        effects = self._topics.detach_stalled(source, command.reader, stall_ms_max)
        return [*effects, *self._parts.reply(command.caller, e.Done())]

    def _report_broken_source(self, command: c.ReportBrokenSource) -> list[Effect]:
        """Told by one of its readers, which may lie: nothing follows but that people learn of it."""
        reader = self._reader_of(command.caller, command.reader)
        source = self._topics.sources.get(command.source)
        effects: list[Effect] = []
        if source is not None and command.source in reader.slots and not source.is_broken:
            source.is_broken = True
            effects.append(e.SourceBroken(source.id, source.topic.name, source.principal))
        return [*effects, *self._parts.reply(command.caller, e.Done())]

    # ---- the core's own ends -------------------------------------------------------------------------------

    def _publish(self, command: c.Publish) -> list[Effect]:
        caller = command.caller
        if self._sessions.get(caller.session) is None:
            return []
        assert caller.session is not None
        channel = self._registry.require(command.channel)
        check_kind(channel.name, channel.options.kind, c.SourceRole.PUBLISHER)
        mediating = self._own.ensure_intake(channel, self._registry.limits)
        source, effects = self._own.ensure_source(channel, self._registry.limits)
        write = e.WriteMessages(
            caller.session, caller.call, caller.principal, source.id, command.payloads, command.headers
        )
        return [*mediating, *effects, write]

    def _publish_letters(self, command: c.PublishLetters) -> list[Effect]:
        try:
            channel = self._registry.require(command.channel)
            check_kind(channel.name, channel.options.kind, c.SourceRole.PUBLISHER)
            mediating = self._own.ensure_intake(channel, self._registry.limits)
            source, effects = self._own.ensure_source(channel, self._registry.limits)
        except TowpathError as error:
            return [e.Warn(f"{plural(len(command.payloads), 'dead letter')} lost: {error}")]
        session = source.session
        write = e.WriteMessages(
            session.id, CallId(0), session.principal, source.id, command.payloads, command.headers
        )
        return [*mediating, *effects, write]

    def _show_stored(self, name: str) -> list[Effect]:
        """See to it that what is stored of a durable topic can be shown, unless there is no room for that."""
        channel = self._registry.channels.get(name)
        if channel is None or channel.options.kind is not c.Kind.TOPIC or not channel.options.durable:
            return []
        try:
            return self._own.ensure_intake(channel, self._registry.limits)
        except LimitExceeded:
            return []

    def _close_own_source(self, command: c.CloseOwnSource) -> list[Effect]:
        source = self._topics.sources.get(command.source)
        if source is None or not source.session.is_own or source.topic.intake is not None:
            return []
        return self._topics.detach_source(source)

    def _recover_own(self, command: c.RecoverOwn) -> list[Effect]:
        effects: list[Effect] = []
        for found in command.found:
            channel = self._registry.channels.get(found.channel)
            effects.extend(self._own.recover(found, channel, self._registry.limits))
        return effects

    # ---- checks --------------------------------------------------------------------------------------------

    def _check_id(self, session: Session, identifier: int, *, is_resumed: bool) -> None:
        if self._topics.is_live(identifier):
            raise InvalidArgument(f"id {identifier} is in use")
        self._sessions.check_free(session, identifier, is_resumed=is_resumed)

    def _source_of(self, caller: Caller, identifier: SourceId) -> Source:
        source = self._topics.sources.get(identifier)
        if source is None or source.session.id != caller.session:
            raise SourceNotFound(f"the session has no source {identifier}")
        return source

    def _reader_of(self, caller: Caller, identifier: ReaderId) -> Reader:
        reader = self._topics.readers.get(identifier)
        if reader is None or reader.session.id != caller.session:
            raise SubscriptionNotFound(f"the session has no subscription {identifier}")
        return reader


def _check_origin(session: Session, origin: str) -> None:
    if origin and not session.gateway:
        raise PermissionDenied(
            "only gateways that the daemon started state an origin", hint="leave the origin empty"
        )
    if len(origin) > ORIGIN_CHARS_MAX:
        raise InvalidArgument(f"an origin has at most {ORIGIN_CHARS_MAX} characters")
