"""Every mechanism to every other: what each keeps, and a run from one into any number of them.

Theory of operation
    At both ends is ``matrix_end``, a C program that knows nothing of Towpath. A run sends the numbers 0 to
    ``COUNT`` - 1 into one mechanism, bound to a channel of its own; other bindings carry the channel into
    other mechanisms, each of which is read by another such program, until the last number. What was on the
    channel is heard beside it. So what a mechanism does not keep is seen where it is not kept: on the way in
    (sent, and not on the channel), or on the way out (on the channel, and not received).

Not here: what is expected (``test_matrix``).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

import posix_ipc
import sysv_ipc

import towpath
from tests.bridge.foreign import program
from tests.support.deadlines import DEADLINE_S
from towpath.model import BindingInfo, BindingReport, Direction

COUNT: Final = 10_000
USR1: Final = int(signal.SIGUSR1)
REALTIME: Final = int(signal.SIGRTMIN) + 5


class Keeps(StrEnum):
    """What of the messages a mechanism keeps; the words of the published table."""

    ALL = "all, in order"
    VALUES = "all, in order; of each one integer"
    COALESCED = "the first, and then some, in order; of each one integer"
    LATEST = "the latest, never a torn one"
    SEEN = "all, in order; what SUB misses, being best effort, shows in seq"


@dataclass(frozen=True)
class Mechanism:
    """One adapter, as it is bound here.

    Attributes:
        name: in the published table.
        scheme: of the URL.
        foreign: what ``matrix_end`` calls it.
        inward, outward: options of the bindings.
        is_first: directions in which the foreign program must be there before the binding.
    """

    name: str
    keeps: Keeps
    scheme: str
    foreign: str
    inward: Mapping[str, str] = field(default_factory=dict)
    outward: Mapping[str, str] = field(default_factory=dict)
    is_first: frozenset[Direction] = frozenset()

    @property
    def holds_integers(self) -> bool:
        """Whether a message is one integer, and nothing else of it is kept."""
        return self.scheme == "signal"


_BOTH: Final[frozenset[Direction]] = frozenset({"in", "out"})
_HANDSHAKE: Final = {"length_offset": "8", "semaphore": "{place}-ready", "free": "{place}-free"}
_SEQLOCK: Final = {"length_offset": "8", "generation_offset": "0"}
_WAITING: Final = {"when_absent": "block"}
_TEXT: Final = {"format": "text"}
_SMALL: Final = {"maxmsg": "10", "msgsize": "64"}  # queues of other tests need room too

MECHANISMS: Final = {
    each.name: each
    for each in (
        Mechanism("fifo:", Keeps.ALL, "fifo", "lines", outward=_WAITING),
        Mechanism("pipe:", Keeps.ALL, "pipe", "lines", {"restart": "never"}, {"restart": "never"}),
        Mechanism("mq:", Keeps.ALL, "mq", "mq", _SMALL, _SMALL),
        Mechanism("sysv:", Keeps.ALL, "sysv", "sysv"),
        Mechanism("unix: stream", Keeps.ALL, "unix", "stream", outward=_WAITING),
        Mechanism(
            "unix: seqpacket",
            Keeps.ALL,
            "unix",
            "seqpacket",
            {"socket": "seqpacket"},
            {"socket": "seqpacket", **_WAITING},
        ),
        Mechanism(
            "unix: dgram",
            Keeps.ALL,
            "unix",
            "dgram",
            {"socket": "dgram"},
            {"socket": "dgram", "role": "connect", **_WAITING},
            frozenset({"out"}),
        ),
        Mechanism("shm: with two semaphores", Keeps.ALL, "shm", "shm", _HANDSHAKE, _HANDSHAKE, _BOTH),
        Mechanism(
            "shm: with a generation",
            Keeps.LATEST,
            "shm",
            "latest",
            {**_SEQLOCK, "poll_ms": "1"},
            _SEQLOCK,
            _BOTH,
        ),
        Mechanism("signal: realtime", Keeps.VALUES, "signal", "signal", _TEXT, _TEXT, frozenset({"out"})),
        Mechanism("signal: standard", Keeps.COALESCED, "signal", "signal", _TEXT, _TEXT, frozenset({"out"})),
    )
}


REMOTES: Final = {
    each.name: each
    for each in (
        Mechanism("ZeroMQ PUSH and SUB, from npm", Keeps.SEEN, "", "zeromq"),
        Mechanism("gRPC, from npm", Keeps.ALL, "", "grpc"),
    )
}
ALL: Final = MECHANISMS | REMOTES


class End:
    """One mechanism in one run: its place, its binding and the foreign program.

    Args:
        mechanism: which.
        direction: the binding's.
        folder: for what has a path.
        bridge_pid: who receives signals.
    """

    def __init__(self, mechanism: Mechanism, direction: Direction, folder: Path, bridge_pid: int) -> None:
        self.mechanism = mechanism
        self.name = mechanism.name
        self.keeps = mechanism.keeps
        self._direction = direction
        self._bridge_pid = bridge_pid
        self._file = folder / f"{direction}-{mechanism.foreign}-{secrets.token_hex(4)}"
        self.process: subprocess.Popen[bytes] | None = None
        self.binding: BindingInfo | None = None
        if mechanism.scheme in ("mq", "shm"):
            self._place = f"/towpath-matrix-{os.getpid()}-{secrets.token_hex(4)}"
        elif mechanism.scheme == "sysv":
            self._place = f"{0x50000000 | secrets.randbits(28):#x}"
        elif mechanism.scheme == "signal":
            number = REALTIME if mechanism.keeps is Keeps.VALUES else USR1
            self._place = f"{number}:{bridge_pid if direction == 'in' else ''}"
        elif mechanism.scheme == "pipe":
            self._place = "-"
        else:
            self._place = f"{self._file}.place"

    @property
    def _argv(self) -> list[str]:
        what = ["send"] if self._direction == "in" else ["receive"]
        record = [] if self._direction == "in" else [str(self._file)]
        return [program("matrix_end"), *what, self.mechanism.foreign, self._place, str(COUNT), *record]

    @property
    def _url(self) -> str:
        if self.mechanism.scheme == "pipe":
            return f"pipe:{' '.join(self._argv)}"
        if self.mechanism.scheme == "signal":
            name = "RTMIN+5" if self.mechanism.keeps is Keeps.VALUES else "USR1"
            if self._direction == "in":
                return f"signal:{name}"
            assert self.process is not None
            return f"signal:{name}@{self.process.pid}"
        offset = "@64" if self.mechanism.scheme == "shm" else ""
        return f"{self.mechanism.scheme}:{self._place}{offset}"

    def open(self, client: towpath.Client, channel: str) -> None:
        """Bind, and have the foreign program there."""
        is_first = self._direction in self.mechanism.is_first
        if is_first:
            self._start()
        options = self.mechanism.inward if self._direction == "in" else self.mechanism.outward
        self.binding = client.bind(
            channel,
            self._url,
            direction=self._direction,
            options={name: value.format(place=self._place) for name, value in options.items()},
        )
        if not is_first and self.mechanism.scheme != "pipe":
            self._start()

    def _start(self) -> None:
        self.process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def go(self) -> None:
        """Begin to send. A command began when it was bound."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.write(b"go\n")
            self.process.stdin.flush()

    def sent(self) -> None:
        """Wait until the foreign program has sent all, after the last number was seen."""
        if not self._ends_itself:
            self.close()
        elif self.process is not None:
            assert self.process.wait(DEADLINE_S) == 0

    @property
    def _ends_itself(self) -> bool:
        """Whether the foreign program knows when it has done its part."""
        return self.mechanism.keeps is not Keeps.COALESCED

    def report(self, client: towpath.Client, channel: str) -> Callable[[], BindingReport] | None:
        """Return what asks for the binding's report; None where there is no binding."""
        assert self.binding is not None
        binding = self.binding.id
        return lambda: next(info.report for info in client.bindings(channel) if info.id == binding)

    def received(
        self, report: Callable[[], BindingReport] | None, published: Callable[[], int]
    ) -> list[bytes]:
        """Wait until the foreign program has received all that it will; return that."""
        assert report is not None
        if self.process is None:
            _until(lambda: report().state == "stopped", report)
        else:
            if not self._ends_itself:
                # All that was published has been signalled, or there is nobody left to signal.
                process = self.process
                _until(lambda: process.poll() is not None or report().messages_out >= published(), report)
                process.terminate()
            assert self.process.wait(DEADLINE_S) == 0
        return self._file.read_bytes().splitlines()

    def close(self) -> None:
        """End the foreign program, and remove what it or the binding left."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        for name in (self._place, f"{self._place}-ready", f"{self._place}-free"):
            with contextlib.suppress(posix_ipc.ExistentialError, ValueError):
                if self.mechanism.scheme == "mq":
                    posix_ipc.unlink_message_queue(name)
                elif self.mechanism.scheme == "shm" and name == self._place:
                    posix_ipc.unlink_shared_memory(name)
                elif self.mechanism.scheme == "shm":
                    posix_ipc.unlink_semaphore(name)
        if self.mechanism.scheme == "sysv":
            with contextlib.suppress(sysv_ipc.ExistentialError):
                sysv_ipc.MessageQueue(int(self._place, 16)).remove()


@dataclass(frozen=True)
class Run:
    """What became of the numbers.

    Attributes:
        published: what was on the channel, up to the last number.
        report: of the binding that brought it; None where none did.
        received: by the mechanism it was carried into; an error in place of what one did not get.
    """

    published: list[bytes]
    report: BindingReport | None
    received: dict[str, list[bytes] | Exception]


def run(client: towpath.Client, source: End, sinks: Iterable[End]) -> Run:
    """Carry the numbers from one end into others, all at once."""
    channel = f"matrix-{secrets.token_hex(4)}"
    client.declare(channel, stall_ms_max=0)
    with ExitStack() as stack:
        stack.callback(client.undeclare, channel, force=True)
        subscription = stack.enter_context(client.subscribe(channel))
        outs = list(sinks)
        for end in (*outs, source):
            stack.callback(end.close)
            end.open(client, channel)
        source.go()
        published = list(_until_last(subscription))
        source.sent()
        report = source.report(client, channel)
        if report is not None:
            _until(lambda: report().messages_in >= len(published), report)  # told once a second
        received: dict[str, list[bytes] | Exception] = {}
        for out in outs:
            try:
                received[out.name] = out.received(
                    out.report(client, channel),
                    lambda: len(published) if report is None else report().messages_in,
                )
            except (AssertionError, subprocess.TimeoutExpired, OSError) as error:
                received[out.name] = error
        if report is not None and source.keeps is Keeps.LATEST:
            _until(lambda: report().messages_in + report().refused >= COUNT, report)
        return Run(published, report and report(), received)


def _until(condition: Callable[[], bool], describe: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.02)  # reports are not announced; between two questions only


def _until_last(subscription: towpath.Subscription) -> Iterator[bytes]:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        batch = subscription.receive_many(COUNT, timeout=max(deadline - time.monotonic(), 0))
        assert batch, "the last number did not come in time"
        for message in batch:
            yield bytes(message.payload)
            if int(message.payload) == COUNT - 1:
                return
