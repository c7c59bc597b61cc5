"""The asyncio client: ``await towpath.aio.connect()``. The same as ``towpath``, waiting on an event loop."""

from __future__ import annotations

TYPE_CHECKING = False  # as in towpath/__init__.py
if TYPE_CHECKING:
    from typing import Any

    from towpath.aio.api import AsyncClient, AsyncPublisher, AsyncSubscription, AsyncWatch
    from towpath.aio.channel import AsyncChannel
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

# Looked up when first used: services, states and locks build on modules of this package, and the client on
# them.
_HOMES = {
    "AsyncChannel": "towpath.aio.channel",
    "AsyncClient": "towpath.aio.api",
    "AsyncPublisher": "towpath.aio.api",
    "AsyncSubscription": "towpath.aio.api",
    "AsyncWatch": "towpath.aio.api",
    "connect": "towpath.aio.client",
    "AsyncConsumer": "towpath.aio.consuming",
    "AsyncRegistry": "towpath.aio.registry",
    "AsyncTransaction": "towpath.aio.transactions",
    "AsyncElection": "towpath.locks.elections_aio",
    "AsyncGuarded": "towpath.locks.guarded_aio",
    "AsyncReadGuard": "towpath.locks.guarded_aio",
    "AsyncWriteGuard": "towpath.locks.guarded_aio",
    "AsyncLatch": "towpath.locks.latches",
    "AsyncLockWatch": "towpath.locks.watching_aio",
    "AsyncRequest": "towpath.services.aio_api",
    "AsyncServer": "towpath.services.aio_api",
    "AsyncState": "towpath.states.aio",
    "AsyncValueWatch": "towpath.states.aio",
}

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


def __getattr__(name: str) -> Any:
    import importlib

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'towpath.aio' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
