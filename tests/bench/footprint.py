"""What the daemon costs while nothing happens, and what channels cost that nobody or everybody uses.

Theory of operation
    Each part has a daemon of its own. CPU is read from the scheduler's own account in nanoseconds
    (/proc/PID/schedstat), memory from VmRSS, descriptors by counting /proc/PID/fd. While idle, one program
    sleeps in ``receive``, because a daemon with nobody connected would be too easy.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from tests.bench.results import Results
from tests.bench.site import Daemon, wait_for

CHANNELS: Final = 1_000
LOOK_S: Final = 0.5
IDLE_NS: Final = 5_000_000
"""Time on a processor, of all together, between two looks: less is rest."""
MB: Final = 1e6
LIBRARY_THREADS: Final = ("grpc_global_tim", "event_engine", "lifeguard")
"""gRPC's own (its timers, its pool, and who looks after that): each looks around about once a second for as
long as a server exists, and no setting of gRPC 1.85 makes that less."""


def processes_below(pid: int) -> list[int]:
    """A process and all that it started, directly or not."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu_ns(pid: int) -> int:
    """Time on a processor of all threads so far."""
    return sum(
        int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()
    )


def wakings(pids: list[int]) -> dict[str, int]:
    """How often each thread has gone to sleep by itself so far, but those of ``LIBRARY_THREADS``."""
    found = {}
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            status = (task / "status").read_text()
            name = re.search(r"^Name:\t(.*)$", status, re.MULTILINE)
            count = re.search(r"^voluntary_ctxt_switches:\t(\d+)$", status, re.MULTILINE)
            assert name and count
            if name[1] not in LIBRARY_THREADS:
                found[f"{name[1]}, thread {task.name} of {pid}"] = int(count[1])
    return found


def resident_bytes(pid: int) -> int:
    """VmRSS."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def descriptors(pid: int) -> int:
    """Open descriptors."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def core_pid(daemon: Daemon) -> int:
    """The core's pid, as the daemon logged it."""
    return int(re.findall(r" core\.started pid=([0-9]+)", daemon.log.read_text())[-1])


class Program:
    """A client in a process of its own, which does its part, says a word and waits to be told to end."""

    def __init__(self, work: Callable[[str, Connection], None], socket: str) -> None:
        context = multiprocessing.get_context("fork")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(socket, theirs))
        self._process.start()
        theirs.close()
        if not self._line.poll(60):
            raise RuntimeError("a program of the footprint did not come up")
        self._line.recv()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def close(self) -> None:
        """Let it end."""
        self._line.send("end")
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._line.close()


def _listen(socket: str, line: Connection) -> None:
    import towpath

    with towpath.connect(socket) as client:
        client.declare("bench.idle")
        with client.subscribe("bench.idle") as subscription:
            line.send("up")
            while not line.poll(0):
                if subscription.receive_many(timeout=3600):
                    break
            line.recv()


def _wake(socket: str) -> None:
    import towpath

    with towpath.connect(socket) as client:
        client.channel("bench.idle").publish(b"end")


def _rested(processes: Callable[[], list[int]]) -> list[int]:
    """Wait until what was just started has come to rest, and return its processes.

    Raises:
        RuntimeError: it does not.
    """
    looks: list[tuple[list[int], int]] = []

    def is_idle() -> bool:
        time.sleep(LOOK_S)
        pids = processes()
        looks.append((pids, sum(map(cpu_ns, pids))))
        return len(looks) > 1 and looks[-2][0] == pids and looks[-1][1] - looks[-2][1] < IDLE_NS

    wait_for(is_idle, "rest after the start")
    return looks[-1][0]


def measure_idle(results: Results, idle_s: float) -> None:
    """CPU over a while in which nothing happens, and the core's memory."""
    with tempfile.TemporaryDirectory(prefix="towpath-bench-") as directory:
        daemon = Daemon(Path(directory))
        listener = Program(_listen, daemon.socket)
        pids = _rested(lambda: [*processes_below(daemon.process.pid), listener.pid])
        names = {core_pid(daemon): "core", daemon.process.pid: "supervisor", listener.pid: "subscriber"}
        before, woken = {pid: cpu_ns(pid) for pid in pids}, wakings(pids)
        began_ns = time.monotonic_ns()
        time.sleep(idle_s)
        span_ns = time.monotonic_ns() - began_ns
        spent = {pid: cpu_ns(pid) - before[pid] for pid in pids}
        more = sum(wakings(pids).values()) - sum(woken.values())
        results.singles["idle wake-ups, but gRPC's own"] = more
        results.singles["idle seconds"] = span_ns / 1e9
        for pid in pids:
            label = names.get(pid, "gateway")
            results.singles[f"idle cpu ms, {label} {pids.index(pid)}"] = spent[pid] / 1e6
        results.singles["idle cpu permille"] = sum(spent.values()) / span_ns * 1e3
        results.singles["core resident MB"] = resident_bytes(core_pid(daemon)) / MB
        results.singles["all resident MB"] = sum(map(resident_bytes, pids[:-1])) / MB
        _wake(daemon.socket)
        listener.close()
        daemon.close()


def _declare(socket: str, line: Connection) -> None:
    import towpath

    with towpath.connect(socket) as client:
        for number in range(CHANNELS):
            client.declare(f"bench.declared.{number}")
        line.send("up")
        line.recv()


def _publish_all(socket: str, line: Connection) -> None:
    import towpath

    with towpath.connect(socket) as client:
        publishers = [client.publisher(f"bench.declared.{number}") for number in range(CHANNELS)]
        for publisher in publishers:
            publisher.publish(b"x" * 64)
        line.send("up")
        line.recv()


def _subscribe_all(socket: str, line: Connection) -> None:
    import towpath

    with towpath.connect(socket) as client:
        subscriptions = [client.subscribe(f"bench.declared.{number}") for number in range(CHANNELS)]
        line.send("up")
        line.recv()
        for subscription in subscriptions:
            subscription.receive(timeout=10)


def measure_channels(results: Results) -> None:
    """What a thousand channels add: declared, then each with a publisher and a subscriber."""
    with tempfile.TemporaryDirectory(prefix="towpath-bench-") as directory:
        daemon = Daemon(Path(directory))
        core = core_pid(daemon)
        before = resident_bytes(core)
        Program(_declare, daemon.socket).close()
        results.singles["declared added MB"] = (resident_bytes(core) - before) / MB
        began_ns = time.monotonic_ns()
        subscriber = Program(_subscribe_all, daemon.socket)
        publisher = Program(_publish_all, daemon.socket)
        results.singles["used: seconds to open all"] = (time.monotonic_ns() - began_ns) / 1e9
        ours = [*processes_below(daemon.process.pid), subscriber.pid, publisher.pid]
        results.singles["used descriptors"] = max(map(descriptors, ours))
        results.singles["used descriptors, all processes together"] = sum(map(descriptors, ours))
        for name, pid in (("core", core), ("publisher", publisher.pid), ("subscriber", subscriber.pid)):
            results.singles[f"used descriptors, {name}"] = descriptors(pid)
            results.singles[f"used resident MB, {name}"] = resident_bytes(pid) / MB
        subscriber.close()
        publisher.close()
        daemon.close()
