"""``push``: what PUSH peers send, published on the channels it names.

Theory of operation
    The PULL socket is drained in bursts. Each message goes to its channel's lane, a short queue with a task
    that publishes what has gathered as one batch, so a channel whose subscribers block does not hold up the
    others at first. When a lane is full (``push_queue`` messages or ``push_queue_bytes``), reading stops,
    because a PULL socket is one queue of all channels: the peers are slowed down. After ``push_stall_ms``
    without any progress of that lane its messages are refused instead, without further waiting until it
    moves again. So a stuck channel costs the others ``push_stall_ms`` once.

Refused, since PUSH has no way back, means counted and logged (at most one line per ``_LOG_INTERVAL_S`` and
reason):
    ``push_refused_parts``      not two or three parts
    ``push_refused_name``       the first is no channel's name
    ``push_refused_headers``    the third is no ``towpath.v1.Headers``, or out of range
    ``push_refused_channel``    no such channel
    ``push_refused_size``       larger than the channel takes
    ``push_refused_stalled``    its subscribers block
    ``push_refused_other``      the daemon was not there, or a limit was reached

Invariants
    One peer's messages on one channel keep their order. Published and refused messages add up to what
    was received. A lane exists while it holds something; there are at most ``sources_max``.

Not here: sources (outlets.py).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import zmq
import zmq.backend

from towpath.errors import (
    BadFrame,
    ChannelNotFound,
    ChannelUndeclared,
    InvalidArgument,
    InvalidName,
    MessageTooLarge,
    TowpathError,
)
from towpath.names import check_name
from towpath_broker.gateways._common import GatewayContext, log
from towpath_broker.gateways.zeromq.endpoint import Endpoint
from towpath_broker.gateways.zeromq.messages import checked_headers
from towpath_broker.gateways.zeromq.outlets import Outlets
from towpath_broker.gateways.zeromq.settings import ZeroMQSettings

_MESSAGES_PER_TURN: Final = 1_024
_DRAIN_TURNS: Final = 16
_LOG_INTERVAL_S: Final = 5.0
_UNKNOWN_S: Final = 0.05
"""How long a channel that was not found is not looked for again, unless it is declared meanwhile."""
_UNKNOWN_MAX: Final = 4_096

_NOBLOCK: Final = int(zmq.NOBLOCK)
_receive: Final = zmq.backend.Socket.recv


class _Lane:
    """What waits for one channel.

    Attributes:
        is_stalled: it stood still for ``push_stall_ms``; what does not fit is refused until it moves.
    """

    __slots__ = ("channel", "has_headers", "headers", "is_stalled", "payloads", "queued_bytes", "task")

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.payloads: list[bytes] = []
        self.headers: list[bytes] = []
        self.has_headers = False
        self.queued_bytes = 0
        self.is_stalled = False
        self.task: asyncio.Task[None] | None = None

    def put(self, payload: bytes, headers: bytes) -> None:
        self.payloads.append(payload)
        self.headers.append(headers)
        self.has_headers = self.has_headers or bool(headers)
        self.queued_bytes += len(payload) + len(headers)

    def take(self) -> tuple[list[bytes], list[bytes] | None]:
        batch = self.payloads, self.headers if self.has_headers else None
        self.payloads, self.headers, self.has_headers, self.queued_bytes = [], [], False, 0
        return batch


class Pushes:
    """The ``push`` endpoint.

    Args:
        gateway: settings, counters.
        zmq_context: libzmq's.
        outlets: where messages go.
        group: the tasks run in it, so that a bug in one ends the process.
    """

    def __init__(
        self,
        gateway: GatewayContext[ZeroMQSettings],
        zmq_context: zmq.Context[zmq.Socket[bytes]],
        outlets: Outlets,
        group: asyncio.TaskGroup,
    ) -> None:
        self._gateway = gateway
        self._settings = gateway.settings
        self._outlets = outlets
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[bytes, _Lane] = {}
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._held: tuple[bytes, bytes, bytes] | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._logged_at_s: dict[str, float] = {}
        self._endpoint = Endpoint(
            zmq_context, zmq.PULL, self._on_readable, heartbeat_ms=gateway.settings.heartbeat_ms
        )
        socket = self._socket = self._endpoint.socket
        socket.setsockopt(zmq.RCVHWM, self._settings.push_hwm)
        socket.setsockopt(zmq.MAXMSGSIZE, self._settings.message_bytes_max)

    def bind(self) -> str:
        """Listen; return the address as bound."""
        return self._endpoint.bind("push", self._settings.push)

    def channel_declared(self, channel: str) -> None:
        """The registry has this channel now."""
        self._unknown.pop(channel.encode(), None)

    def channel_undeclared(self, channel: str) -> None:
        """It has it no longer; the source finds out by itself."""

    def channels_replaced(self, channels: Iterable[str]) -> None:
        """The registry was told anew."""
        self._unknown.clear()

    async def drain(self) -> None:
        """Take no new peers, read what has arrived, and wait until all is published or refused."""
        self._endpoint.stop_accepting()
        for _ in range(_DRAIN_TURNS):
            if self._held is not None or not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                break
            self._on_readable()
            await asyncio.sleep(0)
        self._endpoint.close(0)
        if self._held is not None:
            self._give_up_waiting()
        await asyncio.gather(*(lane.task for lane in self._lanes.values() if lane.task is not None))

    # ---- receiving ----

    def _on_readable(self) -> None:
        for _ in range(_MESSAGES_PER_TURN):
            try:
                frame = _receive(self._socket, _NOBLOCK, False)
            except zmq.Again:
                return
            parts = [frame.bytes]
            count = 1
            while frame.more:
                frame = _receive(self._socket, _NOBLOCK, False)
                count += 1
                if count <= 3:
                    parts.append(frame.bytes)
            if not 2 <= count <= 3:
                self._refuse("parts", f"a message of {count} parts; 2 or 3 are allowed")
                continue
            self._take(parts[0], parts[1], parts[2] if count == 3 else b"")
            if self._held is not None:
                return

    def _take(self, name: bytes, payload: bytes, raw_headers: bytes) -> None:
        if name not in self._lanes and len(self._lanes) >= self._settings.sources_max:
            self._hold(name, payload, raw_headers)
            return
        try:
            headers = checked_headers(raw_headers)
            lane = self._lanes.get(name) or self._new_lane(name)
        except (BadFrame, InvalidArgument) as error:
            self._refuse("headers", error.message)
            return
        except InvalidName as error:
            self._refuse("name", error.message)
            return
        if lane is None:
            self._refuse("channel", "no such channel", channel=name.decode())
            return
        size = len(payload) + len(headers)
        is_full = lane.payloads and (
            len(lane.payloads) >= self._settings.push_queue
            or lane.queued_bytes + size > self._settings.push_queue_bytes
        )
        if not is_full:
            lane.put(payload, headers)
            if lane.task is None:
                lane.task = self._group.create_task(self._publish(name, lane), name="zeromq-push")
        elif lane.is_stalled:
            self._refuse("stalled", "its subscribers block", channel=lane.channel)
        else:
            self._hold(name, payload, headers)

    def _new_lane(self, name: bytes) -> _Lane | None:
        """Make a lane; None when the channel was not found a moment ago.

        Raises:
            InvalidName: no channel can be called so.
        """
        until_s = self._unknown.get(name)
        if until_s is not None:
            if self._loop.time() < until_s:
                return None
            del self._unknown[name]
        try:
            channel = check_name(name.decode("ascii"))
        except UnicodeDecodeError:
            raise InvalidName("a channel's name that is not ASCII") from None
        lane = self._lanes[name] = _Lane(channel)
        return lane

    # ---- publishing ----

    async def _publish(self, name: bytes, lane: _Lane) -> None:
        """Publish what gathers in a lane until it is empty."""
        # One round of the loop more, and a burst is one batch.
        await asyncio.sleep(0)
        try:
            while lane.payloads:
                payloads, headers = lane.take()
                await self._publish_batch(name, lane.channel, payloads, headers)
                lane.is_stalled = False
                if self._held is not None and self._held[0] == name:
                    self._release_held()
        finally:
            del self._lanes[name]
        if self._held is not None and self._held[0] not in self._lanes:
            self._release_held()  # it waited for a lane

    async def _publish_batch(
        self, name: bytes, channel: str, payloads: list[bytes], headers: list[bytes] | None
    ) -> None:
        try:
            await self._outlets.publish(channel, payloads, headers)
        except MessageTooLarge as error:
            if len(payloads) == 1:
                self._refuse("size", error.message, channel=channel)
                return
            # Nothing was published yet: find those that are too large by halves.
            half = len(payloads) // 2
            for part in (slice(None, half), slice(half, None)):
                await self._publish_batch(name, channel, payloads[part], headers[part] if headers else None)
        except (ChannelNotFound, ChannelUndeclared) as error:
            self._unknown[name] = self._loop.time() + _UNKNOWN_S
            if len(self._unknown) > _UNKNOWN_MAX:
                self._unknown.popitem(last=False)
            self._refuse("channel", error.message, count=len(payloads), channel=channel)
        except TowpathError as error:
            self._refuse("other", error.message, count=len(payloads), channel=channel)
        else:
            self._gateway.count("messages_in", len(payloads))

    # ---- standing still ----

    def _hold(self, name: bytes, payload: bytes, headers: bytes) -> None:
        """Stop reading until this message has a place, or ``push_stall_ms`` are over."""
        self._held = (name, payload, headers)
        self._endpoint.is_paused = True
        self._stall_timer = self._loop.call_later(self._settings.push_stall_ms / 1e3, self._give_up_waiting)

    def _give_up_waiting(self) -> None:
        assert self._held is not None
        lane = self._lanes.get(self._held[0])
        if lane is not None:
            lane.is_stalled = True
            self._release_held()
        else:
            name, _, _ = self._take_held()
            self._refuse("stalled", "all lanes are in use", channel=name.decode(errors="replace"))
            self._endpoint.resume()

    def _take_held(self) -> tuple[bytes, bytes, bytes]:
        assert self._held is not None
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        held, self._held = self._held, None
        return held

    def _release_held(self) -> None:
        self._take(*self._take_held())
        if self._held is None:
            self._endpoint.resume()

    # ---- refusing ----

    def _refuse(self, reason: str, message: str, *, count: int = 1, channel: str = "") -> None:
        self._gateway.count(f"push_refused_{reason}", count)
        now_s = self._loop.time()
        if now_s >= self._logged_at_s.get(reason, now_s):
            self._logged_at_s[reason] = now_s + _LOG_INTERVAL_S
            log("zeromq.push_refused", level="warning", reason=reason, message=message, channel=channel)
