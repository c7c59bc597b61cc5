"""What was received from a channel, framed for a mechanism; what cannot be is refused and counted."""

from __future__ import annotations

from collections.abc import Sequence

from towpath.framing import Encoder
from towpath_broker.gateways.bridge.ports import Carrier, ReceivedMessage
from towpath_broker.gateways.bridge.report import Tally


class Framer:
    """One channel's messages, on their way out.

    Args:
        encoder: how they lie in the mechanism.
        carrier: the channel.
        tally: the binding's account.
    """

    def __init__(self, encoder: Encoder, carrier: Carrier, tally: Tally) -> None:
        self._encoder = encoder
        self._carrier = carrier
        self._tally = tally
        self._told_refused = 0

    def frame(self, messages: Sequence[ReceivedMessage]) -> list[bytes]:
        """Return a frame for each message that can be carried, in order.

        Args:
            messages: of a queue one at a time, so that it can be told which is rejected.
        """
        frames = self._encoder.encode([message.payload for message in messages])
        new = self._encoder.refused - self._told_refused
        if new:
            assert self._encoder.last_error is not None
            self._told_refused += new
            self._tally.refuse(new, self._encoder.last_error)
            self._carrier.reject(messages, self._encoder.last_error)
        return frames
