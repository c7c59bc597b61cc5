"""Messages in, bytes or packets out: from a channel to every peer that is connected.

Theory of operation
    One task pulls batches from the channel and frames each once. Of a topic, every peer gets every batch; of
    a queue each message goes to one peer, the one that has least before it. Each peer has a backlog of its
    own and a task that writes it into the peer's socket, so one that is slow holds up no other, until its
    backlog reaches the bound. Then ``when_slow`` decides: ``block`` pulls no more, and the channel sees a
    slow subscriber; ``drop`` drops that peer's oldest messages that are not begun; ``disconnect`` lets that
    peer go.

    While nobody is connected the newest messages up to the same bound are held, and the first who comes gets
    them; what is older is dropped, or not pulled (``when_absent=block``, and always of a queue).

    ::

        channel -> pull -> peer's backlog -> write -> socket -> peer        for each peer
                     \\-> _held, while there is none ---^ (the first who comes)

What is promised
    A message is handed over when a socket has all of it. What a peer that dies had not read from its socket
    goes with it; that it left some is told, how much nobody knows. What the last peer left unsent, a message
    of which it got a part too, waits for the next one: at least once at this edge.

Invariants
    Each message that was pulled is counted as out once, when the first peer has it whole; or as refused, if
    no peer ever has it; and as refused once more for each peer for which it was dropped. Of a queue it is
    settled when a peer has it, or goes back.
    A backlog has at most ``backlog_bytes`` and one batch.

Not here: who connects, and what comes from them.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from towpath.bindings.fifo import WhenAbsent
from towpath.bindings.unix import WhenSlow
from towpath.errors import BindingFailed, MessageTooLarge, SlowConsumer
from towpath.framing import Encoder
from towpath_broker.gateways.bridge.framer import Framer
from towpath_broker.gateways.bridge.losses import Losses
from towpath_broker.gateways.bridge.ports import Carrier, ReceivedMessage
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.stop import Stop
from towpath_broker.gateways.bridge.tasks import cancel, put, raise_first_error

RECEIVE_COUNT_MAX: Final = 4096
RECEIVE_BYTES_MAX: Final = 1 << 18
"""One batch from the channel."""
FLUSH_S: Final = 1.0
"""How long peers may still take what is held, at the stop."""
GATHER_FRAMES: Final = 512
"""Frames in one sendmsg(2); the kernel takes 1024."""
_FRAME_COST_BYTES: Final = 64
"""What a frame costs beyond its bytes, about."""
_SEND: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN, errno.ENOENT})


class _Batch:
    """Frames that go together, shared by the peers that have not had them all.

    Attributes:
        frames: in channel order.
        message: whose frame it is; of a queue only, where a batch is one frame.
        counted: how many, from the front, some peer has had whole.
        holders: how many peers have it in their backlog.
    """

    __slots__ = ("cost_bytes", "counted", "frames", "holders", "message")

    def __init__(self, frames: Sequence[bytes], message: ReceivedMessage | None = None) -> None:
        self.frames = frames
        self.message = message
        self.counted = 0
        self.holders = 0
        self.cost_bytes = sum(map(len, frames)) + len(frames) * _FRAME_COST_BYTES


class Outlet:
    """One peer's side. Made by :meth:`Fanout.open`.

    Attributes:
        name: for messages: ``peer 3 (pid 4711)``.
        cost_bytes: of its backlog.
        is_slow: it is being disconnected for that.
    """

    def __init__(self, end: socket.socket, name: str, on_gone: Callable[[], object]) -> None:
        self.name = name
        self.end = end
        self.on_gone = on_gone
        self.backlog: deque[_Batch] = deque()
        self.cost_bytes = 0
        self.is_slow = False
        self.frame = 0  # of the first batch: the first that is not written whole
        self.offset = 0  # how much of it is
        self.has_work = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Fanout:
    """One channel's way out to peers that come and go.

    Args:
        encoder: how messages lie in the stream, or in packets.
        carrier: the channel.
        tally: the binding's account.
        is_stream: frames may be joined and cut; otherwise each is one packet.
        when_absent, when_slow, backlog_bytes: the binding's options.
    """

    def __init__(
        self,
        encoder: Encoder,
        carrier: Carrier,
        tally: Tally,
        *,
        is_stream: bool,
        when_absent: WhenAbsent,
        when_slow: WhenSlow,
        backlog_bytes: int,
    ) -> None:
        self._framer = Framer(encoder, carrier, tally)
        self._carrier = carrier
        self._tally = tally
        self._is_stream = is_stream
        # What is in a queue stays there rather than being dropped.
        keeps = carrier.is_settled
        self._drops_absent = when_absent is WhenAbsent.DROP and not keeps
        self._when_slow = WhenSlow.BLOCK if keeps and when_slow is WhenSlow.DROP else when_slow
        self._backlog_bytes = backlog_bytes
        self._outlets: list[Outlet] = []
        self._held: deque[_Batch] = deque()
        self._held_cost_bytes = 0
        self._losses = Losses(carrier, tally)
        self._has_room = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._update()

    async def run(self, stop: Stop) -> None:
        """Carry until the stop; then what is held is written as long as peers take it, at most ``FLUSH_S``.

        Raises:
            TowpathError: the subscription ended.
        """
        pulling = asyncio.create_task(self._pull())
        waiting = [asyncio.create_task(stop.wait())]
        try:
            await asyncio.wait({pulling, *waiting}, return_when=asyncio.FIRST_COMPLETED)
            await cancel(pulling)
            waiting.append(asyncio.create_task(self._wait_idle()))
            await asyncio.wait({waiting[-1]}, timeout=FLUSH_S)
        finally:
            await cancel(pulling, *waiting)
        raise_first_error(pulling)

    def abandon(self) -> None:
        """Give up what no peer has had; after all outlets were closed. A queue has it back."""
        self._refuse_rest(self._held, "had not been sent at the end")
        self._held.clear()
        self._held_cost_bytes = 0

    # -- peers -----------------------------------------------------------------------------------------------

    def open(self, end: socket.socket, name: str, on_gone: Callable[[], object]) -> Outlet:
        """Begin to send to a peer.

        Args:
            end: its socket, non-blocking; stays the caller's.
            name: for messages.
            on_gone: called, once, when it takes no more.
        """
        outlet = Outlet(end, name, on_gone)
        self._outlets.append(outlet)
        held, self._held = self._held, deque()
        self._held_cost_bytes = 0
        for batch in held:
            self._give(outlet, batch)
        outlet.task = asyncio.create_task(self._write(outlet))
        self._update()
        return outlet

    async def close(self, outlet: Outlet) -> None:
        """Send no more to a peer; what it alone was to have goes to others."""
        assert outlet.task is not None
        self._outlets.remove(outlet)
        await cancel(outlet.task)
        left, outlet.backlog = outlet.backlog, deque()
        for batch in left:
            batch.holders -= 1
        if left and outlet.frame:
            left[0] = self._rest_of(left[0], outlet.frame)
        if outlet.is_slow and self._outlets:
            missed = sum(len(batch.frames) for batch in left)
            self._tally.refuse(
                missed, SlowConsumer(f"{outlet.name} was disconnected, {missed} messages behind")
            )
        if not self._outlets:
            self._hold(left, in_front=True)
        elif self._carrier.is_settled:
            for batch in left:
                self._give_to_one(batch)
        else:
            self._refuse_rest((batch for batch in left if not batch.holders), f"went with {outlet.name}")
        self._update()
        raise_first_error(outlet.task)

    # -- the channel's side ----------------------------------------------------------------------------------

    async def _pull(self) -> None:
        while True:
            await self._has_room.wait()
            # Of a queue little is taken ahead: what one peer has, no other can do.
            count = 64 if self._carrier.is_settled else RECEIVE_COUNT_MAX
            size = min(RECEIVE_BYTES_MAX, self._backlog_bytes)
            messages = await self._carrier.receive_many(count, size)
            self._losses.count()
            if self._carrier.is_settled:
                for message in messages:
                    if frames := self._framer.frame([message]):
                        self._give_to_one(_Batch(frames, message))
            elif frames := self._framer.frame(messages):
                self._give_to_all(_Batch(frames))
            self._update()
            # What comes without waiting must not keep the loop from the other bindings, or from writing.
            await asyncio.sleep(0)

    def _give_to_all(self, batch: _Batch) -> None:
        for outlet in self._outlets:
            self._give(outlet, batch)
            if not outlet.is_slow and outlet.cost_bytes > self._backlog_bytes:
                self._on_slow(outlet)
        if not self._outlets:
            self._hold([batch])

    def _give_to_one(self, batch: _Batch) -> None:
        if self._outlets:
            self._give(min(self._outlets, key=lambda outlet: outlet.cost_bytes), batch)
        else:
            self._hold([batch])

    def _give(self, outlet: Outlet, batch: _Batch) -> None:
        batch.holders += 1
        outlet.backlog.append(batch)
        outlet.cost_bytes += batch.cost_bytes
        outlet.has_work.set()

    def _on_slow(self, outlet: Outlet) -> None:
        if self._when_slow is WhenSlow.DISCONNECT:
            outlet.is_slow = True
            self._tally.refuse(0, SlowConsumer(f"{outlet.name} is behind, and is disconnected"))
            outlet.on_gone()
        elif self._when_slow is WhenSlow.DROP:
            first = 1 if outlet.frame or outlet.offset else 0
            dropped = 0
            while outlet.cost_bytes > self._backlog_bytes and len(outlet.backlog) > first + 1:
                batch = outlet.backlog[first]
                del outlet.backlog[first]
                batch.holders -= 1
                outlet.cost_bytes -= batch.cost_bytes
                dropped += len(batch.frames)
            if dropped:
                self._tally.refuse(
                    dropped,
                    SlowConsumer(f"{outlet.name} is behind: its {dropped} oldest messages were dropped"),
                )

    def _hold(self, batches: Iterable[_Batch], *, in_front: bool = False) -> None:
        """Keep what nobody is there for; drop the oldest beyond the bound, where that is what to do."""
        batches = list(batches)
        self._held_cost_bytes += sum(batch.cost_bytes for batch in batches)
        if in_front:
            self._held.extendleft(reversed(batches))
        else:
            self._held.extend(batches)
        dropped: list[_Batch] = []
        while self._drops_absent and self._held_cost_bytes > self._backlog_bytes and len(self._held) > 1:
            dropped.append(self._held.popleft())
            self._held_cost_bytes -= dropped[-1].cost_bytes
        self._refuse_rest(dropped, "were dropped: nobody is connected")

    # -- a peer's side ---------------------------------------------------------------------------------------

    async def _write(self, outlet: Outlet) -> None:
        """Write a peer's backlog, until it takes no more."""
        while True:
            await outlet.has_work.wait()
            try:
                self._send(outlet)
            except BlockingIOError:
                await Stop().writable(outlet.end.fileno())
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                # EPIPE may come before the peer's reset, which then still stands as the socket's error.
                left_some = outlet.end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
                if left_some or error.errno == errno.ECONNRESET:
                    lost = BindingFailed(f"{outlet.name} left without having read all that it was sent")
                    self._tally.refuse(0, lost)
                outlet.on_gone()
                return
            await asyncio.sleep(0)

    def _send(self, outlet: Outlet) -> None:
        batch = outlet.backlog[0]
        if self._is_stream:
            views: list[bytes | memoryview] = [*batch.frames[outlet.frame : outlet.frame + GATHER_FRAMES]]
            views[0] = memoryview(views[0])[outlet.offset :]
            self._account(outlet, batch, outlet.end.sendmsg(views, [], _SEND))
            return
        try:
            outlet.end.send(batch.frames[outlet.frame], _SEND)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            self._refuse_packet(batch, outlet)
        outlet.frame += 1
        self._count(batch, outlet.frame)
        self._finish_batch(outlet, batch)

    def _refuse_packet(self, batch: _Batch, outlet: Outlet) -> None:
        size = len(batch.frames[outlet.frame])
        error = MessageTooLarge(
            f"a message has {size} bytes; a socket here takes no packet as long as that",
            hint="raise net.core.wmem_max, or use socket=stream",
        )
        self._tally.refuse(1, error)
        if batch.message is not None:
            self._carrier.reject([batch.message], error)
            batch.message = None
        batch.counted = max(batch.counted, outlet.frame + 1)

    def _account(self, outlet: Outlet, batch: _Batch, written: int) -> None:
        """Note that bytes of a stream went into the socket."""
        outlet.offset += written
        while outlet.frame < len(batch.frames) and outlet.offset >= len(batch.frames[outlet.frame]):
            outlet.offset -= len(batch.frames[outlet.frame])
            outlet.frame += 1
        self._count(batch, outlet.frame)
        self._finish_batch(outlet, batch)

    def _count(self, batch: _Batch, done: int) -> None:
        """Count what no peer has had before."""
        if done > batch.counted:
            new = batch.frames[batch.counted : done]
            self._tally.count_out(len(new), sum(map(len, new)))
            batch.counted = done

    def _finish_batch(self, outlet: Outlet, batch: _Batch) -> None:
        if outlet.frame < len(batch.frames):
            return
        outlet.backlog.popleft()
        outlet.cost_bytes -= batch.cost_bytes
        outlet.frame = outlet.offset = 0
        batch.holders -= 1
        if batch.message is not None:
            self._carrier.settle([batch.message])
        if not outlet.backlog:
            outlet.has_work.clear()
        self._update()

    # -- inside ----------------------------------------------------------------------------------------------

    def _rest_of(self, batch: _Batch, done: int) -> _Batch:
        """What a peer has not had, as a batch of its own: others may have the whole one."""
        rest = _Batch(batch.frames[done:], batch.message)
        rest.counted = max(batch.counted - done, 0)
        rest.holders = batch.holders
        return rest

    def _refuse_rest(self, batches: Iterable[_Batch], what: str) -> None:
        if self._carrier.is_settled:
            return  # they go back into the queue
        count = sum(len(batch.frames) - batch.counted for batch in batches)
        if count:
            self._tally.refuse(
                count,
                BindingFailed(f"{count} messages {what}", hint="when_absent=block makes publishers wait"),
            )

    def _update(self) -> None:
        """Bring the events into line with what is held."""
        if self._outlets:
            most = max(outlet.cost_bytes for outlet in self._outlets)
            has_room = self._when_slow is not WhenSlow.BLOCK or most < self._backlog_bytes
            if self._carrier.is_settled:  # any of them may have the next one
                has_room = min(outlet.cost_bytes for outlet in self._outlets) < self._backlog_bytes
        else:
            has_room = self._drops_absent or self._held_cost_bytes < self._backlog_bytes
        put(self._has_room, has_room)
        put(self._is_idle, not any(outlet.backlog for outlet in self._outlets))

    async def _wait_idle(self) -> None:
        await self._is_idle.wait()
