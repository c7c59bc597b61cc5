"""Towpath's client library: named channels between the programs of a host, and beyond.

    import towpath

    with towpath.connect() as client:
        client.declare("plant.line1.temp")
        with client.subscribe("plant.line1.temp") as temperatures:
            client.channel("plant.line1.temp").publish(b"21.5")
            print(temperatures.receive().payload)

``towpath.aio.connect`` is the same for asyncio. What can go wrong is a ``TowpathError``, one class per
outcome; each is named here too: ``towpath.Timeout``.
"""

from __future__ import annotations

from towpath._version import __version__

TYPE_CHECKING = False  # typing takes longer to import than the rest of this
if TYPE_CHECKING:
    from typing import Any

    from towpath import aio, codecs, tracing
    from towpath._message import Message
    from towpath._value import Value
    from towpath.errors import (
        BadDescriptor,
        BadFrame,
        BarrierBroken,
        BindingConflict,
        BindingFailed,
        BindingNotFound,
        Cancelled,
        ChannelConflict,
        ChannelInUse,
        ChannelNotFound,
        ChannelUndeclared,
        ClaimExceeded,
        Code,
        ConnectionLost,
        CorruptRing,
        Deadlock,
        DeliveryLost,
        Fenced,
        FrameTooLarge,
        InternalError,
        InvalidArgument,
        InvalidConfiguration,
        InvalidName,
        LimitExceeded,
        LockConflict,
        LockHeld,
        LockInUse,
        LockOrder,
        LockRevoked,
        MessageTooLarge,
        NoServer,
        NotHeld,
        NotSupported,
        PermissionDenied,
        Poisoned,
        ProtocolViolation,
        QueueFull,
        QuotaExceeded,
        ServerLost,
        ServiceFailed,
        SessionLost,
        SlowConsumer,
        SourceNotFound,
        StoreDamaged,
        StoreFull,
        SubscriptionInUse,
        SubscriptionNotFound,
        Timeout,
        TowpathError,
        Unauthenticated,
        Unavailable,
        VersionConflict,
        VersionMismatch,
        WaitRefused,
        Wounded,
    )
    from towpath.locks.blocking import Barrier, Guard, Lock, Semaphore
    from towpath.locks.elections import Election, Leader
    from towpath.locks.guarded_blocking import Guarded, ReadGuard, WriteGuard
    from towpath.locks.latches import Latch
    from towpath.locks.spaces import LockSpace
    from towpath.locks.watching import LockEvent, LockWatch
    from towpath.model import (
        BindingInfo,
        BindingReport,
        ChannelContents,
        ChannelInfo,
        GatewayInfo,
        Headers,
        Status,
        WatchEvent,
    )
    from towpath.queues import Delivery
    from towpath.result import Err, Ok, Result
    from towpath.services.api import Request, Server
    from towpath.states.blocking import State, ValueWatch
    from towpath.sync.api import Client, Publisher, Subscription, Watch
    from towpath.sync.channel import Channel
    from towpath.sync.client import connect
    from towpath.sync.consuming import Consumer
    from towpath.sync.transactions import Transaction
    from towpath.transactions import Committed

