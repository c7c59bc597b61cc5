"""What locks cost, beside what one would use otherwise, a round of each in turn.

Theory of operation
    *Uncontended*: one process takes and gives back; beside multiprocessing.Lock, flock(2), fcntl(2) locks and
    a POSIX semaphore, none of which says who holds it, and of which only the files' are given back when their
    holder dies. *Through the daemon*: the same by a semaphore of one permit, which is always asked for there;
    beside redis-py's Lock, and beside a bare round trip over a UNIX socket between two Python processes,
    than which nobody who asks a daemon can be quicker; and beside etcd v3's, where its server is there
    (Debian's etcd-server; on the path, or beside the peers' packages), else by what was seen of it elsewhere.

    *Contended*: four processes take one lock in turn for a while, hold it for a span (busy, by the clock) and
    begin anew: how often in all, how fairly, and how long the slowest hundredth waited. *Deadlock*: sessions
    in a circle, each with a connection of its own; from the call that closes it to its error. *Death*: from
    SIGKILL of the holder until the next has the lock.

    What is noted is the median of the rounds' figures, and of their ratios.

Not here: what happens in the core alone (``locks_core``).
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import signal
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from tests.bench.cases import is_there
from tests.bench.etcd import etcd_lock, has_etcd
from tests.bench.kinds import Rounds
from tests.bench.results import Results
from tests.bench.site import Daemon, Site
from tests.bench.stored_peers import beside, has_redis

LOCAL_ONLY: Final = "zeromq = false\ngrpc = false\n"
PROCESSES: Final = 4
HOLDS_US: Final = (100, 0)
CIRCLES: Final = (2, 10, 50, 100)
WAIT_S: Final = 60.0
ETCD_PAIRS: Final = 400
"""What etcd v3 reached on a disk like ours, at best, for where it cannot be measured; see issue 6."""
IN_PAGE: Final = 2_000
"""After so many pairs the daemon has given a lock out to shared memory, for long."""
_fork: Final = multiprocessing.get_context("fork")

Pair = Callable[[], object]
"""Takes a lock and gives it back."""


def measure(results: Results, site: Site, *, number: int, scale: float) -> None:
    """Measure everything.

    Args:
        number: of rounds.
        scale: how much in each.
    """
    rounds = Rounds()
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(Path(folder), LOCAL_ONLY)
        try:
            for _ in range(number):
                _uncontended(rounds, site, daemon.socket, scale)
                _contended(rounds, site, daemon.socket, scale)
            _deadlocks(results, daemon.socket, max(5, int(20 * scale)))
            _deaths(results, daemon.socket, max(5, int(20 * scale)))
        finally:
            daemon.close()
    rounds.note(results)


def percentile(values: list[float], share: float) -> float:
    """Return the value below which a share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# ---- uncontended -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _towpath(url: str) -> Iterator[Pair]:
    import towpath

    with towpath.connect(url) as client:
        lock = client.lock("bench.lock")

        def pair() -> None:
            lock.acquire().release()

        for _ in range(IN_PAGE):
            pair()
        yield pair


@contextlib.contextmanager
def _shared(url: str, *, is_fast: bool) -> Iterator[Pair]:
    import towpath

    with towpath.connect(url) as client:
        lock = client.lock("bench.shared" if is_fast else "bench.shared.slow", fast=is_fast)

        def pair() -> None:
            lock.acquire(shared=True).release()

        for _ in range(IN_PAGE if is_fast else 1):
            pair()
        yield pair


@contextlib.contextmanager
def _through_daemon(url: str) -> Iterator[Pair]:
    import towpath

    with towpath.connect(url) as client:
        one = client.semaphore("bench.one", 1)
        yield lambda: one.acquire().release()


@contextlib.contextmanager
def _redis(port: int) -> Iterator[Pair]:
    import redis

    with redis.Redis(port=port) as client:
        lock = client.lock("bench.lock", timeout=WAIT_S)

        def pair() -> None:
            lock.acquire()
            lock.release()

        yield pair


@contextlib.contextmanager
def _multiprocessing() -> Iterator[Pair]:
    lock = _fork.Lock()

    def pair() -> None:
        lock.acquire()
        lock.release()

    yield pair


@contextlib.contextmanager
def _file(call: Callable[[int, int], object]) -> Iterator[Pair]:
    with tempfile.TemporaryFile() as file:
        number = file.fileno()

        def pair() -> None:
            call(number, fcntl.LOCK_EX)
            call(number, fcntl.LOCK_UN)

        yield pair


@contextlib.contextmanager
def _semaphore() -> Iterator[Pair]:
    import posix_ipc

    semaphore = posix_ipc.Semaphore(f"/towpath-bench-{os.getpid()}", posix_ipc.O_CREX, initial_value=1)

    def pair() -> None:
        semaphore.acquire()
        semaphore.release()

    try:
        yield pair
    finally:
        semaphore.unlink()
        semaphore.close()


