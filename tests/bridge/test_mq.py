"""POSIX message queues: an adapter on one side, C programs that know mq_send and mq_receive on the other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import posix_ipc
import pytest

from tests.bridge import foreign
from tests.bridge.killed_peers import assert_each_sender_in_order, kill_receivers
from tests.bridge.rig import Rig, on_loop, open_descriptors, within
from towpath.bindings import MQ
from towpath.errors import BindingFailed, Code
from towpath.model import Direction, Headers
from towpath_broker.gateways.bridge import messages as outflow
from towpath_broker.gateways.bridge import mq_queue
from towpath_broker.gateways.bridge.adapters.mq import MqAdapter
from towpath_broker.gateways.bridge.splitting import HEAD_BYTES


@pytest.fixture
def name() -> Iterator[str]:
    """A queue's name that nobody has; whatever is there in the end is removed."""
    name = f"/towpath-test-{os.getpid()}-{os.urandom(4).hex()}"
    yield name
    with contextlib.suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_message_queue(name)


def exists(name: str) -> bool:
    """Whether there is a queue."""
    try:
        posix_ipc.MessageQueue(name).close()
    except posix_ipc.ExistentialError:
        return False
    return True


def start(rig: Rig, name: str, direction: Direction, **options: str) -> None:
    """Start an adapter on a queue."""
    adapter = MqAdapter(
        name,
        direction,
        MQ.parse_options(options),
        rig.carrier,
        rig.tally,
        rig.watcher,
        rig.keeping,
    )
    rig.start(adapter)


@on_loop
async def test_ten_thousand_come_in_in_order(name: str) -> None:
    async with Rig() as rig:
        start(rig, name, "in")
        await rig.until_state("running")
        sender = await foreign.start("mq_send", name, "10000")
        published = await rig.until_published(10_000)
        assert [int(payload.split()[0]) for payload in published] == list(range(10_000))
        assert await within(sender.wait()) == 0
        assert (rig.tally.messages_in, rig.tally.refused) == (10_000, 0)
        assert rig.tally.bytes_in == 160_000
        await rig.stop()


@on_loop
async def test_ten_thousand_go_out_in_order(name: str) -> None:
    async with Rig() as rig:
        start(rig, name, "out")
        await rig.until_state("running")
        rig.carrier.send([b"%d ." % number for number in range(10_000)])
        lines = (await within(foreign.run("mq_receive", name, "10000"))).decode().split("\n")
        assert [int(line.split()[2]) for line in lines[:-1]] == list(range(10_000))
        await rig.until(lambda: rig.tally.messages_out == 10_000)
        assert rig.tally.refused == 0
        await rig.stop()


@pytest.mark.parametrize(
    ("priority", "headers"),
    [
        (0, None),
        (1, Headers(priority=1)),
        (31, Headers(priority=31)),
        (32, Headers(priority=31, user={"mq.priority": "32"})),
        (32_767, Headers(priority=31, user={"mq.priority": "32767"})),
    ],
)
@on_loop
async def test_priority_both_ways(name: str, priority: int, headers: Headers | None) -> None:
    async with Rig() as rig:
        start(rig, name, "in")
        await rig.until_state("running")
        await within(foreign.run("mq_send", name, "1", "8", str(priority)))
        await rig.until_published(1)
        assert rig.carrier.published_headers == [headers]
        await rig.stop()
    async with Rig() as rig:
        start(rig, name, "out")
        rig.carrier.send([b"text"], headers or Headers())
        output = await within(foreign.run("mq_receive", name, "1"))
        assert output == b"%d 4 text\n" % priority


@pytest.mark.parametrize("stated", ["", "-1", "32768", "99999999", "x", "٣"])
@on_loop
async def test_priority_header_that_is_none_counts_as_absent(name: str, stated: str) -> None:
    async with Rig() as rig:
        start(rig, name, "out")
        rig.carrier.send([b"text"], Headers(priority=7, user={"mq.priority": stated}))
        await rig.until(lambda: rig.tally.messages_out == 1)
        assert await within(foreign.run("mq_receive", name, "1")) == b"7 4 text\n"


@on_loop
async def test_queue_is_made_as_stated(name: str) -> None:
    mask = os.umask(0o077)
    try:
        async with Rig() as rig:
            start(rig, name, "in", mode="0622", maxmsg="3", msgsize="100")
            await rig.until_state("running")
            assert rig.tally.detail == "made here: maxmsg 3, msgsize 100"
            queue = posix_ipc.MessageQueue(name)
            assert (queue.max_messages, queue.max_message_size) == (3, 100)
            assert os.fstat(queue.mqd).st_mode & 0o777 == 0o622
            queue.close()
            await rig.stop()
            assert exists(name)  # until the binding is removed
    finally:
        os.umask(mask)


