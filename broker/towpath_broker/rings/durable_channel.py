"""One durable topic: what its publishers write is stored, and then shown.

Theory of operation
    An own channel (``own_channel``) whose two steps, reading and showing, lie on either side of a commit::

        publishers' rings ──take──▶ parcel ──TakeIn──▶ data plane, store ──Appended──▶ own ring, release

    A turn takes one parcel out of the publishers' rings, leaving the cursors that they see, and hands it to
    the data plane; then the channel waits. What came over the socket goes to the data plane by itself. Either
    comes back as ``Appended``, in the order of its seqs, when it is on disk: then it is written to the own
    ring, whose seqs are the log's, and the cursors are moved. So a publisher that waits until its ring was
    read waits for the disk; while one parcel is being committed the next gathers in the rings.

    The own ring drops what is oldest. Whoever was lapped, or comes late, reads that from the store, which has
    it under the same seqs.

    When the store has no room the parcel is kept, and handed over again every ``RETRY_S``. Meanwhile the
    rings fill; their publishers are told why (``held``).

After a crash
    The store says up to where each source was taken in: that much is passed over (``Reader.pass_over``). What
    it has and the own ring had not shown yet is shown first, from the store.

Invariants
    Nothing is shown that is not on disk, and everything that is, in order, without a gap.
    A source is let go of only while nothing of it is on its way.

Not here: what is stored how (store), dedupe and retention (core.data).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from towpath import _ring
from towpath.errors import ChannelNotFound, TowpathError
from towpath.v1.message_pb2 import Headers
from towpath_broker.core.data.commands import ForgetSource, TakeIn
from towpath_broker.core.data.effects import Appended
from towpath_broker.core.data.rows import Content, PackedParcel, Run
from towpath_broker.core.ids import SourceId
from towpath_broker.log import log

from .own_channel import OwnChannel, Publication, Told, WaitingBytes

PARCEL_COUNT: Final = 16_384
PARCEL_BYTES: Final = 2 << 20
"""What one parcel takes at most, one message more or less."""
RETRY_S: Final = 0.25
"""How soon the store is tried again that had no room."""
RECOVER_BYTES: Final = 4 << 20
_ID_TAG: Final = 0x4A
"""Begins a message id in serialized headers: field 9, a string."""


@dataclass(frozen=True, slots=True)
class Logs:
    """The data plane, as durable topics need it.

    Attributes:
        submit: gives it a command.
        next_seq: what the next message of a topic will have.
        taken: up to where each source of a topic was taken in.
        read: parcels of a topic from a seq on, as ``ports.Store.read_parcels``.
        look: calls what it is given until that gives something, for a while, or not at all.
    """

    submit: Callable[[TakeIn | ForgetSource], object]
    next_seq: Callable[[str], int]
    taken: Callable[[str], Mapping[int, int]]
    read: Callable[[str, int, int], Sequence[PackedParcel]]
    look: Callable[[Callable[[], _ring.Packed | None]], _ring.Packed | None]


Held = Callable[[SourceId, TowpathError | None], object]
"""Tells a publisher that what it publishes cannot be stored now, and why; or, None, that it can again."""


class DurableChannel(OwnChannel):
    """The core's source on a durable topic.

    Args:
        logs: the data plane.
        held: tells publishers.
    """

    def __init__(
        self, name: str, writer: _ring.Writer, *, logs: Logs, held: Held, told: Told, waiting: WaitingBytes
    ) -> None:
        super().__init__(name, writer, is_ordered=True, stall_ms_max=0, told=told, waiting=waiting)
        self._logs = logs
        self._pending: TakeIn | None = None
        self._ticket = 0
        self._tell_held = held
        self._held: set[SourceId] = set()
        self._retry: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is on its way to the store, and all that was shown was read."""
        return self._pending is None and super().is_idle

    def publish(self, publication: Publication) -> None:
        """Not on this path: what comes over the socket goes to the data plane, and comes by ``appended``."""
        raise AssertionError(f"{self.name} is durable: its messages come from the store")

    def recover(self, end_seq: int) -> None:
        """Show what an earlier core had stored and not shown: up to ``end_seq``, without it."""
        while self.writer.last_seq + 1 < end_seq:
            found = self._logs.read(self.name, self.writer.last_seq + 1, RECOVER_BYTES)
            if not found:  # retention was quicker: nobody has missed it in the ring
                return
            for parcel in found:
                self._write(parcel.data, parcel.first_seq)

    # ---- taking in -----------------------------------------------------------------------------------------

    def _take_turn(self) -> None:
        self._turn = None
        if self._pending is not None or self.intake is None:
            return
        reader = self.intake.reader

        def take() -> _ring.Packed | None:
            return _ring.take(reader, PARCEL_COUNT, PARCEL_BYTES, self.writer.message_bytes_max)

        packed = take()
        if packed is None:
            _ring.release(reader)  # what was passed over
            self.intake.tend()
            packed = self._logs.look(take)
        if packed is None:
            if reader.arm():
                self.wake()
            return
        self._ticket += 1
        content, message_ids = _with_ids(packed)
        self._pending = TakeIn(
            self.name,
            self._ticket,
            content,
            packed.message_count,
            packed.content_bytes,
            packed.first_time_ns,
            packed.last_time_ns,
            packed.taken,
            message_ids,
        )
        self._logs.submit(self._pending)

    def stored_seq(self, source: SourceId) -> int:
        """Up to where a source is on disk. What is on its way there does not count: the page, which outlives
        this process, must not say that it was read."""
        seq = self._logs.taken(self.name).get(source, 0)
        if self._pending is not None and source in self._pending.taken:
            seq = min(seq, self._pending.taken[source][0] - 1)
        return seq

    def appended(self, effect: Appended) -> None:
        """Messages are on disk: show them, and go on."""
        if effect.count:
            content = effect.content
            data = content if isinstance(content, bytes) else _pack(content)
            self._write(data, effect.first_seq)
        if self._pending is not None and effect.ticket == self._pending.ticket:
            self._pending = None
            if self.intake is not None:
                _ring.release(self.intake.reader)
            for source in self._held:
                self._tell_held(source, None)
            self._held.clear()
            self.wake()

    def not_taken(self, ticket: int, error: TowpathError) -> None:
        """The parcel was not stored; the rings have it still. Try again."""
        pending = self._pending
        if pending is None or pending.ticket != ticket or isinstance(error, ChannelNotFound):
            return
        if not self._held:
            log(
                "core.not_stored", level="warning", channel=self.name, code=error.code.name, why=error.message
            )
        for source in map(SourceId, pending.taken):
            if source not in self._held:
                self._held.add(source)
                self._tell_held(source, error)
        self._retry = self._loop.call_later(RETRY_S, self._logs.submit, pending)

    def _write(self, data: bytes, first_seq: int) -> None:
        """Write a parcel to the own ring, but for what is there already; a dropping ring takes all of it."""
        at, shown_seq = 0, self.writer.last_seq
        if first_seq <= shown_seq:
            at = _offset(data, first_seq, shown_seq + 1)
        reached = _ring.show(self.writer, data, first_seq, at)
        assert reached == len(data), (self.name, first_seq, reached)

    def close(self) -> list[Publication]:
        """End the ring; what is on its way to the store may get there."""
        if self._retry is not None:
            self._retry.cancel()
        self._pending = None
        return super().close()


def _offset(data: bytes, first_seq: int, seq: int) -> int:
    """Where in a parcel the message of a seq begins."""
    parcel = _ring.Parcel(data, first_seq)
    parcel.skip_to(seq)
    return parcel.offset


def _pack(run: Run) -> bytes:
    return _ring.pack(run.payloads, run.headers, run.time_ns, run.times_ns, run.origins).data


def _with_ids(packed: _ring.Packed) -> tuple[Content, Sequence[str]]:
    """What was taken, and the message ids in it: in columns where there is any, so that it can be looked
    through.
    """
    if not packed.headers_bytes:
        return packed.data, ()
    payloads, headers, times_ns, origins = _ring.Parcel(packed.data, 1).unpack()
    message_ids = [_message_id(raw) for raw in headers]
    if not any(message_ids):
        return packed.data, ()
    return Run(payloads, headers, times_ns[0], times_ns, origins), message_ids


def _message_id(raw: bytes) -> str:
    """The message id in serialized headers, which a program may have written in any way it likes."""
    if _ID_TAG not in raw:
        return ""
    try:
        return Headers.FromString(raw).message_id
    except DecodeError:
        return ""
