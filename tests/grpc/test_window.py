"""A subscription's window: when its sender may go on, and what its peer may ask."""

from __future__ import annotations

import asyncio

import pytest

from towpath.errors import InvalidArgument, InvalidName
from towpath.v1.channels_pb2 import SubscribeRequest
from towpath_broker.gateways.grpc.window import CREDIT_MAX, Window


def window(credit: int) -> Window:
    made = Window()
    made.take(SubscribeRequest(channel="a.b", credit=credit))
    return made


def test_without_credit_there_is_always_room() -> None:
    async def check() -> None:
        unlimited = window(0)
        assert await unlimited.opened() == "a.b"
        for _ in range(3):
            assert await unlimited.room(100) == 100
            unlimited.spend(100)
        unlimited.end()
        assert await unlimited.room(100) == 100

    asyncio.run(check())


def test_with_credit_the_sender_waits_for_more_when_it_is_spent() -> None:
    async def check() -> None:
        limited = window(5)
        assert await limited.room(3) == 3
        limited.spend(3)
        assert await limited.room(3) == 2
        limited.spend(2)
        waiting = asyncio.create_task(limited.room(3))
        limited.take(SubscribeRequest(credit=0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        limited.take(SubscribeRequest(credit=1))
        assert await waiting == 1

    asyncio.run(check())


def test_a_window_that_is_used_up_for_good_has_no_room() -> None:
    async def check() -> None:
        limited = window(2)
        limited.end()
        assert await limited.room(9) == 2
        limited.spend(2)
        assert await limited.room(9) == 0

    asyncio.run(check())


def test_the_end_wakes_a_waiting_sender() -> None:
    async def check() -> None:
        limited = window(1)
        limited.spend(1)
        waiting = asyncio.create_task(limited.room(1))
        await asyncio.sleep(0)
        limited.end()
        assert await waiting == 0

    asyncio.run(check())


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (1, SubscribeRequest(channel="c.d", credit=1)),
        (1, SubscribeRequest(channel="a.b")),
        (0, SubscribeRequest(credit=1)),
    ],
)
def test_what_a_later_request_may_not_do(first: int, later: SubscribeRequest) -> None:
    with pytest.raises(InvalidArgument):
        window(first).take(later)


def test_credit_has_a_bound() -> None:
    full = window((1 << 32) - 1)
    full.take(SubscribeRequest(credit=CREDIT_MAX - (1 << 32) + 1))
    with pytest.raises(InvalidArgument, match="credit"):
        full.take(SubscribeRequest(credit=1))


@pytest.mark.parametrize("name", ["", "not a name", "a..b", "_towpath.x"])
def test_the_first_request_names_a_channel(name: str) -> None:
    with pytest.raises(InvalidName):
        Window().take(SubscribeRequest(channel=name, credit=1))


def test_no_request_at_all_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="before a request"):
        Window().end()
