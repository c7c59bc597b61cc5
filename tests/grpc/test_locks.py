"""The service Locks with nothing but the generated stubs: a foreign program."""

from __future__ import annotations

import contextlib
import itertools
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

import towpath
from tests.grpc.helpers import code_of, error_of, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath.errors import Code
from towpath.v1 import locks_pb2, locks_pb2_grpc

Request = locks_pb2.KeepLockSessionRequest

_numbers = itertools.count(1)


class Session:
    """A lock session, as a foreign program would keep it."""

    def __init__(self, stub: Any, lease_ms: int = 0, *, resumed: int = 0, token: bytes = b"") -> None:
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        opening = locks_pb2.OpenLockSession(
            name="foreign", lease_ms=lease_ms, resumed=resumed, resume_token=token
        )
        self._requests.put(Request(open=opening))
        self.notices = stub.KeepLockSession(iter(self._requests.get, None), timeout=DEADLINE_S)
        self.opened = next(self.notices).opened
        self.id = self.opened.session

    def say(self, request: Request) -> Any:
        """Send something; return the next notice."""
        self._requests.put(request)
        return self.next()

    def next(self) -> Any:
        """The next notice that means something."""
        while (notice := next(self.notices)).WhichOneof("event") is None:
            pass
        return notice

    def acquire(self, stub: Any, name: str, number: int, **options: Any) -> Any:
        request = locks_pb2.AcquireRequest(
            owner=locks_pb2.LockOwner(session=self.id, owner=number),
            request=number,
            locks=[locks_pb2.WantedLock(name=name)],
            **options,
        )
        return stub.Acquire(request, timeout=DEADLINE_S)


@pytest.fixture
def stub(remote: grpc.Channel) -> Any:
    return locks_pb2_grpc.LocksStub(remote)


@pytest.fixture
def other(endpoint: str) -> Iterator[Any]:
    """Another program's stubs."""
    # Without the option gRPC would give both programs one connection.
    options = (("grpc.use_local_subchannel_pool", 1),)
    with grpc.insecure_channel(endpoint, options=options) as connection:
        yield locks_pb2_grpc.LocksStub(connection)


@pytest.fixture
def name() -> str:
    return f"grpc.lock{next(_numbers)}"


def waiters(client: towpath.Client, name: str) -> int:
    return sum(len(lock.waiters) for lock in client.list_locks(name).locks if lock.name == name)


def wait_waiting(client: towpath.Client, name: str, count: int) -> None:
    wait_until(lambda: waiters(client, name) == count, f"{count} wait for {name}")


def test_a_foreign_program_acquires_waits_and_releases(
    stub: Any, other: Any, client: towpath.Client, name: str
) -> None:
    one, two = Session(stub, 60_000), Session(other, 60_000)
    (granted,) = one.acquire(stub, name, 1)
    waiting = two.acquire(other, name, 1)
    assert next(waiting).waiting.waits[0].reason == locks_pb2.WAIT_REASON_HELD
    assert one.say(Request(alive=locks_pb2.LockSessionAlive())).HasField("alive")
    stub.Release(locks_pb2.ReleaseRequest(session=one.id, request=1))
    grant = next(waiting).granted.grants[0]
    assert grant.token > granted.granted.grants[0].token
    assert list(waiting) == []  # the call has ended
    (refused,) = one.acquire(stub, name, 2, timeout_ms=0)
    assert refused.refused.error.code == Code.LOCK_HELD
    assert two.say(Request(close=locks_pb2.CloseLockSession())).HasField("lost")
    assert client.lock(name).acquire(0).is_valid


