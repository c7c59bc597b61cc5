"""What the tests of the zeromq gateway share: plain peers in processes of their own, a DEALER that speaks
frames, and waiting."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import zmq
from google.protobuf.message import Message

from tests.support.daemon import DaemonHandle
from tests.support.deadlines import DEADLINE_S
from towpath.v1.frame_pb2 import Frame

PLAIN_PEER: Final = Path(__file__).with_name("plain_peer.py")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until the condition holds; looks again every few milliseconds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@contextmanager
def plain_peer(*arguments: str | int) -> Iterator[subprocess.Popen[str]]:
    """Run ``plain_peer.py``; it is killed at the end."""
    command = [sys.executable, "-I", str(PLAIN_PEER), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def plain_subscriber(*arguments: str | int) -> Iterator[subprocess.Popen[str]]:
    """The same for one that subscribes; waits until it is being served."""
    with plain_peer(*arguments) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


def lines_of(process: subprocess.Popen[str]) -> list[list[str]]:
    """Wait for a peer's end; return its words, line by line."""
    text, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    return [line.split() for line in text.splitlines()]


def subscribers_of(daemon: DaemonHandle, channel: str) -> int:
    """How many subscribers the daemon knows of."""
    return next(info.subscribers for info in daemon.status().channels if info.name == channel)


def counters_of(daemon: DaemonHandle) -> dict[str, int]:
    """The gateway's counters, as the status shows them."""
    return dict(daemon.gateway("zeromq").counters)


@contextmanager
def plain_socket(kind: int, endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    """A socket of this process that gives up after ``DEADLINE_S``."""
    with zmq.Context() as context, context.socket(kind) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1e3))
        socket.setsockopt(zmq.SNDTIMEO, int(DEADLINE_S * 1e3))
        socket.connect(endpoint)
        yield socket


class Dealer:
    """A peer of ``rpc``.

    Args:
        socket: a connected DEALER or REQ.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket

    def send(self, call_id: int, body: str, **fields: Any) -> None:
        """Send one frame."""
        frame = Frame(id=call_id)
        target = getattr(frame, body)
        target.SetInParent()
        for name, value in fields.items():
            if isinstance(value, list):
                getattr(target, name).extend(value)
            elif isinstance(value, Message):
                getattr(target, name).CopyFrom(value)
            else:
                setattr(target, name, value)
        self.socket.send(frame.SerializeToString())

    def receive(self) -> Frame:
        """Return the next frame."""
        return Frame.FromString(self.socket.recv())

    def call(self, body: str, **fields: Any) -> Any:
        """Send one frame and return the body of its answer, which must be the next frame to come."""
        self.send(77, body, **fields)
        frame = self.receive()
        assert frame.id == 77
        return getattr(frame, str(frame.WhichOneof("body")))

    def is_silent(self, duration_ms: int) -> bool:
        """Whether nothing comes for so long."""
        return not self.socket.poll(duration_ms)


@contextmanager
def dealer(endpoint: str, kind: int = zmq.DEALER) -> Iterator[Dealer]:
    """A DEALER (or REQ) connected to ``rpc``."""
    with plain_socket(kind, endpoint) as socket:
        yield Dealer(socket)
