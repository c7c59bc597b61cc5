"""The ends of a session: its sources and its readers, with the memory that is theirs. Sans-I/O.

A session (``protocol``) owns the ends, and carries out on them what the core says; publishers and
subscriptions (``sync.messages``, ``aio.messages``) use their memory. Ring and page are this process's own, so
they outlive the connection, and are attached again on the next.

Invariants
    No cycle holds an end that is closed: its memory goes when the last handle goes, not at the next garbage
    collection. So what wakes a waiting program (``wake``) is let go with it, and an error that is kept is
    raised as a copy (``TowpathError.again``), without the frames of those who got it before.
"""

from __future__ import annotations

import os
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from towpath import calls, model, wire
from towpath.errors import (
    ChannelUndeclared,
    MessageTooLarge,
    NotSupported,
    SourceNotFound,
    SubscriptionInUse,
    TowpathError,
)
from towpath.loans import LOAN_BYTES, SharedLoan, in_use, not_ours, too_large
from towpath.names import is_pattern
from towpath.v1 import frame_pb2
from towpath.waiting import FOREVER

if TYPE_CHECKING:
    from towpath import _ring
else:
    try:
        from towpath import _ring
    except ImportError:
        _ring = None

SLOTS: Final = 255
"""Sources that one subscription to a channel can follow at a time."""

PATTERN_SLOTS: Final = 4096
"""Sources that one subscription to a pattern can follow at a time, and callers that one server can."""

TROUBLES_MAX: Final = 256
"""Errors that a subscription keeps for a program that does not ask; beyond it the oldest are forgotten."""

READ_TO: Final = 1 << 63
"""Added to a position, and given to ``wait_room`` and ``arm_room``: not until a message fits, but until all
before the position was read."""

LOOK_NS_MIN: Final = 1_000_000
LOOK_NS_MAX: Final = 500_000_000
"""How often a publisher that waits for room looks who is in its way; the ring wants a look a second."""


def require_ring() -> None:
    """Raises NotSupported where the C extension is missing."""
    if _ring is None:
        raise NotSupported(
            "this installation of towpath has no shared memory (the C extension was not built)",
            hint="install gcc and the Python headers, then: pip install --force-reinstall towpath",
        )


@dataclass(frozen=True, slots=True)
class KeptReader:
    """What is left of a subscription whose process is gone, where somebody has kept it: enough to go on.

    Attributes:
        id: of the reader.
        token: the proof that it was ours (``resume_token``).
        page: descriptor of its control page, open for writing; whoever has this closes it.
    """

    id: int
    token: bytes
    page: int

    def slots(self, slot_count: int) -> tuple[dict[int, int], frozenset[int]]:
        """The slot of each source that it followed, and all sources that it has ever heard of, about.

        Raises:
            RingError: it is no such page.
        """
        readable = wire.Descriptor(os.open(f"/proc/self/fd/{self.page}", os.O_RDONLY | os.O_CLOEXEC))
        if _ring.check_control(readable.fd) != (self.id, slot_count):
            raise _ring.RingError("the page that was kept is another one's")
        data = os.pread(self.page, slot_count * _SLOT.size, _SLOTS_OFFSET)
        found = list(enumerate(_SLOT.iter_unpack(data)))
        held = {source: slot for slot, (cursor, source) in found if cursor & _CURSOR_FLAGS == _CURSOR_SET}
        return held, frozenset(source for _, (_, source) in found)


_SLOT: Final = struct.Struct("<QQ48x")
_SLOTS_OFFSET: Final = 256
_CURSOR_FLAGS: Final = 7
_CURSOR_SET: Final = 1
"""Of a control page: clients/c/towpath_ring_layout.h."""


def _nobody() -> None:
    """Wakes nobody: for an end that is closed."""


