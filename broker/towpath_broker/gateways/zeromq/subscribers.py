"""``sub``: channels read into an XPUB socket, each only while someone subscribes to it.

Theory of operation
    The socket hands up each prefix when its first subscriber comes and when its last one goes.
    :class:`PrefixTable` turns these, and the registry's changes, into channels that are wanted or no
    longer. Each wanted channel has a reader: a task that subscribes, takes batches from the rings and sends
    them. A channel that is undeclared hands out what it still holds, then its reader ends; declared again,
    it gets a new one.

    A subscriber misses what is published between its subscription's arrival here and the answer of the
    core: about a millisecond when the channel was read by nobody, nothing when it was. A program that must
    know subscribes last to ``_towpath.ready.`` and a word of its own: the message of that name comes when
    all it subscribed to before is being read.

A subscriber that does not read
    libzmq queues ``sub_hwm`` messages for it. With ``XPUB_NODROP`` a send that finds a queue full fails
    as a whole, and the channel's reader waits; so the channel's rings fill and its overflow policy
    applies, as with any subscriber. After ``sub_stall_ms`` the message is sent without NODROP: everyone
    else gets it, the full one does not, and from then on libzmq leaves that subscriber out until it has
    read half of its queue. (Tried with libzmq 4.3.5: after one such send 20,000 more went to the other
    subscriber without one EAGAIN.) So one that has stopped costs the others ``sub_stall_ms`` once.

    One that is merely slow comes back and fills up again. Therefore, for ``sub_lossy_ms`` after a stall
    in vain, a full subscriber is waited for only ``_PATIENCE`` times as long as those that kept up needed
    lately (at least a fifth of ``sub_stall_ms``, at most all of it). No wait at all, or a very short one,
    would be wrong: on a busy machine a subscriber that keeps up is full for moments too, and would lose
    with the slow one.

    ``sub_overruns`` counts how often a subscriber began to lose. How many it then lost libzmq does not
    tell; the subscriber sees it exactly, as a gap in seq.

    Where a channel lets its publishers wait for less than that (``stall_ms_max``), one of them may go on
    without this gateway: ``sub_parted`` counts that. What it published meanwhile is lost to all subscribers
    here, who see the gap; then it is followed again.

Invariants
    Messages of one channel leave in the order in which they were received. A message is sent whole or not
    at all: libzmq checks the queues at the first part only.

Not here: what became of a message after libzmq took it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import zmq
import zmq.backend

from towpath.errors import ChannelNotFound, ChannelUndeclared, SlowConsumer, TowpathError
from towpath_broker.gateways._common import GatewayContext, log
from towpath_broker.gateways.zeromq.endpoint import Endpoint
from towpath_broker.gateways.zeromq.messages import META, READY_PREFIX
from towpath_broker.gateways.zeromq.prefixes import PrefixTable
from towpath_broker.gateways.zeromq.registry_feed import catch_up
from towpath_broker.gateways.zeromq.settings import ZeroMQSettings

if TYPE_CHECKING:
    from towpath import Message
    from towpath.aio import AsyncSubscription

PREFIX_BYTES_MAX: Final = 1_024
"""A longer subscription disconnects its peer. Channels' names have at most 255."""

_BATCH: Final = 256
_BATCH_BYTES: Final = 1 << 20
_EVENTS_PER_TURN: Final = 1_000
_OPENING_AT_ONCE: Final = 64
_READY_WAITING_MAX: Final = 1_024
_PATIENCE: Final = 4
_AGAIN_FIRST_S: Final = 0.1
_AGAIN_LAST_S: Final = 5.0

_MORE: Final = int(zmq.SNDMORE | zmq.NOBLOCK)
_LAST: Final = int(zmq.NOBLOCK)
# The method of pyzmq's socket without its Python shell, which costs as much again per part.
_send: Final = zmq.backend.Socket.send


