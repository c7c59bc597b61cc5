"""Locks that not everybody may take, see or take away, over each carrier.

The suite's own programs are administrators where they are local (the daemon's own user), and nobody from afar
is one. Users who are none are in ``tests/door/test_two_users_locks.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

import towpath
from tests.conformance.clients.carriers import Carrier
from tests.conformance.clients.conftest import CLOSED, LENT
from tests.support.deadlines import DEADLINE_S
from towpath import errors


@pytest.fixture
def operator(urls: dict[str, str]) -> Any:
    with towpath.connect(urls["local"]) as client:
        yield client


def judged(carrier: Carrier) -> contextlib.AbstractContextManager[object]:
    """What comes of what only administrators may do."""
    if carrier.deviates("no operators"):
        return pytest.raises(errors.PermissionDenied)
    return contextlib.nullcontext()


def test_who_may_not_take_a_lock_neither_gets_it_nor_waits_for_it(
    connect: Callable[[], Any], carrier: Carrier, operator: towpath.Client, name: str
) -> None:
    closed = f"{CLOSED}.{name}"
    client = connect()
    with judged(carrier):
        client.lock(closed).acquire(DEADLINE_S).release()
    with judged(carrier):
        client.acquire_all(name, closed, timeout=DEADLINE_S).release()
    with judged(carrier):
        client.semaphore(f"{closed}.permits", 2).acquire(1, DEADLINE_S).release()
    with judged(carrier):
        client.barrier(f"{closed}.barrier", 1).wait(DEADLINE_S)
    with operator.lock(closed).acquire(), pytest.raises((errors.PermissionDenied, errors.Timeout)) as refusal:
        client.lock(closed).acquire(0.01)
    assert isinstance(refusal.value, errors.PermissionDenied) == carrier.deviates("no operators")
    assert client.lock(name).acquire(DEADLINE_S).is_valid, "one of the two that were refused together is free"


def test_who_may_not_see_a_lock_is_told_nothing_of_it(
    connect: Callable[[], Any], carrier: Carrier, operator: towpath.Client, name: str
) -> None:
    closed, client = f"{CLOSED}.{name}", connect()
    with operator.acquire_all(name, closed):
        names = {lock.name for lock in client.list_locks().locks}
        assert name in names and (closed in names) != carrier.deviates("no operators")
        told = {lock.name for lock in client.explain_locks().locks}
        assert name in told and (closed in told) != carrier.deviates("no operators")
        with judged(carrier):
            assert client.explain_locks(closed).locks


def test_who_may_take_a_lock_away_need_not_be_an_administrator(
    connect: Callable[[], Any], operator: towpath.Client, name: str
) -> None:
    lent = f"{LENT}.{name}"
    client = connect()
    guard = operator.lock(lent).acquire()
    (taken,) = client.force_release(lent, reason="it is ours")
    assert taken.token == guard.token
    assert client.lock(lent).acquire(DEADLINE_S).token > guard.token
