"""System V message queues: an adapter on one side, C programs that know msgsnd and msgrcv on the other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sysv_ipc

from tests.bridge import foreign
from tests.bridge.killed_peers import assert_each_sender_in_order, kill_receivers
from tests.bridge.rig import Rig, has_children, on_loop, open_descriptors, processes_gone, within
from tests.support.deadlines import DEADLINE_S
from towpath.bindings import SYSV
from towpath.errors import BindingFailed, Code
from towpath.model import Direction, Headers
from towpath_broker.gateways.bridge import messages as outflow
from towpath_broker.gateways.bridge import sysv_queue
from towpath_broker.gateways.bridge.adapters.sysv import SysvAdapter
from towpath_broker.gateways.bridge.sysv_queue import key_of


@pytest.fixture
def key() -> Iterator[str]:
    """A key of a queue that nobody has; whatever is there in the end is removed."""
    key = f"{0x70000000 | secrets.randbits(28):#x}"
    yield key
    with contextlib.suppress(sysv_ipc.ExistentialError):
        sysv_ipc.MessageQueue(int(key, 16)).remove()


def exists(key: str) -> bool:
    """Whether there is a queue."""
    try:
        sysv_ipc.MessageQueue(int(key, 16))
    except sysv_ipc.ExistentialError:
        return False
    return True


def start(rig: Rig, key: str, direction: Direction, **options: str) -> None:
    """Start an adapter on a queue."""
    adapter = SysvAdapter(key, direction, SYSV.parse_options(options), rig.carrier, rig.tally, rig.keeping)
    rig.start(adapter)


def helpers() -> list[int]:
    """The processes that this one has started and that have not ended."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in map(int, found) if b"sysv_waiter" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@on_loop
async def test_ten_thousand_come_in_in_order(key: str) -> None:
    async with Rig() as rig:
        start(rig, key, "in")
        await rig.until_state("running")
        sender = await foreign.start("sysv_send", key, "10000")
        published = await rig.until_published(10_000)
        assert [int(payload.split()[0]) for payload in published] == list(range(10_000))
        assert rig.carrier.published_headers == [Headers(user={"sysv.type": "1"})] * 10_000
        assert await within(sender.wait()) == 0
        assert (rig.tally.messages_in, rig.tally.refused) == (10_000, 0)
        await rig.stop()
    assert not has_children()


@on_loop
async def test_ten_thousand_go_out_in_order(key: str) -> None:
    async with Rig() as rig:
        start(rig, key, "out")
        await rig.until_state("running")
        rig.carrier.send([b"%d ." % number for number in range(10_000)])
        lines = (await within(foreign.run("sysv_receive", key, "10000"))).decode().split("\n")
        assert [line.split()[2] for line in lines[:-1]] == [str(number) for number in range(10_000)]
        assert {line.split()[0] for line in lines[:-1]} == {"1"}
        await rig.until(lambda: rig.tally.messages_out == 10_000)
        await rig.stop()
    assert not has_children()


@on_loop
async def test_types_and_the_header(key: str) -> None:
    async with Rig() as rig:
        start(rig, key, "in")
        await rig.until_state("running")
        await within(foreign.run("sysv_send", key, "1", str((1 << 63) - 1)))
        await rig.until_published(1)
        assert rig.carrier.published_headers == [Headers(user={"sysv.type": str((1 << 63) - 1)})]
        await rig.stop()
    async with Rig() as rig:
        start(rig, key, "out", type="5")
        await rig.until_state("running")
        rig.carrier.send([b"a"])
        rig.carrier.send([b"b"], Headers(user={"sysv.type": "7"}))
        rig.carrier.send([b"c"], Headers(user={"other": "7"}))
        assert await within(foreign.run("sysv_receive", key, "3")) == b"5 1 a\n7 1 b\n5 1 c\n"


@pytest.mark.parametrize("stated", ["", "0", "-1", "9223372036854775808", "x", "٣"])
@on_loop
async def test_header_that_is_no_type_is_refused(key: str, stated: str) -> None:
    async with Rig() as rig:
        start(rig, key, "out")
        await rig.until_state("running")
        rig.carrier.send([b"bad"], Headers(user={"sysv.type": stated}))
        rig.carrier.send([b"good"])
        assert await within(foreign.run("sysv_receive", key, "1")) == b"1 4 good\n"
        await rig.until(lambda: rig.tally.refused == 1)
        assert rig.tally.last_error is not None
        assert rig.tally.last_error.code is Code.INVALID_ARGUMENT