class _Reader:
    """One wanted channel: its task, and whether its subscription stands (or was refused)."""

    __slots__ = ("settled", "task")

    def __init__(self) -> None:
        self.settled = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Subscribers:
    """The ``sub`` endpoint.

    Args:
        gateway: settings, client, counters.
        zmq_context: libzmq's.
        group: the tasks run in it, so that a bug in one ends the process.
    """

    def __init__(
        self,
        gateway: GatewayContext[ZeroMQSettings],
        zmq_context: zmq.Context[zmq.Socket[bytes]],
        group: asyncio.TaskGroup,
    ) -> None:
        self._gateway = gateway
        self._group = group
        self._settings = gateway.settings
        self._table = PrefixTable(gateway.settings.sub_prefixes_max)
        self._readers: dict[bytes, _Reader] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_refused = False
        self._ready_waiting = 0
        self._opening = asyncio.Semaphore(_OPENING_AT_ONCE)
        self._lossy_until_s = 0.0
        self._usual_stall_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._endpoint = Endpoint(
            zmq_context, zmq.XPUB, self._on_readable, heartbeat_ms=gateway.settings.heartbeat_ms
        )
        socket = self._socket = self._endpoint.socket
        socket.setsockopt(zmq.SNDHWM, self._settings.sub_hwm)
        socket.setsockopt(zmq.MAXMSGSIZE, PREFIX_BYTES_MAX)
        socket.setsockopt(zmq.XPUB_NODROP, 1)

    def bind(self) -> str:
        """Listen; return the address as bound."""
        return self._endpoint.bind("sub", self._settings.sub)

    async def close(self, linger_ms: int) -> None:
        """Stop reading channels, then listening."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._endpoint.close(linger_ms)

    # ---- what exists ----

    def channel_declared(self, channel: str) -> None:
        """The registry has this channel now."""
        name = channel.encode()
        if self._table.declare(name):
            self._start(name)

    def channel_undeclared(self, channel: str) -> None:
        """It has it no longer. Its reader hands out what is left, and ends by itself."""
        self._table.undeclare(channel.encode())
        self._readers.pop(channel.encode(), None)

    def channels_replaced(self, channels: Iterable[str]) -> None:
        """The registry was told anew: these are all."""
        _, gone = self._table.replace([channel.encode() for channel in channels])
        for name in gone:
            self._readers.pop(name, None)
        for name in self._table.wanted:
            self._start(name)

    # ---- what is wanted ----

    def _on_readable(self) -> None:
        for _ in range(_EVENTS_PER_TURN):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            event = parts[0]
            if len(parts) == 1 and event[:1] == b"\1":
                self._subscribed(event[1:])
            elif len(parts) == 1 and event[:1] == b"\0":
                self._unsubscribed(event[1:])
            else:
                # An XSUB peer may send messages of its own; nobody here takes them.
                self._gateway.count("sub_ignored")

    def _subscribed(self, prefix: bytes) -> None:
        if prefix.startswith(READY_PREFIX):
            if self._ready_waiting < _READY_WAITING_MAX:
                self._ready_waiting += 1
                self._spawn(self._answer_ready(prefix), "zeromq-ready")
            else:
                self._gateway.count("sub_refused")
            return
        if self._table.is_full and prefix not in self._table.prefixes:
            self._gateway.count("sub_refused")
            log("zeromq.subscription_refused", level="warning", limit="sub_prefixes_max", bytes=len(prefix))
            return
        for name in self._table.subscribe(prefix):
            self._start(name)

    def _unsubscribed(self, prefix: bytes) -> None:
        for name in self._table.unsubscribe(prefix):
            reader = self._readers.pop(name, None)
            if reader is not None and reader.task is not None:
                reader.task.cancel()
        if self._has_refused and len(self._readers) < self._settings.sub_channels_max:
            self._has_refused = False
            for name in self._table.wanted:
                self._start(name)

    async def _answer_ready(self, name: bytes) -> None:
        try:
            await catch_up(self._gateway.client)
            for reader in list(self._readers.values()):
                await reader.settled.wait()
        except TowpathError:
            return  # no daemon, no answer
        finally:
            self._ready_waiting -= 1
        await self._send_one(name, b"", META.pack(0, 0, 0))

    # ---- reading ----

    def _start(self, name: bytes) -> None:
        if name in self._readers:
            return
        if len(self._readers) >= self._settings.sub_channels_max:
            self._has_refused = True
            self._gateway.count("sub_refused")
            log("zeromq.channel_refused", level="warning", limit="sub_channels_max", channel=name.decode())
            return
        reader = self._readers[name] = _Reader()
        reader.task = self._spawn(self._read(name, reader), f"zeromq-sub-{name.decode()}")

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _read(self, name: bytes, reader: _Reader) -> None:
        """Carry one channel until it is gone, or nobody wants it."""
        channel = name.decode()
        pause_s = _AGAIN_FIRST_S
        try:
            while True:
                try:
                    await self._carry(channel, name, reader)
                    pause_s = _AGAIN_FIRST_S
                except (ChannelNotFound, ChannelUndeclared):
                    return  # if it comes back, so does a reader
                except TowpathError as error:
                    # No daemon just now, or a limit: the subscribers are still there.
                    log(
                        "zeromq.subscribe_failed",
                        level="warning",
                        channel=channel,
                        code=error.code.name,
                        message=error.message,
                    )
                    reader.settled.set()
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _AGAIN_LAST_S)
        finally:
            reader.settled.set()
            if self._readers.get(name) is reader:
                del self._readers[name]

    async def _carry(self, channel: str, name: bytes, reader: _Reader) -> None:
        """Carry a channel; returns when a publisher went on without us, to be followed again by subscribing
        anew.
        """
        async with self._opening:
            subscription = await self._gateway.client.subscribe(channel, held_max=0)
        async with subscription:
            reader.settled.set()
            try:
                while True:
                    await self._send_all(
                        name, await subscription.receive_many(_BATCH, bytes_max=_BATCH_BYTES)
                    )
            except SlowConsumer as error:
                self._gateway.count("sub_parted")
                log("zeromq.parted", level="warning", channel=channel, message=error.message)
            # What the other publishers have left for us goes out first.
            while batch := await self._receive_now(subscription):
                await self._send_all(name, batch)

    async def _receive_now(self, subscription: AsyncSubscription) -> list[Message]:
        while True:
            try:
                return await subscription.receive_many(_BATCH, bytes_max=_BATCH_BYTES, timeout=0)
            except SlowConsumer:
                self._gateway.count("sub_parted")  # another one; each is told once

    async def _send_all(self, name: bytes, batch: Sequence[Message]) -> None:
        sent = self._send_batch(name, batch, 0)
        while sent < len(batch):
            message = batch[sent]
            meta = META.pack(message.source, message.seq, message.time_ns) + message.headers_raw
            await self._send_one(name, message.payload, meta)
            sent = self._send_batch(name, batch, sent + 1)
        self._gateway.count("messages_out", len(batch))
        self._endpoint.touch()
        # A channel that never runs dry must not keep the loop from the others.
        await asyncio.sleep(0)

    # ---- sending ----

    def _send_batch(self, name: bytes, batch: Sequence[Message], start: int) -> int:
        """Send messages until one finds a queue full; return the index of that one."""
        socket, pack = self._socket, META.pack
        for index in range(start, len(batch)):
            message = batch[index]
            try:
                _send(socket, name, _MORE)
            except zmq.Again:
                return index
            _send(socket, message.payload, _MORE)
            _send(socket, pack(message.source, message.seq, message.time_ns) + message.headers_raw, _LAST)
        return len(batch)

    async def _send_one(self, name: bytes, payload: bytes, meta: bytes) -> None:
        """Send a message as soon as there is room; after a while, past the queue that is full."""

        def attempt() -> bool:
            try:
                _send(self._socket, name, _MORE)
            except zmq.Again:
                return False
            _send(self._socket, payload, _MORE)
            _send(self._socket, meta, _LAST)
            return True

        if attempt():
            return
        began_s = self._loop.time()
        limit_s = stall_s = self._settings.sub_stall_ms / 1e3
        is_lossy = began_s < self._lossy_until_s
        if is_lossy:
            limit_s = min(stall_s, max(stall_s / 5, _PATIENCE * self._usual_stall_s))
        if await self._endpoint.retry(attempt, limit_s):
            self._usual_stall_s = max(self._loop.time() - began_s, 0.9 * self._usual_stall_s)
            return
        if not is_lossy:
            log("zeromq.slow_subscriber", level="warning", channel=name.decode(), endpoint="sub")
            self._lossy_until_s = self._loop.time() + self._settings.sub_lossy_ms / 1e3
        self._gateway.count("sub_overruns")
        self._socket.setsockopt(zmq.XPUB_NODROP, 0)
        try:
            is_sent = attempt()
        finally:
            self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        assert is_sent, "without NODROP a send does not fail"
        self._endpoint.touch()
