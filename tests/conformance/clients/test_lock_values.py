"""What locks offer beyond taking them, over each carrier and with both clients: values that they own,
latches, elections, watches, lock spaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

import towpath
from tests.support.daemon import DaemonHandle, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.codecs import JSON
from towpath.locks.watching import LockEvent
from towpath.result import Ok

Connect = Callable[[], Any]


class Account(msgspec.Struct):
    owner: str
    balance: int = 0


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(8)
    yield executor
    executor.shutdown(wait=False)


@pytest.fixture
def operator(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    """The daemon's own user, on its host."""
    with towpath.connect(str(daemon.socket)) as client:
        yield client


# ---- values ------------------------------------------------------------------------------------------------


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


def test_a_grant_that_was_taken_away_poisons_and_the_next_must_say_recover(
    connect: Connect, name: str, operator: towpath.Client
) -> None:
    one, two = connect(), connect()
    guard = one.guarded(name, JSON, initial=0).write()
    operator.force_release(name, reason="for the test")
    with two.guarded(name, JSON, initial=0).write(DEADLINE_S) as after:
        assert after.is_poisoned
        with pytest.raises(errors.Poisoned):
            _ = after.value
        assert after.recover() == 0
        after.value = 5
    with pytest.raises((errors.LockRevoked, errors.NotHeld)):
        guard.value = 1
        guard.commit()
    with two.guarded(name, JSON, initial=0).read() as reader:
        assert reader.value == 5


# ---- latches, elections, watches ---------------------------------------------------------------------------


def test_a_latch_opens_once_when_it_has_been_counted_down(
    connect: Connect, name: str, threads: ThreadPoolExecutor
) -> None:
    one, two = connect(), connect()
    with pytest.raises(errors.LockHeld):
        one.latch(name, 3).wait(0)
    waits = [threads.submit(connect().latch(name, 3).wait) for _ in range(2)]
    assert one.latch(name, 3).count_down() is False
    with pytest.raises(errors.Timeout):
        one.latch(name, 3).wait(0.01)
    with pytest.raises(errors.LockConflict):
        two.latch(name, 2).count_down()
    with pytest.raises(errors.LockConflict):
        two.barrier(name, 3).wait(0)
    arrived = threads.submit(two.latch(name, 3).arrive)
    one.latch(name, 3).count_down()
    assert arrived.result(DEADLINE_S) in (1, 2)
    for wait in waits:
        wait.result(DEADLINE_S)
    one.latch(name, 3).wait(0)  # it stays open
    assert one.latch(name, 3).count_down() is True
    with pytest.raises(errors.InvalidName):
        one.latch("a b", 3)
    with pytest.raises(errors.InvalidArgument):
        one.latch(f"{name}.other", 0).count_down()


def test_who_leaves_a_latch_breaks_nothing(connect: Connect, name: str) -> None:
    one, two = connect(), connect()
    with pytest.raises(errors.Timeout):
        one.latch(name, 2).arrive(0.01)  # counted all the same
    assert two.latch(name, 2).count_down() is True


def test_what_happens_to_locks_is_told_in_order(
    connect: Connect, name: str, operator: towpath.Client
) -> None:
    one, two = connect(), connect()
    held = one.lock(f"{name}.held").acquire()
    watch = two.watch_locks(name)
    assert watch.receive(DEADLINE_S) == LockEvent("held", one.list_locks(name).locks[0].holders[0])
    with pytest.raises(errors.Timeout):
        watch.receive(0.01)
    for number in range(3):
        guard = one.lock(f"{name}.l{number}").acquire(shared=True)
        event = watch.receive(DEADLINE_S)
        assert (event.kind, event.grant.lock, event.grant.token) == ("granted", guard.name, guard.token)
        guard.release()
        event = watch.receive(DEADLINE_S)
        assert (event.kind, event.reason, event.grant.token) == ("released", "released", guard.token)
    operator.force_release(held.name)
    assert watch.receive(DEADLINE_S).reason == "forced"
    watch.close()
    with pytest.raises(errors.ConnectionLost):
        watch.receive()
    assert list(watch) == []


def test_one_leads_and_the_next_is_told(connect: Connect, name: str, threads: ThreadPoolExecutor) -> None:
    one, two = connect(), connect()
    assert one.election(name).leader() is None
    first = one.election(name).campaign("one")
    terms = iter(two.election(name).watch())
    told = next(terms)
    assert (told.term, told.note) == (first.token, "one")
    second = threads.submit(connect().election(name).campaign, "two")
    first.release()
    elected = second.result(DEADLINE_S)
    told = next(terms)
    told = next(terms) if told is None else told  # between the two there may have been nobody
    assert (told.term, told.note) == (elected.token, "two")
    elected.release()
    assert next(terms) is None
    terms.close()


def test_spaces_and_claims(connect: Connect, name: str, operator: towpath.Client) -> None:
    operator.declare_lock_space(name, policy="banker", units={f"{name}.cpu": 2})
    client = connect()
    (space,) = [each for each in client.lock_spaces() if each.name == name]
    assert (space.policy, space.units) == ("banker", {f"{name}.cpu": 2})
    with pytest.raises(errors.ClaimExceeded):
        client.semaphore(f"{name}.cpu").acquire(1, 0)
    with pytest.raises(errors.ClaimExceeded):
        client.claim({f"{name}.cpu": 3})
    client.claim({f"{name}.cpu": 2})
    with pytest.raises(errors.LockInUse):
        operator.remove_lock_space(name)
    client.close()  # its claims end with its session
    wait_until(lambda: isinstance(operator.try_remove_lock_space(name), Ok))
