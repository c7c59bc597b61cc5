"""Locks that own their data, through the client library, in both ways of waiting."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

import towpath
import towpath.aio
from tests.support.daemon import DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import codecs, errors
from towpath.codecs import BYTES, JSON

Connect = Callable[[], Any]

COUNTER = """
import sys, towpath
from towpath.codecs import JSON
counter = towpath.connect(sys.argv[1]).guarded(sys.argv[2], JSON, initial=0)
for _ in range(int(sys.argv[3])):
    with counter as guard:
        guard.value += 1
"""
DIES_INSIDE = """
import os, sys, towpath
from towpath.codecs import JSON
guard = towpath.connect(sys.argv[1]).guarded(sys.argv[2], JSON, initial={}).write()
guard.value["committed"] = 1
if sys.argv[3] == "commit":
    guard.commit()
guard.value["half"] = True
os.kill(os.getpid(), 9)
"""


class Account(msgspec.Struct):
    owner: str
    balance: int = 0


def program(code: str, daemon: DaemonHandle, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, str(daemon.socket), *arguments])


def test_a_value_is_had_by_its_guard_and_written_with_the_release(connect: Connect, name: str) -> None:
    one, two = connect(), connect()
    with one.guarded(name).write() as guard:
        assert (guard.value, guard.is_set, guard.written_by) == (b"", False, 0)
        guard.value = b"first"
        token = guard.token
    with two.guarded(name).write() as guard:
        assert (guard.value, guard.is_set, guard.written_by) == (b"first", True, token)
    with pytest.raises(errors.NotHeld):
        _ = guard.value
    with two.guarded(name).read() as guard:
        assert guard.written_by == token  # what has not changed is not written


def test_what_is_changed_in_place_is_written(connect: Connect, name: str) -> None:
    initial: list[int] = []
    with connect().guarded(name, JSON, initial=initial).write() as guard:
        guard.value.append(1)
    with connect().guarded(name, JSON, initial=initial).write() as guard:
        guard.value.append(2)
        assert guard.value == [1, 2]
    assert initial == []
    with connect().guarded(name, JSON).read() as guard:
        assert guard.value == [1, 2]


def test_a_block_that_fails_writes_nothing_and_does_not_poison(connect: Connect, name: str) -> None:
    one = connect()
    with one.guarded(name, JSON, initial=1).write() as guard:
        guard.value = 2
    with pytest.raises(ZeroDivisionError), one.guarded(name, JSON, initial=1).write() as guard:
        guard.value = 3
        _ = 1 / 0
    with one.guarded(name, JSON, initial=1).write() as guard:
        assert guard.value == 2 and not guard.is_poisoned
        guard.value = 4
        guard.abandon()
    with one.guarded(name, JSON, initial=1).write() as guard:
        assert guard.value == 2
        guard.value = 5
        guard.commit()
        guard.value = 6
        guard.release()
        with pytest.raises(errors.NotHeld):
            guard.value = 7
    with one.guarded(name, JSON).read() as guard:
        assert guard.value == 6


def test_readers_together_and_nobody_while_it_is_written(connect: Connect, name: str) -> None:
    one, two = connect(), connect()
    writer = connect().guarded(name)
    with one.guarded(name).read() as first, two.guarded(name).read() as second:
        assert first.value == second.value == b""
        with pytest.raises(errors.LockHeld):
            writer.write(0)
    with writer.write(), pytest.raises(errors.Timeout):
        one.guarded(name).read(0.01)


def test_a_type_of_ones_own(connect: Connect, name: str) -> None:
    with connect().guarded(name, Account).write() as guard:
        assert guard.value is None
        guard.value = Account("ada", 3)
    with connect().guarded(name, Account, initial=Account("nobody")).write() as guard:
        guard.value.balance += 4
    with connect().guarded(name, Account).read() as guard:
        assert guard.value == Account("ada", 7)
    with connect().guarded(name, list[int]).read() as guard, pytest.raises(errors.InvalidArgument):
        _ = guard.value  # it is of another type
    with connect().guarded(name, bytes).read() as guard:
        assert guard.value == b'{"owner":"ada","balance":7}'


def test_what_cannot_be_encoded_is_not_written_and_the_lock_is_free_again(
    connect: Connect, name: str
) -> None:
    one = connect()
    unfit: Any = "much"
    with pytest.raises(errors.InvalidArgument):
        one.guarded(name, JSON, initial={1, 2})
    with pytest.raises(errors.InvalidArgument), one.guarded(name, JSON, initial=0).write() as guard:
        guard.value = {1, 2}
    with pytest.raises(errors.InvalidArgument), one.guarded(name, Account).write() as guard:
        guard.value = Account("ada", unfit)
    with pytest.raises(errors.MessageTooLarge), one.guarded(name).write() as guard:
        guard.value = bytes(1 << 17)
    with connect().guarded(name, JSON).read(DEADLINE_S) as guard:
        assert guard.value is None and not guard.is_poisoned
    with pytest.raises(errors.InvalidName):
        one.guarded("a b")


@pytest.mark.parametrize("value", [b"", b"x", bytearray(b"y"), memoryview(b"z")])
def test_bytes_are_any_bytes(value: Any) -> None:
    assert BYTES.encode(value) == bytes(value)


def test_codecs_raise_what_is_documented() -> None:
    for codec, value, payload in (
        (BYTES, "text", None),
        (JSON, float("nan"), b"{"),
        (JSON, object(), b"\xff"),
        (codecs.codec_of(Account), {"owner": 1}, b"[]"),
    ):
        with pytest.raises(errors.InvalidArgument):
            codec.encode(value)  # type: ignore[arg-type]
        if payload is not None:
            with pytest.raises(errors.InvalidArgument):
                codec.decode(payload)
    with pytest.raises(errors.InvalidArgument):
        codecs.codec_of("json")  # type: ignore[arg-type]
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(errors.InvalidArgument):
        JSON.encode(nested)


def test_compare_and_set_by_the_token_that_wrote(connect: Connect, name: str) -> None:
    counter = connect().guarded(name, JSON, initial=0)
    first = counter.compare_and_set(1, written_by=0)
    with counter.read() as guard:
        assert (guard.value, guard.written_by) == (1, first)
    second = connect().guarded(name, JSON, initial=0).compare_and_set(2, written_by=first)
    assert second > first
    with pytest.raises(errors.VersionConflict):
        counter.compare_and_set(3, written_by=first)
    with counter.read() as guard:
        assert guard.value == 2


def test_nothing_is_lost_between_many_programs(daemon: DaemonHandle, name: str) -> None:
    programs = [program(COUNTER, daemon, name, "25") for _ in range(4)]
    assert [each.wait(DEADLINE_S) for each in programs] == [0] * 4
    with towpath.connect(str(daemon.socket)) as client, client.guarded(name, JSON, initial=0).read() as guard:
        assert guard.value == 100


@pytest.mark.parametrize("how", ["commit", "not"])
def test_who_dies_inside_poisons_and_the_next_must_say_recover(
    connect: Connect, daemon: DaemonHandle, name: str, how: str
) -> None:
    assert program(DIES_INSIDE, daemon, name, how).wait(DEADLINE_S) == -signal.SIGKILL
    client = connect()
    guarded = client.guarded(name, JSON, initial={})
    last = {"committed": 1} if how == "commit" else {}
    with guarded.read(DEADLINE_S) as reader:
        assert reader.is_poisoned and reader.committed == last
        with pytest.raises(errors.Poisoned):
            _ = reader.value
    assert [lock.is_poisoned for lock in client.list_locks(name).locks] == [True]
    with guarded.write() as guard:
        assert guard.is_poisoned
        with pytest.raises(errors.Poisoned):
            guard.value = {}
    with guarded.write() as guard:  # who says nothing leaves it as it is
        assert guard.is_poisoned and guard.recover() == last
        assert not guard.is_poisoned
        guard.abandon()
    with guarded.write() as guard:
        assert guard.is_poisoned and guard.recover() == last
    with guarded.write() as guard:
        assert not guard.is_poisoned and guard.value == last
        guard.value["more"] = 2
    with guarded.read() as reader:
        assert reader.value == {**last, "more": 2}


def test_a_grant_that_was_taken_away_writes_nothing(connect: Connect, name: str) -> None:
    one, two = connect(), connect()
    guard = one.guarded(name, JSON, initial=0).write()
    guard.value = 1
    two.force_release(name, reason="for the test")
    wait_until(lambda: not guard.is_valid)
    with pytest.raises(errors.LockRevoked):
        guard.release()
    with two.guarded(name, JSON, initial=0).write() as after:
        assert after.is_poisoned and after.recover() == 0
        after.value = 5
    with pytest.raises(errors.LockRevoked):
        guard.commit()


def test_values_survive_the_core_and_so_does_who_is_inside(tmp_path: Path) -> None:
    with (
        running_daemon(tmp_path) as own,
        towpath.connect(str(own.socket)) as one,
        towpath.connect(str(own.socket)) as two,
    ):
        durable = one.guarded("a", JSON, initial=0, durable=True)
        with durable.write() as guard:
            guard.value = 1
        guard = durable.write()
        guard.value += 1
        own.kill_core()
        guard.release()  # waits until the core is back
        with two.guarded("a", JSON).read(DEADLINE_S) as reader:
            assert (reader.value, reader.written_by) == (2, guard.token)


def test_many_of_one_program(daemon: DaemonHandle, name: str) -> None:
    """Each thread is an owner of its own; a handle serves all of them."""
    with towpath.connect(str(daemon.socket)) as client, ThreadPoolExecutor(4) as threads:
        counter = client.guarded(name, JSON, initial=0)

        def count(_: int) -> int:
            with counter as guard:
                guard.value += 1
                return os.getpid()

        list(threads.map(count, range(40)))
        with counter.read() as guard:
            assert guard.value == 40


def test_tasks_of_one_program(daemon: DaemonHandle, name: str) -> None:
    async def count_all() -> int:
        async with await towpath.aio.connect(str(daemon.socket)) as client:
            counter = client.guarded(name, JSON, initial=0)

            async def count() -> None:
                async with counter as guard:
                    guard.value += 1

            await asyncio.gather(*(count() for _ in range(40)))
            async with await counter.read() as guard:
                return int(guard.value)

    assert asyncio.run(asyncio.wait_for(count_all(), DEADLINE_S)) == 40
