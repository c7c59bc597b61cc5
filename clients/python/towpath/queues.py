"""Consuming a queue, as far as it can be told without waiting: deliveries, and what becomes of them.

Theory of operation
    The core delivers as many messages as the *prefetch* allows to be unsettled, numbered for this consumer.
    Each is settled once: acknowledged, or given back. What is settled is collected in one ``SettleRequest``,
    of which one is on its way at a time; what comes meanwhile gathers for the next. So a program that
    acknowledges one by one costs the daemon a request per round trip, not per message, and waits for none.

    A connection that breaks ends the consumer: the core gives back what was not settled, and the next
    connection brings another consumer with numbers of its own. What was delivered before and not handed out
    is dropped here (it comes again); settling what was handed out raises DeliveryLost.

Invariants
    A delivery is settled at most once, by the consumer that it came to. ``lost`` counts each that could not
    be settled, or of which that is not known; none of them is lost in the queue. What is held here is bounded
    by the prefetch. Sans-I/O.

Not here: waiting and locks (``consuming``), the rules of queues (``protos/towpath/v1/queues.proto``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from towpath import model
from towpath.calls import Call
from towpath.convert import decode_headers
from towpath.errors import ChannelUndeclared, ConnectionLost, DeliveryLost, InvalidArgument, TowpathError
from towpath.names import check_name
from towpath.v1 import message_pb2
from towpath.v1.channels_pb2 import PublishRequest, PublishResponse
from towpath.v1.queues_pb2 import (
    ConsumeRequest,
    ConsumeResponse,
    DeliveryBatch,
    DeliveryRange,
    ExtendedRange,
    ReturnedRange,
    SettleRequest,
    SettleResponse,
)
from towpath.wording import plural

PREFETCH_DEFAULT: Final = 256
PREFETCH_MAX: Final = 65_536
RANGES_MAX: Final = 1_024
"""Ranges in one request; what is settled beyond waits for the next."""
REASON_BYTES_MAX: Final = 1_024
SPAN_MS_MAX: Final = 86_400_000
"""A day: the longest delay and the longest deadline."""

_NO_HEADERS: Final = message_pb2.Headers()


# ---- calls -------------------------------------------------------------------------------------------------


def consume(channel: str, prefetch: int) -> Call[ConsumeResponse]:
    """Raises InvalidName; InvalidArgument when the prefetch is out of its range."""
    if not 1 <= prefetch <= PREFETCH_MAX:
        raise InvalidArgument(f"a prefetch of {prefetch}; 1 to {PREFETCH_MAX} are possible")
    body = ConsumeRequest(channel=check_name(channel), prefetch=prefetch)
    return Call("consume_request", body, "consume_response", lambda response: response)


def settle(body: SettleRequest) -> Call[SettleResponse]:
    return Call("settle_request", body, "settle_response", lambda response: response)


def publish(
    channel: str, payloads: Sequence[bytes], headers: Sequence[message_pb2.Headers] | None
) -> Call[PublishResponse]:
    """Publish a batch: ``headers`` has one for each payload, or is None."""
    body = PublishRequest(channel=channel, payloads=payloads, headers=headers)
    return Call("publish_request", body, "publish_response", lambda response: response)


# ---- deliveries --------------------------------------------------------------------------------------------


class Settling(Protocol):
    """What a delivery is settled with: its consumer."""

    def ack(self, deliveries: Delivery | Iterable[Delivery]) -> None: ...

    def nack(
        self,
        deliveries: Delivery | Iterable[Delivery],
        *,
        delay: float = 0.0,
        reject: bool = False,
        reason: str = "",
    ) -> None: ...

    def extend(self, deliveries: Delivery | Iterable[Delivery], seconds: float | None = None) -> None: ...


class _Batch:
    """Deliveries that came together. ``settled`` has a byte for each."""

    __slots__ = ("consumer", "first", "owner", "proto", "settled")

    def __init__(self, owner: Settling, proto: DeliveryBatch) -> None:
        self.owner = owner
        self.consumer = proto.consumer
        self.first = proto.first_delivery
        self.proto = proto
        self.settled = bytearray(len(proto.payloads))


class Delivery:
    """A message of a queue in the hands of one consumer, until it is settled.

    Attributes:
        payload: the bytes that were published.
    """

    __slots__ = ("_batch", "_index", "payload")

    def __init__(self, payload: bytes, batch: _Batch, index: int) -> None:
        self.payload = payload
        self._batch = batch
        self._index = index

    @property
    def channel(self) -> str:
        """The queue's name."""
        return self._batch.proto.channel

    @property
    def seq(self) -> int:
        """The message's number in the queue."""
        return self._batch.proto.seqs[self._index]

    @property
    def attempt(self) -> int:
        """Which delivery of the message this is, from 1."""
        attempts = self._batch.proto.attempts
        return attempts[self._index] if attempts else 1

    @property
    def time_ns(self) -> int:
        """When it was published, nanoseconds since the epoch."""
        return self._batch.proto.publish_times_ns[self._index]

    @property
    def headers_raw(self) -> bytes:
        """Serialized ``towpath.v1.Headers``; empty when there are none."""
        headers = self._batch.proto.headers
        return headers[self._index].SerializeToString() if headers else b""

    @property
    def headers(self) -> model.Headers:
        """What travels beside the payload."""
        return decode_headers(self.headers_raw)

    @property
    def is_settled(self) -> bool:
        """Whether it was acknowledged or given back here."""
        return bool(self._batch.settled[self._index])

    def ack(self) -> None:
        """It is done; see :meth:`towpath.Consumer.ack`."""
        self._batch.owner.ack(self)

    def nack(self, *, delay: float = 0.0, reject: bool = False, reason: str = "") -> None:
        """It is not done; see :meth:`towpath.Consumer.nack`."""
        self._batch.owner.nack(self, delay=delay, reject=reject, reason=reason)

    def extend(self, seconds: float | None = None) -> None:
        """It takes longer; see :meth:`towpath.Consumer.extend`."""
        self._batch.owner.extend(self, seconds)

    def __repr__(self) -> str:
        what = f"{self.channel} #{self.seq}, attempt {self.attempt}, {len(self.payload)} bytes"
        return f"<Delivery {what}{', settled' if self.is_settled else ''}>"


