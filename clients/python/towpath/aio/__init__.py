"""The asyncio client: ``await towpath.aio.connect()``. The same as ``towpath``, waiting on an event loop."""

from __future__ import annotations

from towpath.aio.api import AsyncChannel, AsyncClient, AsyncPublisher, AsyncSubscription, AsyncWatch
from towpath.aio.client import connect
from towpath.aio.consuming import AsyncConsumer
from towpath.aio.registry import AsyncRegistry
from towpath.aio.transactions import AsyncTransaction
from towpath.locks.elections_aio import AsyncElection
from towpath.locks.guarded_aio import AsyncGuarded, AsyncReadGuard, AsyncWriteGuard
from towpath.locks.latches import AsyncLatch
from towpath.locks.watching_aio import AsyncLockWatch
from towpath.services.aio_api import AsyncRequest, AsyncServer
from towpath.states.aio import AsyncState, AsyncValueWatch

__all__ = [
    "AsyncChannel",
    "AsyncClient",
    "AsyncConsumer",
    "AsyncElection",
    "AsyncGuarded",
    "AsyncLatch",
    "AsyncLockWatch",
    "AsyncPublisher",
    "AsyncReadGuard",
    "AsyncRegistry",
    "AsyncRequest",
    "AsyncServer",
    "AsyncState",
    "AsyncSubscription",
    "AsyncTransaction",
    "AsyncValueWatch",
    "AsyncWatch",
    "AsyncWriteGuard",
    "connect",
]