@on_loop
async def test_only_one_type_is_taken(key: str) -> None:
    async with Rig() as rig:
        start(rig, key, "in", receive_type="2")
        await rig.until_state("running")
        for kind in ("1", "2", "3", "2"):
            await within(foreign.run("sysv_send", key, "1", kind))
        await rig.until_published(2)
        await rig.stop()
        assert rig.carrier.published_headers == [Headers(user={"sysv.type": "2"})] * 2
        assert sysv_ipc.MessageQueue(int(key, 16)).current_messages == 2


@on_loop
async def test_request_and_reply_over_one_queue(key: str) -> None:
    """What old programs do: requests of type 1, replies of type 2, in the same queue."""
    async with Rig() as rig:
        start(rig, key, "both", type="1", receive_type="2")
        await rig.until_state("running")
        rig.carrier.send([b"question ."])
        assert await within(foreign.run("sysv_receive", key, "1", "1")) == b"1 10 question\n"
        await within(foreign.run("sysv_send", key, "1", "2"))
        assert (await rig.until_published(1))[0].startswith(b"0 ")
        await rig.stop()
        assert (rig.tally.messages_in, rig.tally.messages_out) == (1, 1)
    assert not has_children()


@on_loop
async def test_made_as_stated_and_kept_until_the_binding_is_removed(key: str) -> None:
    async with Rig() as rig:
        start(rig, key, "in", mode="0640")
        await rig.until_state("running")
        assert rig.tally.detail.startswith(f"made here: key {key}")
        assert sysv_ipc.MessageQueue(int(key, 16)).mode == 0o640
        await rig.stop()
        assert exists(key)
    async with Rig() as rig:
        start(rig, key, "in")
        await rig.until_state("running")
        assert rig.tally.detail.startswith(f"attached: key {key}")
        rig.keeping.is_over = True
        await rig.stop()
        assert exists(key)  # by then nobody knew who had made it


@on_loop
async def test_queue_goes_with_its_binding_when_it_is_empty(key: str) -> None:
    async with Rig() as rig:
        start(rig, key, "in")
        await rig.until_state("running")
        await within(foreign.run("sysv_send", key, "9"))
        rig.keeping.is_over = True
        await rig.stop()
        assert len(rig.carrier.published) == 9
        assert not exists(key)


@on_loop
async def test_what_nobody_has_taken_stays_in_the_queue(key: str) -> None:
    async with Rig() as rig:
        start(rig, key, "out")
        rig.carrier.send([b"unread"])
        await rig.until(lambda: rig.tally.messages_out == 1)
        rig.keeping.is_over = True
        await rig.stop()
    assert await within(foreign.run("sysv_receive", key, "1")) == b"1 6 unread\n"


@on_loop
async def test_too_large_is_a_counted_error(key: str) -> None:
    limit = sysv_queue._limit("msgmax", 8192)
    async with Rig() as rig:
        rig.carrier.is_settled = True
        start(rig, key, "out")
        rig.carrier.send([bytes(limit + 1), b"x" * limit])
        await rig.until(lambda: rig.tally.messages_out == 1)
        assert rig.tally.refused == 1
        assert rig.tally.last_error is not None
        assert rig.tally.last_error.code is Code.MESSAGE_TOO_LARGE
        assert (len(rig.carrier.rejected), len(rig.carrier.settled)) == (1, 1)


@on_loop
async def test_full_queue_stops_the_channel_until_someone_reads(key: str) -> None:
    async with Rig() as rig:
        start(rig, key, "out")
        payloads = [b"%d " % number + b"." * 1000 for number in range(30)]  # more than kernel.msgmnb
        rig.carrier.send(payloads)
        await rig.until_state("waiting")
        was_out = rig.tally.messages_out
        assert 0 < was_out < 30
        rig.carrier.send([b"last ."])
        await rig.settle()
        assert len(rig.carrier.waiting) == 1  # nothing is pulled while the queue is full
        lines = (await within(foreign.run("sysv_receive", key, "31"))).decode().split()
        assert lines[2::3] == [*map(str, range(30)), "last"]
        await rig.until(lambda: rig.tally.messages_out == 31 and rig.tally.state == "running")
        await rig.stop()
    assert not has_children()