@on_loop
async def test_queue_that_is_there_is_taken_as_it_is(name: str) -> None:
    queue = posix_ipc.MessageQueue(name, posix_ipc.O_CREX, max_messages=2, max_message_size=10)
    queue.send(b"before", priority=3)
    async with Rig() as rig:
        start(rig, name, "in", maxmsg="5", create="false")
        await rig.until_published(1)
        assert rig.carrier.published == [b"before"]
        assert rig.tally.detail == "attached: maxmsg 2, msgsize 10, not maxmsg 5 as stated"
        rig.keeping.is_over = True
        await rig.stop()
    assert exists(name)  # it was not made here
    queue.close()


@on_loop
async def test_queue_goes_with_its_binding_when_it_is_empty(name: str) -> None:
    async with Rig() as rig:
        start(rig, name, "in")
        await rig.until_state("running")
        rig.keeping.is_over = True
        await rig.stop()
        assert not exists(name)


@on_loop
async def test_what_nobody_has_taken_stays_in_the_queue(name: str) -> None:
    async with Rig() as rig:
        start(rig, name, "out")
        rig.carrier.send([b"unread"])
        await rig.until(lambda: rig.tally.messages_out == 1)
        rig.keeping.is_over = True
        await rig.stop()
    assert await within(foreign.run("mq_receive", name, "1")) == b"0 6 unread\n"


@on_loop
async def test_the_rest_is_carried_when_the_binding_is_removed(name: str) -> None:
    async with Rig() as rig:
        start(rig, name, "in")
        await rig.until_state("running")
        await within(foreign.run("mq_send", name, "9"))
        rig.keeping.is_over = True
        await rig.stop()
        assert len(rig.carrier.published) == 9
        assert not exists(name)


@on_loop
async def test_too_large_is_a_counted_error(name: str) -> None:
    async with Rig() as rig:
        rig.carrier.is_settled = True
        start(rig, name, "out", msgsize="8")
        rig.carrier.send([b"123456789", b"12345678"])
        await rig.until(lambda: rig.tally.messages_out == 1)
        assert await within(foreign.run("mq_receive", name, "1")) == b"0 8 12345678\n"
        assert rig.tally.refused == 1
        assert rig.tally.last_error is not None
        assert rig.tally.last_error.code is Code.MESSAGE_TOO_LARGE
        assert "9 bytes; the queue takes 8" in rig.tally.last_error.message
        assert (rig.carrier.rejected, rig.carrier.settled) == ([b"123456789"], [b"12345678"])


@on_loop
async def test_larger_than_the_channel_carries_is_a_counted_error(name: str) -> None:
    async with Rig() as rig:
        rig.carrier.message_bytes_max = 20
        start(rig, name, "in")
        await rig.until_state("running")
        await within(foreign.run("mq_send", name, "1", "21", "5"))
        await within(foreign.run("mq_send", name, "1", "20", "6"))
        assert await rig.until_published(1) == [b"0 " + b"." * 18]
        assert rig.carrier.published_headers == [Headers(priority=6)]
        await rig.until(lambda: rig.tally.refused == 1)
        assert rig.tally.last_error is not None
        assert rig.tally.last_error.code is Code.MESSAGE_TOO_LARGE


@on_loop
async def test_full_queue_stops_the_channel_until_someone_reads(name: str) -> None:
    async with Rig() as rig:
        start(rig, name, "out", maxmsg="4")
        await rig.until_state("running")
        rig.carrier.send([b"%d ." % number for number in range(10)])
        await rig.until_state("waiting")
        assert rig.tally.messages_out == 4
        rig.carrier.send([b"last ."])
        await rig.settle()
        assert len(rig.carrier.waiting) == 1  # nothing is pulled while the queue is full
        rig.carrier.lost_count = 3  # as a channel with overflow=drop does meanwhile
        lines = (await within(foreign.run("mq_receive", name, "11"))).decode().split()
        assert lines[2::3] == [*map(str, range(10)), "last"]
        await rig.until(lambda: rig.tally.refused == 3)
        assert rig.tally.state == "running"


@on_loop
async def test_full_queue_and_a_stop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outflow, "FLUSH_S", 0.01)
    for is_queue, refused in ((False, 6), (True, 0)):
        async with Rig() as rig:
            rig.carrier.is_settled = is_queue
            start(rig, name, "out", maxmsg="4")
            rig.carrier.send([b"%d ." % number for number in range(10)])
            await rig.until(lambda rig=rig: rig.tally.messages_out == 4)  # type: ignore[misc]
            await rig.stop()
            assert rig.tally.refused == refused
            assert rig.carrier.settled == [b"%d ." % number for number in range(4)]
        posix_ipc.unlink_message_queue(name)


