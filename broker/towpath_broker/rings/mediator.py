"""The core's own rings: made, told of their readers, kept for the next core, and let go.

Theory of operation
    The machine decides where the core writes and reads (core/own.py) and says so in effects. The notices
    that a client would get about its sources and readers come here, and are carried out on ring objects of
    this process, at once. What then happens on a channel is own_channel's.

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
from towpath.errors import ChannelUndeclared, TowpathError
from towpath_broker.core import commands, effects
from towpath_broker.core.effects import StartAt
from towpath_broker.core.ids import CallId, ReaderId, SessionId, SourceId
from towpath_broker.log import log

from .bells import Bells
from .descriptors import Descriptors
from .own_channel import OwnChannel, Publication, Told, WaitingBytes

START_NAMES: Final[Mapping[StartAt, Literal["tail", "start", "history"]]] = {
    StartAt.START: "start",
    StartAt.TAIL: "tail",
    StartAt.HISTORY: "history",
}
IDLE_S: Final = 60.0
"""How long a source for what comes over the socket stays when nothing comes."""


class Mediator:
    """All channels on which the core writes itself.

    Args:
        descriptors: where others get the core's rings and pages from.
        submit: gives a command to the engine.
        written: answers a publication that is in its ring; with the source and the seq of its last message.
        refused: answers one that is not.
    """

    def __init__(
        self,
        descriptors: Descriptors,
        *,
        submit: Callable[[commands.Command], None],
        written: Callable[[Publication, SourceId, int], None],
        refused: Callable[[Publication, TowpathError], None],
    ) -> None:
        self._descriptors = descriptors
        self._submit = submit
        self._written = written
        self._refused = refused
        self._bells = Bells()
        self._waiting = WaitingBytes()
        self._loop = asyncio.get_running_loop()
        self._by_source: dict[SourceId, OwnChannel] = {}
        self._by_name: dict[str, SourceId] = {}
        self._by_reader: dict[ReaderId, SourceId] = {}
        self._idle_check: asyncio.TimerHandle | None = None
        self.session: SessionId | None = None

    def counts(self) -> tuple[int, int]:
        """How many channels the core writes on, and how many bytes wait for room there."""
        return len(self._by_source), self._waiting.total()

    # ---- what the machine wants ----------------------------------------------------------------------------

    def open_source(self, effect: effects.OpenOwnSource) -> None:
        """Make the ring of the core's source on a channel."""
        self.session = effect.session
        options = effect.options
        writer = _ring.Writer(
            effect.source,
            options.ring_bytes,
            overflow="drop" if options.overflow is commands.Overflow.DROP else "block",
            history=options.history,
        )
        self._descriptors.offer_ring(effect.source, wire.Descriptor(writer.share()), channel=effect.channel)
        source = effect.source
        told = Told(
            written=lambda publication, seq: self._written(publication, source, seq),
            left=lambda gone: self._source_left(source, gone),
            stalled=lambda reader: self._submit(commands.DetachStalled(self._caller(), source, reader)),
        )
        self._by_source[source] = OwnChannel(
            effect.channel,
            writer,
            is_ordered=effect.options.order is commands.Order.TOTAL,
            stall_ms_max=effect.options.stall_ms_max,
            told=told,
            waiting=self._waiting,
        )
        self._by_name[effect.channel] = source
        if self._idle_check is None:
            self._idle_check = self._loop.call_later(IDLE_S, self._close_idle)

    def open_reader(self, effect: effects.OpenOwnReader) -> None:
        """Make the control page with which the core reads a channel's publishers."""
        source = self._by_name[effect.channel]
        intake = _ring.Reader(effect.reader, effect.slots)
        self._descriptors.offer_page(effect.reader, effect.slots, wire.Descriptor(intake.share()))
        self._by_source[source].intake = intake
        self._by_reader[effect.reader] = source

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
            case effects.ReaderGone():
                channel = self._by_source[body.source]
                channel.writer.detach(body.reader)
                self._bells.remove((body.source, body.reader))
                channel.wake()
            case effects.SourceAdded():
                self._take_up(self._channel_of(body.reader), body)
            case effects.SourceGone():
                channel = self._channel_of(body.reader)
                assert channel.intake is not None
                if body.source in channel.intake.sources():
                    channel.intake.finish(body.source)
                    channel.wake()
                else:
                    self._source_left(self._by_reader[body.reader], body.source)
            case _:
                pass  # that a channel ends is told by what is dropped

    def _channel_of(self, reader: ReaderId) -> OwnChannel:
        return self._by_source[self._by_reader[reader]]

    def _take_up(self, channel: OwnChannel, body: effects.SourceAdded) -> None:
        """Read one more publisher."""
        assert channel.intake is not None
        if body.source in channel.intake.sources():
            return
        ring = self._descriptors.ring(body.source)
        doorbell = self._descriptors.doorbell(body.session)
        try:
            channel.intake.add(
                ring.fd,
                body.slot,
                body.source,
                channel.name,
                START_NAMES[body.start],
                -1 if doorbell is None else doorbell.fd,
            )
        except _ring.RingError as error:  # its own fault: it is not heard
            log(
                "core.source_not_read",
                level="warning",
                channel=channel.name,
                source=body.source,
                why=str(error),
            )
        channel.wake()

    def _source_left(self, own: SourceId, source: SourceId) -> None:
        """The core reads nothing more of a publisher; its slot is free once the machine has let go too."""
        channel = self._by_source[own]
        assert channel.intake is not None
        channel.intake.remove(source)
        reader = ReaderId(channel.intake.reader)
        self._bells.remove((source, reader))
        self._submit(commands.ReleaseSlot(self._caller(), reader, source))

    def _caller(self) -> commands.Caller:
        return commands.Caller("core", session=self.session)

    def drop_source(self, source: SourceId) -> None:
        """Close the core's source, if this is one; who waits there is refused."""
        channel = self._by_source.pop(source, None)
        if channel is None:
            return
        del self._by_name[channel.name]
        for reader in channel.writer.readers():
            self._bells.remove((source, reader))
        if channel.intake is not None:
            intake = ReaderId(channel.intake.reader)
            del self._by_reader[intake]
            for publisher in channel.intake.sources():
                self._bells.remove((publisher, intake))
        for publication in channel.close():
            self._refused(publication, ChannelUndeclared(f"channel {channel.name!r} was undeclared"))

    def bell(self, source: SourceId, reader: ReaderId) -> wire.Descriptor:
        """Make the doorbell of a pair of which the core is one end; give the sending end."""
        own = self._by_reader.get(reader, source)
        return self._bells.make((source, reader), self._by_source[own].wake)

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
            if channel.published_at <= before and channel.is_idle:
                self._submit(commands.CloseOwnSource(source))
        if self._by_source:
            self._idle_check = self._loop.call_later(IDLE_S, self._close_idle)

    def close(self) -> None:
        """Close every ring; subscribers drain them."""
        if self._idle_check is not None:
            self._idle_check.cancel()
        for channel in self._by_source.values():
            left = len(channel.close())
            if left:
                log("core.publications_lost", level="warning", channel=channel.name, count=left)
        self._by_source.clear()
        self._bells.close()
