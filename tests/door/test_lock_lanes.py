"""Lock lanes at the door: who gets one, and what becomes of who writes there what no client writes."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import towpath
from tests.door.raw import RawClient
from tests.support.daemon import DaemonHandle, wait_until
from towpath import _ring, wire
from towpath.errors import Code
from towpath.v1 import locks_pb2, registry_pb2
from towpath.v1.frame_pb2 import Frame

TAIL, AWAKE, ANSWERS, CELLS = 64, 136, 192, 1216
ASK, GIVE_BACK = 1, 2
GRANTED, ELSEWHERE = 1, 2


class Raw(RawClient):
    """One with a lock session and a lane, of which it writes the memory itself."""

    def __init__(self, path: Path, *, lease_ms: int = 0) -> None:
        super().__init__(path)
        opening = locks_pb2.OpenLockSession(name="raw", lease_ms=lease_ms)
        answer = self.ask(
            Frame(id=2, keep_lock_session_request=locks_pb2.KeepLockSessionRequest(open=opening))
        )
        self.lock_session = answer.keep_lock_session_response.opened.session
        self.frames = 2
        self._calls = 10
        self.said = 0

    def open_lane(self, session: int | None = None) -> Frame:
        """Ask for a lane; its answer."""
        answer, owned = self.asked(
            Frame(open_lock_lane_request=locks_pb2.OpenLockLaneRequest(session=session or self.lock_session))
        )
        if owned:
            self.page = mmap.mmap(owned[0].fd, 8192)
        return answer

    def asked(self, frame: Frame) -> tuple[Frame, list[wire.Descriptor]]:
        self._calls += 1
        self.frames += 1
        frame.id = self._calls
        self.send(frame)
        while (got := self.receive_all())[0].id != frame.id:
            pass
        return got

    def say(
        self,
        kind: int,
        number: int,
        asked: bytes = b"",
        *,
        size: int | None = None,
        frames: int | None = None,
    ) -> int:
        """Write a cell, whatever the core does; its index."""
        cell = struct.pack(
            "<QQIIQ",
            number,
            self.frames if frames is None else frames,
            kind,
            len(asked) if size is None else size,
            0,
        )
        at = self.said % _ring.LANE_CELLS
        begin = CELLS + at * 256
        self.page[begin : begin + 32 + len(asked)] = cell + asked
        self.said += 1
        self.page[TAIL : TAIL + 8] = struct.pack("<Q", self.said)
        return at

    def __enter__(self) -> Raw:
        return self

    def wake(self) -> Frame:
        """Say something by the socket."""
        return self.asked(Frame(list_channels_request=registry_pb2.ListChannelsRequest()))[0]

    def answered(self, at: int) -> tuple[int, int, int]:
        """As ``answer``, once what was said last is answered."""
        wait_until(lambda: self.answer(at)[0] == self.said, lambda: "it is not answered")
        return self.answer(at)

    def answer(self, at: int) -> tuple[int, int, int]:
        """Position, token and result that stand at an index."""
        position, token, _, result = struct.unpack_from("<QQQI", self.page, ANSWERS + at * 64)
        return position, token, result


def acquire(name: str, *, owner: int = 1, capacity: int = 1, **fields: Any) -> bytes:
    request = locks_pb2.AcquireRequest(owner=locks_pb2.LockOwner(owner=owner), **fields)
    request.locks.add(name=name, mode=locks_pb2.LOCK_MODE_PERMITS, weight=1, capacity=capacity)
    return request.SerializeToString()


@pytest.fixture
def raw(daemon: DaemonHandle) -> Iterator[Raw]:
    with Raw(daemon.socket) as client:
        assert client.open_lane().HasField("open_lock_lane_response")
        yield client


@pytest.fixture
def bystander(daemon: DaemonHandle) -> Iterator[None]:
    """Has a lock, and goes on using another, whatever happens beside it."""
    with towpath.connect(str(daemon.socket)) as client:
        held = client.semaphore("door.bystander", 1).acquire()
        yield
        held.check()
        client.semaphore("door.other", 1).acquire().release()


def test_what_is_asked_is_granted_there(raw: Raw) -> None:
    at = raw.say(ASK, 1, acquire("door.lane"))
    raw.wake()
    position, token, result = raw.answered(at)
    assert (position, result) == (1, GRANTED)
    assert token
    raw.say(GIVE_BACK, 1)
    at = raw.say(ASK, 2, acquire("door.lane"))
    raw.wake()
    assert raw.answered(at)[::2] == (3, GRANTED)
    assert raw.answered(at)[1] > token


def test_what_is_not_granted_is_told_by_the_socket(raw: Raw) -> None:
    """By the number, whether it waits or was refused."""
    raw.say(ASK, 1, acquire("door.busy"))
    for number, timeout_ms in ((2, 0), (3, 60_000)):
        at = raw.say(ASK, number, acquire("door.busy", owner=2, timeout_ms=timeout_ms))
        raw.wake()
        assert raw.answered(at)[2] == ELSEWHERE
        again = locks_pb2.AcquireRequest(
            owner=locks_pb2.LockOwner(session=raw.lock_session, owner=2),
            request=number,
            timeout_ms=timeout_ms,
        )
        again.locks.add(name="door.busy", mode=locks_pb2.LOCK_MODE_PERMITS, weight=1, capacity=1)
        answer = raw.asked(Frame(acquire_request=again))[0].acquire_response
        assert answer.WhichOneof("event") == ("waiting" if timeout_ms else "refused")
    raw.say(GIVE_BACK, 1)
    raw.wake()


def test_what_was_said_after_a_frame_is_taken_after_it(raw: Raw) -> None:
    at = raw.say(ASK, 1, acquire("door.order"), frames=raw.frames + 3)
    for _ in range(2):
        raw.wake()
        assert raw.answer(at)[0] == 0
    raw.wake()
    raw.wake()
    assert raw.answered(at)[::2] == (1, GRANTED)


@pytest.mark.parametrize(
    "asked",
    [
        b"\xff" * 40,
        b"",
        acquire("door.elsewhere", is_guarded=1),
        acquire("door.elsewhere", ask=3),
        acquire("door.elsewhere", capacity=0),
        acquire("no name"),
        acquire("") + acquire("door.two"),
    ],
)
def test_what_is_not_for_a_lane_is_told_by_the_socket(raw: Raw, asked: bytes) -> None:
    for number in (1, 2):
        at = raw.say(ASK, number, asked)
        raw.wake()
        assert raw.answered(at)[::2] == (number, ELSEWHERE)


@pytest.mark.parametrize(("kind", "size"), [(0, 0), (7, 0), (ASK, 225), (GIVE_BACK, 0xFFFFFFFF)])
def test_what_no_client_says_ends_its_connection(raw: Raw, bystander: None, kind: int, size: int) -> None:
    raw.say(kind, 1, size=size)
    raw.send(Frame(id=99, list_channels_request=registry_pb2.ListChannelsRequest()))
    assert raw.receive().error.code == int(Code.PROTOCOL_VIOLATION)
    with pytest.raises(EOFError):
        raw.receive()


def test_a_tail_that_cannot_be_ends_its_connection(raw: Raw, bystander: None) -> None:
    raw.page[TAIL : TAIL + 8] = struct.pack("<Q", 1 << 60)
    raw.send(Frame(id=99, list_channels_request=registry_pb2.ListChannelsRequest()))
    assert raw.receive().error.code == int(Code.PROTOCOL_VIOLATION)


def test_it_ends_too_while_the_core_looks_there_by_itself(raw: Raw, bystander: None) -> None:
    for number in range(1, 4):
        raw.say(ASK, number, acquire("door.attended", capacity=9))
        raw.wake()
    raw.say(9, 1)
    raw.send(Frame(id=99, list_channels_request=registry_pb2.ListChannelsRequest()))
    with pytest.raises(EOFError):
        while True:
            raw.receive()


def test_others_requests_are_not_given_back(raw: Raw, daemon: DaemonHandle) -> None:
    with towpath.connect(str(daemon.socket)) as other:
        guard = other.semaphore("door.theirs", 1).acquire()
        for number in range(1, 200):
            raw.say(GIVE_BACK, number)
            if number % _ring.LANE_CELLS == 0:
                raw.wake()
        raw.wake()
        guard.check()
        (lock,) = other.list_locks("door.theirs").locks
        assert lock.holders
        guard.release()


def test_who_gets_a_lane(daemon: DaemonHandle) -> None:
    with Raw(daemon.socket) as one, Raw(daemon.socket) as two, Raw(daemon.socket, lease_ms=5_000) as leased:
        assert one.open_lane(two.lock_session).error.code == int(Code.PERMISSION_DENIED)
        assert one.open_lane(1 << 40).error.code == int(Code.SESSION_LOST)
        assert leased.open_lane().error.code == int(Code.NOT_SUPPORTED)
        assert two.open_lane().HasField("open_lock_lane_response")


def test_another_lane_takes_the_place_of_the_first(raw: Raw, daemon: DaemonHandle) -> None:
    """A connection has one; the core keeps nothing of those before."""
    raw.say(ASK, 1, acquire("door.again"))

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{daemon.core_pid}/fd"))

    raw.open_lane()
    before = descriptors()
    for _ in range(50):
        raw.said = 0
        raw.open_lane()
    assert descriptors() < before + 10
    at = raw.say(GIVE_BACK, 1)
    at = raw.say(ASK, 2, acquire("door.again"))
    raw.wake()
    assert raw.answered(at)[::2] == (2, GRANTED)


def test_what_was_said_last_counts(daemon: DaemonHandle) -> None:
    """A client may give back, and leave at once."""
    with towpath.connect(str(daemon.socket)) as watcher, Raw(daemon.socket) as raw:
        raw.open_lane()
        raw.say(ASK, 1, acquire("door.last"))
        raw.wake()
        raw.say(GIVE_BACK, 1)
        raw.close()
        wait_until(lambda: not watcher.list_locks("door.last").locks, lambda: "it is held")
