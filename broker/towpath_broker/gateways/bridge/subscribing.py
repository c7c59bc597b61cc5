"""An outgoing binding's subscription to a topic, which goes on where the bridge before this one had come to.

Theory of operation
    What there is of a subscription is its control page, memory of ours in which it says how far each
    publisher's ring was read, and a proof for the core that it is ours. Both are kept (``keeping``). A bridge
    that comes after one that was killed, or after a restart of the service, goes on with that page, as any
    client does after a reconnection. Publishers whose rings are full wait for it, up to the core's
    ``RETURN_MS``. After that, and where nobody is waited for, what was published meanwhile is still in their
    rings, unless it was more than fits; then the binding is told that it was too slow, as any subscriber is.

Invariants
    A page has one reader: it is kept for who comes next, and forgotten when the subscription was closed.

Not here: what the bridge had received and not yet handed on. It is gone when the bridge is killed; at a stop
it is the adapter's to hand over.
"""

from __future__ import annotations

import os
from typing import Final

from towpath.ends import KeptReader
from towpath.errors import TowpathError
from towpath_broker.gateways.bridge.keeping import BindingKeeping
from towpath_broker.gateways.bridge.ports import Client, Subscription
from towpath_broker.log import log

_PAGE: Final = "page"
_PROOF: Final = "proof"


async def subscribe(client: Client, channel: str, origin: str, keeping: BindingKeeping) -> Subscription:
    """Subscribe, or take up what a predecessor has left, and have it kept.

    Raises:
        TowpathError: the channel is gone, or the daemon refuses.
    """
    subscription = await _take_up(client, channel, origin, keeping)
    if subscription is None:
        subscription = await client.subscribe(channel, exclude_origin=origin, held_max=0)
    if keeping.keeps:
        kept = subscription.keep()
        keeping.store(_PAGE, kept.page, is_all=False)
        os.close(kept.page)
        keeping.store_bytes(_PROOF, b"%d %b" % (kept.id, kept.token.hex().encode()), is_all=False)
    return subscription


def forget(keeping: BindingKeeping) -> None:
    """The subscription was closed: nobody is to go on with it."""
    for what in (_PAGE, _PROOF):
        keeping.forget(what)


async def _take_up(client: Client, channel: str, origin: str, keeping: BindingKeeping) -> Subscription | None:
    page, proof = keeping.take(_PAGE), keeping.take_bytes(_PROOF).split()
    if page < 0:
        return None
    try:
        if len(proof) == 2:
            kept = KeptReader(int(proof[0]), bytes.fromhex(proof[1].decode()), page)
            subscription = await client.take_up(channel, kept, exclude_origin=origin)
            log("bridge.taken_up", channel=channel, origin=origin)
            return subscription
    except TowpathError as error:
        log("bridge.not_taken_up", level="warning", channel=channel, origin=origin, message=error.message)
    finally:
        os.close(page)
    return None
