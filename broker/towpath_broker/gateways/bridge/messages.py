"""Between a channel and a mechanism that keeps messages apart by itself, and knows a number beside each.

Theory of operation
    A POSIX message queue has a priority beside each message, a System V one a type: here it is the ``mark``.
    An adapter says how marks and headers become each other; carrying and counting are here.

    Outward a batch is pulled from the channel, pushed whole, and only then the next is pulled. So a full
    mechanism is a subscriber that does not read, and the channel's own overflow policy says what follows: its
    publishers wait, or its ring drops, which is counted here too.

Invariants
    Each message that was pulled is counted as out or as refused; of a queue channel, it is settled after it
    was handed over, or goes back into the queue.
"""

from __future__ import annotations

import ast
import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from towpath.errors import BindingFailed, TowpathError
from towpath.model import NO_HEADERS, Headers
from towpath.wording import plural
from towpath_broker.gateways.bridge.losses import Losses
from towpath_broker.gateways.bridge.ports import Carrier, ReceivedMessage
from towpath_broker.gateways.bridge.publishing import Publishing
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.stop import Stop
from towpath_broker.gateways.bridge.tasks import cancel, raise_first_error

BATCH_COUNT_MAX: Final = 1024
BATCH_BYTES_MAX: Final = 1 << 18
"""One batch, either way."""
FLUSH_S: Final = 1.0
"""How long a full mechanism may still take what was pulled, at the stop."""
FULL_S: Final = 0.5
"""How long it may be full before the binding is said to wait: not for each moment under load."""


class MessageInflow:
    """From a mechanism into a channel.

    Args:
        carrier: the channel.
        tally: the binding's account.
        headers_of: the headers that a mark means; None for none.
        mark_of: the mark that headers mean: the way back.
        hands_over: as for :class:`Publishing`.
    """

    def __init__(
        self,
        carrier: Carrier,
        tally: Tally,
        headers_of: Callable[[int], Headers | None],
        mark_of: Callable[[Headers], int],
        *,
        hands_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._publishing = Publishing(carrier, tally, hands_over=hands_over)
        self._headers_of = headers_of
        self._mark_of = mark_of

    async def publish(self, messages: Sequence[tuple[bytes, int]]) -> None:
        """Publish what was taken from the mechanism, in order.

        Raises:
            TowpathError: the channel takes no more; what was not published was counted.
        """
        if not messages:
            return
        headers = [self._headers_of(mark) for _, mark in messages]
        await self._publishing.publish(
            [payload for payload, _ in messages], headers if any(headers) else None
        )

    def state(self) -> bytes:
        """Return what was taken and could not be published; empty for nothing."""
        left = self._publishing.left
        headers = self._publishing.left_headers or [None] * len(left)
        if not left:
            return b""
        marks = [self._mark_of(each or NO_HEADERS) for each in headers]
        return repr(list(zip(left, marks, strict=True))).encode()

    async def publish_state(self, state: bytes) -> None:
        """Publish what a predecessor could not.

        Raises:
            TowpathError: as :meth:`publish`.
        """
        if state:
            await self.publish(ast.literal_eval(state.decode()))


class Refused(Exception):
    """Raised by a sink for a message that it does not take and never will; the next one it may."""

    def __init__(self, error: TowpathError) -> None:
        super().__init__(error.message)
        self.error = error


class Sink(Protocol):
    """A mechanism that takes messages; may raise :class:`Refused`."""

    def send_nowait(self, data: bytes, mark: int) -> bool:
        """Send one; False when there is no room."""

    async def send_waiting(self, data: bytes, mark: int, stop: Stop) -> bool:
        """Send one, and wait for room; False when the stop ended it, and it was not sent."""


class MessageOutflow:
    """From a channel into a mechanism that may be closed and opened again meanwhile.

    Args:
        carrier: the channel.
        tally: the binding's account.
        prepare: a message as the mechanism takes it: its pieces, mostly one, and their mark; raises a
            TowpathError for one that cannot be carried.

    Attributes:
        losses: what the channel drops.
    """

    def __init__(
        self,
        carrier: Carrier,
        tally: Tally,
        prepare: Callable[[ReceivedMessage], tuple[Sequence[bytes], int]],
    ) -> None:
        self._carrier = carrier
        self._tally = tally
        self._prepare = prepare
        self._pending: deque[ReceivedMessage] = deque()
        self.losses = Losses(carrier, tally)

    async def run(self, sink: Sink, stop: Stop) -> None:
        """Carry until the stop is set. What was pulled and not sent stays for the next ``run``, or for
        :meth:`flush` and :meth:`abandon`.

        Raises:
            TowpathError: the subscription ended.
            OSError: the mechanism failed.
        """
        while await self._push(sink, stop) and not stop.is_set:
            await self._pull(stop)

    async def flush(self, sink: Sink) -> None:
        """Send what was pulled, as far as there is room within ``FLUSH_S``."""
        stop = Stop()
        timer = asyncio.get_running_loop().call_later(FLUSH_S, stop.set)
        try:
            await self._push(sink, stop)
        finally:
            timer.cancel()

    def abandon(self) -> None:
        """Give up what was pulled and not sent: it is counted as refused; a queue has it back."""
        count = len(self._pending)
        self._pending.clear()
        if count and not self._carrier.is_settled:
            self._tally.refuse(count, BindingFailed(f"{plural(count, 'message')} not sent at the end"))

    async def _pull(self, stop: Stop) -> None:
        pulling = asyncio.create_task(self._carrier.receive_many(BATCH_COUNT_MAX, BATCH_BYTES_MAX))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({pulling, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel(*(task for task in (pulling, stopping) if not task.done()))
        if pulling.cancelled():
            return
        raise_first_error(pulling)
        self._pending.extend(pulling.result())
        self.losses.count()

    async def _push(self, sink: Sink, stop: Stop) -> bool:
        """Send what is pending; False when the stop left some."""
        sent: list[ReceivedMessage] = []
        try:
            while self._pending:
                message = self._pending[0]
                try:
                    pieces, mark = self._prepare(message)
                except TowpathError as error:
                    self._refuse_first(error)
                    continue
                try:
                    for piece in pieces:
                        if sink.send_nowait(piece, mark):
                            continue
                        self._account(sent)
                        if not await self._send_waiting(sink, piece, mark, stop):
                            return False
                except Refused as refused:
                    self._refuse_first(refused.error)
                    continue
                self._pending.popleft()
                sent.append(message)
        finally:
            self._account(sent)
        # What comes without waiting must not keep the loop from the other bindings.
        await asyncio.sleep(0)
        return True

    def _refuse_first(self, error: TowpathError) -> None:
        message = self._pending.popleft()
        self._tally.refuse(1, error)
        self._carrier.reject([message], error)

    async def _send_waiting(self, sink: Sink, piece: bytes, mark: int, stop: Stop) -> bool:
        detail = self._tally.detail
        timer = asyncio.get_running_loop().call_later(
            FULL_S, self._tally.set_state, "waiting", f"full, nobody takes anything; {detail}"
        )
        try:
            return await sink.send_waiting(piece, mark, stop)
        finally:
            timer.cancel()
            if self._tally.state == "waiting":
                self._tally.set_state("running", detail)

    def _account(self, sent: list[ReceivedMessage]) -> None:
        if sent:
            self._tally.count_out(len(sent), sum(len(message.payload) for message in sent))
            self._carrier.settle(sent)
            sent.clear()
