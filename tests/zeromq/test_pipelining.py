"""What a peer of ``rpc`` sends without waiting for answers is carried out in its order."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.support.daemon import DaemonHandle
from tests.zeromq.peers import dealer
from towpath.errors import ChannelNotFound
from towpath.v1.registry_pb2 import KIND_QUEUE, KIND_STATE, KIND_TOPIC, ChannelOptions
from towpath_broker.gateways._forwarding import Queues

if TYPE_CHECKING:
    from towpath.aio.kinds import AsyncKinds

PUBLISHES = 40


@pytest.mark.parametrize(("kind", "durable"), [(KIND_TOPIC, False), (KIND_TOPIC, True), (KIND_QUEUE, False)])
def test_publishes_behind_their_declare(daemon: DaemonHandle, kind: Any, durable: bool) -> None:
    name = f"pipelined.{kind}.{durable}"
    with dealer(daemon.endpoint("zeromq", "rpc")) as peer:
        peer.send(1, "declare_channel_request", name=name, options=ChannelOptions(kind=kind, durable=durable))
        for call in range(2, 2 + PUBLISHES):
            peer.send(call, "publish_request", channel=name, payloads=[b"%d" % call])
        got = {frame.id: frame for frame in (peer.receive() for _ in range(1 + PUBLISHES))}
        assert got[1].WhichOneof("body") == "declare_channel_response"
        seqs = [got[call].publish_response.first_seq for call in range(2, 2 + PUBLISHES)]
        assert seqs == list(range(1, 1 + PUBLISHES))


def test_other_kinds_behind_their_declare(daemon: DaemonHandle) -> None:
    with dealer(daemon.endpoint("zeromq", "rpc")) as peer:
        peer.send(
            1, "declare_channel_request", name="pipelined.mode", options=ChannelOptions(kind=KIND_STATE)
        )
        peer.send(2, "set_value_request", channel="pipelined.mode", payload=b"on")
        peer.send(3, "get_value_request", channel="pipelined.mode")
        got = {frame.id: frame for frame in (peer.receive() for _ in range(3))}
        assert got[2].set_value_response.version == 1
        assert got[3].get_value_response.value.payload == b"on"


class SlowAsker:
    """What :class:`Queues` asks; answers when the test says so."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[asyncio.Future[bool]] = asyncio.Queue()

    async def channel_info(self, channel: str) -> Any:
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(answer)
        if not await answer:
            raise ChannelNotFound(f"no channel {channel!r}")
        return type("Info", (), {"kind": "queue", "durable": False})


def test_who_comes_when_the_kind_is_known_does_not_overtake_who_asked() -> None:
    async def check() -> None:
        asker = SlowAsker()
        queues = Queues(cast("AsyncKinds", asker))
        order: list[int] = []

        async def publish(number: int) -> None:
            assert await queues.has("q")
            order.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(publish(number))
            (await asker.asked.get()).set_result(True)
            for number in range(3, 30):
                group.create_task(publish(number))
                await asyncio.sleep(0)
        assert order == list(range(30))
        assert asker.asked.empty()

    asyncio.run(check())


def test_who_waited_for_one_who_failed_asks_for_himself() -> None:
    async def check() -> None:
        asker = SlowAsker()
        queues = Queues(cast("AsyncKinds", asker))
        outcomes = [asyncio.create_task(queues.has("q")) for _ in range(3)]
        for outcome, answer in zip(outcomes, (False, None, True), strict=True):
            asked = await asker.asked.get()
            if answer is None:
                outcome.cancel()
            else:
                asked.set_result(answer)
        got = await asyncio.gather(*outcomes, return_exceptions=True)
        assert [type(each) for each in got] == [ChannelNotFound, asyncio.CancelledError, bool]

    asyncio.run(check())
