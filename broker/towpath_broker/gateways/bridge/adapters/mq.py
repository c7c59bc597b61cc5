"""``mq:/NAME``: a POSIX message queue, for programs that know mq_send(3) and mq_receive(3).

Theory of operation
    The queue's descriptor is in the event loop: nothing is polled, and there is no thread. ``in`` takes what
    is there, publishes it as a batch, and only then takes more; ``out`` sends what comes, and while the queue
    is full pulls nothing from the channel, whose overflow policy says what follows.

    A queue that is removed under us is emptied (``in``) and, with ``create``, made anew at once.

What users should know
    *Priorities*: 0 to 31 is the header ``priority``; above, the header is 31 and the user header
    ``mq.priority`` has the number. Outward ``mq.priority`` goes before ``priority``. Within the queue a
    higher priority overtakes; messages of one priority keep their order. A queue has no place for other
    headers: they are not carried.
    *Life*: a queue outlives the programs that use it, the bridge too, and so does what is in it. A queue that
    the bridge made is removed with its binding when it is empty; otherwise it is left as it is.
    *Restart*: what is in the queue waits there. A bridge that is killed (not stopped) loses what it has taken
    and not yet published: at most ``BATCH_COUNT_MAX`` messages.
    *Too large* for an outgoing queue: refused and counted, or cut into pieces with ``split`` (see
    ``splitting``), for a binding with ``split`` on the other side.
    *Unread at the end*: what was sent into a queue and nobody has taken counts as out; it is the queue's.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Sequence
from typing import Final

from towpath.bindings import MqOptions
from towpath.errors import BindingFailed, MessageTooLarge
from towpath.model import Direction, Headers
from towpath_broker.gateways.bridge.inotify import PathWatcher
from towpath_broker.gateways.bridge.keeping import BindingKeeping
from towpath_broker.gateways.bridge.messages import (
    BATCH_BYTES_MAX,
    BATCH_COUNT_MAX,
    MessageInflow,
    MessageOutflow,
)
from towpath_broker.gateways.bridge.mq_queue import PRIORITY_MAX, MqQueue
from towpath_broker.gateways.bridge.ports import Carrier, ReceivedMessage
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.splitting import HEAD_BYTES, Joiner, Splitter
from towpath_broker.gateways.bridge.stop import Stop

PRIORITY_HEADER: Final = "mq.priority"
HEADER_PRIORITY_MAX: Final = 31
REOPEN_AFTER_S: Final = 1.0
"""A queue that was removed is made anew at once if it lasted so long; otherwise after the usual pause."""
_LEFT: Final = "mq left"


@functools.lru_cache(maxsize=256)
def headers_of(priority: int) -> Headers | None:
    """The headers of a message that came with a priority."""
    if priority == 0:
        return None
    if priority <= HEADER_PRIORITY_MAX:
        return Headers(priority=priority)
    return Headers(priority=HEADER_PRIORITY_MAX, user={PRIORITY_HEADER: str(priority)})


def priority_of(headers: Headers) -> int:
    """The priority with which a message goes; a header that is none counts as absent."""
    stated = headers.user.get(PRIORITY_HEADER, "")
    if stated.isascii() and stated.isdecimal() and len(stated) <= 5 and int(stated) <= PRIORITY_MAX:
        return int(stated)
    return headers.priority


class MqAdapter:
    """One message queue, one way.

    Args:
        name: with its slash.
        direction: ``in`` or ``out``.
        options: as parsed.
        carrier: the channel.
        tally: the binding's account.
        watcher: the bridge's.
        keeping: what of the binding outlives the bridge.
    """

    def __init__(
        self,
        name: str,
        direction: Direction,
        options: MqOptions,
        carrier: Carrier,
        tally: Tally,
        watcher: PathWatcher,
        keeping: BindingKeeping,
    ) -> None:
        self._name = name
        self._reads = direction == "in"
        self._options = options
        self._carrier = carrier
        self._tally = tally
        self._watcher = watcher
        self._keeping = keeping

    async def run(self, stop: Stop) -> None:
        """As :meth:`Adapter.run`.

        Raises:
            BindingFailed: the queue cannot be opened, or does not stay.
            TowpathError: the channel takes or gives no more.
        """
        flow = (
            _Reading(self._carrier, self._tally, self._keeping, self._options)
            if self._reads
            else _Writing(self._carrier, self._tally, self._options)
        )
        try:
            await flow.begin()
            while not stop.is_set:
                began_s = asyncio.get_running_loop().time()
                await self._run_once(flow, stop)
                if stop.is_set:
                    break
                lasted_s = asyncio.get_running_loop().time() - began_s
                if lasted_s < REOPEN_AFTER_S or not self._options.create:
                    raise BindingFailed(f"the message queue {self._name} was removed", retryable=True)
                self._tally.count_restart()
        finally:
            flow.end()

    async def _run_once(self, flow: _Reading | _Writing, stop: Stop) -> None:
        """Carry until the stop, or until the queue is removed."""
        queue = MqQueue(self._name, reads=self._reads, options=self._options, keeping=self._keeping)
        try:
            ending = stop.child()
            watch = queue.watch(self._watcher, ending)
            try:
                try:
                    flow.check(queue)
                except BindingFailed:
                    queue.unmake()
                    raise
                self._tally.set_state("running", queue.description)
                await flow.carry(queue, ending)
                if not queue.is_there() or self._keeping.is_over or not self._reads:
                    await flow.carry_rest(queue)
            finally:
                self._watcher.unwatch(watch)
        finally:
            queue.close()


class _Reading:
    """``in``."""

    def __init__(self, carrier: Carrier, tally: Tally, keeping: BindingKeeping, options: MqOptions) -> None:
        self._tally = tally
        self._keeping = keeping
        self._joiner = Joiner(options.split_bytes_max) if options.split else None
        self._told_refused = 0
        self._inflow = MessageInflow(
            carrier, tally, headers_of, priority_of, hands_over=lambda: keeping.hands_over
        )

    def check(self, queue: MqQueue) -> None:
        """Any queue will do."""

    async def begin(self) -> None:
        """Carry what a predecessor had taken."""
        await self._inflow.publish_state(self._keeping.take_bytes(_LEFT))

    async def carry(self, queue: MqQueue, stop: Stop) -> None:
        """Carry what comes."""
        while not stop.is_set:
            if not await self._carry_batch(queue):
                await stop.readable(queue.descriptor)

    async def carry_rest(self, queue: MqQueue) -> None:
        """Carry what is in the queue now; at most one queue's content, however fast someone sends."""
        left = queue.maxmsg
        while left > 0 and (taken := await self._carry_batch(queue)):
            left -= taken

    def end(self) -> None:
        """Leave what was taken and could not be published to a successor."""
        state = self._inflow.state()
        if state:
            self._keeping.store_bytes(_LEFT, state)
        if self._joiner is not None:
            self._joiner.end()
            self._tell_refused()

    async def _carry_batch(self, queue: MqQueue) -> int:
        """Take what is there and publish it; return how many were taken."""
        # Gives the other bindings their turn: a fast writer alone would never let the loop go on.
        await asyncio.sleep(0)
        batch = queue.receive_nowait(BATCH_COUNT_MAX, BATCH_BYTES_MAX)
        taken = len(batch)
        if self._joiner is not None:
            batch = [
                (whole, mark)
                for piece, mark in batch
                if (whole := self._joiner.feed(piece, mark)) is not None
            ]
            self._tell_refused()
        await self._inflow.publish(batch)
        return taken

    def _tell_refused(self) -> None:
        assert self._joiner is not None
        new = self._joiner.refused - self._told_refused
        if new:
            assert self._joiner.last_error is not None
            self._told_refused += new
            self._tally.refuse(new, self._joiner.last_error)


