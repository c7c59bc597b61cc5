"""The grpc gateway: channels and the registry as gRPC services, for programs on other machines and in other
languages.

Theory of operation
    A process of its own, ``python -m towpath_broker.gateways.grpc``, and an ordinary client of the daemon: it
    publishes and subscribes through the client library's rings like any local program. One event loop serves
    every call; messages cross it in batches, so that neither the loop nor protobuf is paid for message by
    message.

    Reading order: ``settings`` (what can be configured), ``gateway`` (the server's life), ``calls`` (how a
    call ends) and ``services`` (how requests are decoded), ``batches`` and ``window`` (pure), ``channels``,
    ``publishers``, ``registry``, ``watching``, ``health``.

Invariants
    A channel is read only while a remote subscriber is there, and only as fast as that one reads: nothing is
    queued between a ring and a stream but the one batch being written. Whatever a call opened (subscription,
    source) is closed when the call ends, however it ends.

Not here: authentication of remote peers (listening is confined to this host until there is one), Locks.
"""

from __future__ import annotations
