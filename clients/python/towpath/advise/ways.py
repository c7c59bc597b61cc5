"""The ends of each mechanism, opened as a program would open them.

Theory of operation
    A :class:`Way` goes from one sender to its receivers. It is made before the processes are forked, so what
    it makes then (names, pipes, queues) all of them have; its ends are opened in the processes. Sending and
    receiving are plain calls that wait. A mechanism that does not reach several receivers by itself writes to
    each, which is what a program would have to do.

Not here: processes, and the time (``measuring``).
"""

from __future__ import annotations

import errno
import os
import queue
import resource
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Final

from towpath.advise.site import Site, free_port

if TYPE_CHECKING:
    import posix_ipc
    import zmq

    import towpath

Send = Callable[[bytes], object]
Receive = Callable[[], bytes]

AHEAD_BYTES: Final = 8 << 20
"""What a sender may be ahead of its receivers where the mechanism would let it run away."""
AHEAD_COUNT_MAX: Final = 1000
GRPC_AHEAD: Final = 32
"""Between a program's thread and gRPC's own."""
MQ_MESSAGES_MAX: Final = 10
RING_BYTES_MIN: Final = 1 << 20
RING_MESSAGES: Final = 8
OPEN_S: Final = 10.0


class Obstacle(Exception):
    """A mechanism cannot be used here; ``str()`` says why."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is carried.

    Attributes:
        is_durable: only what is on disk counts as sent.
        batch_count: durable messages that are published together.
    """

    size_bytes: int
    fan_out: int
    is_durable: bool = False
    batch_count: int = 1

    @property
    def ahead_count(self) -> int:
        """How many messages may be under way."""
        return max(2, min(AHEAD_COUNT_MAX, AHEAD_BYTES // self.size_bytes))


class Way(ABC):
    """From one sender to ``load.fan_out`` receivers.

    Raises:
        Obstacle: it cannot be made.
    """

    module: ClassVar[tuple[str, str]] = ("", "")
    """What must be importable, and the extra that brings it."""

    def __init__(self, site: Site, load: Load) -> None:
        module, extra = self.module
        if module and find_spec(module) is None:
            raise Obstacle(f"{module} is not installed: pip install 'towpath[{extra}]'")
        self.site, self.load, self.word = site, load, site.word()
        self.make()

    def make(self) -> None:  # noqa: B027 (some need nothing)
        """Make what all processes need."""

    @abstractmethod
    def sender(self, stack: ExitStack) -> Send:
        """Open the sending end."""

    @abstractmethod
    def receiver(self, stack: ExitStack, index: int) -> Receive:
        """Open a receiving end."""

    def remove(self) -> None:  # noqa: B027 (some leave nothing)
        """Remove what was made."""


def _to_all(sends: list[Send]) -> Send:
    if len(sends) == 1:
        return sends[0]

    def send(message: bytes) -> None:
        for each in sends:
            each(message)

    return send


# ---- streams of bytes


def _write_all(descriptor: int, message: bytes) -> None:
    written = os.write(descriptor, message)
    while written < len(message):
        written += os.write(descriptor, memoryview(message)[written:])


def _read_all(descriptor: int, size_bytes: int) -> bytes:
    data = os.read(descriptor, size_bytes)
    if len(data) == size_bytes:
        return data
    parts = [data]
    left = size_bytes - len(data)
    while left:
        if not parts[-1]:
            raise EOFError("the other side has gone")
        parts.append(os.read(descriptor, left))
        left -= len(parts[-1])
    return b"".join(parts)


class Pipe(Way):
    """Anonymous pipes, one for each receiver."""

    def make(self) -> None:
        self._pairs = [self._pair() for _ in range(self.load.fan_out)]

    def _pair(self) -> tuple[int, int]:
        return os.pipe()

    def sender(self, stack: ExitStack) -> Send:
        return _to_all([partial(_write_all, writing) for _, writing in self._pairs])

    def receiver(self, stack: ExitStack, index: int) -> Receive:
        return partial(_read_all, self._pairs[index][0], self.load.size_bytes)

    def remove(self) -> None:
        for pair in self._pairs:
            for descriptor in pair:
                os.close(descriptor)


class Unix(Pipe):
    """Connected UNIX stream sockets, one for each receiver."""

    def _pair(self) -> tuple[int, int]:
        one, other = socket.socketpair()
        return one.detach(), other.detach()


class Fifo(Way):
    """FIFOs, one for each receiver."""

    def make(self) -> None:
        self._paths = [self.site.directory / f"{self.word}.{index}" for index in range(self.load.fan_out)]
        for path in self._paths:
            os.mkfifo(path)

    def sender(self, stack: ExitStack) -> Send:
        descriptors = [os.open(path, os.O_WRONLY) for path in self._paths]  # waits for the reader
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
        return _to_all([partial(_write_all, descriptor) for descriptor in descriptors])

    def receiver(self, stack: ExitStack, index: int) -> Receive:
        # For writing too: so opening waits for nobody, and no file ends before the sender has come.
        descriptor = os.open(self._paths[index], os.O_RDWR)
        stack.callback(os.close, descriptor)
        return partial(_read_all, descriptor, self.load.size_bytes)

    def remove(self) -> None:
        for path in self._paths:
            path.unlink()


# ---- message queues


class Mq(Way):
    """POSIX message queues, one for each receiver."""

    module = ("posix_ipc", "mq")

    def make(self) -> None:
        import posix_ipc

        self._names = [f"/{self.word}-{index}" for index in range(self.load.fan_out)]
        self._made: list[str] = []
        try:
            for name in self._names:
                posix_ipc.MessageQueue(
                    name,
                    posix_ipc.O_CREX,
                    max_messages=MQ_MESSAGES_MAX,
                    max_message_size=self.load.size_bytes,
                ).close()
                self._made.append(name)
        except ValueError:
            self.remove()
            raise Obstacle(
                "the host's message queues take no messages of this size (fs.mqueue.msgsize_max)"
            ) from None
        except OSError as error:
            self.remove()
            if error.errno not in (None, errno.EMFILE):  # posix_ipc tells this one without its number
                raise
            allowed = resource.getrlimit(resource.RLIMIT_MSGQUEUE)[0]
            raise Obstacle(
                f"all message queues of a user together may have {allowed:,} bytes (ulimit -q)"
            ) from None

    def _open(self, stack: ExitStack, name: str) -> posix_ipc.MessageQueue:
        import posix_ipc

        opened = posix_ipc.MessageQueue(name)
        stack.callback(opened.close)
        return opened

    def sender(self, stack: ExitStack) -> Send:
        return _to_all([self._open(stack, name).send for name in self._names])

    def receiver(self, stack: ExitStack, index: int) -> Receive:
        receive = self._open(stack, self._names[index]).receive
        return lambda: bytes(receive()[0])

    def remove(self) -> None:
        import posix_ipc

        for name in self._made:
            posix_ipc.unlink_message_queue(name)


# ---- Towpath


def _ring_bytes(size_bytes: int) -> int:
    """A ring that holds ``RING_MESSAGES`` of this size: a power of two."""
    return max(RING_BYTES_MIN, 1 << (RING_MESSAGES * size_bytes - 1).bit_length())


class Ring(Way):
    """A topic, by Towpath's library; a durable one through the daemon's store."""

    def make(self) -> None:
        if find_spec("towpath._ring") is None:
            raise Obstacle("the C extension is not installed")
        self.url = self.address()
        import towpath

        with towpath.connect(self.site.socket) as client:
            client.declare(self.word, ring_bytes=self.ring_bytes(), durable=self.load.is_durable)

    def ring_bytes(self) -> int:
        """Of each publisher's ring."""
        return _ring_bytes(self.load.size_bytes)

    def address(self) -> str:
        """Where the ends connect."""
        return self.site.socket

    def sender(self, stack: ExitStack) -> Send:
        import towpath

        client = stack.enter_context(towpath.connect(self.url))
        publisher = stack.enter_context(client.publisher(self.word))
        if self.load.is_durable:
            return _publishing_durably(publisher, self.load.batch_count)
        stack.callback(publisher.wait_drained, OPEN_S)
        return publisher.publish

    def receiver(self, stack: ExitStack, index: int) -> Receive:
        import towpath

        client = stack.enter_context(towpath.connect(self.url))
        subscription = stack.enter_context(client.subscribe(self.word))
        return lambda: bytes(subscription.receive().payload)

    def remove(self) -> None:
        import towpath

        with towpath.connect(self.site.socket) as client:
            client.undeclare(self.word, force=True)


class Loan(Ring):
    """A topic, with messages that are made where they are read. They are looked at, and not copied out."""

    def ring_bytes(self) -> int:
        return RING_BYTES_MIN

    def sender(self, stack: ExitStack) -> Send:
        import towpath

        client = stack.enter_context(towpath.connect(self.url))
        publisher = stack.enter_context(client.publisher(self.word))
        stack.callback(publisher.wait_drained, OPEN_S)
        return partial(_publish_loan, publisher, self.load.size_bytes)

    def receiver(self, stack: ExitStack, index: int) -> Receive:
        import towpath

        client = stack.enter_context(towpath.connect(self.url))
        subscription = stack.enter_context(client.subscribe(self.word))
        return lambda: bytes(subscription.receive().payload[:1])


def _publish_loan(publisher: towpath.Publisher, size_bytes: int, message: bytes) -> None:
    loan = publisher.loan(size_bytes)
    loan[0] = message[0]
    loan.publish()


def _publishing_durably(publisher: towpath.Publisher, batch_count: int) -> Send:
    held: list[bytes] = []

    def send(message: bytes) -> None:
        held.append(message)
        if len(held) < batch_count and message[0]:
            return
        publisher.publish_many(held)
        held.clear()
        if not message[0]:
            publisher.flush()

    return send


class RingByZmq(Ring):
    """A durable topic, by Towpath's library through the zeromq gateway."""

    module = ("zmq", "zmq")

    def address(self) -> str:
        return self.site.endpoint("zeromq", "rpc").replace("tcp://", "zmq://")


class RingByGrpc(Ring):
    """A durable topic, by Towpath's library through the grpc gateway."""

    module = ("grpc", "grpc")

    def address(self) -> str:
        return f"grpc://{self.site.endpoint('grpc', 'listen')}"


def open_calls(
    site: Site, size_bytes: int
) -> tuple[Callable[[ExitStack], Callable[[bytes], object]], Callable[[ExitStack], Callable[[], None]]]:
    """A Towpath service that returns what it is asked.

    Returns:
        What opens the asking end, and what opens the answering one, which works up to the end mark.
    """
    import towpath

    name = site.word()
    with towpath.connect(site.socket) as client:
        client.declare(name, kind="service", ring_bytes=_ring_bytes(size_bytes))

    def asking(stack: ExitStack) -> Callable[[bytes], object]:
        client = stack.enter_context(towpath.connect(site.socket))
        return lambda message: client.call(name, message, timeout=OPEN_S, wait=True)

    def answering(stack: ExitStack) -> Callable[[], None]:
        client = stack.enter_context(towpath.connect(site.socket))
        server = stack.enter_context(client.serve(name))

        def work() -> None:
            for request in server:
                payload = request.payload
                request.reply(payload)
                if not payload[0]:
                    return

        return work

    return asking, answering


# ---- ZeroMQ


class ZmqIpc(Way):
    """PUSH to PULL; to several, PUB to SUB, which ``XPUB_NODROP`` makes wait instead of drop."""

    module = ("zmq", "zmq")

    def make(self) -> None:
        self.address = f"ipc://{self.site.directory}/{self.word}"

    def _socket(self, stack: ExitStack, kind: str) -> zmq.Socket[bytes]:
        import zmq

        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.term)
        opened = context.socket(getattr(zmq, kind))
        stack.callback(opened.close)
        opened.set_hwm(self.load.ahead_count)
        opened.setsockopt(zmq.RECONNECT_IVL, 1)
        opened.setsockopt(zmq.LINGER, 0)  # an end is closed when all has arrived
        return opened

    def sender(self, stack: ExitStack) -> Send:
        import zmq

        if self.load.fan_out == 1:
            push = self._socket(stack, "PUSH")
            push.connect(self.address)
            return push.send
        publisher = self._socket(stack, "XPUB")
        publisher.setsockopt(zmq.XPUB_NODROP, 1)
        publisher.setsockopt(zmq.XPUB_VERBOSE, 1)
        publisher.bind(self.address)
        for _ in range(self.load.fan_out):
            publisher.recv()  # a subscription
        return publisher.send

    def receiver(self, stack: ExitStack, index: int) -> Receive:
        if self.load.fan_out == 1:
            pull = self._socket(stack, "PULL")
            pull.bind(self.address)
            return pull.recv
        subscriber = self._socket(stack, "SUB")
        subscriber.connect(self.address)
        subscriber.subscribe(b"")
        return subscriber.recv


class ZmqTcp(ZmqIpc):
    """The same over loopback."""

    def make(self) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"


# ---- gRPC


class Grpc(Way):
    """A stream of messages into each receiver, which is a server."""

    module = ("grpc", "grpc")

    def make(self) -> None:
        _quiet_grpc()  # imported once, before the processes are forked: it takes long
        self._ports = [free_port() for _ in range(self.load.fan_out)]

    def receiver(self, stack: ExitStack, index: int) -> Receive:
        from concurrent.futures import ThreadPoolExecutor

        grpc = _quiet_grpc()

        arrived: queue.Queue[bytes] = queue.Queue(GRPC_AHEAD)

        def carry(requests: Iterator[bytes], context: object) -> bytes:
            for message in requests:
                arrived.put(message)
            return b""

        server = grpc.server(ThreadPoolExecutor(2), options=_GRPC_OPTIONS)
        stack.callback(lambda: server.stop(OPEN_S).wait())
        handlers = {"Carry": grpc.stream_unary_rpc_method_handler(carry)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("advise", handlers),))
        server.add_insecure_port(f"127.0.0.1:{self._ports[index]}")
        server.start()
        return arrived.get

    def sender(self, stack: ExitStack) -> Send:
        return _to_all([self._stream(stack, port) for port in self._ports])

    def _stream(self, stack: ExitStack, port: int) -> Send:
        grpc = _quiet_grpc()
        leaving: queue.Queue[bytes | None] = queue.Queue(GRPC_AHEAD)
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", options=_GRPC_OPTIONS))
        grpc.channel_ready_future(channel).result(OPEN_S)
        call = channel.stream_unary("/advise/Carry").future(iter(leaving.get, None))
        stack.callback(call.result, OPEN_S)
        stack.callback(leaving.put, None)
        return leaving.put


def _quiet_grpc() -> ModuleType:
    """gRPC without its log on standard error, which is not for whoever asked for advice."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import grpc

    return grpc


_GRPC_OPTIONS: Final = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

WAYS: Final[dict[str, Callable[[Site, Load], Way]]] = {
    "pipe": Pipe,
    "fifo": Fifo,
    "unix": Unix,
    "mq": Mq,
    "ring": Ring,
    "loan": Loan,
    "zmq-ipc": ZmqIpc,
    "zmq-tcp": lambda site, load: (RingByZmq if load.is_durable else ZmqTcp)(site, load),
    "grpc": lambda site, load: (RingByGrpc if load.is_durable else Grpc)(site, load),
}
"""By the mechanism's name."""
