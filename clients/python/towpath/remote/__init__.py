"""The client for a daemon elsewhere: through its gateways, over gRPC or ZeroMQ, with the local client's API.

Theory of operation
    A *carrier* (``zeromq``, ``grpc``) makes a connection to a gateway and offers the calls of ``ports``: ask
    the registry, follow a channel, publish, watch. Everything above it is the same for both: ``session``
    keeps a connection up, ``aio`` has what programs hold, and ``blocking`` the same for threads, which is
    ``aio`` on an event loop in a thread of its own.

    What must be right whatever the timing is sans-I/O: ``inbox`` (what was received, and what was missed) and
    ``outbox`` (what waits to be published, and what became of it).

What is different from afar
    A publish returns when the gateway has acknowledged it; what is published meanwhile goes as one batch.
    A timeout, or a connection that breaks, may leave it unknown whether a message was published: the
    error says so. Between a channel's ring and ``receive`` lie windows, all of them bounded (``inbox``,
    the carriers), so a subscriber that does not read holds up publishers only when these are full.

    When a connection breaks, the session makes a new one, and subscriptions and publishers go on there. What
    was published meanwhile, or was on its way, is reported as missed, by the numbers of each source; nothing
    is handed out twice. Of a source that is first heard of after a reconnection it cannot be known what it
    published before.

Invariants
    ``import towpath`` imports nothing of this. The packages of a carrier are imported when one is used.

Not here: shared memory; the module works where the C extension was not built.

Reading order: ``ports``, ``inbox``, ``outbox``, ``zeromq``, ``grpc``, ``session``, ``following``,
``publishing``, ``aio``, ``blocking``.
"""

from __future__ import annotations
