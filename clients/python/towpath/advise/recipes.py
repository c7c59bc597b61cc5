"""The commands that set a mechanism up, for the channel ``orders``. Pure; a test runs every one of them.

In place of the programs in them (``cat``, ``seq 3``, ``sed``) comes the user's own. What is sent on a host
where no Towpath runs needs none of this: a shell's ``producer | consumer`` is a pipe too. These are the ways
that stay open: the conversation has a name, and can be moved to another mechanism later by one ``bind``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from towpath.advise.model import Requirements

LineRole = Literal["daemon", "once", "receiver", "sender"]
CHANNEL: Final = "orders"
REPLIES: Final = "orders.replies"
_RING_BYTES_DEFAULT: Final = 1 << 20
_MQ_BYTES_DEFAULT: Final = 8192
_RECEIVE_UNIX: Final = (
    "python3 -c \"import socket; s = socket.socket(socket.AF_UNIX); s.connect('/tmp/orders.out'); "
    "[print(line, end='', flush=True) for line in s.makefile()]\""
)
_SEND_UNIX: Final = (
    "python3 -c \"import socket; s = socket.socket(socket.AF_UNIX); s.connect('/tmp/orders.in'); "
    "s.sendall(b'1\\n2\\n3\\n')\""
)
_RECEIVE_MQ: Final = (
    "python3 -c \"import posix_ipc; q = posix_ipc.MessageQueue('/orders-out'); "
    '[print(q.receive()[0].decode(), flush=True) for _ in iter(int, 1)]"'
)
_SEND_MQ: Final = (
    "python3 -c \"import posix_ipc; q = posix_ipc.MessageQueue('/orders-in'); "
    "[q.send(b'%d' % n) for n in (1, 2, 3)]\""
)
_SEND_LOAN: Final = (
    "python3 -c \"import towpath; p = towpath.connect().publisher('orders'); "
    "[(b := p.loan(1), b.__setitem__(0, n), b.publish()) for n in b'123']; p.wait_drained()\""
)
_RECEIVE_ZMQ: Final = (
    "python3 -c \"import zmq; s = zmq.Context().socket(zmq.SUB); s.connect('ipc:///tmp/orders.sub'); "
    "s.subscribe('orders'); [print(s.recv_multipart()[1].decode(), flush=True) for _ in iter(int, 1)]\""
)
_SEND_ZMQ: Final = (
    'python3 -c "import zmq; c = zmq.Context(); s = c.socket(zmq.PUSH); '
    "s.connect('ipc:///tmp/orders.push'); [s.send_multipart([b'orders', b'%d' % n]) for n in (1, 2, 3)]; "
    's.close(); c.term()"'
)
_ASK: Final = "sh -c 'echo order 1; read -r answer; echo \"$answer\" >&2'"
_WORK: Final = "sed -u 's/^/done: /'"


@dataclass(frozen=True, slots=True)
class Line:
    """One command.

    Attributes:
        role: ``daemon``: in place of a plain ``towpath serve``; ``once``; ``receiver`` and ``sender``: what
            each of those runs.
    """

    role: LineRole
    command: str


def recipe(name: str, required: Requirements) -> list[Line]:
    """Return the commands, in order.

    Args:
        name: the mechanism's.
        required: as they were ranked by.
    """
    if name == "zmq-ipc":
        serve = (
            "towpath serve --set zeromq.sub=ipc:///tmp/orders.sub --set zeromq.push=ipc:///tmp/orders.push"
        )
        daemon = [Line("daemon", serve)]
    else:
        daemon = [Line("daemon", "towpath serve")]
    where = {
        "zmq-tcp": " --url zmq://127.0.0.1:5558",
        "grpc": " --url grpc://127.0.0.1:50551",
    }.get(name, "")
    if required.is_sync:
        return [*daemon, *_asked(name, required, where)]
    return [*daemon, *_one_way(name, required, where)]


def _declare(name: str, channel: str, required: Requirements) -> Line:
    words = f"towpath declare {channel}"
    if required.is_durable:
        words += " --durable"
    # A message may take a quarter of the ring; one on loan lies beside it.
    if 4 * required.size_bytes > _RING_BYTES_DEFAULT and name != "loan":
        words += f" --ring-bytes {1 << (4 * required.size_bytes - 1).bit_length() - 20}M"
    return Line("once", words)


def _bind(name: str, channel: str, direction: str, required: Requirements) -> Line:
    end = f"{channel.replace('.', '-')}"
    place = f"mq:/{end}-{direction}" if name == "mq" else f"{name}:/tmp/{end}.{direction}"
    option = ""
    if name == "mq" and required.size_bytes > _MQ_BYTES_DEFAULT:
        option = f" --option msgsize={required.size_bytes}"
    return Line("once", f"towpath bind {channel} {place} --direction {direction}{option}")


def _one_way(name: str, required: Requirements, where: str) -> Iterator[Line]:
    yield _declare(name, CHANNEL, required)
    if name in ("fifo", "unix", "mq"):
        yield _bind(name, CHANNEL, "in", required)
        yield _bind(name, CHANNEL, "out", required)
    receive, send = {
        "pipe": (f"towpath run --in {CHANNEL} -- cat", f"towpath run --out {CHANNEL} -- seq 3"),
        "fifo": ("cat /tmp/orders.out", "seq 3 > /tmp/orders.in"),
        "unix": (_RECEIVE_UNIX, _SEND_UNIX),
        "mq": (_RECEIVE_MQ, _SEND_MQ),
        "loan": (f"towpath sub {CHANNEL}", _SEND_LOAN),
        "zmq-ipc": (_RECEIVE_ZMQ, _SEND_ZMQ),
    }.get(name, (f"towpath sub {CHANNEL}{where}", f"seq 3 | towpath pub {CHANNEL}{where}"))
    if required.is_durable:
        receive = f"towpath sub {CHANNEL}{where} --start all --place reader"
    yield Line("receiver", receive)
    yield Line("sender", send)


def _asked(name: str, required: Requirements, where: str) -> Iterator[Line]:
    if name in ("ring", "zmq-tcp", "grpc") and not required.is_durable:
        declared = _declare(name, CHANNEL, required)
        yield Line(declared.role, f"{declared.command} --kind service")
        yield Line("receiver", f"towpath answer {CHANNEL}{where} -- {_WORK}")
        yield Line("sender", f"towpath call {CHANNEL}{where} 'order 1'")
        return
    # A channel each way; which answer belongs to which question is for the programs to know.
    for channel in (CHANNEL, REPLIES):
        yield _declare(name, channel, required)
        if name in ("fifo", "unix", "mq"):
            yield _bind(name, channel, "in", required)
            yield _bind(name, channel, "out", required)
    if name in ("pipe", "ring", "loan", "zmq-tcp", "grpc"):
        yield Line("receiver", f"towpath run{where} --in {CHANNEL} --out {REPLIES} -- {_WORK}")
        yield Line("sender", f"towpath run{where} --out {CHANNEL} --in {REPLIES} -- {_ASK}")
