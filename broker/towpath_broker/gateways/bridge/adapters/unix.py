"""``unix:PATH`` and ``unix:@NAME``: UNIX sockets, stream, seqpacket and datagram.

Theory of operation
    ``role=listen`` makes the socket and takes whoever comes; ``role=connect`` goes to another program's, and
    again, with growing pauses, whenever nobody is there. Inward each peer's frames (``stream``, cut as
    ``framing`` says) or packets (``seqpacket``, ``dgram``) are messages; outward every connected peer gets
    every message of a topic, and each message of a queue goes to one of them (``fanout``).

    ============= ================================== ==============================================
    type          ``listen``                         ``connect``
    ============= ================================== ==============================================
    ``stream``    in, out, both; many peers          in, out, both
    ``seqpacket`` in, out, both; many peers          in, out, both
    ``dgram``     in: from whoever sends             out; both hears answers (of that program only)
    ============= ================================== ==============================================

What users should know
    *Who it was* stands in the headers ``unix-pid``, ``unix-uid`` and ``unix-gid``, as the kernel says: of a
    connection, whoever made it; of a dgram, whoever sent it. ``unix-peer`` numbers a binding's connections.
    *No echo*: a binding with direction ``both`` does not send what it brought, so its peers do not hear each
    other.
    *A frame that is not complete* when its peer leaves is refused and counted: end each line. Frames that
    cannot be followed (a malformed netstring) end that connection, and no other.
    *A peer that has ended its sending* (``nc -N``) still gets what comes, with direction ``both``. What peers
    send to an ``out`` binding is thrown away, and told.
    *What a peer has not read* is in its socket, and goes with it when it dies. See ``fanout`` for one that is
    slow, and for none. Peers are counted in ``towpath status``; one more than ``peers_max`` is turned away.
    *The file* is made with ``mode`` and ``owner``, replaces a socket that nobody has any more, and is removed
    with the binding if it is still the same. While the bridge is started again the supervisor keeps it: who
    connects waits, and what was sent to a dgram socket stays there; connections end. A file that is removed
    or replaced meanwhile is noticed, and made again.
    *An abstract name* has no file and no permissions: there the bridge itself holds ``mode`` against the
    credentials of whoever comes (of groups, only the one that is in force), and turns others away.
    *A dgram socket that is full* (net.unix.max_dgram_qlen) makes its senders wait.

Sources: unix(7), socket(7), recvmsg(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Sequence
from typing import Final

from towpath.bindings.unix import Role, SocketType, UnixOptions
from towpath.errors import BindingFailed, InvalidArgument, LimitExceeded
from towpath.framing import Encoder, Framing, FramingOptions, encoder
from towpath.model import Direction, Headers
from towpath_broker.gateways.bridge.backoff import Backoff
from towpath_broker.gateways.bridge.fanout import Fanout
from towpath_broker.gateways.bridge.hangups import Hangups
from towpath_broker.gateways.bridge.inflow import Ended, Inflow
from towpath_broker.gateways.bridge.inotify import IN_ATTRIB, IN_MOVE_SELF, PathWatcher
from towpath_broker.gateways.bridge.keeping import BindingKeeping
from towpath_broker.gateways.bridge.packets import CREDENTIALS, PacketInflow, headers_of, not_admitted
from towpath_broker.gateways.bridge.ports import Carrier
from towpath_broker.gateways.bridge.publishing import Publishing
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.stop import Stop
from towpath_broker.gateways.bridge.tasks import cancel, raise_first_error
from towpath_broker.gateways.bridge.unix_place import (
    BACKLOG_PEERS,
    NO_ROOM,
    Address,
    Away,
    Listener,
    no_room,
)

ACCEPT_PAUSE_S: Final = 1.0
"""After the host had no descriptor left for a peer; it waits in the socket's backlog."""
REDIAL_MS: Final = 100
REDIAL_MS_MAX: Final = 2_000
"""Between two attempts to connect, while nobody is there."""
REDIAL_HEALTHY_S: Final = 1.0
"""A connection that lasted so long is followed by a new attempt after the shortest pause."""
_DISCARD_BYTES: Final = 1 << 16
_PEERS_SHOWN: Final = 4