@on_loop
async def test_full_queue_and_a_stop(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outflow, "FLUSH_S", 0.01)
    async with Rig() as rig:
        start(rig, key, "out")
        rig.carrier.send([b"%d " % number + b"." * 1000 for number in range(30)])
        await rig.until_state("waiting")
        out = rig.tally.messages_out
        await rig.stop()
        assert (rig.tally.messages_out, rig.tally.refused) == (out, 30 - out)
        assert sysv_ipc.MessageQueue(int(key, 16)).current_messages == out
    assert not has_children()


@on_loop
async def test_queue_that_is_removed_is_made_anew(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("towpath_broker.gateways.bridge.adapters.sysv.REOPEN_AFTER_S", 0.0)
    async with Rig() as rig:
        start(rig, key, "in")
        await rig.until_state("running")
        for turn in range(10):
            await within(foreign.run("sysv_send", key, "1"))
            await rig.until_published(turn + 1)
            sysv_ipc.MessageQueue(int(key, 16)).remove()
            await rig.until(lambda turn=turn: rig.tally.restarts == turn + 1 and exists(key))  # type: ignore[misc]
        await rig.stop()
    assert not has_children()


@on_loop
async def test_queue_that_is_removed_outward(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("towpath_broker.gateways.bridge.adapters.sysv.REOPEN_AFTER_S", 0.0)
    async with Rig() as rig:
        start(rig, key, "out")
        rig.carrier.send([b"1 ."])
        await rig.until(lambda: rig.tally.messages_out == 1)
        sysv_ipc.MessageQueue(int(key, 16)).remove()
        rig.carrier.send([b"2 ."])
        await rig.until(lambda: rig.tally.restarts == 1 and rig.tally.messages_out == 2)
        assert await within(foreign.run("sysv_receive", key, "1")) == b"1 3 2\n"


@on_loop
async def test_queue_that_is_removed_while_it_is_full(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("towpath_broker.gateways.bridge.adapters.sysv.REOPEN_AFTER_S", 0.0)
    async with Rig() as rig:
        start(rig, key, "out")
        payloads = [b"%d " % number + b"." * 4000 for number in range(6)]
        rig.carrier.send(payloads)
        await rig.until_state("waiting")
        had = rig.tally.messages_out
        sysv_ipc.MessageQueue(int(key, 16)).remove()
        await rig.until(lambda: rig.tally.messages_out == 6)
        lines = (await within(foreign.run("sysv_receive", key, str(6 - had)))).decode().split()
        assert lines[2::3] == [str(number) for number in range(had, 6)]
        await rig.stop()


@on_loop
async def test_queue_that_is_removed_and_not_to_be_made(key: str) -> None:
    sysv_ipc.MessageQueue(int(key, 16), sysv_ipc.IPC_CREX)
    async with Rig() as rig:
        start(rig, key, "out", create="false")
        await rig.until_state("running")
        sysv_ipc.MessageQueue(int(key, 16)).remove()
        rig.carrier.send([b"x"])
        with pytest.raises(BindingFailed, match="was removed") as caught:
            await rig.ended()
        assert caught.value.retryable
        assert rig.tally.refused == 1


@on_loop
async def test_sender_is_killed_a_hundred_times(key: str) -> None:
    async with Rig() as rig:
        start(rig, key, "in")
        await rig.until_state("running")
        for _ in range(100):
            before = len(rig.carrier.published)
            sender = await foreign.start("sysv_send", key, "1000000")
            await rig.until_published(before + 20)
            sender.kill()
            await sender.wait()
        await within(foreign.run("sysv_send", key, "1", "99"))
        last = Headers(user={"sysv.type": "99"})
        await rig.until(lambda: rig.carrier.published_headers[-1] == last)
        assert_each_sender_in_order(rig.carrier.published, message_bytes=16)
        assert rig.tally.refused == 0
        await rig.stop()


@on_loop
async def test_receiver_is_killed_a_hundred_times(key: str) -> None:
    async with Rig() as rig:
        start(rig, key, "out")
        await rig.until_state("running")
        await kill_receivers(rig, "sysv_receive", key)


@on_loop
async def test_adapter_is_restarted_under_load(key: str) -> None:
    """Also while the helper waits, and while it has just taken something: nothing is missing."""
    sender = None
    published: list[bytes] = []
    for turn in range(40):
        async with Rig() as rig:
            start(rig, key, "in")
            await rig.until_state("running")
            sender = sender or await foreign.start("sysv_send", key, "1000000")
            await rig.until_published(1 + turn)
            await rig.stop()
            published += rig.carrier.published
    assert sender is not None
    sender.kill()
    await sender.wait()
    assert [int(payload.split()[0]) for payload in published] == list(range(len(published)))


@on_loop
async def test_stop_and_a_message_at_the_same_time(key: str) -> None:
    """The helper waits; one message comes just when it is ended: it is carried, or still in the queue."""
    with contextlib.suppress(sysv_ipc.ExistentialError):
        sysv_ipc.MessageQueue(int(key, 16), sysv_ipc.IPC_CREX)
    queue = sysv_ipc.MessageQueue(int(key, 16))
    for _ in range(20):
        async with Rig() as rig:
            start(rig, key, "in")
            await rig.until_state("running")
            queue.send(b"first")
            await rig.until_published(1)
            await rig.settle()
            queue.send(b"second")
            await rig.stop()
            assert len(rig.carrier.published) + queue.current_messages == 2
            if queue.current_messages:
                queue.receive()


@on_loop
async def test_helper_is_killed(key: str) -> None:
    async with Rig() as rig:
        start(rig, key, "in")
        await rig.until_state("running")
        for count in (1, 2):  # the second can only come by the helper, which is there from then on
            await within(foreign.run("sysv_send", key, "1"))
            await rig.until_published(count)
            await rig.settle()
        assert len(helpers()) == 1
        for pid in helpers():
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(BindingFailed, match="helper") as caught:
            await rig.ended()
        assert caught.value.retryable
    assert not has_children()


@on_loop
async def test_helper_does_not_outlive_the_bridge(key: str) -> None:
    queue = sysv_ipc.MessageQueue(int(key, 16), sysv_ipc.IPC_CREX)
    script = (
        "import asyncio, sys\n"
        "from towpath_broker.gateways.bridge.stop import Stop\n"
        "from towpath_broker.gateways.bridge.sysv_helper import SysvHelper\n"
        "async def main():\n"
        "    helper = SysvHelper(int(sys.argv[1], 16), int(sys.argv[2]), 8192)\n"
        "    print(await helper.receive(0, Stop()), helper._process.pid, flush=True)\n"
        "    await helper.receive(0, Stop())\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, key, str(queue.id)),
        stdout=asyncio.subprocess.PIPE,
    )
    queue.send(b"one")
    assert process.stdout is not None
    told = (await within(process.stdout.readline())).decode().split()
    process.kill()
    await process.wait()
    await processes_gone(int(told[-1]))
    queue.send(b"two")
    assert queue.receive(False)[0] == b"two"  # nobody took it for nobody


async def _failure(key: str, direction: Direction = "in", **options: str) -> BindingFailed:
    """Start an adapter that cannot work, and return why."""
    before = open_descriptors()
    async with Rig() as rig:
        start(rig, key, direction, **options)
        with pytest.raises(BindingFailed) as caught:
            await rig.ended()
    assert open_descriptors() == before
    return caught.value


@on_loop
async def test_no_queue(key: str) -> None:
    error = await _failure(key, create="false")
    assert error.retryable and f"no System V message queue {key}" in error.message


@on_loop
async def test_without_the_package(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysv_queue, "sysv_ipc", None)
    error = await _failure(key)
    assert "sysv_ipc" in error.message and "towpath[sysv]" in error.hint and not error.retryable


@on_loop
async def test_no_file_for_ftok(tmp_path: Path) -> None:
    error = await _failure(f"{tmp_path}/none:65")
    assert "No such file" in error.message and "ftok" in error.hint and error.retryable


def test_ftok_as_the_library_has_it(tmp_path: Path) -> None:
    for place, project in ((f"{tmp_path}:65", 65), (f"{tmp_path}:A", 65), (f"{tmp_path}:200", 200)):
        assert key_of(place) == sysv_ipc.ftok(str(tmp_path), project, silence_warning=True)
    assert key_of("0xffffffff") == -1
    assert key_of("4660") == 0x1234


def test_waiter_by_hand_says_what_is_wrong() -> None:
    """It answers rather than ends when the queue is not there."""
    arguments = ["305419896", "1", "8192", str(os.getpid())]
    done = subprocess.run(
        [sys.executable, "-m", "towpath_broker.gateways.bridge.sysv_waiter", *arguments],
        input=b"r" + bytes(8),
        capture_output=True,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stdout) == (0, b"x")
