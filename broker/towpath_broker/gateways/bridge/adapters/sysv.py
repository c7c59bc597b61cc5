"""``sysv:KEY``: a System V message queue, for programs that know msgsnd(2) and msgrcv(2).

Theory of operation
    The bridge takes and sends without waiting. Only when the queue is empty (or full) does a helper process
    wait in the kernel in its place, for one message, because such a queue has no descriptor that could be
    waited for (``sysv_waiter`` says more). So an idle binding costs no processor time, and a busy one no
    second process's.

    A queue that is removed under us is made anew, with ``create``.

What users should know
    *Types*: a message's type is the user header ``sysv.type``; outward, a message without one has the option
    ``type``. With ``receive_type`` only messages of that type are taken; direction ``both`` needs it, so that
    the binding does not take back what it sent. Other headers are not carried.
    *KEY* is the number that the program gives to msgget(2), as ipcs(1) shows it, or PATH:PROJECT as it gives
    them to ftok(3).
    *Life*: a queue outlives the programs that use it, and the bridge. One that the bridge made is removed
    with its binding when it is empty.
    *Restart*: what is in the queue waits there. A bridge that is killed (not stopped) loses what it has taken
    and not yet published: at most ``BATCH_COUNT_MAX`` messages and one.
    *Bounds*: kernel.msgmax for a message, kernel.msgmnb for all in a queue, kernel.msgmni for queues.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Final

from towpath.bindings import SysvOptions
from towpath.errors import InvalidArgument, MessageTooLarge
from towpath.model import Direction, Headers
from towpath_broker.gateways.bridge.keeping import BindingKeeping
from towpath_broker.gateways.bridge.messages import (
    BATCH_BYTES_MAX,
    BATCH_COUNT_MAX,
    MessageInflow,
    MessageOutflow,
)
from towpath_broker.gateways.bridge.ports import Carrier, ReceivedMessage
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.stop import Stop
from towpath_broker.gateways.bridge.sysv_helper import QueueGone, SysvHelper, message_of, was_sent
from towpath_broker.gateways.bridge.sysv_queue import TYPE_LIMIT, SysvQueue
from towpath_broker.gateways.bridge.tasks import together

TYPE_HEADER: Final = "sysv.type"
REOPEN_AFTER_S: Final = 1.0
"""A queue that was removed is made anew at once if it lasted so long; otherwise after the usual pause."""
_LEFT: Final = "sysv left"


@functools.lru_cache(maxsize=256)
def headers_of(kind: int) -> Headers:
    """The headers of a message that came with a type."""
    return Headers(user={TYPE_HEADER: str(kind)})


class SysvAdapter:
    """One System V message queue.

    Args:
        place: as in the URL.
        direction: ``in``, ``out`` or ``both``.
        options: as parsed.
        carrier: the channel.
        tally: the binding's account.
        keeping: what of the binding outlives the bridge.
    """

    def __init__(
        self,
        place: str,
        direction: Direction,
        options: SysvOptions,
        carrier: Carrier,
        tally: Tally,
        keeping: BindingKeeping,
    ) -> None:
        self._place = place
        self._direction = direction
        self._options = options
        self._tally = tally
        self._keeping = keeping
        self._limit_bytes = 0
        self._inflow = MessageInflow(
            carrier, tally, headers_of, self._type_of, hands_over=lambda: keeping.hands_over
        )
        self._outflow = MessageOutflow(carrier, tally, self._prepare)

    async def run(self, stop: Stop) -> None:
        """As :meth:`Adapter.run`.

        Raises:
            BindingFailed: the queue cannot be opened, or does not stay.
            TowpathError: the channel takes or gives no more.
        """
        loop = asyncio.get_running_loop()
        try:
            if self._direction != "out":
                await self._inflow.publish_state(self._keeping.take_bytes(_LEFT))
            while not stop.is_set:
                began_s = loop.time()
                try:
                    await self._run_once(stop)
                except QueueGone:
                    if loop.time() - began_s < REOPEN_AFTER_S or not self._options.create:
                        raise
                    self._tally.count_restart()
        finally:
            state = self._inflow.state()
            if state:
                self._keeping.store_bytes(_LEFT, state)
            self._outflow.abandon()

    async def _run_once(self, stop: Stop) -> None:
        """Carry until the stop."""
        queue = SysvQueue(self._place, options=self._options, keeping=self._keeping)
        self._limit_bytes = queue.message_bytes_max
        self._tally.set_state("running", queue.description)
        ways = [self._read(queue, stop)] if self._direction != "out" else []
        if self._direction != "in":
            ways.append(self._write(queue, stop))
        try:
            await together(*ways)
        finally:
            queue.close()

    async def _read(self, queue: SysvQueue, stop: Stop) -> None:
        helper = SysvHelper(queue.key, queue.identifier, queue.message_bytes_max)
        kind = self._options.receive_type
        try:
            while not stop.is_set:
                if not await self._carry_batch(queue):
                    message = await helper.receive(kind, stop)
                    if message is not None:
                        await self._inflow.publish([message])
            last = message_of(await helper.close())
            if last is not None:
                await self._inflow.publish([last])
            if self._keeping.is_over and queue.was_made:
                left = queue.waiting_count
                while left > 0 and (taken := await self._carry_batch(queue)):
                    left -= taken
        finally:
            helper.kill()

    async def _carry_batch(self, queue: SysvQueue) -> int:
        # Gives the other bindings their turn: a fast writer alone would never let the loop go on.
        await asyncio.sleep(0)
        batch = queue.receive_nowait(self._options.receive_type, BATCH_COUNT_MAX, BATCH_BYTES_MAX)
        await self._inflow.publish(batch)
        return len(batch)

    async def _write(self, queue: SysvQueue, stop: Stop) -> None:
        sink = _Sink(queue)
        try:
            await self._outflow.run(sink, stop)
            await self._outflow.flush(sink)
        finally:
            sink.kill()

    def _prepare(self, message: ReceivedMessage) -> tuple[Sequence[bytes], int]:
        payload = message.payload
        if len(payload) > self._limit_bytes:
            raise MessageTooLarge(
                f"a message has {len(payload)} bytes; the queue takes {self._limit_bytes}",
                hint="root can raise kernel.msgmax and kernel.msgmnb",
            )
        return (payload,), self._type_of(message.headers) if message.headers_raw else self._options.type

    def _type_of(self, headers: Headers) -> int:
        stated = headers.user.get(TYPE_HEADER)
        if stated is None:
            return self._options.type
        if stated.isascii() and stated.isdecimal() and len(stated) <= 19 and 0 < int(stated) <= TYPE_LIMIT:
            return int(stated)
        raise InvalidArgument(
            f"the header {TYPE_HEADER} of a message is no type of a message: {stated[:32]!r}",
            hint=f"a whole number from 1 to {TYPE_LIMIT}",
        )


class _Sink:
    """An outgoing queue, and the helper for when it is full."""

    def __init__(self, queue: SysvQueue) -> None:
        self._queue = queue
        self._helper = SysvHelper(queue.key, queue.identifier, queue.message_bytes_max)

    def send_nowait(self, data: bytes, mark: int) -> bool:
        """As :meth:`Sink.send_nowait`."""
        return self._queue.send_nowait(data, mark)

    async def send_waiting(self, data: bytes, mark: int, stop: Stop) -> bool:
        """As :meth:`Sink.send_waiting`."""
        if stop.is_set:
            return False
        return await self._helper.send(data, mark, stop) or was_sent(await self._helper.close())

    def kill(self) -> None:
        """End the helper; it has nothing in its hands that is not counted as not sent."""
        self._helper.kill()
