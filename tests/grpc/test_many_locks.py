"""Thousands wait for a lock over one connection, and each gets it in its turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

import towpath
from tests.support.deadlines import DEADLINE_S
from towpath.v1 import locks_pb2, locks_pb2_grpc

WAITERS = 3_000
"""More than gRPC leaves waiting on its own account, and than a connection had calls before."""
SESSIONS = 3
LOCK = "grpc.many"

Request = locks_pb2.KeepLockSessionRequest


class Crowd:
    """The sessions of one connection, and their waits."""

    def __init__(self, connection: grpc.aio.Channel) -> None:
        self._stub: Any = locks_pb2_grpc.LocksStub(connection)
        self._is_over = asyncio.Event()
        self._opened: asyncio.Queue[int] = asyncio.Queue()
        self._keeping = [asyncio.create_task(self._keep()) for _ in range(SESSIONS)]
        self._waiting = 0
        self.do_all_wait = asyncio.Event()
        self.tokens: list[int] = []

    async def _requests(self) -> AsyncIterator[Request]:
        yield Request(open=locks_pb2.OpenLockSession())
        await self._is_over.wait()

    async def _keep(self) -> None:
        async for notice in self._stub.KeepLockSession(self._requests()):
            if notice.HasField("opened"):
                self._opened.put_nowait(notice.opened.session)

    async def _wait(self, session: int, number: int) -> None:
        request = locks_pb2.AcquireRequest(
            owner=locks_pb2.LockOwner(session=session, owner=number),
            request=number,
            locks=[locks_pb2.WantedLock(name=LOCK)],
        )
        async for answer in self._stub.Acquire(request):
            if answer.HasField("waiting"):
                self._waiting += 1
                if self._waiting == WAITERS:
                    self.do_all_wait.set()
            elif answer.HasField("granted"):
                self.tokens.append(answer.granted.grants[0].token)
        await self._stub.Release(locks_pb2.ReleaseRequest(session=session, request=number))

    async def wait(self) -> list[asyncio.Task[None]]:
        """Let all wait."""
        sessions = [await self._opened.get() for _ in range(SESSIONS)]
        numbers = range(1, WAITERS // SESSIONS + 1)
        waits = [self._wait(session, number) for session in sessions for number in numbers]
        return [asyncio.create_task(each) for each in waits]

    async def leave(self) -> None:
        for keeping in self._keeping:
            keeping.cancel()
        await asyncio.wait(self._keeping)


async def _crowded(endpoint: str, client: towpath.Client) -> None:
    held = client.lock(LOCK).acquire()
    async with grpc.aio.insecure_channel(endpoint) as connection:
        crowd = Crowd(connection)
        waits = await crowd.wait()
        await crowd.do_all_wait.wait()
        held.release()
        await asyncio.gather(*waits)
        assert len(crowd.tokens) == WAITERS and crowd.tokens == sorted(set(crowd.tokens))
        await crowd.leave()


def test_thousands_wait_over_one_connection(endpoint: str, client: towpath.Client) -> None:
    asyncio.run(asyncio.wait_for(_crowded(endpoint, client), 2 * DEADLINE_S))
    assert client.lock(LOCK).acquire(DEADLINE_S).is_valid
