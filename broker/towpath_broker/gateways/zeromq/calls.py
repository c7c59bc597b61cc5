"""``rpc``: the ROUTER socket, and the tasks that carry out what :mod:`rpc` says peers may ask for.

Theory of operation
    Each open call is a task. Registry calls and those of other kinds of channels go to the door as they came
    and come back as they are, for the principal ``zeromq:anonymous`` (``_forwarding``). A publish answers
    when the batch is in the channel's ring, or in the queue. A
    subscription takes from the rings no more than its credit, and sends at most ``rpc_hwm`` batches ahead
    of what its peer reads; a peer that stops reading, or gives no credit, is a subscriber that does not
    read, to which the channel's overflow policy applies. Nothing is lost in between.

    How a peer's end is noticed: libzmq tells of a closed connection (a monitor on the socket; each message
    carries its connection's descriptor), and a send to a peer that is gone fails (``ROUTER_MANDATORY``).
    Pings, where ``heartbeat_ms`` asks for them, close connections to hosts that fell silent. The peer's calls
    end then, its subscriptions leave their channels.

    The monitor tells of a connection's end before its descriptor can be another's. Therefore it is asked
    each time between receiving a message and believing its descriptor.

A peer that does not read
    An answer waits ``rpc_stall_ms`` for room; then the peer counts as gone (``rpc_slow_peers``). Answers to
    frames that opened no call are not waited for (``rpc_answers_dropped``). Batches of a subscription wait
    for as long as the connection lives.

What a peer should know
    A subscription without credit does not hear of its channel's end before it gives some. A publish that is
    cancelled may have been carried out in part. Both are so because nothing is taken from or put into a
    ring ahead of time.

Invariants
    The order of a call's answers is that of its events. After a call's last answer nothing more is sent for
    it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final

import zmq
from google.protobuf.message import Message

from towpath._version import __version__
from towpath.convert import check_unfenced, checked_publish, watch_event_to_proto
from towpath.errors import InvalidArgument, LimitExceeded, ProtocolViolation, TowpathError, Unavailable
from towpath.services.envelope import part_bytes
from towpath.v1.channels_pb2 import PublishResponse
from towpath.v1.frame_pb2 import Frame
from towpath.v1.services_pb2 import CallResponse, ServeResponse
from towpath.waiting import CALL_TIMEOUT_S
from towpath_broker.gateways import _forwarding, _locks, _services
from towpath_broker.gateways._common import GatewayContext, log
from towpath_broker.gateways.zeromq.endpoint import Endpoint
from towpath_broker.gateways.zeromq.messages import fill_batch, runs
from towpath_broker.gateways.zeromq.outlets import Outlets
from towpath_broker.gateways.zeromq.registry_feed import RegistryFeed
from towpath_broker.gateways.zeromq.rpc import (
    PRINCIPAL,
    Action,
    Begin,
    Call,
    Credited,
    More,
    RpcProtocol,
    Send,
    Stop,
    error_frame,
)
from towpath_broker.gateways.zeromq.settings import ZeroMQSettings

BATCH_MESSAGES_MAX: Final = 1_024
LOCKS: Final = frozenset(
    f"{name}_request" for name in (_locks.KEEP, _locks.WATCH, *_locks.WAITS, *_locks.CALLS)
)
"""Calls of the lock service that are not just passed on."""

_MESSAGES_PER_TURN: Final = 256
_MONITOR_EVENT: Final = struct.Struct("=Hi")


class _PeerGone(Exception):
    """There is no way to this peer any more, or it does not read."""


class _Running:
    """A call that is being carried out."""

    __slots__ = ("credited", "is_cut", "server", "task")

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.is_cut = False
        self.server: _services.PeerServer | _locks.KeptSession | None = None
        self.credited = asyncio.Event()


class Calls:
    """The ``rpc`` endpoint.

    Args:
        gateway: settings, client, counters.
        zmq_context: libzmq's.
        outlets: where publishes go.
        feed: what watches follow.
        group: the tasks run in it, so that a bug in one ends the process.
    """

    def __init__(
        self,
        gateway: GatewayContext[ZeroMQSettings],
        zmq_context: zmq.Context[zmq.Socket[bytes]],
        outlets: Outlets,
        feed: RegistryFeed,
        group: asyncio.TaskGroup,
    ) -> None:
        self._gateway = gateway
        self._settings = gateway.settings
        self._client = gateway.client
        self._registry = gateway.acting_for(PRINCIPAL)
        self._queues = _forwarding.Queues(self._registry)
        self._locks = _locks.LockPeers(self._registry)
        self._outlets = outlets
        self._feed = feed
        self._group = group
        self._protocol = RpcProtocol(gateway.settings, f"towpath/{__version__} zeromq")
        self._running: dict[Call, _Running] = {}
        self._publishing: dict[int, set[bytes]] = {}
        self._endpoint = Endpoint(
            zmq_context, zmq.ROUTER, self._on_readable, heartbeat_ms=gateway.settings.heartbeat_ms
        )
        router = self._socket = self._endpoint.socket
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.SNDHWM, self._settings.rpc_hwm)
        router.setsockopt(zmq.RCVHWM, self._settings.rpc_hwm)
        router.setsockopt(zmq.MAXMSGSIZE, self._settings.message_bytes_max)
        self._monitor = self._open_monitor(zmq_context)

    def bind(self) -> str:
        """Listen; return the address as bound."""
        address = self._endpoint.bind("rpc", self._settings.rpc)
        asyncio.get_running_loop().add_reader(int(self._monitor.FD), self._read_monitor)
        return address

    async def close(self, linger_ms: int) -> None:
        """Take no more calls, end those that are open, and stop listening."""
        self._endpoint.is_paused = True
        asyncio.get_running_loop().remove_reader(int(self._monitor.FD))
        tasks = [running.task for running in self._running.values()]
        stopping = Unavailable("the gateway is stopping", hint="connect again in a moment")
        for call in self._running:
            self._send_or_drop(call.address, error_frame(call.id, stopping))
        self._perform(self._protocol.stop_all())
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._endpoint.close(linger_ms)

    # ---- receiving ----

    def _on_readable(self) -> None:
        for _ in range(_MESSAGES_PER_TURN):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            # See the module's docstring for why now.
            self._read_monitor()
            parts = [frame.bytes for frame in frames]
            violations = self._protocol.violations
            actions = self._protocol.receive(parts, _connection_of(frames[-1]))
            if self._protocol.violations > violations:
                self._gateway.count("rpc_violations", self._protocol.violations - violations)
            self._perform(actions)

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            # All of them first: what waits for a lock asks whether its session's stream is cut.
            if isinstance(action, Stop) and action.is_cut and action.call in self._running:
                self._running[action.call].is_cut = True
        for action in actions:
            match action:
                case Send(address, frame):
                    self._send_or_drop(address, frame)
                case Begin(call):
                    task = self._group.create_task(self._run(call), name=f"zeromq-rpc-{call.body}")
                    self._running[call] = _Running(task)
                    task.add_done_callback(functools.partial(self._forget, call))
                    self._gateway.count("rpc_calls")
                case Credited(call):
                    if call in self._running:
                        self._running[call].credited.set()
                case More(call, frame):
                    self._take_more(call, frame)
                case Stop(call, _):
                    if call in self._running and self._running[call].task is not asyncio.current_task():
                        self._running[call].task.cancel()

    def _forget(self, call: Call, _: asyncio.Task[None]) -> None:
        del self._running[call]

    # ---- carrying out ----

    async def _run(self, call: Call) -> None:
        """Carry a call out, answer it, and free its place."""
        try:
            try:
                answer = await self._answer(call)
            except TowpathError as error:
                answer = error_frame(call.id, error)
            if answer is not None:
                await self._deliver(call, answer, self._settings.rpc_stall_ms / 1e3)
            self._protocol.finished(call)
        except _PeerGone:
            self._perform(self._protocol.vanished(call.peer))

    async def _answer(self, call: Call) -> Frame | None:
        """Return the call's last answer; None: it has been sent."""
        match call.body:
            case "publish_request":
                request = call.request.publish_request
                payloads, headers = checked_publish(request)
                if await self._queues.has(request.channel):
                    return await self._publish_on_queue(call)
                check_unfenced(request)
                connection = self._protocol.connection_of(call)
                if connection >= 0:
                    self._publishing.setdefault(connection, set()).add(call.peer)
                source, first_seq = await self._outlets.publish(
                    request.channel, payloads, headers, peer=call.peer
                )
                self._gateway.count("messages_in", len(payloads))
                response = PublishResponse(source=source, first_seq=first_seq, count=len(payloads))
                return Frame(id=call.id, publish_response=response)
            case "subscribe_request":
                return await self._subscribe(call)
            case "watch_request":
                return await self._watch(call)
            case "call_request":
                return await self._call_service(call)
            case "serve_request":
                return await self._serve(call)
            case "consume_request" | "watch_value_request":
                return await self._pass_stream_on(call)
            case _ if call.body in LOCKS:
                return await self._ask_locks(call)
            case _:
                return await self._ask_door(call)

    async def _call_service(self, call: Call) -> Frame:
        request = call.request.call_request

        async def send(response: CallResponse) -> None:
            while request.is_stream and call.credit <= 0:
                self._running[call].credited.clear()
                await self._running[call].credited.wait()
            call.credit -= part_bytes(len(response.payload), response.headers.ByteSize())
            await self._deliver(call, Frame(id=call.id, call_response=response), None)

        await _services.call(self._client, PRINCIPAL, request, send)
        return _end_frame(call)

    async def _serve(self, call: Call) -> Frame:
        request = call.request.serve_request
        if not request.HasField("serving"):
            raise InvalidArgument("the first frame of a server says `serving`")

        async def send(response: ServeResponse) -> None:
            await self._deliver(call, Frame(id=call.id, serve_response=response), None)

        server = _services.PeerServer(self._client, PRINCIPAL, request.serving, send)
        self._running[call].server = server
        await server.run()
        return _end_frame(call)

    async def _ask_locks(self, call: Call) -> Frame | None:
        name = call.body.removesuffix("_request")
        body = getattr(call.request, call.body)

        async def send(answer: Message) -> None:
            try:
                await self._deliver(call, _answer_frame(call.id, name, answer), None)
            except _PeerGone:  # known before what waits is given up: it keeps its place
                self._perform(self._protocol.vanished(call.peer))
                raise

        if name == _locks.KEEP:
            running = self._running[call]

            async def is_cut() -> bool:
                return running.is_cut

            running.server = session = _locks.KeptSession(call.peer, is_cut)
            place = _place_of(self._protocol.connection_of(call))
            await self._locks.keep(session, body, place, send)
        elif name in _locks.WAITS:
            await self._locks.wait(name, body, call.peer, send)
        elif name == _locks.WATCH:
            async with contextlib.aclosing(self._locks.watch(body)) as changes:
                async for change in changes:
                    await send(change)
        else:
            return _answer_frame(call.id, name, await self._locks.ask(name, body, call.peer, CALL_TIMEOUT_S))
        return None

    def _take_more(self, call: Call, frame: Frame) -> None:
        running = self._running.get(call)
        if running is None or running.server is None:
            return
        try:
            running.server.take(getattr(frame, call.body))
        except (LimitExceeded, ProtocolViolation) as error:
            self._gateway.count("rpc_violations")
            self._protocol.finished(call)
            running.task.cancel()
            self._send_or_drop(call.address, error_frame(call.id, error))

    async def _publish_on_queue(self, call: Call) -> Frame:
        response = await self._queues.publish(call.request.publish_request, None)
        self._gateway.count("messages_in", len(call.request.publish_request.payloads))
        return Frame(id=call.id, publish_response=response)

    async def _pass_stream_on(self, call: Call) -> Frame:
        name = call.body.removesuffix("_request")
        async with contextlib.aclosing(
            _forwarding.stream(self._registry, name, getattr(call.request, call.body))
        ) as responses:
            async for response in responses:
                await self._deliver(call, _answer_frame(call.id, name, response), None)
                if name == "consume":
                    self._gateway.count("messages_out", len(response.batch.payloads))
        raise AssertionError("a stream ends with an error")

    async def _ask_door(self, call: Call) -> Frame:
        """Pass a call on as it is; its response's name is its own with another ending."""
        name = call.body.removesuffix("_request")
        body = await self._registry.pass_on(_forwarding.call_of(name, getattr(call.request, call.body)))
        return _answer_frame(call.id, name, body)

    async def _subscribe(self, call: Call) -> Frame:
        request = call.request.subscribe_request
        beginning = _forwarding.beginning(request)
        async with await self._client.subscribe(request.channel, held_max=0, **beginning) as subscription:
            _forwarding.leave_place(subscription)
            began = Frame(id=call.id)
            began.subscribe_response.subscribed.CopyFrom(_forwarding.subscribed_to(subscription))
            await self._deliver(call, began, None)
            credited = self._running[call].credited
            while True:
                while call.credit == 0:
                    credited.clear()
                    await credited.wait()
                count_max = min(call.credit, BATCH_MESSAGES_MAX)
                batch = await subscription.receive_many(count_max, bytes_max=self._settings.rpc_batch_bytes)
                for run in runs(batch):
                    frame = Frame(id=call.id)
                    fill_batch(frame.subscribe_response.batch, run)
                    call.spend(len(run))
                    await self._deliver(call, frame, None)
                self._gateway.count("messages_out", len(batch))
                # A channel that never runs dry must not keep the loop from the others.
                await asyncio.sleep(0)

    async def _watch(self, call: Call) -> Frame:
        watch = await self._feed.watch()
        try:
            if call.request.watch_request.HasField("after_revision"):
                # The feed remembers the state, not how it came to be.
                reset = Frame(id=call.id)
                reset.watch_response.reset.SetInParent()
                await self._deliver(call, reset, self._settings.rpc_stall_ms / 1e3)
            while True:
                frame = Frame(id=call.id)
                frame.watch_response.CopyFrom(watch_event_to_proto(await watch.receive()))
                await self._deliver(call, frame, self._settings.rpc_stall_ms / 1e3)
                await asyncio.sleep(0)  # the state may be long
        finally:
            self._feed.forget(watch)

    # ---- sending ----

    async def _deliver(self, call: Call, frame: Frame, timeout_s: float | None) -> None:
        """Send a call's answer, waiting while its peer's queue is full.

        Raises:
            _PeerGone: no such peer, or ``timeout_s`` are over.
        """
        raw = frame.SerializeToString()

        def attempt() -> bool:
            return self._try_send(call.address, raw)

        if attempt():
            return
        if not await self._endpoint.retry(attempt, timeout_s):
            self._gateway.count("rpc_slow_peers")
            log("zeromq.slow_peer", level="warning", endpoint="rpc", call=call.body)
            raise _PeerGone

    def _send_or_drop(self, address: tuple[bytes, ...], frame: Frame) -> None:
        try:
            is_sent = self._try_send(address, frame.SerializeToString())
        except _PeerGone:
            is_sent = False
        if not is_sent:
            self._gateway.count("rpc_answers_dropped")

    def _try_send(self, address: tuple[bytes, ...], raw: bytes) -> bool:
        try:
            self._socket.send_multipart((*address, raw), zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                raise _PeerGone from None
            raise
        self._endpoint.touch()
        return True

    # ---- connections ----

    def _open_monitor(self, zmq_context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        address = f"inproc://towpath-rpc-monitor-{id(self):x}"
        self._socket.monitor(address, zmq.EVENT_DISCONNECTED)
        monitor = zmq_context.socket(zmq.PAIR)
        # libzmq's I/O thread waits for room in this queue; it must never have to.
        monitor.setsockopt(zmq.RCVHWM, 0)
        monitor.connect(address)
        return monitor

    def _read_monitor(self) -> None:
        while True:
            try:
                event = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            _, connection = _MONITOR_EVENT.unpack(event[0])
            self._perform(self._protocol.disconnected(connection))
            for peer in self._publishing.pop(connection, ()):
                self._group.create_task(self._outlets.leave(peer), name="zeromq-rpc-leave")


def _answer_frame(call_id: int, name: str, body: Message) -> Frame:
    frame = Frame(id=call_id)
    getattr(frame, f"{name}_response").CopyFrom(body)
    return frame


def _end_frame(call: Call) -> Frame:
    """The last answer of a stream that ended well."""
    frame = Frame(id=call.id)
    frame.end.SetInParent()
    return frame


def _place_of(connection: int) -> str:
    """Return where a connection comes from, for people.

    Args:
        connection: its descriptor, which is libzmq's and may be closed by now; -1 when it is not known.
    """
    try:
        with socket.socket(fileno=os.dup(connection)) as peer:
            name = peer.getpeername()
    except OSError:
        return "zmq:"
    return f"zmq:{name[0]}:{name[1]}" if isinstance(name, tuple) else "zmq:ipc"


def _connection_of(frame: zmq.Frame) -> int:
    """Return the descriptor of the connection that a part came by; -1 when libzmq does not tell."""
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return -1
