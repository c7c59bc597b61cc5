"""The asyncio client: ``await towpath.aio.connect()``. The same as ``towpath``, waiting on an event loop."""

from __future__ import annotations

from towpath.aio.api import AsyncChannel, AsyncClient, AsyncPublisher, AsyncSubscription, AsyncWatch
from towpath.aio.client import connect
from towpath.aio.registry import AsyncRegistry

__all__ = [
    "AsyncChannel",
    "AsyncClient",
    "AsyncPublisher",
    "AsyncRegistry",
    "AsyncSubscription",
    "AsyncWatch",
    "connect",
]