class _Writing:
    """``out``."""

    def __init__(self, carrier: Carrier, tally: Tally, options: MqOptions) -> None:
        self._options = options
        self._splitter: Splitter | None = None
        self._msgsize = 0
        self._outflow = MessageOutflow(carrier, tally, self._prepare)

    def check(self, queue: MqQueue) -> None:
        """Take the queue's limits for one's own.

        Raises:
            BindingFailed: the pieces of a message would not fit.
        """
        self._msgsize = queue.msgsize
        if self._options.split:
            if queue.msgsize <= HEAD_BYTES:
                raise BindingFailed(
                    f"the message queue {queue.name} takes {queue.msgsize} bytes; split=true needs more than"
                    f" {HEAD_BYTES}"
                )
            self._splitter = Splitter(queue.msgsize, secrets.randbits(32))

    async def begin(self) -> None:
        """Nothing is left by a predecessor."""

    async def carry(self, queue: MqQueue, stop: Stop) -> None:
        """Carry what comes."""
        await self._outflow.run(queue, stop)

    async def carry_rest(self, queue: MqQueue) -> None:
        """Send what was pulled; not into a queue that was removed, whose successor will have it."""
        if queue.is_there():
            await self._outflow.flush(queue)

    def end(self) -> None:
        """Give up what was not sent."""
        self._outflow.abandon()

    def _prepare(self, message: ReceivedMessage) -> tuple[Sequence[bytes], int]:
        payload = message.payload
        mark = priority_of(message.headers) if message.headers_raw else 0
        if self._splitter is not None:
            if len(payload) > self._options.split_bytes_max:
                raise MessageTooLarge(
                    f"a message has {len(payload)} bytes; split_bytes_max is {self._options.split_bytes_max}"
                )
            return self._splitter.split(payload), mark
        if len(payload) > self._msgsize:
            raise MessageTooLarge(
                f"a message has {len(payload)} bytes; the queue takes {self._msgsize}",
                hint="a queue made with a larger msgsize; or split=true where a binding reads it",
            )
        return (payload,), mark
