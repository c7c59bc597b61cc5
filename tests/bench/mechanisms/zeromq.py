"""pyzmq as programs use it: PUSH to PULL and PUB to SUB over ipc and tcp, through a ``zmq.proxy`` broker, and
plain SUB and PUSH sockets at Towpath's zeromq gateway.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Final

from tests.bench.load import END, Role
from tests.bench.mechanisms.link import ALL, Blocking, Receive, Send
from tests.bench.mechanisms.towpath_ring import Towpath, TowpathBatched
from tests.bench.site import free_port

if TYPE_CHECKING:
    import zmq

META: Final = bytes(24)
LINGER_MS: Final = 2_000


@contextlib.contextmanager
def zmq_socket(kind: str) -> Iterator[zmq.Socket[bytes]]:
    """A socket in a context of its own."""
    import zmq

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(getattr(zmq, kind))
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, 1)
    try:
        yield socket
    finally:
        socket.close()
        context.term()


class PyzmqIpc(Blocking):
    """One frame: PUSH to PULL; to several, PUB to SUB, which ``XPUB_NODROP`` makes wait instead of drop."""

    name = "pyzmq ipc"
    family = "peers"
    module = "zmq"

    def make(self) -> None:
        self.address = f"ipc://{self.site.directory / self.word}"

    @contextlib.contextmanager
    def writer(self) -> Iterator[Send]:
        import zmq

        if self.load.pattern != "fan-out":
            with zmq_socket("PUSH") as socket:
                socket.connect(self.address)
                yield socket.send
            return
        with zmq_socket("XPUB") as socket:
            socket.setsockopt(zmq.XPUB_NODROP, 1)
            socket.setsockopt(zmq.XPUB_VERBOSE, 1)
            socket.bind(self.address)
            for _ in range(self.load.readers):
                socket.recv()  # a subscription
            yield socket.send

    @contextlib.contextmanager
    def reader(self, index: int) -> Iterator[Receive]:
        if self.load.pattern != "fan-out":
            with zmq_socket("PULL") as socket:
                socket.bind(self.address)
                yield socket.recv
            return
        with zmq_socket("SUB") as socket:
            socket.connect(self.address)
            socket.subscribe(b"")
            yield socket.recv


class PyzmqTcp(PyzmqIpc):
    """The same over loopback."""

    name = "pyzmq tcp"

    def make(self) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"


class ZmqProxy(Blocking):
    """Through a broker that forwards in C, with the three frames that Towpath's gateway sends."""

    name = "zmq.proxy, 3 frames"
    needs = ("proxy_ports",)
    family = "peers"
    module = "zmq"
    needs_probe = True
    frames: ClassVar[int] = 3

    @contextlib.contextmanager
    def writer(self) -> Iterator[Send]:
        import zmq

        channel = self.word.encode()
        with zmq_socket("PUB") as socket:
            socket.setsockopt(zmq.XPUB_NODROP, 1)
            socket.connect(f"tcp://127.0.0.1:{self.site.proxy_ports[0]}")
            if self.frames == 1:
                yield lambda payload: socket.send(channel + payload)
            else:
                yield lambda payload: socket.send_multipart((channel, payload, META))

    @contextlib.contextmanager
    def reader(self, index: int) -> Iterator[Receive]:
        with zmq_socket("SUB") as socket:
            socket.connect(f"tcp://127.0.0.1:{self.site.proxy_ports[1]}")
            socket.subscribe(self.word.encode())
            if self.frames == 1:
                start = len(self.word)
                yield lambda: socket.recv()[start:]
            else:
                yield lambda: socket.recv_multipart()[1]


class ZmqProxyOneFrame(ZmqProxy):
    """The same with one frame, the channel's name in front of the payload."""

    name = "zmq.proxy, 1 frame"
    frames = 1


class TowpathZeroMQ(TowpathBatched):
    """From shared memory through the zeromq gateway to plain SUB over tcp; round trips begin at PUSH."""

    name = "towpath via zeromq to SUB"
    needs = ("endpoints",)
    module = "zmq"
    patterns = ALL

    @contextlib.contextmanager
    def reader(self, index: int) -> Iterator[Receive]:
        import towpath

        with towpath.connect(self.site.socket) as client, zmq_socket("SUB") as socket:
            self.declare(client)
            socket.connect(self.site.endpoints["zeromq"]["sub"])
            socket.subscribe(self.word)
            ready = f"_towpath.ready.{os.getpid()}"
            socket.subscribe(ready)
            while socket.recv_multipart()[0] != ready.encode():
                pass
            yield lambda: socket.recv_multipart()[1]

    def receive(self, role: Role, index: int) -> None:
        Blocking.receive(self, role, index)

    def ping(self, role: Role) -> None:
        with self.back.reader(0) as receive, zmq_socket("PUSH") as push:
            push.connect(self.site.endpoints["zeromq"]["push"])
            channel = self.word.encode()
            role.wait_go()

            def trip(payload: bytes) -> None:
                push.send_multipart((channel, payload))
                receive()

            role.time_round_trips(trip)
            push.send_multipart((channel, END))
            role.wait_finish()

    def echo(self, role: Role) -> None:
        with Towpath.reader(self, 0) as receive, Towpath.writer(self.back) as send:  # type: ignore[arg-type]
            role.wait_go()
            for payload in iter(receive, END):
                send(payload)
            role.tell(echoed=True)
            role.wait_finish()


MECHANISMS: Final = (PyzmqIpc, PyzmqTcp, ZmqProxy, ZmqProxyOneFrame, TowpathZeroMQ)