class SourceState:
    """One publisher: its ring, and the readers that the core has told it of.

    Attributes:
        is_attached: whether the core has ever said that it is; from then on it may be taken up again.
        resume_token: what the core gave to prove by then that it is ours.
        ended: why nothing more can be published, or None.
        held: why what was published cannot be stored for now, or None; durable topics.
        is_durable: whether what is published is stored.
        orphans: readers of before a reconnection that have not come back yet.
        absent: readers that the core says may come back, which are waited for, and until when.
        place: what it is on its channel.
        early: readers that began with the ring's first record, and so have missed nothing of it.
        stall_ns: how long a reader may hold the ring full without moving; 0 for ever.
        loan_bytes_max: the largest loan.
        wake: makes a publisher that waits for room look again; set by the client that owns this.
    """

    def __init__(
        self, channel: model.ChannelInfo, source: int, origin: str, place: calls.SourcePlace | None = None
    ) -> None:
        self.channel = channel.name
        self.source = source
        self.origin = origin
        self.is_attached = False
        self.resume_token = b""
        self.stall_ns = channel.stall_ms_max * 1_000_000
        self.is_durable = channel.durable
        self.place = place or calls.SourcePlace()
        # Where the core alone reads this ring it takes all of it: overflow and history are those of the ring
        # that it writes itself, from which subscribers read.
        is_taken_in = channel.order == "total" or channel.durable
        self.writer = _ring.Writer(
            source,
            channel.ring_bytes,
            overflow="drop" if channel.overflow == "drop" and not is_taken_in else "block",
            history=0 if is_taken_in else channel.history,
            slab_bytes=LOAN_BYTES if self.place.role == frame_pb2.SOURCE_ROLE_UNSPECIFIED else 0,
        )
        # What the core takes in goes on through a ring of its own, where it is an ordinary message.
        self._is_taken_in = is_taken_in
        self.loan_bytes_max = self.writer.message_bytes_max if is_taken_in else self.writer.slab_bytes
        self.ring = wire.Descriptor(self.writer.share())
        self.ended: TowpathError | None = None
        self.held: TowpathError | None = None
        self.orphans: set[int] = set()
        self.absent: dict[int, int] = {}
        self.early: set[int] = set()
        self.wake: Callable[[], None] = self.writer.notify

    @property
    def look_ns(self) -> int:
        """How long to wait for room before looking who is in the way."""
        if self.stall_ns:
            return max(LOOK_NS_MIN, min(LOOK_NS_MAX, self.stall_ns // 4))
        return LOOK_NS_MAX if self.absent else FOREVER

    def stalled_reader(self) -> int | None:
        """A reader that has held the ring full for too long, without moving. Who is absent for too long, or
        for as long, is waited for no more.
        """
        self.forget_absent()
        while self.stall_ns and (reader := self.writer.stalled_reader(self.stall_ns)) is not None:
            if self.absent.pop(reader, None) is None:
                return reader
            self.writer.detach(reader)
        return None

    def await_return(self, reader: int, return_ms: int) -> None:
        """A reader has gone, and may come back: it is waited for, where readers are."""
        if self.writer.overflow == "block":
            self.absent[reader] = time.monotonic_ns() + return_ms * 1_000_000
        else:
            self.writer.detach(reader)

    def forget_absent(self) -> None:
        """Wait no more for who is absent for too long."""
        for reader, until_ns in list(self.absent.items()):
            if time.monotonic_ns() >= until_ns and self.absent.pop(reader, None) is not None:
                self.writer.detach(reader)

    def hold(self, error: TowpathError | None) -> None:
        """What was published cannot be stored now; who waits for that is told. None: it can be again."""
        self.held = error
        self.wake()

    def is_stored(self, tail: int) -> bool:
        """Whether the core has stored all that is before a position of ``writer.tail``. While it is away
        nobody can say so.
        """
        return bool(self.writer.readers()) and _ring.unread_from(self.writer) >= tail

    def end(self, error: TowpathError) -> None:
        """Nothing more can be published; who waits for room is woken."""
        if self.ended is None:
            self.ended = error
            self.wake()

    def close(self) -> None:
        """Mark the ring closed: its readers drain it."""
        self.wake = _nobody
        self.writer.close()

    def abandon(self, why: TowpathError) -> None:
        """In a forked child: the ring is the parent's."""
        self.wake = _nobody
        self.ended = why

    def own_loan(self, loan: object, publisher: object, headers_raw: bytes | None) -> SharedLoan:
        """A loan of this ring's that may be published with these headers, as far as sizes go.

        Raises:
            InvalidArgument: it is another publisher's.
            MessageTooLarge: with its headers it is too large for the core's own ring.
        """
        if not isinstance(loan, SharedLoan) or loan.publisher is not publisher:
            raise not_ours()
        if self._is_taken_in and (size := loan.nbytes + len(headers_raw or b"")) > self.loan_bytes_max:
            raise too_large(size, self.loan_bytes_max)
        return loan

    def refusal(self, error: ValueError | RuntimeError, done: int = 0, count: int = 1) -> Exception:
        """What a publisher is told for what the ring refused: a message too large, or a ring that was
        closed, here or by a fork.
        """
        so_far = f"; {done} of {count} were published" if count > 1 else ""
        if isinstance(error, _ring.LoansOut):
            return in_use(self.channel)
        if isinstance(error, _ring.MessageTooLarge):
            return MessageTooLarge(f"{error}{so_far}")
        return self.ended.again() if self.ended is not None else error


class ReaderState:
    """One subscription, to a channel or to a pattern: its control page, and the sources that it follows.

    A source's life here: *added* (it has a slot, and its ring is followed), then, in either order,
    *drained* (its writer closed the ring, or is gone, and all of it was received) and *gone* (the core
    says so); after both its slot is released.

    Attributes:
        is_attached: whether the core has ever said that it is; from then on it may be taken up again.
        resume_token: what the core gave to prove by then that it is ours.
        ended: why no new source will come, or None; what is in the rings already is still handed out.
        slots: the slot of each source that the core counts as this reader's.
        following: sources whose rings are not drained yet, and the channel of each.
        stored: sources whose messages are in the store too, under the same seqs.
        begins: of channels that are stored, the seq with which this reader began; 0: not known.
        joined: of channels that are stored, sources that were followed anew: channel, source, the seq with
            which its ring is read. What was shown before that must be looked for in the store.
        excluded: sources whose messages are passed over.
        gone: sources that the core has let go.
        unconfirmed: sources of before a reconnection that have not come back yet.
        is_taken_up: its page was another process's, and says how far that had read; until who was there then
            has had time to come back.
        known: of a page that is taken up, the sources that are not new.
        is_left: when it is closed the page goes on saying how far it had read, for who takes it up.
        overtaken: sources whose ring showed that they went on without us, before the core said so.
        late: sources that did not come back in time, and of those that were read to their end the seq that
            is expected next: they may have been stopped only. Beyond ``slot_count`` the oldest are forgotten.
        troubles: what the program must be told once, although the subscription goes on.
        place: of a durable topic: the name that it goes by; empty: none.
        role: a number of ``frame_pb2.ReaderRole``.
        principal: for whom a gateway reads; empty for the session's own.
        parties: of a service: of each source, the reader of its own session that belongs to it, and for whom
            it acts.
        wake: makes a waiting receive look again; set by the client that owns this.
    """

    def __init__(
        self,
        channel: str,
        reader: int,
        exclude_origin: str,
        wants_doorbell: bool,
        role: frame_pb2.ReaderRole.ValueType = frame_pb2.READER_ROLE_UNSPECIFIED,
        principal: str = "",
        held_max: int = 0,
        *,
        kept: KeptReader | None = None,
    ) -> None:
        self.channel = channel
        self.id = reader
        self.exclude_origin = exclude_origin
        self.wants_doorbell = wants_doorbell
        self.is_attached = False
        self.resume_token = b""
        self.role = role
        self.principal = principal
        is_wide = is_pattern(channel) or role == frame_pb2.READER_ROLE_SERVER
        self.slot_count = PATTERN_SLOTS if is_wide else SLOTS
        self.slots: dict[int, int] = {}
        self.known: frozenset[int] = frozenset()
        self.is_taken_up = kept is not None
        self.is_left = False
        if kept is None:
            self.reader = _ring.Reader(reader, self.slot_count, held_max=held_max)
        else:
            self.slots, self.known = kept.slots(self.slot_count)
            self.reader = _ring.Reader.recover(kept.page)
            self.resume_token, self.is_attached = kept.token, True
        self.page = wire.Descriptor(self.reader.share())
        self.ended: TowpathError | None = None
        self.following: dict[int, str] = {}
        self.stored: set[int] = set()
        self.begins: dict[str, int] = {}
        self.joined: deque[tuple[str, int, int]] = deque()
        self.excluded: set[int] = set()
        self.gone: set[int] = set()
        self.unconfirmed: set[int] = set(self.slots)
        self.overtaken: set[int] = set()
        self.late: dict[int, int] = {}
        self.troubles: deque[TowpathError] = deque(maxlen=TROUBLES_MAX)
        self.parties: dict[int, tuple[int, str]] = {}
        self.place = ""
        self.wake: Callable[[], None] = self.reader.notify

    def keep(self) -> KeptReader:
        """What is to be kept of it, for whoever is to go on when this process is gone; the descriptor is the
        caller's to close.
        """
        return KeptReader(self.id, self.resume_token, self.reader.keep())

    def end(self, error: TowpathError) -> None:
        """No new source will come; what is in the rings is still handed out, unless another subscription
        has taken this one's place: to that it is given.
        """
        if self.ended is None:
            self.ended = error
            for source in self.following:
                self.reader.finish(source)
            if self.is_taken_over:
                self.following.clear()
            self.wake()

    @property
    def is_taken_over(self) -> bool:
        """Whether another subscription goes by this one's name now."""
        return isinstance(self.ended, SubscriptionInUse)

    def close(self, why: TowpathError) -> None:
        """Hand out nothing more."""
        self.ended = why
        self.following.clear()
        self.slots.clear()
        self.wake()
        self.wake = _nobody
        if self.is_left:
            self._close_and_leave()
        else:
            self.reader.close()

    def _close_and_leave(self) -> None:
        page = self.reader.keep()
        slots = os.pread(page, self.slot_count * _SLOT.size, _SLOTS_OFFSET)
        self.reader.close()  # which tells the writers that nobody is here
        os.pwrite(page, slots, _SLOTS_OFFSET)
        os.close(page)

    def abandon(self, why: TowpathError) -> None:
        """In a forked child: the page is the parent's."""
        self.wake = _nobody
        self.following.clear()
        self.ended = why

    @property
    def is_crowded(self) -> bool:
        """Whether so many slots are in use that those of publishers which are read to their end are wanted
        back, although there is something to receive all the time.
        """
        return 2 * len(self.slots) > self.slot_count

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but messages to look for in the rings."""
        return self.ended is None and not (self.joined or self.troubles or self.stored or self.is_crowded)

    @property
    def is_drained(self) -> bool:
        """Whether the subscription has ended and everything before that was handed out."""
        return self.ended is not None and not self.following


def publication_error(state: SourceState, error: TowpathError) -> TowpathError:
    """What a publisher is told when the core refused to tell it its readers."""
    if not isinstance(error, SourceNotFound):
        return error
    if state.ended is not None:
        return state.ended.again()
    return ChannelUndeclared(f"channel {state.channel} was undeclared")
