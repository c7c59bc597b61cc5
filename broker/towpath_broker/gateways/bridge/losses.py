"""What a channel has dropped before a binding could receive it: counted as refused, once."""

from __future__ import annotations

from towpath.errors import SlowConsumer
from towpath.wording import plural
from towpath_broker.gateways.bridge.ports import Carrier
from towpath_broker.gateways.bridge.report import Tally


class Losses:
    """One binding's.

    Args:
        carrier: the channel.
        tally: the binding's account.
    """

    def __init__(self, carrier: Carrier, tally: Tally) -> None:
        self._carrier = carrier
        self._tally = tally
        self._told = 0

    def count(self) -> None:
        """Count what was dropped since this was asked last."""
        new = self._carrier.lost_count - self._told
        if new > 0:
            self._told += new
            self._tally.refuse(
                new, SlowConsumer(f"{plural(new, 'message')} dropped by the channel while there was no room")
            )