class _PacketEncoder(Encoder):
    """Each payload is a packet."""

    def encode(self, payloads: Sequence[bytes]) -> list[bytes]:
        return self._within_limit(list(payloads))


class _Peer:
    """Whoever is at the other end of a connection.

    Attributes:
        end: our end of it.
        pid: 0 where it is not known.
        headers: who sends; None for a dgram socket, where each packet says it.
        ending: set when no more is read from it than has come.
        over: set when it is to be let go.
    """

    def __init__(self, end: socket.socket, number: int, ending: Stop, over: Stop) -> None:
        self.end = end
        self.ending = ending
        self.over = over
        self.pid, self.uid, self.gid = _credentials(end)
        self.name = f"peer {number}" + (f" (pid {self.pid})" if self.pid else "")
        self.headers: Headers | None = None
        if end.type != socket.SOCK_DGRAM:
            self.headers = headers_of(self.pid, self.uid, self.gid, number)

    def let_go(self) -> None:
        """End the connection."""
        self.ending.set()
        self.over.set()


class UnixAdapter:
    """One socket.

    Args:
        place: a path, or ``@`` and an abstract name.
        direction: ``in``, ``out`` or ``both``.
        options: as parsed.
        carrier: the channel.
        tally: the binding's account.
        watcher: the bridge's.
        keeping: what outlives the bridge.

    Raises:
        InvalidArgument: an abstract name has no file with permissions.
    """

    def __init__(
        self,
        place: str,
        direction: Direction,
        options: UnixOptions,
        carrier: Carrier,
        tally: Tally,
        watcher: PathWatcher,
        keeping: BindingKeeping,
    ) -> None:
        self._address = Address(place)
        if self._address.is_abstract and (options.user or options.group):
            raise InvalidArgument(f"{place} has no file, and nobody owns it", hint="leave option owner out")
        self._reads = direction != "out"
        self._options = options
        self._tally = tally
        self._watcher = watcher
        self._keeping = keeping
        self._is_stream = options.socket is SocketType.STREAM
        self._publishing = Publishing(carrier, tally)
        self._buffer = bytearray(options.packet_bytes_max if self._reads and not self._is_stream else 0)
        self._fanout: Fanout | None = None
        if direction != "in":
            self._fanout = Fanout(
                self._encoder(),
                carrier,
                tally,
                is_stream=self._is_stream,
                when_absent=options.when_absent,
                when_slow=options.when_slow,
                backlog_bytes=options.backlog_bytes,
            )
        self._peers: dict[_Peer, asyncio.Task[None]] = {}
        self._last_number = 0
        self._over = Stop()
        self._absent = "nobody is connected"
        self._failure: BaseException | None = None
        self._ending = Stop()

    def _encoder(self) -> Encoder:
        if self._is_stream:
            return encoder(self._options.framing)
        return _PacketEncoder(
            FramingOptions(framing=Framing.RAW, frame_bytes_max=self._options.packet_bytes_max)
        )

    async def run(self, stop: Stop) -> None:
        """As :meth:`Adapter.run`.

        Raises:
            BindingFailed: the socket cannot be made, or was removed; what is connected to is none, or of
                another type.
            TowpathError: the channel takes or gives no more.
        """
        self._hangups = Hangups()
        self._ending = stop.child()
        listens = self._options.role is Role.LISTEN
        tasks = [asyncio.create_task(self._listen(stop) if listens else self._dial())]
        if self._fanout is not None:
            tasks.append(asyncio.create_task(self._fanout.run(self._ending)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self._ending.set()
            await asyncio.wait(tasks)
            self._over.set()
            if self._peers:
                await asyncio.wait(self._peers.values())
        finally:
            await cancel(*tasks, *self._peers.values())
            if self._fanout is not None:
                self._fanout.abandon()
            self._hangups.close()
        raise_first_error(*tasks)
        if self._failure is not None:
            raise self._failure

    # -- listening -------------------------------------------------------------------------------------------

    async def _listen(self, stop: Stop) -> None:
        listener = Listener(self._address, self._options, self._keeping)
        watch = -1
        was_removed = False

        def look() -> None:
            nonlocal was_removed
            if not listener.is_there():
                was_removed = True
                self._ending.set()

        try:
            if listener.link:
                watch = self._watcher.watch(listener.link, IN_ATTRIB | IN_MOVE_SELF, look)
            self._tell()
            if self._options.socket is SocketType.DGRAM:
                await self._take_datagrams(listener)
            else:
                await self._accept(listener)
            if stop.is_set:
                self._hand_over(listener)
            elif was_removed:
                raise BindingFailed(f"{self._address} was removed or replaced", retryable=True)
        except asyncio.CancelledError:
            self._hand_over(listener)
            raise
        finally:
            self._watcher.unwatch(watch)
            listener.close()

    def _hand_over(self, listener: Listener) -> None:
        """Leave the socket as it is to a successor, if there may be one."""
        if self._keeping.hands_over and listener.is_there():
            listener.leave()

    async def _accept(self, listener: Listener) -> None:
        """Take whoever comes; at the end whoever waits already, unless a successor does."""
        await self._accept_until(listener, self._ending)
        if not self._keeping.hands_over:
            listener.unlink()  # nobody who comes now would be heard
            with contextlib.suppress(OSError):
                for _ in range(BACKLOG_PEERS + 1):
                    self._welcome(listener, listener.socket.accept()[0])

    async def _accept_until(self, listener: Listener, stop: Stop) -> None:
        while not stop.is_set:
            try:
                end, _ = listener.socket.accept()
            except BlockingIOError:
                await stop.readable(listener.socket.fileno())
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                self._tally.refuse(0, no_room(error))
                await stop.sleep(ACCEPT_PAUSE_S)
            else:
                self._welcome(listener, end)
                await asyncio.sleep(0)  # a crowd at the door must not keep the loop from the others

    def _welcome(self, listener: Listener, end: socket.socket) -> None:
        end.setblocking(False)
        _, uid, gid = _credentials(end)
        if not listener.admits(uid, gid):
            end.close()
            self._tally.refuse(0, not_admitted(uid))
            return
        if len(self._peers) >= self._options.peers_max:
            end.close()
            error = LimitExceeded(
                f"a peer was turned away: {len(self._peers)} are connected", hint="raise option peers_max"
            )
            self._tally.refuse(0, error)
            return
        self._begin(end)

    async def _take_datagrams(self, listener: Listener) -> None:
        inflow = PacketInflow(
            listener.socket, self._buffer, self._publishing, self._tally, admits=listener.admits
        )
        await inflow.carry(self._ending)
        if not self._keeping.hands_over:
            listener.unlink()  # before the last read: nobody who comes now can send what would not be read
            await inflow.carry_rest()

    # -- connecting ------------------------------------------------------------------------------------------

    async def _dial(self) -> None:
        backoff = Backoff(REDIAL_MS, delay_ms_max=REDIAL_MS_MAX, healthy_after_s=REDIAL_HEALTHY_S)
        loop = asyncio.get_running_loop()
        has_connected = False
        while not self._ending.is_set:
            began_s = loop.time()
            try:
                end = self._address.connect(self._options.socket)
            except Away as away:
                self._absent = str(away)
                self._tell()
            else:
                if has_connected:
                    self._tally.count_restart()
                has_connected = True
                if self._options.socket is SocketType.DGRAM and self._reads:
                    end.bind("")  # a name of its own, to which answers go
                await self._last(self._begin(end))
                self._absent = f"{self._address} has closed the connection"
                self._tell()
            await self._ending.sleep(backoff.next_delay_ms(loop.time() - began_s) / 1000)

    async def _last(self, connection: asyncio.Task[None]) -> None:
        """Wait for the end of a connection, or of everything."""
        stopping = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait({connection, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel(stopping)

    # -- a connection ----------------------------------------------------------------------------------------

    def _begin(self, end: socket.socket) -> asyncio.Task[None]:
        self._last_number += 1
        peer = _Peer(end, self._last_number, self._ending.child(), self._over.child())
        task = asyncio.create_task(self._serve(peer))
        self._peers[peer] = task
        task.add_done_callback(lambda _: self._on_served(peer))
        self._tell()
        return task

    def _on_served(self, peer: _Peer) -> None:
        task = self._peers.pop(peer)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
            self._ending.set()
        self._tell()

    async def _serve(self, peer: _Peer) -> None:
        """Carry in both directions, until the peer has left or the binding ends."""
        outlet = None
        try:
            if self._fanout is not None:
                outlet = self._fanout.open(peer.end, peer.name, peer.let_go)
            try:
                ended = await (self._read(peer) if self._reads else self._discard(peer))
            except ConnectionResetError:
                self._tally.refuse(0, BindingFailed(f"{peer.name} left without having read all it was sent"))
                return
            if outlet is None or ended is Ended.BROKEN or peer.over.is_set:
                return
            if ended is Ended.EOF:
                if _has_hung_up(peer.end):
                    return
                self._hangups.watch(peer.end.fileno(), peer.over.set)
            await peer.over.wait()
        finally:
            self._hangups.unwatch(peer.end.fileno())
            try:
                if outlet is not None and self._fanout is not None:
                    await self._fanout.close(outlet)
            finally:
                peer.end.close()

    async def _read(self, peer: _Peer) -> Ended:
        if not self._is_stream:
            packets = PacketInflow(
                peer.end, self._buffer, self._publishing, self._tally, headers=peer.headers
            )
            ended = await packets.carry(peer.ending)
            if ended is Ended.STOPPED:
                await packets.carry_rest()
            return ended
        inflow = Inflow(self._options.framing, self._publishing, self._tally, headers=peer.headers)
        try:
            ended = await inflow.carry(peer.end.fileno(), peer.ending)
            if ended is Ended.STOPPED:
                ended = await inflow.carry_rest(peer.end.fileno())
            if ended is Ended.BROKEN:
                self._tally.refuse(0, inflow.broken())
            return ended
        finally:
            await inflow.finish(is_whole=False)

    async def _discard(self, peer: _Peer) -> Ended:
        """Read what nobody asked for, to see when the peer leaves."""
        if self._options.socket is SocketType.DGRAM:  # nobody can send to it
            await peer.ending.wait()
            return Ended.STOPPED
        told = False
        while not peer.ending.is_set:
            try:
                data = peer.end.recv(_DISCARD_BYTES)
            except BlockingIOError:
                await peer.ending.readable(peer.end.fileno())
                continue
            if not data:
                return Ended.EOF
            if not told:
                told = True
                error = BindingFailed(
                    f"{peer.name} sends, and the binding is out only: it is thrown away",
                    hint="bind with direction both",
                )
                self._tally.refuse(1, error)
            await asyncio.sleep(0)
        return Ended.STOPPED

    # -- what is told ----------------------------------------------------------------------------------------

    def _tell(self) -> None:
        peers = list(self._peers)
        listens = self._options.role is Role.LISTEN
        pids = [str(peer.pid) for peer in peers if peer.pid]
        shown = ", ".join(pids[:_PEERS_SHOWN]) + (", ..." if len(pids) > _PEERS_SHOWN else "")
        who = f" (pid {shown})" if pids else ""
        if listens and self._options.socket is SocketType.DGRAM:
            self._tally.set_state("running", "receiving")
        elif listens and (peers or self._fanout is None):
            count = "1 peer" if len(peers) == 1 else f"{len(peers)} peers"
            self._tally.set_state("running", f"listening, {count}{who}")
        elif peers:
            self._tally.set_state("running", f"connected{who}")
        else:
            self._tally.set_state("waiting", self._absent)


def _credentials(end: socket.socket) -> tuple[int, int, int]:
    """Who is at the other end of a connection: pid, uid, gid."""
    data = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    pid, uid, gid = CREDENTIALS.unpack(data)
    return pid, uid, gid


def _has_hung_up(end: socket.socket) -> bool:
    """Whether the other side has left altogether, rather than ended its sending."""
    poll = select.poll()
    poll.register(end.fileno(), 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
