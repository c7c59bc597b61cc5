"""A queue: each message goes to one consumer, and stays until that one has settled it.

Theory of operation
    What a command does to messages happens at once; what follows from it (the line of those who wait for
    room, deadlines, deliveries, loading) once per round, in :meth:`Queue.finish`. Messages are handled in
    runs (``parcels``), so that the cost of a round is in its runs, not its messages.

    *Order.* Of what is ready the highest priority goes first, and within it the lowest seq. What comes back
    has a low seq, and so goes before what was never delivered.

    *Sharing.* Consumers with room stand in a rotation. A round deals what is ready out in equal shares of at
    most ``SHARE_MAX`` messages, and goes on with the next consumer where it stopped.

    *Silence.* A consumer of which a delivery expired may be stopped, or hang. It is dealt nothing until it
    speaks again, or what it is dealt would expire too, again and again, and good messages would become dead
    letters. Whatever it asks to settle or extend is speaking, be it too late for that or refused. So whoever
    consumes settles what it gets, in the end; one that lets deadlines pass instead is given nothing more.

    *The window.* A durable queue keeps about ``RESIDENT_BYTES_MAX`` in memory (``window``); what came later
    is in the store alone, and is read when consumers come near to it. So memory and the time to start do not
    depend on how much is stored.

Invariants
    ``messages`` counts what is not settled, here or in the store; ``content_bytes`` that of its parcels: a
    parcel counts whole until all of it is settled.
    A consumer that is silent is dealt nothing.
    A consumer never has more than its prefetch, nor more than ``UNSETTLED_BYTES_MAX`` but for a single
    message.

Not here: what comes in (``intake``), whether the channel exists and which session asks (``machine``), ids
(``dedupe``).
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Final

from towpath.errors import (
    ChannelUndeclared,
    DeliveryLost,
    InvalidArgument,
    LimitExceeded,
    PermissionDenied,
)
from towpath_broker.core.commands import Caller, ChannelOptions

from .commands import Consume, ParcelsLoaded, Range, Settle
from .consumers import PREFETCH_DEFAULT, PREFETCH_MAX, Consumer
from .dealing import Dealer
from .dedupe import Ids
from .effects import (
    ConsumeStarted,
    Consuming,
    PresenceChanged,
    Settled,
    StreamEnded,
)
from .intake import Intake
from .letters import dead_letter_headers
from .line import Line
from .parcels import NS_PER_MS, Lane, Lease, Parcel, Segment, remove_from_heap
from .round import Round
from .rows import Attempts, Run, StoredChannel, Totals
from .rows import Settle as SettleRow
from .shared import Shared, add_tally, refuse, remove_tally
from .undo import Undo
from .window import Window

DELAY_MS_MAX: Final = 86_400_000
REASON_BYTES_MAX: Final = 1024


class Queue:
    """One queue.

    Args:
        stored: what the store has of it; None: it is new.
    """

    def __init__(
        self,
        name: str,
        options: ChannelOptions,
        owner: str,
        declared_at_ns: int,
        shared: Shared,
        stored: StoredChannel | None = None,
    ) -> None:
        self.name = name
        self.options = options
        self.owner = owner
        self.declared_at_ns = declared_at_ns
        self.shared = shared
        self.next_seq = stored.next_seq if stored else 1
        self.messages = stored.messages if stored else 0
        self.content_bytes = stored.content_bytes if stored else 0
        self.resident_bytes = 0
        self.ready = 0  # messages in lanes
        self.parcels: dict[int, Parcel] = {}
        self.lanes: dict[int, Lane] = {}
        self.priorities: tuple[int, ...] = ()  # of the lanes, the highest first
        self.delayed: list[tuple[int, int, Segment]] = []  # (due, serial, segment)
        self.deadlines: list[tuple[int, int, Lease]] = []
        self.consumers: dict[int, Consumer] = {}
        self.dealer = Dealer(self)
        self.intake = Intake(self)
        self.line = Line(self)
        self.ids = Ids(name, options.dedupe_ms * NS_PER_MS, is_loaded=stored is None)
        self.window = Window(self, stored)
        self._dirty: dict[int, Parcel] = {}
        self._told = (self.next_seq, self.messages, self.content_bytes)
        self._present = (0, 0)
        self._serial = 0
        for priority in stored.priorities if stored else ():
            self._new_lane(priority, spill_seq=1)

    # ---- parcels -------------------------------------------------------------------------------------------

    def keep_parcel(self, parcel: Parcel, round_: Round) -> None:
        """Have a parcel in memory."""
        round_.undo.put(self.parcels, parcel.first_seq, parcel)
        round_.undo.set(self, "resident_bytes", self.resident_bytes + parcel.content_bytes)

    def charge(self, size: int, round_: Round) -> None:
        """So many bytes more are here, or fewer."""
        round_.undo.set(self, "content_bytes", self.content_bytes + size)
        self.shared.usage.add(self.owner, size, round_.undo)

    def lane(self, priority: int) -> Lane:
        """Return the lane of a priority, made now if there is none."""
        return self.lanes.get(priority) or self._new_lane(priority)

    def _new_lane(self, priority: int, spill_seq: int | None = None) -> Lane:
        lane = self.lanes[priority] = Lane(priority, spill_seq)
        self.priorities = tuple(sorted(self.lanes, reverse=True))
        return lane

    # ---- consumers -----------------------------------------------------------------------------------------

    def consume(self, command: Consume, round_: Round) -> None:
        """A consumer comes.

        Raises:
            InvalidArgument, LimitExceeded, QuotaExceeded: it may not.
        """
        prefetch = command.prefetch or PREFETCH_DEFAULT
        if not 1 <= prefetch <= PREFETCH_MAX:
            raise InvalidArgument(f"prefetch cannot be {prefetch}", hint=f"prefetch is 1 to {PREFETCH_MAX}")
        session = self.shared.check_call(command.caller)
        limits, undo = self.shared.limits, round_.undo
        if len(self.consumers) >= limits.consumers_per_queue_max:
            raise LimitExceeded(
                f"queue {self.name!r} has {len(self.consumers)} consumers: consumers_per_queue_max is"
                f" {limits.consumers_per_queue_max}"
            )
        principal = command.caller.principal
        add_tally(self.shared.consumers, principal, limits.consumers_per_principal_max, undo)
        self.shared.unsettled.check(principal, prefetch)
        self.shared.unsettled.add(principal, prefetch, undo)
        consumer = Consumer(
            self.shared.next_consumer, self, session, command.caller.call, principal, prefetch
        )
        self.shared.next_consumer += 2  # never given twice, whatever becomes of this round
        self.shared.add_stream(consumer, undo)
        undo.put(self.consumers, consumer.id, consumer)
        undo.put(self.shared.consumer_queue, consumer.id, self.name)
        self.dealer.welcome(consumer, round_)
        body = Consuming(consumer.id, self.options.ack_ms, prefetch)
        round_.effects.append(ConsumeStarted(session, consumer.call, body))
        round_.touch(self)

    def remove_consumer(self, consumer: Consumer, round_: Round, *, is_orderly: bool) -> None:
        """A consumer goes; what it had goes back. Where it left of its own accord that was no attempt."""
        undo = round_.undo
        for lease in consumer.release(0, len(consumer.leases), undo):
            attempts = lease.attempt - 1 if is_orderly else lease.attempt
            self._give_back(lease, attempts, 0, round_)
        undo.remove(self.consumers, consumer.id)
        self.dealer.forget(consumer, undo)
        self._dismiss(consumer, undo)
        round_.touch(self)

    def _dismiss(self, consumer: Consumer, undo: Undo) -> None:
        """A consumer counts no more."""
        undo.remove(self.shared.consumer_queue, consumer.id)
        remove_tally(self.shared.consumers, consumer.principal, undo)
        self.shared.unsettled.add(consumer.principal, -consumer.prefetch, undo)
        self.shared.remove_stream(consumer, undo)

    def settle(self, command: Settle, round_: Round, *, must_have_all: bool = False) -> Settled:
        """Settle deliveries of one consumer, or give it more time for them.

        Args:
            must_have_all: refuse if one of them is lost.

        Raises:
            InvalidArgument: there was never such a delivery, or a value is out of its range.
            DeliveryLost: as ``must_have_all`` says.
        """
        consumer = self.consumers[command.consumer]
        undo = round_.undo
        before, total, lost = consumer.unsettled, 0, list[Range]()

        def taken(deliveries: Range) -> list[Lease]:
            start, end = consumer.cut(deliveries, undo)
            lost.extend(consumer.lost(deliveries, start, end))
            return consumer.release(start, end, undo)

        for deliveries in command.acknowledged:
            for lease in taken(deliveries):
                self._settled(lease.parcel, lease.start, lease.end, round_)
        for each in command.returned:
            _check_returned(each.delay_ms, each.reason)
            due_ns = round_.now_ns + each.delay_ms * NS_PER_MS if each.delay_ms else 0
            for lease in taken(each.deliveries):
                if each.is_rejected:
                    self._bury(lease, f"rejected: {each.reason}" if each.reason else "rejected", round_)
                else:
                    self._give_back(lease, lease.attempt, due_ns, round_, each.reason)
        total = before - consumer.unsettled
        for extended in command.extended:
            start, end = consumer.cut(extended.deliveries, undo)
            lost.extend(consumer.lost(extended.deliveries, start, end))
            total += self._extend(consumer.leases[start:end], extended.ack_ms, round_)
        if lost and must_have_all:
            raise DeliveryLost(
                f"deliveries {lost[0].first} to {lost[0].last} of queue {self.name!r} are not the consumer's"
                " any more"
            )
        self.hear(consumer, round_)
        return Settled(total, tuple(lost))

    def hear(self, consumer: Consumer, round_: Round) -> None:
        """A consumer speaks: it is dealt to (again)."""
        if consumer.is_silent:
            round_.undo.set(consumer, "is_silent", False)
        self.dealer.welcome(consumer, round_)
        round_.touch(self)

    def _extend(self, leases: Sequence[Lease], ack_ms: int, round_: Round) -> int:
        if not 0 <= ack_ms <= DELAY_MS_MAX:
            raise InvalidArgument(f"ack_ms cannot be {ack_ms}", hint=f"ack_ms is 1 to {DELAY_MS_MAX}")
        deadline_ns = round_.now_ns + (ack_ms or self.options.ack_ms) * NS_PER_MS
        for lease in leases:
            round_.undo.set(lease, "deadline_ns", deadline_ns)
            self.watch(lease)
        return sum(lease.end - lease.start for lease in leases)

    def watch(self, lease: Lease) -> None:
        """See to it that a lease ends at its deadline. What is left over of a round that is taken back does
        no harm."""
        self._serial += 1
        heappush(self.deadlines, (lease.deadline_ns, self._serial, lease))

    # ---- what becomes of deliveries ------------------------------------------------------------------------

    def _settled(self, parcel: Parcel, start: int, end: int, round_: Round) -> None:
        """Messages are done."""
        undo, count = round_.undo, end - start
        undo.set(parcel, "live", parcel.live - count)
        undo.set(self, "messages", self.messages - count)
        if self.shared.is_durable:
            undo.set(parcel, "settled", parcel.settled | ((1 << count) - 1) << start)
            self._dirty[parcel.first_seq] = parcel
        if parcel.live == 0:
            undo.remove(self.parcels, parcel.first_seq)
            undo.set(self, "resident_bytes", self.resident_bytes - parcel.content_bytes)
            self.charge(-parcel.content_bytes, round_)

    def _give_back(self, lease: Lease, attempts: int, due_ns: int, round_: Round, reason: str = "") -> None:
        """Messages come back, having been delivered so often."""
        if self.options.max_deliveries and attempts >= self.options.max_deliveries:
            self._bury(lease, f"max_deliveries: {reason}" if reason else "max_deliveries", round_)
            return
        parcel = lease.parcel
        if self.shared.is_durable and (attempts or due_ns):
            first_seq, count = parcel.first_seq + lease.start, lease.end - lease.start
            round_.rows.append(Attempts(self.name, first_seq, count, attempts, due_ns))
        segment = Segment(parcel, lease.start, lease.end, attempts)
        if due_ns:
            self.delay(segment, due_ns, round_)
        else:
            self.make_ready(segment, round_)

    def make_ready(self, segment: Segment, round_: Round) -> None:
        """What was not ready is."""
        self._serial += 1
        self.lane(segment.parcel.priority).add_back(segment, self._serial, round_.undo)
        round_.undo.set(self, "ready", self.ready + segment.end - segment.start)

    def delay(self, segment: Segment, due_ns: int, round_: Round) -> None:
        """What was not ready will be."""
        self._serial += 1
        round_.undo.add(remove_from_heap, self.delayed, self._serial)
        heappush(self.delayed, (due_ns, self._serial, segment))

    def _bury(self, lease: Lease, reason: str, round_: Round) -> None:
        """Messages are given up: to the dead-letter channel, or away."""
        parcel, start, end = lease.parcel, lease.start, lease.end
        run = parcel.run
        if self.options.dead_letter:
            headers = [
                dead_letter_headers(
                    run.headers[index] if run.headers else b"",
                    reason=reason,
                    attempts=lease.attempt,
                    queue=self.name,
                    time_ns=run.times_ns[index] if run.times_ns else run.time_ns,
                )
                for index in range(start, end)
            ]
            letters = Run(run.payloads[start:end], headers, time_ns=round_.now_ns)
            self.shared.letterbox.post(self.options.dead_letter, letters, parcel.priority, round_)
            self.shared.count("dead_letters", end - start, round_.undo)
        else:
            self.shared.count("dropped", end - start, round_.undo)
        self._settled(parcel, start, end, round_)

    # ---- once per round ------------------------------------------------------------------------------------

    def finish(self, round_: Round) -> None:
        """Do what follows from the round's commands."""
        self._expire(round_)
        self._fall_due(round_)
        self.line.admit(round_)
        self.dealer.deal(round_)
        self.window.load(round_)
        if self.shared.is_durable:
            self._sum_up(round_)
        self._tell_presence((len(self.line.waiting), len(self.consumers)), round_)

    def _tell_presence(self, present: tuple[int, int], round_: Round) -> None:
        if present != self._present:
            round_.undo.set(self, "_present", present)
            round_.effects.append(PresenceChanged(self.name, *present))

    def _expire(self, round_: Round) -> None:
        deadlines, undo = self.deadlines, round_.undo
        while deadlines and deadlines[0][0] <= round_.now_ns:
            entry = heappop(deadlines)
            undo.add(heappush, deadlines, entry)
            lease = entry[2]
            if not lease.is_live or lease.deadline_ns > round_.now_ns:
                continue
            consumer = lease.consumer
            start, end = consumer.cut(Range(lease.first_delivery, lease.end_delivery - 1), undo)
            consumer.release(start, end, undo)
            self.shared.count("expired", lease.end - lease.start, undo)
            self._give_back(lease, lease.attempt, 0, round_, "not settled in time")
            if not consumer.is_silent:
                undo.set(consumer, "is_silent", True)
                self.dealer.forget(consumer, undo)

    def _fall_due(self, round_: Round) -> None:
        while self.delayed and self.delayed[0][0] <= round_.now_ns:
            entry = heappop(self.delayed)
            round_.undo.add(heappush, self.delayed, entry)
            self.make_ready(entry[2], round_)

    def next_lane(self) -> Lane | None:
        """Return the lane to deliver from: none while messages of a higher priority are being read."""
        for priority in self.priorities:
            lane = self.lanes[priority]
            if lane.is_ready:
                return lane
            if lane.spill_seq is not None:
                return None
        return None

    def _sum_up(self, round_: Round) -> None:
        """Write the rows that say where the round has led."""
        for parcel in self._dirty.values():
            settled = None
            if parcel.live:
                settled = parcel.settled.to_bytes((parcel.count + 7) // 8, "little")
            round_.rows.append(
                SettleRow(self.name, parcel.first_seq, settled, parcel.priority, parcel.deliver_at_ns)
            )
        self._dirty.clear()
        self.ids.forget_row(round_)
        told = (self.next_seq, self.messages, self.content_bytes)
        if told != self._told:
            round_.undo.set(self, "_told", told)
            round_.rows.append(Totals(self.name, 1, *told))

    def loaded(self, command: ParcelsLoaded, round_: Round) -> None:
        """Parcels were read from the store."""
        self.window.take(command, round_)
        round_.touch(self)

    # ---- the outside ---------------------------------------------------------------------------------------

    def close(self, round_: Round) -> None:
        """The channel is gone, and everything in it."""
        undo = round_.undo
        for waiting in tuple(self.line.waiting):
            self.line.withdraw(waiting, round_)
            refuse(round_, waiting.command.caller, self._undeclared())
        for consumer in tuple(self.consumers.values()):
            self._dismiss(consumer, undo)
            round_.effects.append(StreamEnded(consumer.session, consumer.call, self._undeclared()))
        self._tell_presence((0, 0), round_)
        self.shared.usage.add(self.owner, -self.content_bytes, undo)

    def _undeclared(self) -> ChannelUndeclared:
        return ChannelUndeclared(f"queue {self.name!r} was undeclared")

    def check_consumer(self, caller: Caller, consumer: int) -> None:
        """Refuse a caller that a consumer does not belong to.

        Raises:
            PermissionDenied: it is somebody else's.
        """
        if not self.has_consumer(caller, consumer):
            raise PermissionDenied(f"consumer {consumer} is not of this session")

    def has_consumer(self, caller: Caller, consumer: int) -> bool:
        """Return whether a consumer belongs to a caller."""
        found = self.consumers[consumer]
        return found.session == caller.session and found.principal == caller.principal

    def next_deadline_ns(self, now_ns: int) -> int | None:
        """Return when something happens by itself, at the latest; None: nothing does."""
        times = [heap[0][0] for heap in (self.deadlines, self.delayed) if heap]
        due_ns = self.window.next_due_ns()
        if due_ns is not None and due_ns > now_ns:  # what is due already waits for room
            times.append(due_ns)
        return min(times, default=None)

    def keep(self, now_ns: int) -> None:
        """The round is done for good: let go of what is over."""
        self.ids.prune(now_ns)
        deadlines = self.deadlines
        while deadlines and not _counts(deadlines[0]):
            heappop(deadlines)
        if len(deadlines) <= 256:
            return
        if len(deadlines) > 4 * sum(len(consumer.leases) for consumer in self.consumers.values()) + 256:
            deadlines[:] = [entry for entry in deadlines if _counts(entry)]
            heapify(deadlines)


def _counts(entry: tuple[int, int, Lease]) -> bool:
    """Whether an entry of the heap of deadlines still says something."""
    return entry[2].is_live and entry[2].deadline_ns == entry[0]


def _check_returned(delay_ms: int, reason: str) -> None:
    if not 0 <= delay_ms <= DELAY_MS_MAX:
        raise InvalidArgument(f"delay_ms cannot be {delay_ms}", hint=f"delay_ms is 0 to {DELAY_MS_MAX}")
    if len(reason.encode(errors="replace")) > REASON_BYTES_MAX:
        raise InvalidArgument(f"a reason has at most {REASON_BYTES_MAX} bytes")
