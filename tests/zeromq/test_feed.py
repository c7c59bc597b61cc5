"""The shared watch of the registry, without a daemon: its followers' queues and their bound."""

from __future__ import annotations

import asyncio

import pytest

from towpath.errors import ConnectionLost, SlowConsumer
from towpath.model import WatchEvent
from towpath_broker.gateways.zeromq.registry_feed import EVENTS_MAX, FeedWatch


def change(revision: int) -> WatchEvent:
    return WatchEvent("channel_declared", revision)


def test_a_follower_that_takes_nothing_is_ended_after_what_it_was_promised() -> None:
    async def follow() -> list[int]:
        watch = FeedWatch()
        # The state as it stands may be longer than the bound on changes.
        watch.put_state([change(0)] * (EVENTS_MAX + 5))
        for revision in range(1, EVENTS_MAX + 2):
            watch.put(change(revision))
        taken = [(await watch.receive()).revision for _ in range(2 * EVENTS_MAX + 5)]
        with pytest.raises(SlowConsumer):
            await watch.receive()
        return taken

    assert asyncio.run(follow()) == [0] * (EVENTS_MAX + 5) + list(range(1, EVENTS_MAX + 1))


def test_a_follower_waits_and_hears_of_the_end() -> None:
    async def follow() -> None:
        watch = FeedWatch()
        receiving = asyncio.ensure_future(watch.receive())
        await asyncio.sleep(0)
        assert not receiving.done()
        watch.put(change(1))
        assert (await receiving).revision == 1
        receiving = asyncio.ensure_future(watch.receive())
        await asyncio.sleep(0)
        watch.end(ConnectionLost("the daemon was restarted"))
        watch.put(change(2))
        with pytest.raises(ConnectionLost):
            await receiving

    asyncio.run(follow())