@on_loop
async def test_queue_that_is_removed_is_emptied_and_made_anew(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("towpath_broker.gateways.bridge.adapters.mq.REOPEN_AFTER_S", 0.0)
    async with Rig() as rig:
        start(rig, name, "in")
        await rig.until_state("running")
        for turn in range(100):
            sender = posix_ipc.MessageQueue(name)
            sender.send(b"%d last words" % turn)
            sender.unlink()
            sender.close()
            await rig.until(lambda turn=turn: rig.tally.restarts == turn + 1 and exists(name))  # type: ignore[misc]
        assert rig.carrier.published == [b"%d last words" % turn for turn in range(100)]
        await rig.stop()


@on_loop
async def test_queue_that_is_removed_outward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("towpath_broker.gateways.bridge.adapters.mq.REOPEN_AFTER_S", 0.0)
    async with Rig() as rig:
        start(rig, name, "out", maxmsg="2")
        rig.carrier.send([b"1 ", b"2 ", b"3 "])
        await rig.until(lambda: rig.tally.messages_out == 2)
        posix_ipc.unlink_message_queue(name)
        await rig.until(lambda: rig.tally.restarts == 1 and rig.tally.messages_out == 3)
        # What was in the old queue is gone with it; what was not sent is in the new one.
        assert await within(foreign.run("mq_receive", name, "1")) == b"0 2 3\n"


@on_loop
async def test_queue_that_is_removed_and_not_to_be_made(name: str) -> None:
    posix_ipc.MessageQueue(name, posix_ipc.O_CREX).close()
    async with Rig() as rig:
        start(rig, name, "in", create="false")
        await rig.until_state("running")
        posix_ipc.unlink_message_queue(name)
        with pytest.raises(BindingFailed, match="was removed") as caught:
            await rig.ended()
        assert caught.value.retryable


@on_loop
async def test_sender_is_killed_a_hundred_times(name: str) -> None:
    async with Rig() as rig:
        start(rig, name, "in")
        await rig.until_state("running")
        for _ in range(100):
            before = len(rig.carrier.published)
            sender = await foreign.start("mq_send", name, "1000000")
            await rig.until_published(before + 20)
            sender.kill()
            await sender.wait()
        await within(foreign.run("mq_send", name, "1", "16", "0"))
        await rig.until(lambda: rig.tally.messages_in == len(rig.carrier.published))
        assert_each_sender_in_order(rig.carrier.published, message_bytes=16)
        assert rig.tally.refused == 0


@on_loop
async def test_receiver_is_killed_a_hundred_times(name: str) -> None:
    async with Rig() as rig:
        start(rig, name, "out")
        await rig.until_state("running")
        await kill_receivers(rig, "mq_receive", name)


@on_loop
async def test_adapter_is_restarted_a_hundred_times_under_load(name: str) -> None:
    sender = None
    published: list[bytes] = []
    for _ in range(100):
        async with Rig() as rig:
            start(rig, name, "in")
            await rig.until_state("running")
            sender = sender or await foreign.start("mq_send", name, "1000000")
            await rig.until_published(50)
            await rig.stop()
            published += rig.carrier.published
    assert sender is not None
    sender.kill()
    await sender.wait()
    # The queue holds what comes while nobody reads it: nothing is missing at any restart.
    assert [int(payload.split()[0]) for payload in published] == list(range(len(published)))


@on_loop
async def test_what_was_taken_and_could_not_be_published_is_for_the_successor(name: str) -> None:
    async with Rig() as rig:
        keeping = rig.keeping
        kept: dict[str, bytes] = {}
        rig.keeping = KeepingBytes(kept)  # type: ignore[assignment]
        rig.carrier.open.clear()
        start(rig, name, "in")
        await rig.until_state("running")
        await within(foreign.run("mq_send", name, "5", "10", "40"))
        await rig.until(lambda: rig.carrier.has_waiting_publisher)
        assert rig.task is not None
        rig.task.cancel()
        await asyncio.wait((rig.task,))
        assert rig.tally.refused == 0
        del keeping
    async with Rig() as rig:
        rig.keeping = KeepingBytes(kept)  # type: ignore[assignment]
        start(rig, name, "in")
        published = await rig.until_published(5)
        assert [int(payload.split()[0]) for payload in published] == list(range(5))
        assert rig.carrier.published_headers[0] == Headers(priority=31, user={"mq.priority": "40"})


class KeepingBytes:
    """What a supervisor would keep, in memory."""

    is_over = False
    hands_over = True

    def __init__(self, kept: dict[str, bytes]) -> None:
        self._kept = kept

    def store(self, what: str, descriptor: int) -> None:
        pass

    def take(self, what: str) -> int:
        return -1

    def forget(self, what: str) -> None:
        pass

    def store_bytes(self, what: str, data: bytes) -> None:
        self._kept[what] = data

    def take_bytes(self, what: str) -> bytes:
        return self._kept.pop(what, b"")


@on_loop
async def test_split_and_joined_between_two_bindings(name: str) -> None:
    payloads = [os.urandom(size) for size in (0, 1, 4000, 8192 - HEAD_BYTES, 8192, 100_000, 1 << 20)]
    async with Rig() as sending, Rig() as receiving:
        start(sending, name, "out", split="true")
        start(receiving, name, "in", split="true")
        sending.carrier.send(payloads, Headers(priority=9))
        assert await receiving.until_published(len(payloads)) == payloads
        assert receiving.carrier.published_headers == [Headers(priority=9)] * len(payloads)
        sending.carrier.send([bytes((1 << 20) + 1), b"end"])
        await receiving.until_published(len(payloads) + 1)
        assert (sending.tally.refused, receiving.tally.refused) == (1, 0)


@on_loop
async def test_split_and_what_is_no_piece(name: str) -> None:
    async with Rig() as rig:
        start(rig, name, "in", split="true")
        await rig.until_state("running")
        await within(foreign.run("mq_send", name, "3"))
        await rig.until(lambda: rig.tally.refused == 3)
        assert rig.tally.last_error is not None
        assert rig.tally.last_error.code is Code.BAD_FRAME
        assert rig.carrier.published == []


async def _failure(name: str, direction: Direction = "in", **options: str) -> BindingFailed:
    """Start an adapter that cannot work, and return why."""
    before = open_descriptors()
    async with Rig() as rig:
        start(rig, name, direction, **options)
        with pytest.raises(BindingFailed) as caught:
            await rig.ended()
    assert open_descriptors() == before
    return caught.value


@on_loop
async def test_no_queue(name: str) -> None:
    error = await _failure(name, create="false")
    assert error.retryable and f"no message queue {name}" in error.message


@pytest.mark.parametrize(
    ("option", "limit", "highest"), [("maxmsg", "msg_max", 65_536), ("msgsize", "msgsize_max", 16 << 20)]
)
def test_limits_of_the_kernel_are_explained(name: str, option: str, limit: str, highest: int) -> None:
    bound = int(Path(f"/proc/sys/fs/mqueue/{limit}").read_text())
    try:
        posix_ipc.MessageQueue(
            name,
            posix_ipc.O_CREX,
            max_messages=bound + 1 if option == "maxmsg" else 1,
            max_message_size=bound + 1 if option == "msgsize" else 1,
        ).unlink()
    except ValueError:
        stated = bound + 1
    else:  # CAP_SYS_RESOURCE: only what no option can ask for is too much, and RLIMIT_MSGQUEUE is met first
        stated = highest
    error = asyncio.run(_failure(name, "in", **{option: str(stated)}))
    assert f"{option}={stated} is more than fs.mqueue.{limit}, {bound}" in error.message or (
        stated == highest and "RLIMIT_MSGQUEUE" in error.message
    )
    assert "sysctl" in error.hint or stated == highest


@on_loop
async def test_resource_limit_is_explained(name: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (4096, before[1]))
    try:
        error = await _failure(name)
    finally:
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, before)
    assert "RLIMIT_MSGQUEUE allows this user 4096" in error.message
    assert "LimitMSGQUEUE=" in error.hint and error.retryable


@on_loop
async def test_pieces_do_not_fit(name: str) -> None:
    error = await _failure(name, "out", split="true", msgsize=str(HEAD_BYTES))
    assert "split=true needs more than" in error.message and not error.retryable


@on_loop
async def test_without_the_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mq_queue, "posix_ipc", None)
    error = await _failure(name)
    assert "posix_ipc" in error.message and "towpath[mq]" in error.hint and not error.retryable


@on_loop
async def test_nothing_is_done_while_nothing_happens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Rig() as rig:
        start(rig, name, "in")
        await rig.until_state("running")
        await rig.settle()
        looks: list[int] = []
        receive = mq_queue.MqQueue.receive_nowait

        def counted(queue: mq_queue.MqQueue, count_max: int, bytes_max: int) -> list[tuple[bytes, int]]:
            looks.append(1)
            return receive(queue, count_max, bytes_max)

        monkeypatch.setattr(mq_queue.MqQueue, "receive_nowait", counted)
        for _ in range(50):
            await rig.settle()
        assert not looks
        await within(foreign.run("mq_send", name, "1"))
        await rig.until_published(1)
        assert looks
