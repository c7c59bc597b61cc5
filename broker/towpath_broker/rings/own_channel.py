"""One channel on which the core writes itself: what came over the socket, and what it puts in order.

Theory of operation
    The core is a source there, with a ring of its own, and may be the one reader of the channel's other
    publishers (its *intake*). Work is done in *turns* of the event loop. A turn writes what came over the
    socket, first come, first served; then, if there is an intake, it moves messages from the publishers'
    rings to its own, at most ``TURN_COUNT`` and ``TURN_BYTES``, at C speed. While there is more, it asks for
    another turn, behind whatever else the loop has to do: so a busy channel holds up neither the door nor
    other channels. When there is nothing it arms its doorbells and sleeps; when its own ring is full it
    leaves everything where it is, and sleeps until a subscriber has made room.

Where a message becomes visible
    In two places, of which one never runs inside the other: ``_show`` for what came over the socket,
    ``_take_in`` for a batch of the publishers'. Before them nobody has seen a message, after them every
    subscriber may have. Whatever must be decided or stored first has its place there,
    between reading and writing:

    =============  =====================================  ==========================================
    what           ``_take_in`` today                     where there is something to decide or store
    =============  =====================================  ==========================================
    read           ``_ring.pump`` does all three:         copy a batch, leaving the cursors
    commit         the record's origin, shown with it,    the batch, and how far each source was taken
                   says how far its source was taken      (source and seq), in one commit
    show           the tail, and then the cursor          write the ring, then move the cursors
    after a crash  ``Reader.pass_over`` what the newest   ``Reader.pass_over`` what the store says, of
                   record says (mediator)                 each source; show what was stored and not shown
    =============  =====================================  ==========================================

    A batch that waits for its commit is not done when ``_take_in`` returns: it answers 0, and whoever has
    committed it calls ``wake``.

Invariants
    Each message is shown exactly once, whenever this process is killed: why, clients/c/towpath_ring_pump.h.
    The messages of one publication have contiguous numbers. A publication is answered when all of it is in
    the ring, or when it is withdrawn; never twice.
    No turn waits, for anybody.

Not here: who may publish, who follows whom (core), publishers that come and go (intake), memory that outlives
the process (mediator).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from towpath import _ring
from towpath.errors import LimitExceeded, MessageTooLarge, QuotaExceeded, TowpathError
from towpath_broker.core.ids import CallId, ReaderId, SessionId

from .intake import Intake

TURN_COUNT: Final = 1024
TURN_BYTES: Final = 1 << 20
"""What one turn moves at most, one message more or less."""
STALL_CHECK_S: Final = 0.5
"""How often a full ring's readers are looked at; the ring counts a reader's time by looks."""
WAITING_BYTES_PER_CHANNEL_MAX: Final = 64 << 20
"""Bytes that came over the socket and wait for room in a channel's ring; beyond it LIMIT_EXCEEDED."""
WAITING_BYTES_PER_PRINCIPAL_MAX: Final = 4 << 20
"""The same for one principal, over all channels; beyond it QUOTA_EXCEEDED."""


@dataclass(slots=True, eq=False)
class Publication:
    """Messages that came over the socket, in one call.

    Attributes:
        headers: serialized, one for each payload; empty when none has any.
        done: how many of them are in the ring.
    """

    session: SessionId
    call: CallId
    principal: str
    payloads: Sequence[bytes]
    headers: Sequence[bytes]
    done: int = 0

    @property
    def nbytes(self) -> int:
        """Payloads and headers together."""
        return sum(map(len, self.payloads)) + sum(map(len, self.headers))


@dataclass(frozen=True, slots=True)
class Told:
    """Whom an own channel tells of what happens there.

    Attributes:
        written: all of a publication is in the ring; with the seq of its last message.
        stalled: this subscriber has held the ring full for as long as the channel allows.
    """

    written: Callable[[Publication, int], object]
    stalled: Callable[[ReaderId], object]


