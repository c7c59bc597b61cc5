"""What a consumer holds and says, without I/O: numbers, ranges, requests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath.errors import ConnectionLost, DeliveryLost, InvalidArgument, StoreFull
from towpath.queues import RANGES_MAX, ConsumerState, Delivery
from towpath.v1.queues_pb2 import (
    ConsumeResponse,
    Consuming,
    DeliveryBatch,
    DeliveryRange,
    SettleRequest,
    SettleResponse,
)


class Owner:
    """Settles nothing."""

    def ack(self, deliveries: Delivery | Iterable[Delivery]) -> None: ...

    def nack(self, deliveries: Delivery | Iterable[Delivery], **_: Any) -> None: ...

    def extend(self, deliveries: Delivery | Iterable[Delivery], seconds: float | None = None) -> None: ...


def consumer(number: int = 7) -> ConsumerState:
    state = ConsumerState(Owner(), "q", 100)
    begin(state, number)
    return state


def begin(state: ConsumerState, number: int) -> None:
    state.came(ConsumeResponse(consuming=Consuming(consumer=number, ack_ms=100, prefetch=100)))


def deliver(state: ConsumerState, first: int, count: int) -> None:
    batch = DeliveryBatch(
        consumer=state.consumer,
        channel="q",
        first_delivery=first,
        payloads=[b"%d" % (first + index) for index in range(count)],
        publish_times_ns=[1] * count,
        seqs=range(1000 + first, 1000 + first + count),
    )
    state.came(ConsumeResponse(batch=batch))


def ranges(request: SettleRequest | None) -> list[tuple[int, int]]:
    assert request is not None
    return [(each.first, each.last) for each in request.acknowledged]


def test_what_is_acknowledged_in_order_is_one_range_over_batches() -> None:
    state = consumer()
    deliver(state, 1, 3)
    deliver(state, 4, 3)
    deliveries = state.take(100, 1 << 20)
    assert [each.seq for each in deliveries] == [1001, 1002, 1003, 1004, 1005, 1006]
    state.acknowledge(deliveries[:2])
    state.acknowledge(deliveries[2:])
    request = state.next_settlement()
    assert ranges(request) == [(1, 6)]
    assert request is not None and request.consumer == 7


def test_one_request_is_on_its_way_and_what_comes_meanwhile_gathers() -> None:
    state = consumer()
    deliver(state, 1, 5)
    deliveries = state.take(5, 1 << 20)
    state.acknowledge(deliveries[:1])
    assert ranges(state.next_settlement()) == [(1, 1)]
    state.acknowledge(deliveries[2:3])
    state.acknowledge(deliveries[3:])
    assert state.next_settlement() is None
    assert not state.is_settled
    state.answered(SettleResponse(settled=1))
    assert ranges(state.next_settlement()) == [(3, 5)]
    state.answered(SettleResponse(settled=3))
    assert state.is_settled and state.take_trouble() is None


@given(st.lists(st.integers(0, 49), unique=True), st.integers(1, 60))
def test_every_delivery_is_named_once_whatever_the_order(order: list[int], step: int) -> None:
    state = consumer()
    deliver(state, 1, 50)
    deliveries = state.take(50, 1 << 20)
    for start in range(0, len(order), step):
        state.acknowledge([deliveries[index] for index in order[start : start + step]])
    named = [
        number
        for first, last in (ranges(state.next_settlement()) if order else [])
        for number in range(first, last + 1)
    ]
    assert sorted(named) == sorted(index + 1 for index in order)
    assert [each.is_settled for each in deliveries] == [index in order for index in range(50)]


def test_a_request_has_a_bounded_number_of_ranges() -> None:
    state = consumer()
    deliver(state, 1, 2 * RANGES_MAX + 10)
    deliveries = state.take(2 * RANGES_MAX + 10, 1 << 30)
    state.acknowledge(deliveries[::2])
    first = state.next_settlement()
    assert len(ranges(first)) == RANGES_MAX
    state.answered(SettleResponse(settled=RANGES_MAX))
    assert len(ranges(state.next_settlement())) == 5


def test_nothing_is_settled_where_one_cannot_be() -> None:
    state, other = consumer(), consumer(8)
    deliver(state, 1, 2)
    deliver(other, 1, 1)
    mine, theirs = state.take(2, 1 << 20), other.take(1, 1 << 20)
    for wrong in ([mine[0], theirs[0]], [mine[0], mine[0]]):
        with pytest.raises(InvalidArgument):
            state.acknowledge(wrong)
    assert not mine[0].is_settled
    assert state.next_settlement() is None


def test_after_the_connection_broke_nothing_of_before_is_handed_out_or_settled() -> None:
    state = consumer()
    deliver(state, 1, 4)
    taken = state.take(2, 1 << 20)
    state.acknowledge(taken[:1])
    state.broke(ConnectionLost("it broke"))
    assert state.take(10, 1 << 20) == []
    assert state.next_settlement() is None
    assert state.lost == 1 and isinstance(state.take_trouble(), DeliveryLost)
    begin(state, 9)
    with pytest.raises(DeliveryLost):
        state.acknowledge(taken[1:])
    deliver(state, 1, 1)
    state.acknowledge(state.take(1, 1 << 20))
    request = state.next_settlement()
    assert request is not None and request.consumer == 9


def test_what_had_gone_back_before_is_counted_and_told_once() -> None:
    state = consumer()
    deliver(state, 1, 3)
    state.acknowledge(state.take(3, 1 << 20))
    state.next_settlement()
    state.answered(SettleResponse(settled=1, lost=[DeliveryRange(first=2, last=3)]))
    assert state.lost == 2
    assert isinstance(state.take_trouble(), DeliveryLost)
    assert state.take_trouble() is None


def test_what_is_refused_for_now_is_said_again_when_asked() -> None:
    state = consumer()
    deliver(state, 1, 3)
    deliveries = state.take(3, 1 << 20)
    state.acknowledge(deliveries[:2])
    state.next_settlement()
    state.answered(StoreFull("the disk is full"))
    assert state.is_stuck() and isinstance(state.take_trouble(), StoreFull)
    state.acknowledge(deliveries[2:])
    assert state.next_settlement() is None
    assert ranges(state.next_settlement(is_retry=True)) == [(1, 3)]
    state.answered(SettleResponse(settled=3))
    assert state.is_settled and state.lost == 0


def test_what_is_taken_is_bounded_by_count_and_bytes() -> None:
    state = consumer()
    deliver(state, 10, 5)
    assert [each.payload for each in state.take(2, 1 << 20)] == [b"10", b"11"]
    assert [each.payload for each in state.take(10, 3)] == [b"12", b"13"]
    assert [each.payload for each in state.take(10, 1)] == [b"14"]
    assert state.take(10, 1 << 20) == []
