"""The core's own rings: made, told of their readers, kept for the next core, and let go.

Theory of operation
    The machine decides where the core writes and reads (core/own.py) and says so in effects. The notices
    that a client would get about its sources and readers come here, and are carried out on ring objects of
    this process, at once. What then happens on a channel is own_channel's.

    On a channel in total order all that is needed to go on is kept by the supervisor (``kept``). A new core
    recovers it before it opens the door, and goes on at once: with the subscribers where their cursors are,
    and the publishers where its own are. Of one publisher the old core may have shown messages that it had
    not counted as read; the newest record says of which, and up to where, and this is written down before
    anything else is shown (``Reader.pass_over``; why that is enough: clients/c/towpath_ring_pump.h).

    Publishers that have not come back are read on (``intake``). A subscriber that has not come back when
    ``GRACE_S`` has passed is taken for dead: it is waited for no longer.

    On a durable topic what is shown comes from the data plane, when it is on disk (``durable_channel``). The
    ring goes on with the log's seqs: a new one begins where the log has come to, and one that was kept is
    first brought there, from the store.

    A source that is there only for what comes over the socket is closed when it has been idle for
    ``IDLE_S`` and everybody has read everything. The timer for that runs only while there is such a source.

Not here: deciding (core), moving messages (own_channel), frames (local).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Final, Literal

from towpath import _ring, wire
from towpath.errors import ChannelUndeclared, CorruptRing, TowpathError
from towpath_broker.core import commands, effects
from towpath_broker.core.data.commands import ForgetSource
from towpath_broker.core.data.effects import Appended, NotTaken
from towpath_broker.core.effects import StartAt
from towpath_broker.core.ids import CallId, ReaderId, SessionId, SourceId
from towpath_broker.log import log

from .bells import Bells
from .descriptors import Descriptors
from .durable_channel import DurableChannel, Logs
from .intake import GRACE_S, Intake, Sources
from .kept import BELL, PAGE, PUBLISHER, RING, SUBSCRIBER, Keeper, Kept, found_in, sort_out
from .own_channel import OwnChannel, Publication, Told, WaitingBytes

START_NAMES: Final[Mapping[StartAt, Literal["tail", "start", "history"]]] = {
    StartAt.START: "start",
    StartAt.TAIL: "tail",
    StartAt.HISTORY: "history",
}
TAKEN_KEPT_S: Final = 3_600.0
"""How long after a start it is known up to where publishers were stored that have not come back."""
UNSHOWN_S: Final = 1.0
"""How long what was stored is meant for a source that the core is given for it; later there is no room for
one.
"""
IDLE_S: Final = 60.0
"""How long a source for what comes over the socket stays when nothing comes."""


class Mediator:
    """All channels on which the core writes itself.

    Args:
        descriptors: where others get the core's rings and pages from.
        keeper: has the supervisor keep what must outlive this process.
        submit: gives a command to the engine.
        written: answers a publication that is in its ring; with the source and the seq of its last message.
        refused: answers one that is not.
        held: tells a publisher's session that what it publishes cannot be stored now, and why; or, None, that
            it can again.

    Attributes:
        logs: the data plane; None where there are no durable topics.
    """

    def __init__(
        self,
        descriptors: Descriptors,
        keeper: Keeper,
        *,
        submit: Callable[[commands.Command], None],
        written: Callable[[Publication, SourceId, int], None],
        refused: Callable[[Publication, TowpathError], None],
        held: Callable[[SessionId, SourceId, TowpathError | None], None],
        ended: Callable[[SessionId, SourceId, TowpathError], None],
    ) -> None:
        self._descriptors = descriptors
        self._keeper = keeper
        self._kept: dict[str, Kept] = {}
        self._missing: dict[str, set[ReaderId]] = {}  # subscribers from before a recovery, by channel
        self._grace: asyncio.TimerHandle | None = None
        self._forgetting: asyncio.TimerHandle | None = None
        self._submit = submit
        self._written = written
        self._refused = refused
        self._held = held
        self._ended = ended
        self.logs: Logs | None = None
        # Of durable topics: what comes after the last message that was shown; and the first seq that there is
        # no source to show with, and since when.
        self._log_ends: dict[str, int] = {}
        self._unshown: dict[str, tuple[int, float]] = {}
        self._session_of: dict[SourceId, SessionId] = {}  # of durable topics' publishers
        self._bells = Bells()
        self._waiting = WaitingBytes()
        self._loop = asyncio.get_running_loop()
        self._by_source: dict[SourceId, OwnChannel] = {}
        self._by_name: dict[str, SourceId] = {}
        self._by_reader: dict[ReaderId, SourceId] = {}
        self._slots: dict[tuple[str, int], int] = {}  # of what is kept of others, by kind and id
        self._idle_check: asyncio.TimerHandle | None = None
        self.session: SessionId | None = None

    def counts(self) -> tuple[int, int]:
        """How many channels the core writes on, and how many bytes wait for room there."""
        return len(self._by_source), self._waiting.total()

    # ---- what the machine wants ----------------------------------------------------------------------------

    def open_source(self, effect: effects.OpenOwnSource) -> None:
        """Make the ring of the core's source on a channel."""
        self.session = effect.session
        writer = self._recovered_writer(effect) if effect.is_recovered else self._new_writer(effect)
        source = effect.source
        is_whole = effect.options.durable or effect.options.order is commands.Order.TOTAL
        ring = wire.Descriptor(writer.share())
        self._descriptors.offer_ring(source, ring, channel=effect.channel, is_whole=is_whole)
        told = Told(
            written=lambda publication, seq: self._written(publication, source, seq),
            stalled=lambda reader: self._submit(commands.DetachStalled(self._caller(), source, reader)),
        )
        self._by_source[source] = self._channel(effect, writer, told)
        self._by_name[effect.channel] = source
        if self._idle_check is None:
            self._idle_check = self._loop.call_later(IDLE_S, self._close_idle)

    def _channel(self, effect: effects.OpenOwnSource, writer: _ring.Writer, told: Told) -> OwnChannel:
        if effect.options.durable:
            durable = DurableChannel(
                effect.channel,
                writer,
                logs=self._data_plane,
                held=self._tell_held,
                told=told,
                waiting=self._waiting,
            )
            durable.recover(self._log_end(effect.channel))
            return durable
        return OwnChannel(
            effect.channel,
            writer,
            is_ordered=effect.options.order is commands.Order.TOTAL,
            stall_ms_max=effect.options.stall_ms_max,
            told=told,
            waiting=self._waiting,
        )

    def open_reader(self, effect: effects.OpenOwnReader) -> None:
        """Make the control page with which the core reads a channel's publishers."""
        source = self._by_name[effect.channel]
        channel = self._by_source[source]
        kept = self._kept.pop(effect.channel) if effect.is_recovered else None
        reader = self._recovered_reader(kept, channel) if kept else _ring.Reader(effect.reader, effect.slots)
        self._descriptors.offer_page(effect.reader, effect.slots, wire.Descriptor(reader.share()))
        sources = Sources(
            is_there=lambda publisher: (publisher, effect.reader) in self._bells,
            left=lambda publisher: self._source_left(channel, publisher),
            broken=lambda publisher: self._submit(
                commands.ReportBrokenSource(self._caller(), effect.reader, publisher)
            ),
            failed=self._source_failed,
            changed=channel.wake,
        )
        channel.intake = Intake(reader, effect.channel, sources)
        self._by_reader[effect.reader] = source
        if kept is None:
            self._keep(effect.channel, PAGE, reader)
        else:
            self._recover_publishers(kept, channel, channel.intake)

    def _new_writer(self, effect: effects.OpenOwnSource) -> _ring.Writer:
        options = effect.options
        writer = _ring.Writer(
            effect.source,
            options.ring_bytes,
            overflow="drop" if options.durable or options.overflow is commands.Overflow.DROP else "block",
            history=options.history,
        )
        if options.durable:
            _ring.begin_at(writer, self._first_to_show(effect.channel))
        if options.order is commands.Order.TOTAL:
            self._keep(effect.channel, RING, writer)
        return writer

    def _keep(self, channel: str, what: str, memory: _ring.Writer | _ring.Reader) -> None:
        if not self._keeper.keep_own(channel, what, memory.keep()):
            log("core.not_kept", level="error", channel=channel, what=what)

    # ---- recovery ------------------------------------------------------------------------------------------

    def find(self, stored: Mapping[str, int], is_logged: Callable[[str], bool]) -> commands.RecoverOwn:
        """Look through what an earlier core had kept; takes over the descriptors.

        Args:
            is_logged: whether a channel's messages are in the store too.
        """
        self._kept = sort_out(stored)
        found = [
            each for each in found_in(self._kept) if not is_logged(each.channel) or self._can_go_on(each)
        ]
        return commands.RecoverOwn(found)

    def _can_go_on(self, found: commands.OwnFound) -> bool:
        """Whether a ring that was kept has nothing that the store has not: a store may have been put back."""
        kept = self._kept[found.channel]
        assert kept.ring is not None
        if kept.last_seq() < self._log_end(found.channel):
            return True
        log("core.ring_ahead_of_store", level="error", channel=found.channel)
        return False

    def _recovered_writer(self, effect: effects.OpenOwnSource) -> _ring.Writer:
        kept = self._kept[effect.channel]
        assert kept.ring is not None
        writer = _ring.Writer.recover(kept.ring.fd)
        for reader, (slot, page) in kept.subscribers.items():
            with contextlib.suppress(_ring.RingError):
                writer.attach(reader, page.fd, slot, -1, "tail")
            self._slots[SUBSCRIBER, reader] = slot
        self._missing[effect.channel] = set(kept.subscribers)
        return writer

    def _recovered_reader(self, kept: Kept, channel: OwnChannel) -> _ring.Reader:
        assert kept.page is not None
        reader = _ring.Reader.recover(kept.page.fd)
        newest = channel.writer.last_origin()
        if newest is not None:
            reader.pass_over(*newest)
        if isinstance(channel, DurableChannel):
            for source, seq in self._data_plane.taken(channel.name).items():
                reader.pass_over(source, seq)
        return reader

    def _recover_publishers(self, kept: Kept, channel: OwnChannel, intake: Intake) -> None:
        for pair, bell in kept.bells.items():
            self._bells.adopt(pair, bell, channel.wake, self._bell_ended(channel, pair))
        for publisher, (slot, ring) in kept.publishers.items():
            self._slots[PUBLISHER, publisher] = slot
            intake.recover(publisher, slot, ring.fd)

    def go_on(self) -> None:
        """All that can be recovered is; have the rest forgotten, and begin."""
        for channel, kept in self._kept.items():
            self._keeper.remove_all(channel, kept)
        self._kept.clear()
        for own in self._by_source.values():
            own.wake()
        if self._missing:
            self._grace = self._loop.call_later(GRACE_S, self._give_up_missing)
        self._forgetting = self._loop.call_later(TAKEN_KEPT_S, self._forget_taken)

    def _give_up_missing(self) -> None:
        for name, readers in self._missing.items():
            source = self._by_name.get(name)
            if source is None:
                continue
            channel = self._by_source[source]
            for reader in readers:
                channel.writer.detach(reader)
                self._forget(name, SUBSCRIBER, reader)
            channel.wake()
        self._missing.clear()

    # ---- durable topics ------------------------------------------------------------------------------------

    @property
    def _data_plane(self) -> Logs:
        assert self.logs is not None
        return self.logs

    def _log_end(self, channel: str) -> int:
        """What comes after the last message of a durable topic that was shown, or would have been."""
        known = self._log_ends.get(channel)
        return self._data_plane.next_seq(channel) if known is None else known

    def appended(self, effect: Appended) -> None:
        """Messages of a durable topic are on disk."""
        if effect.count:
            self._log_ends[effect.channel] = effect.first_seq + effect.count
        channel = self._durable(effect.channel)
        if channel is not None:
            channel.appended(effect)
        elif effect.count:  # it came over the socket; somebody may follow a pattern
            _, since = self._unshown.get(effect.channel, (0, 0.0))
            if since < self._loop.time() - UNSHOWN_S:
                self._unshown[effect.channel] = effect.first_seq, self._loop.time()
                self._submit(commands.ShowStored(effect.channel))

    def _first_to_show(self, channel: str) -> int:
        """Where a new ring begins: what was stored just now, for want of a ring, is still to be shown."""
        first_seq, since = self._unshown.pop(channel, (0, 0.0))
        return first_seq if since >= self._loop.time() - UNSHOWN_S else self._log_end(channel)

    def not_taken(self, effect: NotTaken) -> None:
        """What came out of rings could not be stored."""
        channel = self._durable(effect.channel)
        if channel is not None:
            channel.not_taken(effect.ticket, effect.error)

    def forget_log(self, channel: str) -> None:
        """A durable topic was undeclared; another of that name begins anew."""
        self._log_ends.pop(channel, None)
        self._unshown.pop(channel, None)

    def is_stored(self, source: SourceId) -> bool:
        """Whether a source is the core's own on a durable topic."""
        return isinstance(self._by_source.get(source), DurableChannel)

    def _durable(self, name: str) -> DurableChannel | None:
        source = self._by_name.get(name)
        channel = None if source is None else self._by_source[source]
        return channel if isinstance(channel, DurableChannel) else None

    def _tell_held(self, source: SourceId, error: TowpathError | None) -> None:
        session = self._session_of.get(source)
        if session is not None:
            self._held(session, source, error)

    def _forget_taken(self) -> None:
        """Forget up to where publishers were taken in that have not come back since the start."""
        for channel in list(self._by_source.values()):
            if isinstance(channel, DurableChannel) and channel.intake is not None:
                known = set(channel.intake.reader.sources())
                for source in self._data_plane.taken(channel.name):
                    if source not in known:
                        self._data_plane.submit(ForgetSource(channel.name, source))

    # ---- notices -------------------------------------------------------------------------------------------

    def write(self, effect: effects.WriteMessages) -> None:
        """Write what came over the socket, or let it wait for room.

        Raises:
            MessageTooLarge, LimitExceeded, QuotaExceeded: the rest of it is not written; the text says how
                much was.
        """
        self._by_source[effect.source].publish(
            Publication(effect.session, effect.call, effect.principal, effect.payloads, effect.headers)
        )

    def tell(self, body: effects.NoticeBody) -> None:
        """Carry out a notice to the core's own session."""
        match body:
            case effects.ReaderAdded():
                channel = self._by_source[body.source]
                page = self._descriptors.page(body.reader)
                doorbell = self._descriptors.doorbell(body.session) if body.wants_doorbell else None
                with contextlib.suppress(
                    _ring.RingError
                ):  # its own fault: it is neither waited for nor woken
                    channel.writer.attach(
                        body.reader,
                        page.fd,
                        body.slot,
                        -1 if doorbell is None else doorbell.fd,
                        START_NAMES[body.start],
                    )
                channel.reader_came(body.reader)
                if channel.is_ordered:
                    self._missing.get(channel.name, set()).discard(body.reader)
                    self._keep_other(channel.name, SUBSCRIBER, body.reader, body.slot, page)
            case effects.ReaderGone():
                channel = self._by_source[body.source]
                channel.reader_gone(body.reader, body.return_ms)
                self._remove_bell(channel, body.source, body.reader)
                self._forget(channel.name, SUBSCRIBER, body.reader)
            case effects.SourceAdded():
                self._take_up(self._channel_of(body.reader), body)
            case effects.SourceGone():
                self._intake_of(self._channel_of(body.reader)).detached(body.source)
            case _:
                pass  # that a channel ends is told by what is dropped

    def _channel_of(self, reader: ReaderId) -> OwnChannel:
        return self._by_source[self._by_reader[reader]]

    def _intake_of(self, channel: OwnChannel) -> Intake:
        assert channel.intake is not None
        return channel.intake

    def _take_up(self, channel: OwnChannel, body: effects.SourceAdded) -> None:
        """Read one more publisher, or one that is back."""
        ring = self._descriptors.ring(body.source)
        if isinstance(channel, DurableChannel):
            self._session_of[body.source] = body.session
        self._keep_other(channel.name, PUBLISHER, body.source, body.slot, ring)
        doorbell = self._descriptors.doorbell(body.session)
        intake = self._intake_of(channel)
        is_known = intake.is_reading(body.source)
        intake.add(
            body.source,
            body.slot,
            ring.fd,
            START_NAMES[body.start],
            -1 if doorbell is None else doorbell.fd,
            self._descriptors.take_unread(body.source),
        )
        if isinstance(channel, DurableChannel) and not is_known:  # what is stored of it, and was not released
            stored_seq = channel.stored_seq(body.source)
            if stored_seq:
                intake.reader.pass_over(body.source, stored_seq)

    def _source_failed(self, source: SourceId, why: str) -> None:
        """Tell a durable topic's publisher that it is not read: what it has flushed is not stored."""
        session = self._session_of.get(source)
        if session is not None:
            hint = "publish anew, by another publisher, what was not flushed"
            self._ended(
                session, source, CorruptRing(f"the publisher's ring cannot be read: {why}", hint=hint)
            )

    def _source_left(self, channel: OwnChannel, source: SourceId) -> None:
        """The core reads nothing more of a publisher; its slot is free once the machine has let go too."""
        reader = self._intake_of(channel).id
        self._remove_bell(channel, source, reader)
        self._forget(channel.name, PUBLISHER, source)
        if isinstance(channel, DurableChannel):
            self._session_of.pop(source, None)
            self._data_plane.submit(ForgetSource(channel.name, source))
        self._submit(commands.ReleaseSlot(self._caller(), reader, source))

    def _keep_other(
        self, channel: str, what: str, identifier: int, slot: int, descriptor: wire.Descriptor
    ) -> None:
        if not self._keeper.keep_other(channel, what, identifier, slot, descriptor.fd):
            log("core.not_kept", level="warning", channel=channel, what=what, id=identifier)
            return
        self._slots[what, identifier] = slot

    def _forget(self, channel: str, what: str, identifier: int) -> None:
        slot = self._slots.pop((what, identifier), None)
        if slot is not None:
            self._keeper.remove_other(channel, what, identifier, slot)

    def _caller(self) -> commands.Caller:
        return commands.Caller("core", session=self.session)

    def drop_source(self, source: SourceId) -> None:
        """Close the core's source, if this is one; who waits there is refused."""
        channel = self._by_source.pop(source, None)
        if channel is None:
            return
        del self._by_name[channel.name]
        for reader in channel.writer.readers():
            self._remove_bell(channel, source, reader)
            self._forget(channel.name, SUBSCRIBER, reader)
        if channel.intake is not None:
            self._keeper.remove_own(channel.name)
            intake = channel.intake
            del self._by_reader[intake.id]
            for publisher in map(SourceId, intake.reader.sources()):
                self._session_of.pop(publisher, None)
                self._remove_bell(channel, publisher, intake.id)
                self._forget(channel.name, PUBLISHER, publisher)
        for publication in channel.close():
            self._refused(publication, ChannelUndeclared(f"channel {channel.name!r} was undeclared"))

    def bell(self, source: SourceId, reader: ReaderId) -> wire.Descriptor | None:
        """Make the doorbell of a pair of which the core is one end; give the sending end.

        Returns None for a pair that has one: after a recovery the other side has the sending end still.
        """
        channel = self._by_source[self._by_reader.get(reader, source)]
        pair = (source, reader)
        if pair in self._bells:
            return None
        sending = self._bells.make(pair, channel.wake, self._bell_ended(channel, pair))
        if channel.is_ordered:
            self._keeper.keep_other(channel.name, BELL, source, reader, self._bells.fileno(pair))
        return sending

    def _bell_ended(self, channel: OwnChannel, pair: tuple[int, int]) -> Callable[[], object]:
        def ended() -> None:
            if channel.is_ordered:
                self._keeper.remove_other(channel.name, BELL, *pair)
            if channel.intake is not None and channel.intake.id == pair[1]:
                channel.intake.bell_ended(SourceId(pair[0]))

        return ended

    def _remove_bell(self, channel: OwnChannel, source: int, reader: int) -> None:
        if (source, reader) in self._bells:
            self._bells.remove((source, reader))
            if channel.is_ordered:
                self._keeper.remove_other(channel.name, BELL, source, reader)

    # ---- what connections want -----------------------------------------------------------------------------

    def withdraw(self, session: SessionId, call: CallId | None = None) -> list[Publication]:
        """Let a session's publications, or one of them, wait no longer; return them."""
        channels = tuple(self._by_source.values())
        return [gone for channel in channels for gone in channel.withdraw(session, call)]

    # ---- idling and the end --------------------------------------------------------------------------------

    def _close_idle(self) -> None:
        """Have sources closed that nobody has used for long; look again while there are any."""
        self._idle_check = None
        before = self._loop.time() - IDLE_S
        for source, channel in self._by_source.items():
            channel.give_up_absent()
            if channel.published_at <= before and channel.is_idle:
                self._submit(commands.CloseOwnSource(source))
        if self._by_source:
            self._idle_check = self._loop.call_later(IDLE_S, self._close_idle)

    def close(self) -> None:
        """End every ring, which subscribers drain; for an end without a successor."""
        for timer in (self._idle_check, self._grace, self._forgetting):
            if timer is not None:
                timer.cancel()
        for channel in self._by_source.values():
            left = len(channel.close())
            if left:
                log("core.publications_lost", level="warning", channel=channel.name, count=left)
        self._by_source.clear()
        self._bells.close()
