"""The client's side of the door, sans-I/O: what a session knows, and what it says when.

Theory of operation
    Both clients feed this with the frames that arrive and send what ``take_outgoing`` gives. It keeps the
    calls that wait for an answer, and the session's sources and readers: their rings and pages, and who is
    attached to which. The core's notices (a publisher came, a reader left) are carried out here, on the
    ring objects, at once.

    A session outlives its connection. When a new one is made, every source and reader is attached again
    under its old id with the memory it has: rings and pages are the client's own, so nothing that is in
    them is lost. Until the other sides have done the same, a source keeps the readers that it had, and a
    reader its sources; who has not come back when ``RESUME_GRACE_NS`` has passed is taken for dead.

Invariants
    A reader that the core has told a source of is attached to its writer before the generation that
    includes it is installed. A source's slot in a reader's page is released only when the reader has
    drained the ring of that source. Only an end whose attaching was answered is taken up again: one that was
    still being attached when the connection broke is nowhere, and its maker makes another. Nothing here
    blocks, reads a clock or touches a socket; callers serialize their calls.

Not here: the ends themselves (``ends``), the ring (``_ring``), sockets and waiting (``client``, ``aio``).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from towpath import asking, calls, convert, model, wire
from towpath.ends import ReaderState, SourceState, require_ring
from towpath.errors import (
    ConnectionLost,
    LimitExceeded,
    ProtocolViolation,
    SlowConsumer,
    TowpathError,
    VersionMismatch,
    host_limits,
)
from towpath.names import check_pattern
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

T = TypeVar("T")

RESUME_GRACE_NS: Final = 3_000_000_000
"""How long after a reconnection the other sides have to come back."""

IDS_PER_REQUEST: Final = 1024

Handler = Callable[[Frame | TowpathError], None]
"""Gets the answer of a call: its frame, or why there is none."""

Outgoing = tuple[Frame, tuple[wire.Descriptor, ...]]

_log = logging.getLogger("towpath")


class ClientProtocol:
    """The state of one session. See the module's docstring.

    Args:
        name: for people; shown by ``towpath status``.
        software: for people.
        doorbell: the sending end of this session's doorbell, or None when nobody here sleeps in an event
            loop.
        doorbell_added: takes the receiving ends of further doorbells; None where there is no event loop.
    """

    def __init__(
        self,
        *,
        name: str,
        software: str,
        doorbell: wire.Descriptor | None = None,
        doorbell_added: Callable[[wire.Descriptor], None] | None = None,
    ) -> None:
        self._name = name
        self._software = software
        self._doorbell = doorbell
        self._doorbell_added = doorbell_added
        self._pending: dict[int, Handler] = {}
        self._streams: set[int] = set()
        self._outgoing: list[Outgoing] = []
        self._next_call = 1
        self._next_id = 0
        self._ids_left = 0
        self._generation_table: wire.Descriptor | None = None
        self._came_with: list[wire.Descriptor] = []  # with the answer that is being handled
        self.sources: dict[int, SourceState] = {}
        self.readers: dict[int, ReaderState] = {}
        self.kept: set[asking.KeptStream[Any]] = set()
        self.welcome: frame_pb2.Welcome | None = None
        self.is_over = False
        self.deadline_ns: int | None = None

    # ---- connection ----

    @property
    def is_ready(self) -> bool:
        """Whether the connection is up and has been welcomed."""
        return self.welcome is not None

    def connection_made(self) -> None:
        """Say hello on a new connection."""
        frame = Frame(
            id=self._take_call(),
            hello=frame_pb2.Hello(
                version_min=wire.VERSION,
                version_max=wire.VERSION,
                software=self._software,
                name=self._name,
                takes_doorbells=self._doorbell_added is not None,
            ),
        )
        descriptors = (self._doorbell,) if self._doorbell is not None else ()
        self._pending[frame.id] = self._welcomed
        self._outgoing.append((frame, descriptors))

    def connection_lost(self, error: TowpathError | None = None) -> None:
        """Everything that waits for an answer gets ConnectionLost, which says why; sources and readers live
        on.
        """
        self.welcome = None
        self._ids_left = 0  # they were the connection's session's
        self.deadline_ns = None  # while there is no core nobody can come back, and nobody is late
        self._outgoing.clear()
        self._streams.clear()
        pending, self._pending = self._pending, {}
        if error is None:
            error = ConnectionLost("the connection to the daemon was lost")
        elif not isinstance(error, ConnectionLost):
            error = ConnectionLost(f"the connection to the daemon ended: {error.message}", hint=error.hint)
        for handler in pending.values():
            handler(error)

    def take_outgoing(self) -> list[Outgoing]:
        """What to send now, in order."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def receive(self, frame: Frame, descriptors: list[wire.Descriptor], now_ns: int) -> None:
        """Take one frame.

        Raises:
            TowpathError: the other side broke the protocol, or refused the connection; the connection must
            be closed.
        """
        if frame.id == 0:
            self._notice(frame, descriptors)
            return
        handler = self._pending.get(frame.id)
        if handler is None:
            return  # the answer to a call that was cancelled
        if frame.id not in self._streams or frame.WhichOneof("body") in ("error", "end"):
            del self._pending[frame.id]
            self._streams.discard(frame.id)
        if frame.WhichOneof("body") == "welcome":
            self._generation_table = descriptors[0] if descriptors else None
            handler(frame)
            self._resume(now_ns)
            for stream in list(self.kept):
                stream.open()
        else:
            self._came_with = descriptors
            handler(frame)
            self._came_with = []

    def _welcomed(self, answer: Frame | TowpathError) -> None:
        if isinstance(answer, TowpathError):
            return  # the connection is gone; the client tries again
        match answer.WhichOneof("body"):
            case "welcome":
                if answer.welcome.version != wire.VERSION:
                    raise VersionMismatch(f"the daemon speaks version {answer.welcome.version}")
                self.welcome = answer.welcome
                self._next_id, self._ids_left = answer.welcome.first_id, answer.welcome.id_count
            case "error":
                raise convert.error_from_proto(answer.error)
            case other:
                raise ProtocolViolation(f"hello was answered by {other}")

    # ---- calls ----

    def call(
        self, call: calls.Call[Any], handler: Handler, descriptors: tuple[wire.Descriptor, ...] = ()
    ) -> int:
        """Queue a call; ``handler`` gets its answer. Returns the call's id."""
        call_id = self._take_call()
        self._pending[call_id] = handler
        self._outgoing.append((call.frame(call_id), descriptors))
        return call_id

    def call_and_forget(self, call: calls.Call[Any]) -> None:
        """Queue a call whose answer does not matter; dropped while there is no connection."""
        if self.is_ready:
            self.call(call, lambda _: None)

    def watch(self, handler: Handler, after_revision: int | None = None) -> int:
        """Queue a watch of the registry; ``handler`` gets each item, and at the end an error.

        Raises:
            InvalidArgument: the revision is no number of 64 bits.
        """
        return self.open_stream(Frame(watch_request=calls.watch_request(after_revision)), handler)

    def open_stream(self, frame: Frame, handler: Handler) -> int:
        """Queue a request that has any number of answers; ``handler`` gets each, and at the end an error.

        Args:
            frame: the request; its id is set here.
        """
        frame.id = self._take_call()
        self._pending[frame.id] = handler
        self._streams.add(frame.id)
        self._outgoing.append((frame, ()))
        return frame.id

    def keep_stream(
        self, make: Callable[[], calls.Call[T]], listener: asking.Listener[T]
    ) -> asking.KeptStream[T]:
        """Follow a stream on this connection and those that come after it; see :class:`asking.Asking`."""
        stream = asking.KeptStream(self, make, listener)
        if self.is_ready:
            stream.open()
        self.kept.add(stream)
        return stream

    def add_to_stream(self, call_id: int, frame: Frame) -> None:
        """Queue one more request of a stream; nothing happens when it has ended."""
        if call_id in self._streams:
            frame.id = call_id
            self._outgoing.append((frame, ()))

    def cancel(self, call_id: int) -> None:
        """Forget a call, and tell the other side."""
        self._streams.discard(call_id)
        if self._pending.pop(call_id, None) is not None and self.is_ready:
            frame = Frame(id=call_id)
            frame.cancel.SetInParent()
            self._outgoing.append((frame, ()))

    def withdraw(self, call_id: int) -> None:
        """Ask that a call be given up; its answer, which says what became of it, is still waited for."""
        if call_id in self._pending and self.is_ready:
            frame = Frame(id=call_id)
            frame.cancel.SetInParent()
            self._outgoing.append((frame, ()))

    def _take_call(self) -> int:
        self._next_call += 1
        return self._next_call - 1

    # ---- ids ----

    @property
    def needs_ids(self) -> bool:
        """Whether ``allocate_ids`` must be called before the next source or reader."""
        return self._ids_left == 0

    def add_ids(self, first_id: int, count: int) -> None:
        self._next_id, self._ids_left = first_id, count

    def _take_id(self) -> int:
        assert self._ids_left > 0
        self._ids_left -= 1
        self._next_id += 1
        return self._next_id - 1

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
    ) -> ReaderState:
        """Make a control page, and queue the call that attaches it; ``done`` as for :meth:`new_source`.

        Raises:
            InvalidName: ``channel`` is neither a channel's name nor a pattern.
            NotSupported, LimitExceeded: there can be no page here, or not one more.
        """
        require_ring()
        check_pattern(channel)
        with host_limits(f"a subscription to {channel!r}"):
            state = ReaderState(channel, self._take_id(), exclude_origin, wants_doorbell, role, principal)
        self.readers[state.id] = state
        self._attach_reader(state, done)
        return state

    def _attach_reader(self, state: ReaderState, done: Handler) -> None:
        call = calls.attach_reader(
            state.channel,
            state.id,
            slots=state.slot_count,
            exclude_origin=state.exclude_origin,
            wants_doorbell=state.wants_doorbell,
            held=state.slots if state.is_attached else None,
            role=state.role,
            principal=state.principal,
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

    def forget_reader(self, state: ReaderState, why: TowpathError) -> None:
        """The subscription is closed, whatever is still in the rings; the core is told. More than once is
        fine.
        """
        if self.readers.pop(state.id, None) is not None:
            state.close(why)
            self.call_and_forget(calls.detach_reader(state.id))

    def close(self, why: TowpathError) -> None:
        """Close every source, reader and stream."""
        self.is_over = True
        self.end_streams(why)
        for source in list(self.sources.values()):
            self.forget_source(source, why)
        for reader in list(self.readers.values()):
            self.forget_reader(reader, why)

    def end_streams(self, why: TowpathError) -> None:
        """There will be no connection any more: end what is followed from one to the next."""
        for stream in list(self.kept):
            stream.end(why)

    def abandon(self, why: TowpathError) -> None:
        """In a forked child: all of it is the parent's, and nothing is said to anybody."""
        self.is_over = True
        self.welcome = None
        self.deadline_ns = None
        for source in self.sources.values():
            source.abandon(why)
        for reader in self.readers.values():
            reader.abandon(why)
        self.sources = {}
        self.readers = {}
        self.kept = set()
        self._pending = {}
        self._outgoing = []

    def tend(self, state: ReaderState) -> None:
        """Let go of sources that are drained, of those that broke their ring, and of those that went on
        without us. Call it when a receive gave nothing.
        """
        if state.id not in self.readers:
            return
        for source, why in state.reader.take_violations():
            _log.warning("source %d of channel %s is dropped: %s", source, state.channel, why)
            self._stop_following(state, source)
        for source in state.reader.take_detached():
            state.overtaken.add(source)
            state.troubles.append(
                SlowConsumer(
                    f"this subscription was too slow for publisher {source}"
                    f" of {state.following.get(source, state.channel)!r},"
                    " which went on without it",
                    hint="what was not read of that publisher is lost; subscribe again to follow it again",
                )
            )
            self._stop_following(state, source)
        for source in state.reader.take_drained():
            self._stop_following(state, source)

    def _stop_following(self, state: ReaderState, source: int) -> None:
        state.following.pop(source, None)
        state.reader.remove(source)
        if source in state.gone:
            self._release(state, source)

    def _release(self, state: ReaderState, source: int) -> None:
        state.gone.discard(source)
        state.unconfirmed.discard(source)
        state.overtaken.discard(source)
        state.parties.pop(source, None)
        state.stored.discard(source)
        if state.slots.pop(source, None) is not None:
            self.call_and_forget(calls.release_slot(state.id, source))

    def _let_go(self, state: ReaderState, source: int) -> None:
        """The core has let a source go, or it did not come back."""
        state.gone.add(source)
        if source in state.following:
            state.reader.finish(source)
            state.wake()
        else:
            self._release(state, source)

    # ---- taking up again ----

    def _resume(self, now_ns: int) -> None:
        # Readers first: the sources of a service name readers of their session.
        for reader in list(self.readers.values()):
            if reader.is_attached and reader.ended is None:
                reader.unconfirmed = set(reader.slots) - reader.gone
                self._attach_reader(reader, _resumed(reader))
        for source in list(self.sources.values()):
            if source.is_attached and source.ended is None:
                source.orphans = set(source.writer.readers())
                self._attach_source(source, _resumed(source))
        if self.sources or self.readers:
            self.deadline_ns = now_ns + RESUME_GRACE_NS

    def expire(self, now_ns: int) -> None:
        """Take for dead who has not come back in time. Call it when ``deadline_ns`` has passed."""
        if self.deadline_ns is None or now_ns < self.deadline_ns:
            return
        self.deadline_ns = None
        for source in self.sources.values():
            for reader in source.orphans:
                source.writer.detach(reader)
            if source.orphans:
                source.orphans = set()
                source.wake()
        for state in self.readers.values():
            lost, state.unconfirmed = state.unconfirmed, set()
            for each in lost:
                self._let_go(state, each)

    # ---- notices ----

    def _notice(self, frame: Frame, descriptors: list[wire.Descriptor]) -> None:
        match frame.WhichOneof("body"):
            case "source_added":
                self._source_added(frame.source_added, descriptors)
            case "source_gone":
                self._source_gone(frame.source_gone)
            case "source_excluded":
                self._source_excluded(frame.source_excluded)
            case "source_detached":
                self._source_detached(frame.source_detached)
            case "reader_added":
                self._reader_added(frame.reader_added, descriptors)
            case "reader_gone":
                self._reader_gone(frame.reader_gone)
            case "doorbell_added":
                if descriptors and self._doorbell_added is not None:
                    self._doorbell_added(descriptors[0])
            case "subscription_ended":
                reader = self.readers.get(frame.subscription_ended.reader)
                if reader is not None:
                    reader.end(convert.error_from_proto(frame.subscription_ended.error))
            case "publication_held":
                source = self.sources.get(frame.publication_held.source)
                if source is not None:
                    held = frame.publication_held
                    source.hold(convert.error_from_proto(held.error) if held.HasField("error") else None)
            case "publication_ended":
                source = self.sources.get(frame.publication_ended.source)
                if source is not None:
                    source.end(convert.error_from_proto(frame.publication_ended.error))
            case "error":
                raise convert.error_from_proto(frame.error)
            case _:
                pass  # a notice of a later version

    def _source_added(self, notice: frame_pb2.SourceAdded, descriptors: list[wire.Descriptor]) -> None:
        state = self.readers.get(notice.reader)
        if state is None or not descriptors:
            return
        state.unconfirmed.discard(notice.source)
        state.gone.discard(notice.source)
        state.overtaken.discard(notice.source)
        state.slots[notice.source] = notice.slot
        if notice.own_reader:
            state.parties[notice.source] = notice.own_reader, notice.principal
        if notice.source in state.following:
            if state.reader.revive(notice.source):  # it may have been taken for dead
                return
            state.reader.remove(notice.source)  # and was read to its end by now
        doorbell = descriptors[1].fd if len(descriptors) > 1 else -1
        try:
            with host_limits(f"publisher {notice.source} of {notice.channel!r}, which is not followed"):
                state.reader.add(
                    descriptors[0].fd, notice.slot, notice.source, notice.channel, _start(notice), doorbell
                )
        except _ring.RingError as error:
            _log.warning("source %d of channel %s is not followed: %s", notice.source, notice.channel, error)
            return
        except LimitExceeded as error:
            state.troubles.append(error)
            state.wake()
            return
        state.following[notice.source] = notice.channel
        if notice.is_stored:
            state.stored.add(notice.source)
            seq = _ring.next_seq(state.reader, notice.source)
            state.begins.setdefault(notice.channel, seq)
            state.joined.append((notice.channel, notice.source, seq))
        state.wake()

    def _source_excluded(self, notice: frame_pb2.SourceExcluded) -> None:
        state = self.readers.get(notice.reader)
        if state is not None:
            try:
                state.reader.exclude(notice.source)
                state.excluded.add(notice.source)
            except ValueError:
                _log.warning("channel %s: the echo of source %d is heard", state.channel, notice.source)

    def _source_gone(self, notice: frame_pb2.SourceGone) -> None:
        state = self.readers.get(notice.reader)
        if state is not None and notice.source in state.slots:
            self._let_go(state, notice.source)

    def _source_detached(self, notice: frame_pb2.SourceDetached) -> None:
        """We were too slow for one source. What of it is unread may be overwritten at any time now."""
        state = self.readers.get(notice.reader)
        if state is None or notice.source not in state.slots:
            return
        if notice.source not in state.overtaken:
            state.troubles.append(convert.error_from_proto(notice.error))
        state.gone.add(notice.source)
        self._stop_following(state, notice.source)
        state.wake()

    def _reader_added(self, notice: frame_pb2.ReaderAdded, descriptors: list[wire.Descriptor]) -> None:
        state = self.sources.get(notice.source)
        if state is None or not descriptors:
            return
        if notice.reader in state.writer.readers():
            state.orphans.discard(notice.reader)
            if len(descriptors) == 1:
                return
            # Its doorbell may be another: the core's, after it was started again.
        doorbell = descriptors[1].fd if len(descriptors) > 1 else -1
        with contextlib.suppress(_ring.RingError):  # its own fault: it will not be waited for, nor woken
            state.writer.attach(notice.reader, descriptors[0].fd, notice.slot, doorbell, _start(notice))
            if notice.from_start:
                state.early.add(notice.reader)
        if state.place.role != frame_pb2.SOURCE_ROLE_UNSPECIFIED:
            state.wake()

    def _reader_gone(self, notice: frame_pb2.ReaderGone) -> None:
        state = self.sources.get(notice.source)
        if state is not None:
            state.orphans.discard(notice.reader)
            state.early.discard(notice.reader)
            state.writer.detach(notice.reader)
            state.wake()


def _start(notice: frame_pb2.SourceAdded | frame_pb2.ReaderAdded) -> Literal["start", "history", "tail"]:
    """Where a reader begins in a source's ring; the same for both sides."""
    if notice.from_start:
        return "start"
    return "history" if notice.from_history else "tail"


def _resumed(state: SourceState | ReaderState) -> Handler:
    """What becomes of an end that is attached again; a connection that broke meanwhile is no answer."""

    def answered(answer: Frame | TowpathError) -> None:
        if not isinstance(answer, TowpathError):
            state.wake()
        elif not isinstance(answer, ConnectionLost):
            state.end(answer)

    return answered