class WaitingBytes:
    """What waits for room, by principal. One for all channels."""

    def __init__(self) -> None:
        self._by_principal: dict[str, int] = {}

    def add(self, principal: str, nbytes: int) -> None:
        """Count bytes that begin to wait.

        Raises:
            QuotaExceeded: there would be too many; nothing was counted.
        """
        count = self._by_principal.get(principal, 0) + nbytes
        if count > WAITING_BYTES_PER_PRINCIPAL_MAX:
            raise QuotaExceeded(
                f"{count} bytes of {principal} would wait for room:"
                f" at most {WAITING_BYTES_PER_PRINCIPAL_MAX} may",
                hint="a subscriber does not read; towpath status shows the channel's subscribers",
            )
        self._by_principal[principal] = count

    def remove(self, principal: str, nbytes: int) -> None:
        """Count bytes that wait no more."""
        left = self._by_principal.pop(principal) - nbytes
        if left:
            self._by_principal[principal] = left

    def total(self) -> int:
        """What all principals have waiting together."""
        return sum(self._by_principal.values())


class OwnChannel:
    """The core's source on one channel.

    Args:
        name: the channel's.
        writer: the source's ring; closed with this object.
        is_ordered: whether the channel is in total order: then it gets an intake.
        stall_ms_max: how long a subscriber may hold the ring full without moving; 0 for ever.
        told: whom to tell.
        waiting: counts what waits for room.
    """

    def __init__(
        self,
        name: str,
        writer: _ring.Writer,
        *,
        is_ordered: bool,
        stall_ms_max: int,
        told: Told,
        waiting: WaitingBytes,
    ) -> None:
        self.name = name
        self.is_ordered = is_ordered
        self.writer = writer
        self.intake: Intake | None = None
        self._stall_ns = stall_ms_max * 1_000_000
        self._told = told
        self._waiting = waiting
        self._waiting_bytes = 0
        self._line: deque[Publication] = deque()
        self._absent: dict[ReaderId, float] = {}  # until when they are waited for
        self._loop = asyncio.get_running_loop()
        self._turn: asyncio.Handle | None = None
        self._room_check: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.published_at = self._loop.time()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits here, and all that was written was read."""
        return not self._line and self.writer.drained()

    # ---- subscribers ----

    def reader_came(self, reader: ReaderId) -> None:
        """A subscriber is there, perhaps again."""
        self._absent.pop(reader, None)

    def reader_gone(self, reader: ReaderId, return_ms: int) -> None:
        """A subscriber has gone. One that may come back is waited for so long, where subscribers are.

        Args:
            return_ms: 0: it will not come back.
        """
        if return_ms and self.writer.overflow == "block":
            self._absent[reader] = self._loop.time() + return_ms / 1e3
        else:
            self._absent.pop(reader, None)
            self.writer.detach(reader)
        self.wake()

    def give_up_absent(self) -> None:
        """Wait no more for who is absent for too long."""
        for reader, until in tuple(self._absent.items()):
            if self._loop.time() >= until:
                self.reader_gone(reader, 0)

    # ---- what came over the socket ----

    def publish(self, publication: Publication) -> None:
        """Write messages in their turn; what has no room waits.

        Raises:
            MessageTooLarge, LimitExceeded, QuotaExceeded: nothing was written.
        """
        self._check_sizes(publication)
        self.published_at = self._loop.time()
        if not self._line and self._show(publication):
            return
        nbytes = publication.nbytes
        try:
            if self._waiting_bytes + nbytes > WAITING_BYTES_PER_CHANNEL_MAX:
                raise LimitExceeded(
                    f"{self._waiting_bytes} bytes wait for room on {self.name}:"
                    f" at most {WAITING_BYTES_PER_CHANNEL_MAX} may",
                    hint="a subscriber does not read; towpath status shows the channel's subscribers",
                )
            self._waiting.add(publication.principal, nbytes)
        except TowpathError as error:
            if not publication.done:
                raise
            raise partly(error, publication) from None
        self._waiting_bytes += nbytes
        self._line.append(publication)
        self.wake()

    def withdraw(self, session: SessionId, call: CallId | None = None) -> list[Publication]:
        """Let a session's publications, or one of them, wait no longer; return them."""
        gone = [each for each in self._line if each.session == session and call in (None, each.call)]
        for publication in gone:
            self._line.remove(publication)
            self._count_out(publication)
        if gone:
            self.wake()
        return gone

    def _check_sizes(self, publication: Publication) -> None:
        most = self.writer.message_bytes_max
        for index, payload in enumerate(publication.payloads):
            nbytes = len(payload) + (len(publication.headers[index]) if publication.headers else 0)
            if nbytes > most:
                raise MessageTooLarge(
                    f"a message of {nbytes} bytes, headers included: {self.name} takes {most}",
                    hint="declare the channel with a larger ring_bytes",
                )

    def _show(self, publication: Publication) -> bool:
        """Write as much as there is room for; return whether that is all, which is told then."""
        headers = publication.headers or None
        while publication.done < len(publication.payloads):
            written = self.writer.try_publish_many(publication.payloads, publication.done, headers)
            if written <= 0:
                return False
            publication.done += written
        self._told.written(publication, self.writer.last_seq)
        return True

    def _count_out(self, publication: Publication) -> None:
        self._waiting_bytes -= publication.nbytes
        self._waiting.remove(publication.principal, publication.nbytes)

    # ---- turns ----

    def wake(self) -> None:
        """Ask for a turn."""
        if self._turn is None and not self._is_closed:
            self._turn = self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        while self._line:
            if not self._show(self._line[0]):
                self._wait_room()
                return
            self._count_out(self._line.popleft())
        if self.intake is None:
            return
        moved = self._take_in(self.intake)
        self.intake.tend()  # also while there is always something: their slots are needed again
        if moved > 0:
            self.wake()
        elif moved < 0:
            self._wait_room()
        elif self.intake.reader.arm():
            self.wake()

    def _take_in(self, intake: Intake) -> int:
        """Take a batch of the publishers' messages in, and show it; see the module's docstring.

        Returns:
            How many were shown; 0: there are none; less: there is no room.
        """
        return _ring.pump(intake.reader, self.writer, TURN_COUNT, TURN_BYTES)

    def _wait_room(self) -> None:
        """Go on when a subscriber has made room; meanwhile judge, now and then, whether one has stopped."""
        if self._room_check is not None:
            self._room_check.cancel()
            self._room_check = None
        self.give_up_absent()
        if self.writer.arm_room(self.writer.message_bytes_max):
            self.wake()
            return
        if self._stall_ns:
            stalled = self.writer.stalled_reader(self._stall_ns)
            if stalled in self._absent:
                self.reader_gone(ReaderId(stalled), 0)
            elif stalled is not None:
                self._told.stalled(ReaderId(stalled))
        if self._stall_ns or self._absent:
            pause_s = min(self._stall_ns / 1e9 or STALL_CHECK_S, STALL_CHECK_S)
            self._room_check = self._loop.call_later(pause_s, self.wake)

    def close(self) -> list[Publication]:
        """End the ring, which subscribers drain, and let publishers go; return what was not written."""
        self._is_closed = True
        for handle in (self._turn, self._room_check):
            if handle is not None:
                handle.cancel()
        left = list(self._line)
        self._line.clear()
        for publication in left:
            self._count_out(publication)
        self.writer.close()
        if self.intake is not None:
            self.intake.close()
        return left


def partly(error: TowpathError, publication: Publication) -> TowpathError:
    """The same refusal, saying how much of the publication was written."""
    if not publication.done:
        return error
    text = f"{error.message}; {publication.done} of {len(publication.payloads)} were published"
    return type(error)(text, hint=error.hint)
