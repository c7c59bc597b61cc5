"""What is asked for, what there is, and what was measured. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Reach = Literal["host", "network"]
SIZE_BYTES_MAX: Final = 16 << 20
FAN_OUT_MAX: Final = 32
BATCH_COUNT: Final = 64
"""Durable messages that are published together where a rate is measured, at most."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a conversation needs.

    Attributes:
        size_bytes: of a message, 1 to ``SIZE_BYTES_MAX``.
        rate: messages a second; None for as many as can be.
        fan_out: how many receive each message, 1 to ``FAN_OUT_MAX``.
        is_sync: the sender waits for an answer to each.
        is_durable: a message survives the end of every program, and of the host.
        reach: whether both ends are on one host.
    """

    size_bytes: int = 1024
    rate: float | None = None
    fan_out: int = 1
    is_sync: bool = False
    is_durable: bool = False
    reach: Reach = "host"


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A mechanism, and what it does by itself.

    Attributes:
        name: on the command line.
        title: for people.
        effort: what both programs have to know: 0 is standard input and output, more is more.
        knows: the same in words.
        keeps_apart: it knows messages, not just bytes.
        fans_out: what is sent once reaches every receiver.
        answers: it carries answers back, and knows to which question.
        reaches_network: the ends may be on two hosts.
        is_durable: Towpath keeps its messages on disk, if they are to be kept.
        note: what to know of its figures.
    """

    name: str
    title: str
    effort: int
    knows: str
    keeps_apart: bool = True
    fans_out: bool = False
    answers: bool = False
    reaches_network: bool = False
    is_durable: bool = False
    note: str = ""


MECHANISMS: Final = {
    each.name: each
    for each in (
        Mechanism("pipe", "pipe", 0, "standard input and output", keeps_apart=False),
        Mechanism("fifo", "FIFO", 1, "a path to open", keeps_apart=False),
        Mechanism("unix", "UNIX socket", 2, "sockets", keeps_apart=False),
        Mechanism("mq", "POSIX message queue", 3, "mq_send and mq_receive"),
        Mechanism(
            "ring",
            "Towpath's ring",
            4,
            "Towpath's library, in Python or C",
            fans_out=True,
            answers=True,
            is_durable=True,
        ),
        Mechanism(
            "loan",
            "Towpath's loan",
            5,
            "Towpath's library, and to make their messages in place, in shared memory",
            note="measured with messages that nobody fills, since that takes the same time anywhere",
            fans_out=True,
        ),
        Mechanism("zmq-ipc", "ZeroMQ, ipc", 6, "ZeroMQ", fans_out=True),
        Mechanism(
            "zmq-tcp",
            "ZeroMQ, tcp",
            6,
            "ZeroMQ (and Towpath's library, for what may not be lost)",
            fans_out=True,
            reaches_network=True,
            is_durable=True,
        ),
        Mechanism(
            "grpc",
            "gRPC",
            7,
            "gRPC, with code generated from protos/towpath/v1",
            fans_out=True,
            answers=True,
            reaches_network=True,
            is_durable=True,
        ),
    )
}
"""In the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """How one mechanism did with one size.

    Attributes:
        rate: messages a second that reached every receiver.
        p50_us, p99_us: of a round trip, there and back.
        obstacle: why it could not be measured; then the figures are 0.
    """

    mechanism: str
    size_bytes: int
    rate: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    obstacle: str = ""
