"""Credit: what a gateway may send ahead, over connections that break, and with a program that takes messages
at any moment of that.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import towpath
from tests.remote.relay import Relay
from tests.support.deadlines import DEADLINE_S
from towpath.addresses import RemoteAddress, parse_remote
from towpath.errors import ProtocolViolation
from towpath.remote.credit import Credit
from towpath.remote.following import RemoteAsyncSubscription
from towpath.remote.ports import Batches
from towpath.remote.session import Session, make_carrier
from towpath.v1.channels_pb2 import SubscribeRequest


def test_more_is_given_when_half_of_the_window_is_free() -> None:
    credit = Credit(256, held=0)
    assert credit.outstanding == 256
    credit.arrived(256)
    assert credit.due(256) == 0
    assert credit.due(129) == 0
    assert credit.due(128) == 128
    assert credit.due(128) == 0
    assert credit.outstanding == 128


def test_what_is_held_from_before_is_part_of_the_window() -> None:
    credit = Credit(256, held=200)
    assert credit.outstanding == 56
    assert credit.due(200) == 0
    assert credit.due(0) == 200


@pytest.mark.parametrize("held", [256, 300])
def test_a_window_that_is_taken_up_is_still_begun_with_something(held: int) -> None:
    credit = Credit(256, held)
    assert credit.outstanding == 1  # 0 would mean: as the gateway likes
    credit.arrived(1)
    assert credit.due(held + 1) == 0
    assert credit.due(0) == 256


def test_more_than_was_given_is_a_violation() -> None:
    credit = Credit(3, held=0)
    with pytest.raises(ProtocolViolation):
        credit.arrived(4)
    assert credit.outstanding == 3


class CreditMachine(RuleBasedStateMachine):
    """A client and a gateway, connections that break, and a program that takes whenever it likes; beside the
    client's ledger a gateway's, that counts only what it is told.
    """

    @initialize(window=st.integers(1, 12))
    def begin(self, window: int) -> None:
        self.window = window
        self.held = 0
        self.gateway = 0  # what it may still send
        self.on_its_way = 0
        self.asked: Credit | None = None
        self.stream: Credit | None = None

    @precondition(lambda self: self.asked is None and self.stream is None)
    @rule()
    def ask(self) -> None:
        self.asked = Credit(self.window, self.held)
        self.gateway, self.on_its_way = self.asked.outstanding, 0

    @precondition(lambda self: self.asked is not None)
    @rule()
    def answered(self) -> None:
        self.stream, self.asked = self.asked, None
        self._say()

    @precondition(lambda self: self.gateway > 0)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.gateway))
        self.gateway -= count
        self.on_its_way += count

    @precondition(lambda self: self.stream is not None and self.on_its_way > 0)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.on_its_way))
        seen = data.draw(st.integers(0, count))
        assert self.stream is not None
        self.on_its_way -= count
        self.stream.arrived(count)
        self.held += count - seen
        if seen:
            self._say()

    @precondition(lambda self: self.held > 0)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        self.held -= data.draw(st.integers(1, self.held))
        self._say()

    @rule()
    def lose_the_connection(self) -> None:
        self.asked = self.stream = None
        self.gateway = self.on_its_way = 0

    def _say(self) -> None:
        if self.stream is not None:
            self.gateway += self.stream.due(self.held)

    @invariant()
    def the_window_bounds_all(self) -> None:
        assert self.gateway + self.on_its_way + self.held <= self.window + 1

    @invariant()
    def nothing_stands_still(self) -> None:
        if self.stream is not None and self.held == 0:
            assert 2 * (self.gateway + self.on_its_way) >= self.window


TestCreditMachine = CreditMachine.TestCase
TestCreditMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


class GatedConnection:
    """A connection whose subscriptions, once made, wait at a gate before they are used."""

    def __init__(self, connection: Any, gate: Gate) -> None:
        self._connection = connection
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def subscribe(self, request: SubscribeRequest, held: int) -> Batches:
        batches: Batches = await self._connection.subscribe(request, held)
        self._gate.held.append(held)
        self._gate.arrived.set()
        await self._gate.opened.wait()
        return batches


class Gate:
    """A carrier, and the gate on its connections."""

    def __init__(self, address: RemoteAddress) -> None:
        self._carrier = make_carrier(address, "test")
        self.message_bytes_max = self._carrier.message_bytes_max
        self.held: list[int] = []
        self.arrived = asyncio.Event()
        self.opened = asyncio.Event()

    async def open(self, timeout_s: float | None) -> Any:
        return GatedConnection(await self._carrier.open(timeout_s), self)


@pytest.mark.parametrize("held", [1, 128, 129, 256])
def test_what_is_taken_while_there_is_no_stream_is_given_again(
    held: int, carrier: str, relay: Relay, local: towpath.Client, name: str
) -> None:
    """The order that once stopped a subscription by ZeroMQ for ever: subscribe again, take, go on."""
    scheme = {"grpc": "grpc+unix", "zmq": "zmq+ipc"}[carrier]
    publisher = local.publisher(name)

    async def check() -> None:
        async with asyncio.timeout(3 * DEADLINE_S):
            address = parse_remote(f"{scheme}://{relay.path}")
            assert address is not None
            gate = Gate(address)
            session = Session(gate)
            await session.open(DEADLINE_S)
            subscription = RemoteAsyncSubscription(session, name, lambda _: None)
            gate.opened.set()
            await subscription.open(None)
            publisher.publish_many([b"%d" % n for n in range(held)])
            while len(subscription._inbox) < held:
                subscription._changed.clear()
                await subscription._changed.wait()
            gate.opened.clear()
            gate.arrived.clear()
            relay.cut()
            relay.mend()
            await gate.arrived.wait()  # subscribed again, in the knowledge of what is held
            assert gate.held == [0, held]
            seqs = [message.seq for message in await subscription.receive_many(held, timeout=0)]
            gate.opened.set()
            publishing = asyncio.create_task(
                asyncio.to_thread(publisher.publish_many, [b"x" * 200] * 1_000, timeout=DEADLINE_S)
            )
            while len(seqs) < held + 1_000:
                messages = await subscription.receive_many(timeout=DEADLINE_S)
                assert messages, f"{len(seqs)} of {held + 1_000} messages came"
                seqs += [message.seq for message in messages]
            await publishing
            assert seqs == list(range(1, held + 1_001))
            assert subscription.lost == 0
            await subscription.close()
            await session.close()

    asyncio.run(check())
