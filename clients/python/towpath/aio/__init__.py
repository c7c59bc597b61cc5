"""The asyncio client: ``await towpath.aio.connect()``. The same as ``towpath``, waiting on an event loop."""

from __future__ import annotations

from towpath.aio.client import AsyncClient, connect
from towpath.aio.messages import AsyncChannel, AsyncPublisher, AsyncSubscription
from towpath.aio.registry import AsyncRegistry
from towpath.aio.watching import AsyncWatch

__all__ = [
    "AsyncChannel",
    "AsyncClient",
    "AsyncPublisher",
    "AsyncRegistry",
    "AsyncSubscription",
    "AsyncWatch",
    "connect",
]
