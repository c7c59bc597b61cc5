"""The processes of one measurement: forked, told when to begin, waited for with a deadline,
never left behind.

Not here: what they do (``load``, ``mechanisms``).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from tests.bench.load import Load, Role
from tests.bench.mechanisms.link import Link

DEADLINE_S: Final = 30.0
"""For one measurement; a thousand times what most of them take."""
ENDING_S: Final = 5.0
"""For a process to end by itself when its part is over; then it is killed."""
_PR_SET_PDEATHSIG: Final = 1


class CaseFailed(Exception):
    """A measurement broke: a process of it failed, hung, or not every message arrived whole."""


class _Worker:
    def __init__(self, name: str, pid: int, line: socket.socket) -> None:
        self.name, self.pid, self.line = name, pid, line
        self.facts: dict[str, Any] = {}
        self._text = b""

    def read(self) -> None:
        data = self.line.recv(65_536)
        if not data:
            raise CaseFailed(f"{self.name} ended early")
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            self.facts.update(json.loads(line))
        if "error" in self.facts:
            raise CaseFailed(f"{self.name}: {self.facts['error']}")


class Crew:
    """The processes of one measurement; a context manager that leaves none."""

    def __init__(self) -> None:
        self._workers: list[_Worker] = []
        self._deadline = time.monotonic() + DEADLINE_S

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.line.close()
        for worker in self._workers:
            self._reap(worker, ENDING_S if error is None else 0.0)

    def _reap(self, worker: _Worker, patience_s: float) -> None:
        """Wait until a process has ended; after so long, end it."""
        with open(os.pidfd_open(worker.pid), "rb", buffering=0) as ended:
            if not select.select([ended], [], [], patience_s)[0]:
                os.kill(worker.pid, signal.SIGKILL)
        os.waitpid(worker.pid, 0)

    def start(self, name: str, load: Load, acks: list[int], work: Callable[[Role], None]) -> None:
        """Fork a process that does its part and ends."""
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _run(work, load, theirs, acks)
        theirs.close()
        self._workers.append(_Worker(name, pid, ours))

    def wait(self, *words: str) -> None:
        """Wait until every process has told one of these.

        Raises:
            CaseFailed: one failed, or the time is over.
        """
        missing = {worker for worker in self._workers if not any(word in worker.facts for word in words)}
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.line, selectors.EVENT_READ, worker)
            while missing:
                left_s = self._deadline - time.monotonic()
                if left_s <= 0:
                    raise CaseFailed(f"no {'/'.join(words)} of {', '.join(w.name for w in missing)} in time")
                for key, _ in selector.select(left_s):
                    key.data.read()
                missing = {worker for worker in missing if not any(word in worker.facts for word in words)}

    def say(self) -> None:
        """Say the next word, go or finish, to all."""
        for worker in self._workers:
            with contextlib.suppress(BrokenPipeError):
                worker.line.sendall(b"!")

    def facts(self, name: str) -> list[dict[str, Any]]:
        """What the processes of this name have told."""
        return [worker.facts for worker in self._workers if worker.name == name]


def _run(work: Callable[[Role], None], load: Load, line: socket.socket, acks: list[int]) -> None:
    """The forked process: never returns."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        work(Role(load, line, acks))
        status = 0
    except BaseException:
        with contextlib.suppress(OSError):
            line.sendall(json.dumps({"error": traceback.format_exc()}).encode() + b"\n")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def measure(link: Link) -> dict[str, float]:
    """Carry a link's load once.

    Returns:
        ``rate`` (messages/s; of a fan-out: deliveries/s) and ``bytes_per_s``; or ``p50_us`` and ``p99_us``.

    Raises:
        CaseFailed.
    """
    try:
        with Crew() as crew, contextlib.ExitStack() as pipes:
            return (
                _round_trip(link, crew) if link.load.pattern == "round trip" else _stream(link, crew, pipes)
            )
    finally:
        link.remove()


def _stream(link: Link, crew: Crew, pipes: contextlib.ExitStack) -> dict[str, float]:
    load = link.load
    acks = [os.pipe() for _ in range(load.readers)]
    for pair in acks:
        for descriptor in pair:
            pipes.callback(os.close, descriptor)
    for index, (_, write) in enumerate(acks):
        crew.start("receiver", load, [write], lambda role, index=index: link.receive(role, index))  # type: ignore[misc]
    crew.start("sender", load, [read for read, _ in acks], link.send)
    crew.wait("ready")
    crew.say()
    crew.wait("sent_rounds", "received")
    crew.say()
    (sent,) = crew.facts("sender")
    received = crew.facts("receiver")
    expected = load.tally(sent["sent_rounds"])
    if any(facts["received"] != expected.report() for facts in received):
        raise CaseFailed("not every message arrived whole")
    span_ns = max(facts["ended_ns"] for facts in received) - sent["began_ns"]
    rate = expected.count * load.readers / (span_ns / 1e9)
    return {"rate": rate, "bytes_per_s": rate * load.size_bytes}


def _round_trip(link: Link, crew: Crew) -> dict[str, float]:
    def pinned(end: int, work: Callable[[Role], None]) -> Callable[[Role], None]:
        def run(role: Role) -> None:
            link.site.pin(end)
            work(role)

        return run

    crew.start("echo", link.load, [], pinned(1, link.echo))
    crew.start("ping", link.load, [], pinned(0, link.ping))
    crew.wait("ready")
    crew.say()
    crew.wait("p50_ns", "echoed")
    crew.say()
    (facts,) = crew.facts("ping")
    return {"p50_us": facts["p50_ns"] / 1e3, "p99_us": facts["p99_ns"] / 1e3}