# Looked up when first used, so that `import towpath` costs next to nothing and `towpath --help` no more.
_HOMES = {
    **dict.fromkeys(("Barrier", "Guard", "Lock", "Semaphore"), "towpath.locks.blocking"),
    **dict.fromkeys(("Guarded", "ReadGuard", "WriteGuard"), "towpath.locks.guarded_blocking"),
    **dict.fromkeys(("Election", "Leader"), "towpath.locks.elections"),
    **dict.fromkeys(("LockEvent", "LockWatch"), "towpath.locks.watching"),
    "Latch": "towpath.locks.latches",
    "LockSpace": "towpath.locks.spaces",
    "Committed": "towpath.transactions",
    "Consumer": "towpath.sync.consuming",
    "Delivery": "towpath.queues",
    "Err": "towpath.result",
    "Ok": "towpath.result",
    "Result": "towpath.result",
    "Transaction": "towpath.sync.transactions",
    "Value": "towpath._value",
    "ValueWatch": "towpath.states.blocking",
    "State": "towpath.states.blocking",
    "Server": "towpath.services.api",
    "Request": "towpath.services.api",
    "Code": "towpath.errors",
    "TowpathError": "towpath.errors",
    "Message": "towpath._message",
    "Channel": "towpath.sync.channel",
    "Client": "towpath.sync.api",
    "Publisher": "towpath.sync.api",
    "Subscription": "towpath.sync.api",
    "Watch": "towpath.sync.api",
    "connect": "towpath.sync.client",
    "BindingInfo": "towpath.model",
    "BindingReport": "towpath.model",
    "ChannelContents": "towpath.model",
    "ChannelInfo": "towpath.model",
    "GatewayInfo": "towpath.model",
    "Headers": "towpath.model",
    "Status": "towpath.model",
    "WatchEvent": "towpath.model",
    **dict.fromkeys(
        (
            "BadDescriptor",
            "BadFrame",
            "BarrierBroken",
            "BindingConflict",
            "BindingFailed",
            "BindingNotFound",
            "Cancelled",
            "ChannelConflict",
            "ChannelInUse",
            "ChannelNotFound",
            "ChannelUndeclared",
            "ClaimExceeded",
            "ConnectionLost",
            "CorruptRing",
            "Deadlock",
            "DeliveryLost",
            "Fenced",
            "FrameTooLarge",
            "InternalError",
            "InvalidArgument",
            "InvalidConfiguration",
            "InvalidName",
            "LimitExceeded",
            "LockConflict",
            "LockHeld",
            "LockInUse",
            "LockOrder",
            "LockRevoked",
            "MessageTooLarge",
            "NoServer",
            "NotHeld",
            "NotSupported",
            "PermissionDenied",
            "Poisoned",
            "ProtocolViolation",
            "QueueFull",
            "QuotaExceeded",
            "ServerLost",
            "ServiceFailed",
            "SessionLost",
            "SlowConsumer",
            "SourceNotFound",
            "StoreDamaged",
            "StoreFull",
            "SubscriptionInUse",
            "SubscriptionNotFound",
            "Timeout",
            "Unauthenticated",
            "Unavailable",
            "VersionConflict",
            "VersionMismatch",
            "WaitRefused",
            "Wounded",
        ),
        "towpath.errors",
    ),
}

_MODULES = ("aio", "codecs", "tracing")

__all__ = [
    "BadDescriptor",
    "BadFrame",
    "Barrier",
    "BarrierBroken",
    "BindingConflict",
    "BindingFailed",
    "BindingInfo",
    "BindingNotFound",
    "BindingReport",
    "Cancelled",
    "Channel",
    "ChannelConflict",
    "ChannelContents",
    "ChannelInUse",
    "ChannelInfo",
    "ChannelNotFound",
    "ChannelUndeclared",
    "ClaimExceeded",
    "Client",
    "Code",
    "Committed",
    "ConnectionLost",
    "Consumer",
    "CorruptRing",
    "Deadlock",
    "Delivery",
    "DeliveryLost",
    "Election",
    "Err",
    "Fenced",
    "FrameTooLarge",
    "GatewayInfo",
    "Guard",
    "Guarded",
    "Headers",
    "InternalError",
    "InvalidArgument",
    "InvalidConfiguration",
    "InvalidName",
    "Latch",
    "Leader",
    "LimitExceeded",
    "Lock",
    "LockConflict",
    "LockEvent",
    "LockHeld",
    "LockInUse",
    "LockOrder",
    "LockRevoked",
    "LockSpace",
    "LockWatch",
    "Message",
    "MessageTooLarge",
    "NoServer",
    "NotHeld",
    "NotSupported",
    "Ok",
    "PermissionDenied",
    "Poisoned",
    "ProtocolViolation",
    "Publisher",
    "QueueFull",
    "QuotaExceeded",
    "ReadGuard",
    "Request",
    "Result",
    "Semaphore",
    "Server",
    "ServerLost",
    "ServiceFailed",
    "SessionLost",
    "SlowConsumer",
    "SourceNotFound",
    "State",
    "Status",
    "StoreDamaged",
    "StoreFull",
    "Subscription",
    "SubscriptionInUse",
    "SubscriptionNotFound",
    "Timeout",
    "TowpathError",
    "Transaction",
    "Unauthenticated",
    "Unavailable",
    "Value",
    "ValueWatch",
    "VersionConflict",
    "VersionMismatch",
    "WaitRefused",
    "Watch",
    "WatchEvent",
    "Wounded",
    "WriteGuard",
    "__version__",
    "aio",
    "codecs",
    "connect",
    "tracing",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"towpath.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'towpath' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
