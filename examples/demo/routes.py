"""The demo's routes: starts the programs of each, waits for them, and takes down what they saw."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tally import Tally

import towpath

HERE = Path(__file__).resolve().parent
BULK = 10_000
PER_SECOND = 5_000
PATIENCE_S = 60


@dataclass(frozen=True)
class Daemon:
    """The demo's daemon, and how it is reached."""

    client: towpath.Client
    socket: str
    sub: str
    push: str
    grpc: str
    root: Path


@dataclass
class Route:
    """One way from a program to another, and what arrived."""

    origin: str
    through: str
    to: str
    expected: int
    count: int = 0
    wrong: list[str] = field(default_factory=list)
    p50_us: float | None = None
    p99_us: float | None = None
    trouble: str = ""

    @property
    def is_good(self) -> bool:
        return self.count == self.expected and not self.wrong and not self.trouble


@dataclass
class Receiver:
    """A receiving process; its output is JSON lines, as `tally.say` writes them."""

    route: Route
    process: subprocess.Popen[str]

    def wait_ready(self) -> None:
        self._next("ready")

    def wait_result(self, show: Callable[[str], None] | None) -> None:
        result = self._next("result", show)
        if result is None:
            self.route.trouble = self.route.trouble or "the receiver ended early"
            return
        self.route.count, self.route.wrong = result["count"], result["wrong"]
        self.route.p50_us, self.route.p99_us = result["p50_us"], result["p99_us"]
        self.route.trouble = "; ".join(self.route.wrong)

    def _next(self, kind: str, show: Callable[[str], None] | None = None) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message: dict[str, Any] = json.loads(line)
            if message["kind"] == kind:
                return message
            if message["kind"] == "line" and show is not None:
                show(message["text"])
        return None

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def _start_receivers(
    daemon: Daemon, channel: str, origin: str, through: str, count: int, what: str
) -> list[Receiver]:
    kinds = [
        ("shared memory", "receive_memory.py", daemon.socket),
        ("ZeroMQ SUB", "receive_zeromq.py", daemon.sub),
        ("gRPC stream", "receive_grpc.py", daemon.grpc),
    ]
    return [
        Receiver(
            Route(origin, through, to, count),
            subprocess.Popen(
                [sys.executable, str(HERE / program), address, channel, str(count), what],
                stdout=subprocess.PIPE,
                text=True,
            ),
        )
        for to, program, address in kinds
    ]


def _wait_subscribers(daemon: Daemon, channel: str, count: int) -> None:
    """A SUB socket cannot tell when its subscription has arrived; the daemon can."""
    deadline = time.monotonic() + PATIENCE_S
    while daemon.client.channel_info(channel).subscribers < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{channel}: the subscribers did not come")
        time.sleep(0.01)


def carry_in(
    daemon: Daemon, name: str, url: str, through: str, writer: list[str] | None, count: int, *, show: bool
) -> list[Route]:
    """A program writes into a pipe or a FIFO; three programs must receive it.

    Args:
        url: the binding that brings the lines; empty for a FIFO made for `writer`.
        writer: a command whose standard output is the FIFO; None when the binding runs the program itself.
        show: print the lines as they arrive; they are those of a real program, not numbered.
    """
    channel = f"demo.{name}"
    daemon.client.declare(channel)
    fifo = daemon.root / f"{name}.fifo"
    receivers = _start_receivers(
        daemon, channel, _origin(url, writer), through, count, "lines" if show else "numbered"
    )
    process: subprocess.Popen[bytes] | None = None
    try:
        for receiver in receivers:
            receiver.wait_ready()
        _wait_subscribers(daemon, channel, len(receivers))
        options = {"restart": "never"} if url else None
        binding = daemon.client.bind(channel, url or f"fifo:{fifo}", direction="in", options=options)
        if writer is not None:
            with fifo.open("wb") as stream:
                process = subprocess.Popen(writer, stdout=stream)
        with ThreadPoolExecutor(len(receivers)) as pool:
            for receiver in receivers:
                show_line = _printer(channel, receiver.route.to) if show else None
                pool.submit(receiver.wait_result, show_line)
        daemon.client.unbind(binding.id)
    finally:
        if process is not None:
            process.terminate()
            process.wait()
        for receiver in receivers:
            receiver.end()
    return [receiver.route for receiver in receivers]


def _origin(url: str, writer: list[str] | None) -> str:
    command = url.removeprefix("pipe:").split() if url else writer or []
    if any(word.endswith("count.py") for word in command):
        return "numbered lines"
    return "tail -f app.log" if command[0] == "tail" else " ".join(command[:2])


def _printer(channel: str, to: str) -> Callable[[str], None]:
    return lambda text: print(f"   {to:<13} {channel:<12} | {text[:70]}", flush=True)


def carry_back(daemon: Daemon, name: str, origin: str, sender: list[str], count: list[str]) -> Route:
    """Lines published from outside come out of a FIFO into a shell's `read`."""
    channel = f"demo.{name}"
    fifo = daemon.root / f"{name}.fifo"
    daemon.client.declare(channel)
    daemon.client.bind(channel, f"fifo:{fifo}", direction="out")
    route = Route(origin, "FIFO", "shell read", BULK)
    shell = subprocess.Popen(
        ["bash", str(HERE / "read_fifo.sh"), str(fifo), str(BULK)], stdout=subprocess.PIPE
    )
    assert shell.stdout is not None
    try:
        if shell.stdout.readline() != b"ready\n":
            route.trouble = "the shell could not open the FIFO"
            return route
        program, address = sender
        source = subprocess.Popen(count, stdout=subprocess.PIPE)
        publisher = subprocess.Popen(
            [sys.executable, str(HERE / program), address, channel], stdin=source.stdout
        )
        tally = Tally(BULK, numbered=True)
        for line in shell.stdout:
            at, _, text = line.partition(b" ")
            tally.add(text, at_ns=_nanoseconds(at))
        source.wait(PATIENCE_S)
        publisher.wait(PATIENCE_S)
        route.count, route.wrong = tally.count, tally.wrong[:5]
        route.p50_us, route.p99_us = tally.percentiles_us()
        route.trouble = "; ".join(route.wrong)
    finally:
        shell.kill()
        shell.wait()
        shell.stdout.close()
        daemon.client.unbind(channel=channel, url=f"fifo:{fifo}")
    return route


def _nanoseconds(epoch_realtime: bytes) -> int:
    """Bash's $EPOCHREALTIME: seconds and microseconds, with the locale's decimal sign."""
    seconds, microseconds = epoch_realtime.replace(b",", b".").split(b".")
    return int(seconds) * 10**9 + int(microseconds) * 1000