def test_a_session_belongs_to_the_connection_that_keeps_it(
    stub: Any, other: Any, client: towpath.Client, name: str
) -> None:
    one = Session(stub, 60_000)
    (_,) = one.acquire(stub, name, 1)
    with pytest.raises(grpc.RpcError) as refused:
        other.Release(locks_pb2.ReleaseRequest(session=one.id, request=1))
    assert code_of(refused.value) is grpc.StatusCode.UNAVAILABLE
    assert Code(error_of(refused.value).code) is Code.UNAVAILABLE
    with pytest.raises(grpc.RpcError) as refused:
        list(one.acquire(other, name, 2))
    assert code_of(refused.value) is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.RpcError) as refused:
        Session(other, 60_000, resumed=one.id, token=b"guessed")
    assert code_of(refused.value) is grpc.StatusCode.PERMISSION_DENIED
    assert client.lock(name).acquire_nowait() is None
    taken_up = Session(other, 60_000, resumed=one.id, token=one.opened.resume_token)
    assert [grant.lock for grant in taken_up.opened.grants] == [name]
    with pytest.raises(grpc.RpcError) as lost:
        one.next()
    assert Code(error_of(lost.value).code) is Code.SESSION_LOST
    other.Release(locks_pb2.ReleaseRequest(session=one.id, request=1))
    assert client.lock(name).acquire(DEADLINE_S).is_valid


def test_who_cancels_a_call_waits_no_more_though_the_session_goes_on(
    stub: Any, client: towpath.Client, name: str
) -> None:
    held = client.lock(name).acquire()
    session = Session(stub, 60_000)
    waiting = session.acquire(stub, name, 1)
    wait_waiting(client, name, 1)
    waiting.cancel()
    wait_waiting(client, name, 0)
    held.release()
    (granted,) = session.acquire(stub, name, 2)
    assert granted.granted.grants[0].request == 2


def test_who_cancels_while_it_is_granted_holds_nothing(stub: Any, client: towpath.Client, name: str) -> None:
    session = Session(stub, 60_000)
    for number in range(1, 30):
        held = client.lock(name).acquire(DEADLINE_S)
        waiting = session.acquire(stub, name, number)
        wait_waiting(client, name, 1)
        held.release()
        waiting.cancel()
        with contextlib.suppress(grpc.RpcError):  # NOT_HELD: it was withdrawn in time
            stub.Release(locks_pb2.ReleaseRequest(session=session.id, request=number))
    assert client.lock(name).acquire(DEADLINE_S).is_valid


def test_a_session_without_a_lease_ends_with_its_stream(stub: Any, client: towpath.Client, name: str) -> None:
    session = Session(stub)
    (_,) = session.acquire(stub, name, 1)
    session.notices.cancel()
    assert client.lock(name).acquire(DEADLINE_S).is_valid


def test_a_session_that_says_nothing_runs_out(stub: Any, client: towpath.Client, name: str) -> None:
    session = Session(stub, 1_000)
    (_,) = session.acquire(stub, name, 1)
    assert client.lock(name).acquire(DEADLINE_S).is_valid
    assert session.next().lost.error.code == Code.SESSION_LOST


@pytest.mark.parametrize("first", [Request(), Request(alive=locks_pb2.LockSessionAlive())])
def test_a_stream_begins_with_open(stub: Any, first: Request) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        next(stub.KeepLockSession(iter([first])))
    assert Code(error_of(refused.value).code) is Code.INVALID_ARGUMENT


def test_opened_twice_is_a_violation(stub: Any) -> None:
    session = Session(stub, 60_000)
    with pytest.raises(grpc.RpcError) as refused:
        session.say(Request(open=locks_pb2.OpenLockSession()))
    assert Code(error_of(refused.value).code) is Code.PROTOCOL_VIOLATION


def test_nobody_from_afar_is_an_operator(stub: Any, client: towpath.Client, name: str) -> None:
    with client.lock(name):
        for call, request in (
            (stub.ForceRelease, locks_pb2.ForceReleaseRequest(name=name)),
            (stub.DefineLockSpace, locks_pb2.DefineLockSpaceRequest(space=locks_pb2.LockSpace(prefix=name))),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call(request)
            assert code_of(refused.value) is grpc.StatusCode.PERMISSION_DENIED
