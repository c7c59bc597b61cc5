"""Messages into a channel, each of them published or counted.

Theory of operation
    What a channel cannot carry is refused and counted first. The rest goes in batches, and who calls waits
    while the channel's subscribers are slow: that is the back-pressure. Several may publish through one of
    these: batches go one after the other, each as a whole.

Invariants
    Each message is counted as in, or as refused, or is in ``left`` for a successor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from towpath.errors import BindingFailed, MessageTooLarge, TowpathError
from towpath.model import Headers
from towpath.wording import plural
from towpath_broker.gateways.bridge.ports import Carrier
from towpath_broker.gateways.bridge.report import Tally

PUBLISH_COUNT_MAX: Final = 8192
"""Messages in one call to the publisher: tiny ones must not keep the event loop for long."""


class Publishing:
    """One mechanism's way into a channel.

    Args:
        carrier: the channel.
        tally: the binding's account.
        hands_over: whether what could not be published when this is cancelled is for a successor, in
            ``left``, instead of being refused.

    Attributes:
        left, left_headers: see ``hands_over``.
    """

    def __init__(
        self, carrier: Carrier, tally: Tally, *, hands_over: Callable[[], bool] = lambda: False
    ) -> None:
        self._carrier = carrier
        self._tally = tally
        self._hands_over = hands_over
        self._turn = asyncio.Lock()
        self.left: Sequence[bytes] = ()
        self.left_headers: Sequence[Headers | None] | None = None

    async def publish(
        self, payloads: Sequence[bytes], headers: Sequence[Headers | None] | None = None
    ) -> None:
        """Publish in order.

        Raises:
            TowpathError: the channel takes no more; what was not published was counted.
        """
        limit = self._carrier.message_bytes_max
        if payloads and len(max(payloads, key=len)) > limit:
            payloads, headers = self._sift(payloads, headers, limit)
        for start in range(0, len(payloads), PUBLISH_COUNT_MAX):
            batch = payloads[start : start + PUBLISH_COUNT_MAX]
            before: int | None = None
            try:
                async with self._turn:
                    before = self._carrier.published_count
                    if headers is None:
                        await self._carrier.publish_many(batch)
                    else:
                        await self._carrier.publish_many(batch, headers[start : start + PUBLISH_COUNT_MAX])
            except (asyncio.CancelledError, TowpathError) as why:
                # The channel has gone, or draining took too long. Some of the batch may have been published.
                after = self._carrier.published_count
                done = after - before if after is not None and before is not None else 0
                self._tally.count_in(done, sum(map(len, batch[:done])))
                left = payloads[start + done :]
                if isinstance(why, asyncio.CancelledError) and after is not None and self._hands_over():
                    self.left, self.left_headers = left, headers and headers[start + done :]
                else:
                    self._tally.refuse(
                        len(left), BindingFailed(f"up to {plural(len(left), 'message')} read and not carried")
                    )
                raise
            self._tally.count_in(len(batch), sum(map(len, batch)))

    def _sift(
        self, payloads: Sequence[bytes], headers: Sequence[Headers | None] | None, limit: int
    ) -> tuple[list[bytes], list[Headers | None] | None]:
        """Keep what the channel can carry, and count the rest."""
        fits = [len(payload) <= limit for payload in payloads]
        too_large = [len(payload) for payload in payloads if len(payload) > limit]
        self._tally.refuse(
            len(too_large),
            MessageTooLarge(f"a message has {too_large[-1]} bytes; the channel carries {limit}"),
        )
        kept = None if headers is None else [each for each, fit in zip(headers, fits, strict=True) if fit]
        return [payload for payload in payloads if len(payload) <= limit], kept
