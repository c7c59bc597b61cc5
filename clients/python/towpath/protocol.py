"""The client's side of the door, sans-I/O: what a session knows, and what it says when.

Theory of operation
    Both clients feed this with the frames that arrive and send what ``take_outgoing`` gives. A session is
    three things: calls that wait for an answer (``exchange``), who follows whom (``pairing``), and here its
    ends, the sources and readers with their rings and pages: how they are made, attached, closed and taken up
    again.

    A session outlives its connection. When a new one is made, every source and reader is attached again
    under its old id with the memory it has: rings and pages are the client's own, so nothing that is in
    them is lost. Until the other sides have done the same, a source keeps the readers that it had, and a
    reader its sources; who has not come back when ``RESUME_GRACE_NS`` has passed is taken for dead. Before
    the core has answered all of ours nobody can be late: it may be the core itself that has not come to them
    yet, and where it is the reader, nothing may be published past it.

Invariants
    Only an end whose attaching was answered is taken up again: one that was still being attached when the
    connection broke is nowhere, and its maker makes another. Nothing here blocks, reads a clock or touches a
    socket; callers serialize their calls.

Not here: the ends themselves (``ends``), the ring (``_ring``), sockets and waiting (``client``, ``aio``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from towpath import calls, convert, model, wire
from towpath.ends import KeptReader, ReaderState, SourceState, require_ring
from towpath.errors import ConnectionLost, InvalidArgument, ProtocolViolation, TowpathError, host_limits
from towpath.exchange import Exchange, Handler, Outgoing
from towpath.locks import requests as lock_requests
from towpath.locks.requests import Place
from towpath.names import check_pattern
from towpath.pairing import Pairing
from towpath.states import requests
from towpath.states.page import Page
from towpath.v1 import frame_pb2
from towpath.v1.frame_pb2 import Frame

if TYPE_CHECKING:
    from towpath import _ring
else:
    try:
        from towpath import _ring
    except ImportError:
        _ring = None

__all__ = ["IDS_PER_REQUEST", "RESUME_GRACE_NS", "ClientProtocol", "Handler", "Outgoing"]

RESUME_GRACE_NS: Final = 3_000_000_000
"""How long after a reconnection the other sides have to come back."""

IDS_PER_REQUEST: Final = 1024


class ClientProtocol(Exchange):
    """The state of one session. See the module's docstring.

    Args:
        name: for people; shown by ``towpath status``.
        software: for people.
        doorbell: the sending end of this session's doorbell, or None when nobody here sleeps in an event
            loop.
        doorbell_added: takes the receiving ends of further doorbells; None where there is no event loop.

    Attributes:
        sources, readers: the session's ends, by their ids.
        is_over: the client has ended, and this with it.
        deadline_ns: when :meth:`expire` is to be called; None: nobody has to come back.
        resuming_until_ns: until when other clients of an earlier core may come back to this one; on the
            clock of ``receive``.
    """

    def __init__(
        self,
        *,
        name: str,
        software: str,
        doorbell: wire.Descriptor | None = None,
        doorbell_added: Callable[[wire.Descriptor], None] | None = None,
    ) -> None:
        super().__init__(
            name=name,
            software=software,
            doorbell=doorbell,
            takes_doorbells=doorbell_added is not None,
        )
        self._doorbell_added = doorbell_added
        self._pairing = Pairing(self.call_and_forget)
        self.sources = self._pairing.sources
        self.readers = self._pairing.readers
        self.is_over = False
        self.deadline_ns: int | None = None
        self.resuming_until_ns = 0
        self._unanswered = 0  # of the ends that are taken up again

    # ---- connection ----

    def connection_lost(self, error: TowpathError | None = None) -> None:
        """Everything that waits for an answer gets ConnectionLost, which says why; sources and readers live
        on.
        """
        self.deadline_ns = None  # while there is no core nobody can come back, and nobody is late
        super().connection_lost(error)

    def receive(self, frame: Frame, descriptors: list[wire.Descriptor], now_ns: int) -> None:
        """Take one frame.

        Raises:
            TowpathError: the other side broke the protocol, or refused the connection; the connection must
            be closed.
        """
        if frame.id == 0:
            self._notice(frame, descriptors)
            return
        was_ready = self.is_ready
        self.take_answer(frame, descriptors)
        if self.welcome is not None and not was_ready:
            self.resuming_until_ns = now_ns + self.welcome.resuming_ms * 1_000_000
            self._resume(now_ns)
            self.reopen_streams()

    # ---- sources and readers ----

    def new_source(
        self,
        channel: model.ChannelInfo,
        origin: str,
        done: Handler,
        *,
        place: calls.SourcePlace | None = None,
    ) -> SourceState:
        """Make a ring, and queue the call that attaches it.

        Args:
            channel: as the core told it.
            origin: as in ``AttachSourceRequest``.
            done: gets the answer when the source is attached; or why it is not, and then it is forgotten.
            place: what it is on its channel; a publisher unless given.

        Raises:
            NotSupported, LimitExceeded: there can be no ring here, or not one more.
        """
        require_ring()
        with host_limits(f"a publisher of {channel.name!r}"):
            state = SourceState(channel, self._take_id(), origin, place)
        self.sources[state.source] = state
        self._attach_source(state, done)
        return state

    def _attach_source(self, state: SourceState, done: Handler) -> None:
        call = calls.attach_source(
            state.channel,
            state.source,
            origin=state.origin,
            resumed=state.is_attached,
            place=state.place,
        )
        call.body.resume_token = state.resume_token
        if state.is_attached and state.is_durable:
            call.body.unread_from = _ring.unread_from(state.writer)

        def answered(answer: Frame | TowpathError) -> None:
            try:
                if isinstance(answer, TowpathError):
                    raise answer
                self.source_attached(state, call.result(answer))
                state.resume_token = answer.attach_source_response.resume_token
            except TowpathError as error:
                answer = error
            done(answer)

        self.call(call, answered, (state.ring,))

    def source_attached(self, state: SourceState, cell: tuple[int, int]) -> None:
        """The core has answered: from now on the writer looks at the generation."""
        if state.source not in self.sources:
            return  # it was closed meanwhile
        assert self._generation_table is not None
        index, generation = cell
        with host_limits(f"a publisher of {state.channel!r}"):
            state.writer.set_generation_table(self._generation_table.fd, index)
        state.writer.install(generation)
        state.is_attached = True

    def fetch_readers(self, state: SourceState, done: Handler) -> int:
        """Queue the call that has the core tell a source its readers; ``done`` gets the answer. Returns the
        call's id.

        The generation that they make up is installed with the answer: later might be after a reconnection,
        and in the table of another core the same number means other readers.
        """
        call = calls.fetch_readers(state.source)

        def answered(answer: Frame | TowpathError) -> None:
            try:
                if isinstance(answer, TowpathError):
                    raise answer
                state.writer.install(call.result(answer))
            except TowpathError as error:
                answer = error
            done(answer)

        return self.call(call, answered)

    def forget_source(self, state: SourceState, why: TowpathError) -> None:
        """The source is closed; the core is told. More than once is fine."""
        state.end(why)
        if self.sources.pop(state.source, None) is not None:
            self.call_and_forget(calls.detach_source(state.source))
            state.close()

    def new_reader(
        self,
        channel: str,
        exclude_origin: str,
        done: Handler,
        *,
        wants_doorbell: bool,
        role: frame_pb2.ReaderRole.ValueType = frame_pb2.READER_ROLE_UNSPECIFIED,
        principal: str = "",
        held_max: int = 0,
        place: calls.ReaderName = calls.NAMELESS,
    ) -> ReaderState:
        """Make a control page, and queue the call that attaches it; ``done`` as for :meth:`new_source`.

        Raises:
            InvalidName: ``channel`` is neither a channel's name nor a pattern.
            NotSupported, LimitExceeded: there can be no page here, or not one more.
        """
        require_ring()
        check_pattern(channel)
        with host_limits(f"a subscription to {channel!r}"):
            state = ReaderState(
                channel, self._take_id(), exclude_origin, wants_doorbell, role, principal, held_max
            )
        state.place = place.name
        self.readers[state.id] = state
        self._attach_reader(state, done, takes_over=place.takes_over)
        return state

    def take_up_reader(
        self, channel: str, exclude_origin: str, kept: KeptReader, now_ns: int, done: Handler
    ) -> ReaderState:
        """Go on with the subscription of a process that is gone, as after a reconnection; else as
        :meth:`new_reader`.

        Raises:
            InvalidArgument: what was kept is not a reader's page, or not this one's.
        """
        require_ring()
        try:
            with host_limits(f"a subscription to {channel!r}"):
                state = ReaderState(channel, kept.id, exclude_origin, wants_doorbell=True, kept=kept)
        except _ring.RingError as error:
            raise InvalidArgument(f"the subscription cannot be taken up: {error}") from error
        self.readers[state.id] = state
        self._attach_reader(state, done)
        self.deadline_ns = now_ns + RESUME_GRACE_NS
        return state

    def _attach_reader(self, state: ReaderState, done: Handler, *, takes_over: bool = False) -> None:
        call = calls.attach_reader(
            state.channel,
            state.id,
            slots=state.slot_count,
            exclude_origin=state.exclude_origin,
            wants_doorbell=state.wants_doorbell,
            held=state.slots if state.is_attached else None,
            role=state.role,
            principal=state.principal,
            name=calls.ReaderName(state.place, takes_over),
        )
        call.body.resume_token = state.resume_token

        def answered(answer: Frame | TowpathError) -> None:
            try:
                if isinstance(answer, TowpathError):
                    raise answer
                call.result(answer)
                state.resume_token = answer.attach_reader_response.resume_token
                state.is_attached = True
            except TowpathError as error:
                answer = error
            done(answer)

        self.call(call, answered, (state.page,))

    def forget_reader(self, state: ReaderState, why: TowpathError) -> None:
        """The subscription is closed, whatever is still in the rings; the core is told. More than once is
        fine.
        """
        if self.readers.pop(state.id, None) is not None:
            state.close(why)
            self.call_and_forget(calls.detach_reader(state.id))

    # ---- values ----

    def attach_value(self, name: str, done: Callable[[Page | TowpathError], None]) -> None:
        """Queue the call that attaches a state's page; ``done`` gets it, or why it cannot be had.

        Raises:
            NotSupported: there is no shared memory here.
        """
        require_ring()
        call = requests.attach(name)

        def answered(answer: Frame | TowpathError) -> None:
            try:
                if isinstance(answer, TowpathError):
                    raise answer
                call.result(answer)
                if len(self._came_with) != 1:
                    raise ProtocolViolation("a value's page came without its descriptor")
                with host_limits(f"the page of {name!r}"):
                    done(Page(self, _ring.ValueReader(self._came_with[0].fd)))
            except _ring.RingError as error:
                done(ProtocolViolation(f"the page of {name!r}: {error}"))
            except TowpathError as error:
                done(error)

        self.call(call, answered)

    def ask_lock_page(
        self,
        call: calls.Call[Place],
        done: Callable[[tuple[Place, _ring.LockPage | None] | TowpathError], None],
    ) -> None:
        """Queue the call that gives a lock out; ``done`` gets where, and the page if it came with the answer.

        Raises:
            NotSupported: there is no shared memory here.
        """
        require_ring()

        def answered(answer: Frame | TowpathError) -> None:
            try:
                if isinstance(answer, TowpathError):
                    raise answer
                place = call.result(answer)
                memory = None
                if self._came_with:
                    with host_limits("the lock page"):
                        memory = _ring.LockPage(self._came_with[0].fd)
                    if memory.identity != place.page:
                        raise ProtocolViolation("another lock page came than was said")
                done((place, memory))
            except _ring.RingError as error:
                done(ProtocolViolation(f"the lock page: {error}"))
            except TowpathError as error:
                done(error)

        self.call(call, answered)

    def open_lock_lane(self, session: int, done: Callable[[_ring.LaneClient], object]) -> None:
        """Queue the call that opens a lock session's lane on this connection. ``done`` gets it before
        anything else is heard; or it is not called, and there is none."""

        def answered(answer: Frame | TowpathError) -> None:
            with contextlib.suppress(TowpathError, _ring.RingError):
                if isinstance(answer, TowpathError):
                    raise answer
                call.result(answer)
                if len(self._came_with) != 1:
                    raise ProtocolViolation("a lock lane came without its descriptor")
                with host_limits("a lock lane"):
                    lane = _ring.LaneClient(self._came_with[0].fd)
                done(lane)

        call = lock_requests.open_lane(session)
        self.call(call, answered)

    # ---- the end ----

    def close(self, why: TowpathError) -> None:
        """Close every source, reader and stream."""
        self.is_over = True
        self.end_streams(why)
        for source in list(self.sources.values()):
            self.forget_source(source, why)
        for reader in list(self.readers.values()):
            self.forget_reader(reader, why)

    def abandon(self, why: TowpathError) -> None:
        """In a forked child: all of it is the parent's, and nothing is said to anybody."""
        self.is_over = True
        self.deadline_ns = None
        for source in self.sources.values():
            source.abandon(why)
        for reader in self.readers.values():
            reader.abandon(why)
        self.sources.clear()
        self.readers.clear()
        self.abandon_calls()

    # ---- taking up again ----

    def _resume(self, now_ns: int) -> None:
        # Readers first: the sources of a service name readers of their session.
        for reader in list(self.readers.values()):
            if reader.is_attached and reader.ended is None:
                reader.unconfirmed = set(reader.slots) - reader.gone
                self._attach_reader(reader, self._resumed(reader))
        for source in list(self.sources.values()):
            if source.is_attached and source.ended is None:
                source.orphans = set(source.writer.readers())
                self._attach_source(source, self._resumed(source))
        if self.sources or self.readers:
            self.deadline_ns = now_ns + RESUME_GRACE_NS

    def _resumed(self, state: SourceState | ReaderState) -> Handler:
        """What becomes of an end that is attached again; a connection that broke meanwhile is no answer."""
        self._unanswered += 1

        def answered(answer: Frame | TowpathError) -> None:
            self._unanswered -= 1
            if not isinstance(answer, TowpathError):
                state.wake()
            elif not isinstance(answer, ConnectionLost):
                state.end(answer)

        return answered

    def expire(self, now_ns: int) -> None:
        """Take for dead who has not come back in time. Call it when ``deadline_ns`` has passed; it may put
        that off.
        """
        if self.deadline_ns is None or now_ns < self.deadline_ns:
            return
        if self._unanswered:
            self.deadline_ns = now_ns + RESUME_GRACE_NS
            return
        self.deadline_ns = None
        self._pairing.expire()

    def tend(self, state: ReaderState) -> None:
        """Let go of sources that are drained, of those that broke their ring, and of those that went on
        without us. Call it when a receive gave nothing.
        """
        self._pairing.tend(state)

    # ---- notices ----

    def _notice(self, frame: Frame, descriptors: list[wire.Descriptor]) -> None:
        match frame.WhichOneof("body"):
            case "doorbell_added":
                if descriptors and self._doorbell_added is not None:
                    self._doorbell_added(descriptors[0])
            case "error":
                raise convert.error_from_proto(frame.error)
            case _:
                self._pairing.notice(frame, descriptors)