# ---- the consumer ------------------------------------------------------------------------------------------


class ConsumerState:
    """What a consumer holds, and has to say.

    Args:
        owner: what its deliveries are settled with.
        channel: the queue.
        prefetch: how many deliveries may be unsettled.

    Attributes:
        consumer: its number on this connection; 0 while there is none.
        has_begun: whether the core has ever said that it is there.
        ack_ms: how long a delivery may stay unsettled.
        lost: deliveries that could not be settled, in total.
        trouble: what ``flush`` has to raise, or None.
        ended: why nothing more will come, or None.
    """

    def __init__(self, owner: Settling, channel: str, prefetch: int) -> None:
        self._owner = owner
        self.channel = channel
        self.prefetch = prefetch
        self.consumer = 0
        self.has_begun = False
        self.ack_ms = 0
        self.lost = 0
        self.trouble: TowpathError | None = None
        self.ended: TowpathError | None = None
        self._batches: deque[tuple[_Batch, list[bytes], int]] = deque()
        self._pending = SettleRequest()
        self._on_way: SettleRequest | None = None
        self._is_refused = False

    def request(self) -> Call[ConsumeResponse]:
        """How to become this consumer."""
        return consume(self.channel, self.prefetch)

    # ---- what comes ----

    def came(self, response: ConsumeResponse) -> None:
        """One more of the stream."""
        if response.HasField("consuming"):
            self.has_begun = True
            self.consumer = response.consuming.consumer
            self.ack_ms = response.consuming.ack_ms
        elif response.batch.payloads:
            batch = _Batch(self._owner, response.batch)
            self._batches.append((batch, list(response.batch.payloads), 0))

    def broke(self, error: TowpathError) -> None:
        """The connection ended, and with it this consumer."""
        self.consumer = 0
        self._batches.clear()
        self._lose(self._pending, error)
        self._pending = SettleRequest()
        self._is_refused = False

    def end(self, error: TowpathError) -> None:
        """Nothing more comes; what is held may still be taken, unless it cannot be settled any more."""
        self.ended = self.ended or error
        if isinstance(error, ConnectionLost | ChannelUndeclared):
            self.broke(error)

    def take(self, count_max: int, bytes_max: int) -> list[Delivery]:
        """Hand out what is there, at least one if any is: up to the delivery that reaches ``bytes_max``."""
        taken: list[Delivery] = []
        while self._batches and len(taken) < count_max and bytes_max > 0:
            batch, payloads, first = self._batches.popleft()
            last = min(len(payloads), first + count_max - len(taken))
            for index in range(first, last):
                payload = payloads[index]
                taken.append(Delivery(payload, batch, index))
                bytes_max -= len(payload)
                if bytes_max <= 0:
                    last = index + 1
                    break
            if last < len(payloads):
                self._batches.appendleft((batch, payloads, last))
        return taken

    # ---- what is said ----

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Raises DeliveryLost, InvalidArgument: nothing is settled then."""
        ranges = self._pending.acknowledged
        for first, last in self._claim(deliveries):
            if ranges and ranges[-1].last + 1 == first:
                ranges[-1].last = last
            else:
                ranges.add(first=first, last=last)

    def give_back(
        self, deliveries: Iterable[Delivery], delay_ms: int, reason: str, *, is_rejected: bool
    ) -> None:
        """Raises DeliveryLost, InvalidArgument: nothing is settled then."""
        if not 0 <= delay_ms <= SPAN_MS_MAX:
            raise InvalidArgument(f"a delay of {delay_ms / 1000:g} s; at most a day is possible")
        if len(reason.encode(errors="replace")) > REASON_BYTES_MAX:
            raise InvalidArgument(f"a reason of over {REASON_BYTES_MAX} bytes")
        for first, last in self._claim(deliveries):
            self._pending.returned.append(
                ReturnedRange(
                    deliveries=DeliveryRange(first=first, last=last),
                    delay_ms=delay_ms,
                    is_rejected=is_rejected,
                    reason=reason,
                )
            )

    def extend(self, deliveries: Iterable[Delivery], ack_ms: int) -> None:
        """Raises DeliveryLost, InvalidArgument: nothing is extended then."""
        if not 0 <= ack_ms <= SPAN_MS_MAX:
            raise InvalidArgument(f"a deadline of {ack_ms / 1000:g} s; at most a day is possible")
        for first, last in self._claim(deliveries, is_final=False):
            self._pending.extended.append(
                ExtendedRange(deliveries=DeliveryRange(first=first, last=last), ack_ms=ack_ms)
            )

    def claim_for_transaction(self, deliveries: Iterable[Delivery]) -> SettleRequest:
        """Settle deliveries here, for a transaction that acknowledges them.

        Raises:
            DeliveryLost, InvalidArgument: nothing is settled then.
        """
        request = SettleRequest(consumer=self.consumer)
        for first, last in self._claim(deliveries):
            request.acknowledged.add(first=first, last=last)
        return request

    def _claim(self, deliveries: Iterable[Delivery], *, is_final: bool = True) -> list[tuple[int, int]]:
        """Check deliveries and mark them as settled; return their numbers as ranges."""
        ranges: list[tuple[int, int]] = []
        claimed: list[Delivery] = []
        first = last = 0
        try:
            for delivery in deliveries:
                batch, index = delivery._batch, delivery._index
                if batch.owner is not self._owner:
                    raise InvalidArgument(f"{delivery!r} came to another consumer")
                if batch.settled[index]:
                    raise InvalidArgument(f"{delivery!r} was settled before")
                if batch.consumer != self.consumer:
                    raise DeliveryLost(
                        f"{delivery!r} went back into the queue when the connection broke",
                        hint="it comes again: do its work so that doing it twice does no harm",
                    )
                batch.settled[index] = is_final
                claimed.append(delivery)
                number = batch.first + index
                if number != last + 1 or not last:
                    if last:
                        ranges.append((first, last))
                    first = number
                last = number
        except TowpathError:
            release(claimed)
            raise
        if last:
            ranges.append((first, last))
        return ranges

    # ---- requests ----

    @property
    def is_settled(self) -> bool:
        """Whether everything that was said is confirmed."""
        return self._on_way is None and not _count_ranges(self._pending)

    def is_stuck(self) -> bool:
        """Whether what was said was refused, and waits to be said again."""
        return self._is_refused

    def next_settlement(self, *, is_retry: bool = False) -> SettleRequest | None:
        """What to ask now, if anything; it is on its way then, until :meth:`answered`.

        Args:
            is_retry: also what was refused because the store was full, say.
        """
        if self._on_way is not None or not self.consumer or (self._is_refused and not is_retry):
            return None
        if not _count_ranges(self._pending):
            return None
        self._is_refused = False
        self._on_way, self._pending = _split(self._pending)
        self._on_way.consumer = self.consumer
        return self._on_way

    def answered(self, outcome: SettleResponse | TowpathError) -> None:
        """What became of the request on its way."""
        assert self._on_way is not None
        request, self._on_way = self._on_way, None
        if isinstance(outcome, SettleResponse):
            if count := sum(each.last - each.first + 1 for each in outcome.lost):
                self.lost += count
                self.trouble = DeliveryLost(
                    f"{plural(count, 'delivery', 'deliveries')} of {self.channel} came back"
                    " before being settled"
                )
        elif (
            outcome.retryable
            and request.consumer == self.consumer
            and not isinstance(outcome, ConnectionLost)
        ):
            request.MergeFrom(self._pending)
            self._pending = request
            self._is_refused = True
            self.trouble = outcome
        else:
            self._lose(request, outcome)

    def take_trouble(self) -> TowpathError | None:
        """What went wrong since it was last asked."""
        trouble, self.trouble = self.trouble, None
        return trouble

    def _lose(self, request: SettleRequest, why: TowpathError) -> None:
        count = sum(each.last - each.first + 1 for each in request.acknowledged)
        count += sum(each.deliveries.last - each.deliveries.first + 1 for each in request.returned)
        if count:
            self.lost += count
            self.trouble = DeliveryLost(
                f"not known to be settled: {plural(count, 'delivery', 'deliveries')} of {self.channel}:"
                f" {why.message}",
                hint="those that were not come again: do their work so that doing it twice does no harm",
            )


def release(deliveries: Iterable[Delivery]) -> None:
    """Take it back that deliveries were settled; nobody has been told."""
    for delivery in deliveries:
        delivery._batch.settled[delivery._index] = False


def as_deliveries(deliveries: Delivery | Iterable[Delivery]) -> Iterable[Delivery]:
    """One or many, as many."""
    return (deliveries,) if isinstance(deliveries, Delivery) else deliveries


def span_ms(seconds: float) -> int:
    """Raises InvalidArgument when it is no span of time."""
    if not 0 <= seconds <= SPAN_MS_MAX:
        raise InvalidArgument(f"a span of {seconds} s; 0 to a day is possible")
    return round(seconds * 1_000)


def _count_ranges(request: SettleRequest) -> int:
    return len(request.acknowledged) + len(request.returned) + len(request.extended)


def _split(request: SettleRequest) -> tuple[SettleRequest, SettleRequest]:
    """The first ``RANGES_MAX`` ranges, and the rest."""
    if _count_ranges(request) <= RANGES_MAX:
        return request, SettleRequest()
    now, rest = SettleRequest(), SettleRequest()
    left = RANGES_MAX
    for name in ("acknowledged", "returned", "extended"):
        ranges = getattr(request, name)
        getattr(now, name).extend(ranges[:left])
        getattr(rest, name).extend(ranges[left:])
        left = max(left - len(ranges), 0)
    return now, rest
