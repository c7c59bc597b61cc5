"""The gateway's life: three endpoints, one watch of the registry, and the order in which they end.

Shutdown: ``push`` takes no new peers, publishes what has arrived (at most ``DRAIN_S``); ``rpc`` ends its
calls with UNAVAILABLE; ``sub`` stops reading channels; what is queued for peers has ``LINGER_MS`` to leave;
sources are closed. What was published stays in the rings.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Final

import zmq

from towpath_broker.gateways._common import GatewayContext, log
from towpath_broker.gateways.zeromq.calls import Calls
from towpath_broker.gateways.zeromq.outlets import Outlets
from towpath_broker.gateways.zeromq.pushes import Pushes
from towpath_broker.gateways.zeromq.registry_feed import RegistryFeed
from towpath_broker.gateways.zeromq.settings import ZeroMQSettings
from towpath_broker.gateways.zeromq.subscribers import Subscribers

DRAIN_S: Final = 2.0
LINGER_MS: Final = 1_000
DESCRIPTORS_MAX: Final = 65_536
"""A peer costs one; a ring or a reader that is read through here, one while it is taken in."""


async def serve(gateway: GatewayContext[ZeroMQSettings]) -> None:
    """Listen, and carry messages until the gateway is told to stop.

    Args:
        gateway: settings, client, counters, and the event that says stop.

    Raises:
        InvalidConfiguration: an endpoint cannot be used, ever.
        Unavailable: an endpoint is in use.
    """
    _raise_descriptor_limit()
    zmq_context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        async with asyncio.TaskGroup() as group:
            outlets = Outlets(gateway.client, gateway.settings.sources_max)
            subscribers = Subscribers(gateway, zmq_context, group)
            pushes = Pushes(gateway, zmq_context, outlets, group)
            feed = RegistryFeed(gateway.client, (subscribers, pushes))
            calls = Calls(gateway, zmq_context, outlets, feed, group)
            endpoints = {"sub": subscribers.bind(), "push": pushes.bind(), "rpc": calls.bind()}
            following = group.create_task(feed.run(), name="zeromq-registry")
            await gateway.listening(endpoints)
            await gateway.stopping.wait()
            try:
                async with asyncio.timeout(DRAIN_S):
                    await pushes.drain()
            except TimeoutError:
                log("zeromq.drain_timeout", level="warning", endpoint="push", seconds=DRAIN_S)
            await calls.close(LINGER_MS)
            await subscribers.close(LINGER_MS)
            following.cancel()
            await outlets.close()
    except BaseExceptionGroup as failures:
        # One cause is the usual case, and decides the exit status.
        if len(failures.exceptions) == 1:
            raise failures.exceptions[0] from None
        raise
    finally:
        # Not `term`, which waits for sockets that a failure may have left open.
        await asyncio.to_thread(zmq_context.destroy)


def _raise_descriptor_limit() -> None:
    """Allow as many connections as the host lets us: libzmq spins on a listener when it cannot accept."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
