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
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
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
        running_daemon(tmp_path, LOCAL_ONLY) as own,
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