@contextlib.contextmanager
def _round_trip() -> Iterator[Pair]:
    """Nothing but a question and its answer."""
    ours, theirs = socket.socketpair()

    def answer() -> None:
        ours.close()
        while data := theirs.recv(4096):
            theirs.send(data)

    def ask() -> None:
        ours.send(bytes(60))
        ours.recv(4096)

    with beside(answer):
        theirs.close()
        yield ask
    ours.close()


def _rate(pair: Pair, count: int) -> float:
    """Pairs a second, after a few that do not count."""
    for _ in range(max(1, count // 20)):
        pair()
    began = time.perf_counter()
    for _ in range(count):
        pair()
    return count / (time.perf_counter() - began)


def _uncontended(rounds: Rounds, site: Site, url: str, scale: float) -> None:
    ways: dict[str, tuple[Any, int]] = {
        "lock": (_towpath(url), 200_000),
        "shared lock in the page": (_shared(url, is_fast=True), 200_000),
        "shared lock, daemon": (_shared(url, is_fast=False), 20_000),
        "multiprocessing.Lock": (_multiprocessing(), 200_000),
        "flock": (_file(fcntl.flock), 20_000),
        "fcntl": (_file(fcntl.lockf), 20_000),
        "round trip": (_round_trip(), 4_000),
        "daemon": (_through_daemon(url), 20_000),
    }
    if is_there("posix_ipc"):
        ways["POSIX semaphore"] = (_semaphore(), 20_000)
    if has_redis():
        ways["Redis"] = (_redis(site.redis_port), 2_000)
    if has_etcd():
        ways["etcd"] = (etcd_lock(site.etcd_port), 200)
    found = {}
    for name, (way, count) in ways.items():
        with way as pair:
            found[name] = rounds.add(f"lock pairs, {name}, k/s", _rate(pair, int(count * scale)) / 1e3)
    rounds.add("lock by multiprocessing.Lock", found["lock"] / found["multiprocessing.Lock"])
    rounds.add("daemon lock by etcd", found["daemon"] / found.get("etcd", ETCD_PAIRS / 1e3))
    rounds.add("daemon lock by round trip", found["daemon"] / found["round trip"])
    if "Redis" in found:
        rounds.add("daemon lock by Redis", found["daemon"] / found["Redis"])


# ---- contended ---------------------------------------------------------------------------------------------


def _contend(make: Callable[[], Any], hold_ns: int, line: Connection) -> None:
    """One process: when it is told to, take and give back until a time; tell how often, and how long it
    waited."""
    waits: list[int] = []
    with make() as (acquire, release):
        line.send(None)
        until_ns = line.recv()
        now_ns = time.monotonic_ns()
        while now_ns < until_ns:
            held = acquire()
            got_ns = time.monotonic_ns()
            waits.append(got_ns - now_ns)
            end_ns = got_ns + hold_ns
            while time.monotonic_ns() < end_ns:
                pass
            release(held)
            now_ns = time.monotonic_ns()
    line.send((len(waits), sorted(waits)[-len(waits) // 50 :]))
    line.recv()


@contextlib.contextmanager
def _towpath_parts(url: str) -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    import towpath

    with towpath.connect(url) as client:
        yield client.lock("bench.contended").acquire, lambda guard: guard.release()


@contextlib.contextmanager
def _redis_parts(port: int) -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    import redis

    with redis.Redis(port=port) as client:
        lock = client.lock("bench.contended", timeout=WAIT_S)
        yield lock.acquire, lambda _: lock.release()


def _several(make: Callable[[], Any], hold_us: int, span_s: float) -> tuple[float, float, float]:
    """Let some processes contend; return pairs a second in all, the least share by the greatest, and what the
    slowest hundredth waited, in milliseconds."""
    pipes = [_fork.Pipe() for _ in range(PROCESSES)]
    processes = [
        _fork.Process(target=_contend, args=(make, hold_us * 1_000, theirs), daemon=True)
        for _, theirs in pipes
    ]
    try:
        for process in processes:
            process.start()
        for ours, _ in pipes:
            _heard(ours)
        until_ns = time.monotonic_ns() + int(span_s * 1e9)
        for ours, _ in pipes:
            ours.send(until_ns)
        told = [_heard(ours) for ours, _ in pipes]
        for ours, _ in pipes:
            ours.send(None)
        for process in processes:
            process.join(WAIT_S)
    finally:
        for process in processes:
            process.kill()
            process.join()
    counts = [count for count, _ in told]
    slowest = sorted(wait for _, waits in told for wait in waits)
    worst_ns = slowest[-max(1, sum(counts) // 100)] if slowest else 0
    return sum(counts) / span_s, min(counts) / max(counts), worst_ns / 1e6


def _heard(line: Connection) -> Any:
    if not line.poll(WAIT_S):
        raise RuntimeError("a process that contends for a lock does not answer")
    return line.recv()


def _contended(rounds: Rounds, site: Site, url: str, scale: float) -> None:
    span_s = max(0.2, scale / 2)
    for hold_us in HOLDS_US:
        what = f"held {hold_us} us"
        total, share, worst_ms = _several(lambda: _towpath_parts(url), hold_us, span_s)
        rounds.add(f"contended lock, {what}, /s", total)
        rounds.add(f"contended lock, {what}, least share by greatest", share)
        rounds.add(f"contended lock, {what}, wait p99 ms", worst_ms)
        if has_redis():
            port = site.redis_port
            theirs, their_share, _ = _several(lambda: _redis_parts(port), hold_us, max(1.0, span_s))  # noqa: B023
            rounds.add(f"contended Redis lock, {what}, /s", theirs)
            rounds.add(f"contended Redis lock, {what}, least share by greatest", their_share)
            rounds.add(f"contended lock, {what}, by Redis", total / theirs)


# ---- deadlocks and deaths ----------------------------------------------------------------------------------


def _deadlocks(results: Results, url: str, number: int) -> None:
    import towpath

    points = []
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(towpath.connect(url)) for _ in range(max(CIRCLES))]
        for size in CIRCLES:
            times_ms = [_closed(clients[:size]) for _ in range(number)]
            results.singles[f"deadlock of {size}, p50 ms"] = statistics.median(times_ms)
            results.singles[f"deadlock of {size}, p99 ms"] = percentile(times_ms, 0.99)
            points.append((float(size), statistics.median(times_ms) * 1e6))
    results.curves["time to report a deadlock against sessions in it"] = points


def _closed(clients: list[Any]) -> float:
    """Make a circle; return how long the call took that closed it, in milliseconds."""
    from towpath.errors import Deadlock

    locks = [f"bench.circle.{number}" for number in range(len(clients))]
    all_hold = threading.Barrier(len(clients))

    def hold_and_wait(at: int) -> None:
        with clients[at].lock(locks[at]):
            all_hold.wait(WAIT_S)
            clients[at].lock(locks[at + 1]).acquire(WAIT_S).release()

    threads = [threading.Thread(target=hold_and_wait, args=(at,)) for at in range(len(clients) - 1)]
    for thread in threads:
        thread.start()
    guard = clients[-1].lock(locks[-1]).acquire(WAIT_S)
    all_hold.wait(WAIT_S)
    _wait_until(lambda: _waiting(clients[0], "bench.circle") == len(threads))
    began_ns = time.monotonic_ns()
    try:
        clients[-1].lock(locks[0]).acquire(WAIT_S)
    except Deadlock as error:
        took_ns = time.monotonic_ns() - began_ns
        if len(error.cycle) != len(clients):
            raise RuntimeError(f"a circle of {len(clients)} was reported as {len(error.cycle)}") from None
    else:
        raise RuntimeError("a deadlock was not reported")
    guard.release()
    for thread in threads:
        thread.join(WAIT_S)
    return took_ns / 1e6


def _waiting(client: Any, prefix: str) -> int:
    return sum(len(lock.waiters) for lock in client.list_locks(prefix).locks)


def _wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError("those who shall wait for locks do not")
        time.sleep(0.002)


def _holder(url: str, line: Connection) -> None:
    import towpath

    client = towpath.connect(url)
    guard = client.lock("bench.death").acquire(WAIT_S)
    line.send(guard.token)
    time.sleep(3600)  # until it is killed


def _deaths(results: Results, url: str, number: int) -> None:
    import towpath

    times_ms = []
    with towpath.connect(url) as client:
        lock = client.lock("bench.death")
        for _ in range(number):
            ours, theirs = _fork.Pipe()
            process = _fork.Process(target=_holder, args=(url, theirs), daemon=True)
            process.start()
            _heard(ours)
            granted: list[int] = []

            def wait(granted: list[int] = granted) -> None:
                guard = lock.acquire(WAIT_S)
                granted.append(time.monotonic_ns())
                guard.release()

            thread = threading.Thread(target=wait)
            thread.start()
            _wait_until(lambda: _waiting(client, "bench.death") == 1)
            began_ns = time.monotonic_ns()
            os.kill(process.pid or 0, signal.SIGKILL)
            thread.join(WAIT_S)
            process.join()
            times_ms.append((granted[0] - began_ns) / 1e6)
    results.singles["holder killed to next granted, p50 ms"] = statistics.median(times_ms)
    results.singles["holder killed to next granted, p99 ms"] = percentile(times_ms, 0.99)
