"""``Sleeper``: one task after another sleeps there, and each goes on once, when and how it is to."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

import towpath.aio
from tests.support.daemon import DaemonHandle
from tests.support.deadlines import DEADLINE_S
from towpath.aio.sleeper import Sleeper


async def asleep(sleeper: Sleeper, told: list[str], name: str = "woken") -> str:
    try:
        await sleeper
    except asyncio.CancelledError as error:
        told.append(f"cancelled {error.args}")
        raise
    told.append(name)
    return name


async def turn() -> None:
    """One turn of the loop."""
    await asyncio.sleep(0)


def test_a_callback_of_the_loop_wakes_at_once() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        sleeper, told = Sleeper(loop), list[str]()
        for round_ in range(3):  # the same one, again and again
            task = asyncio.create_task(asleep(sleeper, told, f"woken {round_}"))
            await turn()
            done = loop.create_future()

            def ring(done: asyncio.Future[list[str]] = done) -> None:
                sleeper.wake_now()
                done.set_result(list(told))

            loop.call_soon(ring)
            seen = await done
            assert seen[-1] == f"woken {round_}"  # before the callback was over
            assert await task == f"woken {round_}"

    asyncio.run(main())


def test_a_task_wakes_by_way_of_the_loop() -> None:
    async def main() -> None:
        sleeper, told = Sleeper(asyncio.get_running_loop()), list[str]()
        task = asyncio.create_task(asleep(sleeper, told))
        await turn()
        sleeper.wake_now()  # a task runs: this one
        assert told == []
        await task
        assert told == ["woken"]

    asyncio.run(main())


def test_woken_twice_it_goes_on_once() -> None:
    async def main() -> None:
        sleeper, told = Sleeper(asyncio.get_running_loop()), list[str]()
        sleeper.wake_now()  # nobody sleeps
        sleeper.wake_soon()

        async def twice() -> None:
            await asleep(sleeper, told, "first")
            await asleep(sleeper, told, "second")

        task = asyncio.create_task(twice())
        await turn()
        sleeper.wake_soon()
        sleeper.wake_soon()
        sleeper.wake_now()
        for _ in range(5):
            await turn()
        assert told == ["first"] and not task.done()
        sleeper.wake_soon()
        await task

    asyncio.run(main())


@pytest.mark.parametrize("message", [None, "why"])
def test_cancelled(message: str | None) -> None:
    async def main() -> None:
        sleeper, told = Sleeper(asyncio.get_running_loop()), list[str]()
        task = asyncio.create_task(asleep(sleeper, told))
        await turn()
        task.cancel(message)
        sleeper.wake_now()  # too late
        with pytest.raises(asyncio.CancelledError):
            await task
        assert told == [f"cancelled {() if message is None else (message,)}"]
        again = asyncio.create_task(asleep(sleeper, told))
        await turn()
        sleeper.wake_soon()
        assert await again == "woken"

    asyncio.run(main())


def test_cancelled_after_it_was_woken_it_is_cancelled_all_the_same() -> None:
    async def main() -> None:
        sleeper, told = Sleeper(asyncio.get_running_loop()), list[str]()
        task = asyncio.create_task(asleep(sleeper, told))
        await turn()
        sleeper.wake_soon()
        assert not sleeper.cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_timeouts_and_groups_work() -> None:
    async def main() -> None:
        sleeper, told = Sleeper(asyncio.get_running_loop()), list[str]()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asleep(sleeper, told)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asleep(sleeper, told), 0.001)
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            task = group.create_task(asleep(sleeper, told))
            await turn()
            sleeper.wake_soon()
        assert task.result() == "woken"

    asyncio.run(main())


def test_the_task_goes_on_in_its_own_context() -> None:
    variable = contextvars.ContextVar("variable", default="loop's")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        sleeper, seen = Sleeper(loop), list[str]()

        async def inner() -> None:
            variable.set("task's")
            await sleeper
            seen.append(variable.get())

        task = asyncio.create_task(inner())
        await turn()
        loop.call_soon(sleeper.wake_now)
        await task
        assert seen == ["task's"] and variable.get() == "loop's"

    asyncio.run(main())


# ---- in a subscription ----


def test_who_is_cancelled_leaves_the_next_one_asleep_in_peace(daemon: DaemonHandle, name: str) -> None:
    async def main() -> None:
        async with await towpath.aio.connect(str(daemon.socket)) as client:
            await client.declare(name)
            async with (
                await client.subscribe(name) as subscription,
                await client.publisher(name) as publisher,
            ):
                await publisher.publish(b"first")
                assert (await subscription.receive()).payload == b"first"
                for number in range(3):
                    leaving = asyncio.create_task(subscription.receive())
                    await turn()
                    assert leaving.cancel()
                    staying = asyncio.create_task(subscription.receive())  # before the other one has left
                    with pytest.raises(asyncio.CancelledError):
                        await leaving
                    assert not staying.done()
                    await publisher.publish(b"%d" % number)
                    async with asyncio.timeout(DEADLINE_S):
                        assert (await staying).payload == b"%d" % number

    asyncio.run(main())
