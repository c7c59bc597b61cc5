"""What a loan costs, made, published and received by two processes; beside iceoryx2, and numpy's own copy.

Theory of operation
    A sender and a receiver, each a process, on a core each where there are two: else sizes would be compared
    by where the scheduler has put them. The receiver holds each message for as long as it takes to receive
    the next. Unfilled, nobody touches the payload: what is measured is what does not depend on its size.
    Filled, the sender has numpy copy an array into each loan; beside it numpy copies the same array into one
    of this process's own, as often, which goes on being in the cache where it fits. So numpy copies also
    into three pieces of shared memory in turn, of ordinary pages, which is what one who hands them on needs:
    one is filled, one was just published, one is still held. All ways take turns, so that the machine's moods
    meet all alike; the median of ratios is the figure.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from tests.bench.results import Results
from tests.bench.site import Daemon
from tests.support.daemon import LOCAL_ONLY

SIZES: Final = {"64 B": 64, "64 KiB": 1 << 16, "1 MiB": 1 << 20, "16 MiB": 1 << 24}
BY_ICEORYX: Final = ("64 KiB", "1 MiB")
FILLED: Final = ("64 KiB", "1 MiB", "16 MiB")
FILLED_BYTES: Final = 1 << 30
"""That one filled run copies."""
FILLED_NAME: Final = "bench.filled"
IN_TURN: Final = 3
SAMPLES: Final = 64
WAIT_S: Final = 60.0
WARM: Final = 64
"""Messages before the clock starts, so that who waits spins; where they are filled, the whole slab once,
so that its pages are there.
"""
_fork = multiprocessing.get_context("fork")
_is_heard = _fork.Event()
"""iceoryx2's receiver has had a message of the sender's."""


def measure(results: Results, count: int, rounds: int) -> None:
    """Measure ``count`` messages a run, and note times and ratios."""
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(Path(folder), LOCAL_ONLY)
        try:
            for number in range(rounds):
                for name, run in _ways(daemon.socket, count, number):
                    taken.setdefault(name, []).append(run())
        finally:
            daemon.close()
    for name, times_us in taken.items():
        results.singles[f"{name}, us"] = statistics.median(times_us)

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(taken[one], taken[other], strict=True))

    for size in ("64 KiB", "1 MiB", "16 MiB"):
        results.singles[f"loan {size} by 64 B"] = ratio(f"loan {size}", "loan 64 B")
    for size in BY_ICEORYX:
        results.singles[f"loan {size} by iceoryx2"] = ratio(f"iceoryx2 {size}", f"loan {size}")
    for size in FILLED:
        results.singles[f"loan {size} filled by numpy's copy"] = ratio(f"loan {size} filled", f"numpy {size}")
        results.singles[f"numpy {size} in turn by numpy's copy"] = ratio(
            f"numpy {size} in turn", f"numpy {size}"
        )


def _ways(socket: str, count: int, number: int) -> list[tuple[str, Callable[[], float]]]:
    """Each way by name: a run of it gives the time a message took, in microseconds."""
    ways: list[tuple[str, Callable[[], float]]] = []
    for size, nbytes in SIZES.items():
        channel = f"bench.loan{number}.{nbytes}"
        ways.append((f"loan {size}", lambda n=nbytes, c=channel: _pair(_loan, _hold, socket, c, n, count)))  # type: ignore[misc]
    for size in BY_ICEORYX:
        service = f"towpath-bench-{os.getpid()}-{number}-{SIZES[size]}"
        ways.append(
            (
                f"iceoryx2 {size}",
                lambda n=SIZES[size], s=service: _pair(_ice_loan, _ice_take, "", s, n, count),  # type: ignore[misc]
            )
        )
    for size in FILLED:
        nbytes, fill_count = SIZES[size], FILLED_BYTES // SIZES[size]
        channel = f"{FILLED_NAME}{number}.{nbytes}"
        ways.append((f"numpy {size}", lambda n=nbytes, k=fill_count: _copy(n, k)))  # type: ignore[misc]
        ways.append((f"numpy {size} in turn", lambda n=nbytes, k=fill_count: _copy_in_turn(n, k)))  # type: ignore[misc]
        ways.append(
            (
                f"loan {size} filled",
                lambda n=nbytes, c=channel, k=fill_count: _pair(_fill, _hold, socket, c, n, k),  # type: ignore[misc]
            )
        )
    return ways


def _pair(sender: Any, receiver: Any, socket: str, name: str, nbytes: int, count: int) -> float:
    """Run both; the receiver tells when it was ready and when it had everything, the sender when it began."""
    (ours, theirs), (go, wait) = _fork.Pipe(), _fork.Pipe()
    _is_heard.clear()
    processes = [
        _fork.Process(target=_placed, args=(1, receiver, theirs, socket, name, nbytes, count)),
        _fork.Process(target=_placed, args=(0, sender, wait, socket, name, nbytes, count)),
    ]
    processes[0].start()
    _heard(ours)
    processes[1].start()
    began = _heard(go)
    ended = _heard(ours)
    go.send(0.0)
    for process in processes:
        process.join(WAIT_S)
        if process.exitcode != 0:
            raise RuntimeError(f"{name}: a process ended with {process.exitcode}")
    return (ended - began) / count * 1e6


def _placed(number: int, run: Callable[..., None], *arguments: Any) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    run(*arguments)


def _heard(connection: Connection) -> float:
    if not connection.poll(WAIT_S):
        raise RuntimeError("a process does not answer")
    return float(connection.recv())


def _send_all(told: Connection, send: Callable[[], None], count: int, warm: int = WARM) -> None:
    for _ in range(warm):
        send()
    told.send(time.perf_counter())
    for _ in range(count):
        send()
    told.recv()


def _loan(told: Connection, socket: str, name: str, nbytes: int, count: int) -> None:
    import towpath

    with towpath.connect(socket) as client, client.publisher(name) as publisher:
        loan = publisher.loan

        def send() -> None:
            loan(nbytes).publish()

        _send_all(told, send, count)


def _fill(told: Connection, socket: str, name: str, nbytes: int, count: int) -> None:
    import numpy

    import towpath

    source = numpy.ones(nbytes, numpy.uint8)
    with towpath.connect(socket) as client, client.publisher(name) as publisher:

        def send() -> None:
            loan = publisher.loan(nbytes)
            numpy.copyto(numpy.frombuffer(memoryview(loan), numpy.uint8), source)
            loan.publish()

        _send_all(told, send, count, _warm(name, nbytes))


def _warm(name: str, nbytes: int) -> int:
    from towpath.loans import LOAN_BYTES

    return WARM + LOAN_BYTES // nbytes if name.startswith(FILLED_NAME) else WARM


def _hold(told: Connection, socket: str, name: str, nbytes: int, count: int) -> None:
    import towpath

    with towpath.connect(socket) as client:
        client.declare(name)
        with client.subscribe(name) as subscription:
            told.send(0.0)
            receive = subscription.receive
            for _ in range(_warm(name, nbytes) + count):
                message = receive()
            told.send(time.perf_counter())
            assert len(message.payload) == nbytes


def _copy(nbytes: int, count: int) -> float:
    import numpy

    return _copy_into([numpy.zeros(nbytes, numpy.uint8)], count)


def _copy_in_turn(nbytes: int, count: int) -> float:
    import numpy

    memory = mmap.mmap(-1, IN_TURN * nbytes)
    return _copy_into(list(numpy.frombuffer(memory, numpy.uint8).reshape(IN_TURN, nbytes)), count)


def _copy_into(targets: list[Any], count: int) -> float:
    import numpy

    source = numpy.ones(targets[0].size, numpy.uint8)
    turns = itertools.cycle(targets)
    for _ in range(WARM):
        numpy.copyto(next(turns), source)
    began = time.perf_counter()
    for _ in range(count):
        numpy.copyto(next(turns), source)
    return (time.perf_counter() - began) / count * 1e6


def _ice_service(name: str) -> tuple[Any, Any]:
    import iceoryx2

    iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
    node = (
        iceoryx2.NodeBuilder.new()
        .signal_handling_mode(iceoryx2.SignalHandlingMode.Disabled)
        .create(iceoryx2.ServiceType.Ipc)
    )
    service = (
        node.service_builder(iceoryx2.ServiceName.new(name))
        .publish_subscribe(iceoryx2.Slice[ctypes.c_uint8])
        .enable_safe_overflow(False)
        .subscriber_max_buffer_size(SAMPLES)
        .open_or_create()
    )
    return node, service


def _ice_loan(told: Connection, _: str, name: str, nbytes: int, count: int) -> None:
    import iceoryx2

    node, service = _ice_service(name)
    publisher = (
        service.publisher_builder()
        .initial_max_slice_len(nbytes)
        .backpressure_strategy(iceoryx2.BackpressureStrategy.RetryUntilDelivered)
        .create()
    )

    def send() -> None:
        publisher.loan_slice_uninit(nbytes).assume_init().send()

    while not _is_heard.is_set():  # the first messages are lost now and then
        send()
        time.sleep(0.01)
    _send_all(told, send, count, 0)
    publisher.delete()
    del service, node


def _ice_take(told: Connection, _: str, name: str, nbytes: int, count: int) -> None:
    node, service = _ice_service(name)
    subscriber = service.subscriber_builder().create()
    take = subscriber.receive
    told.send(0.0)
    while (sample := take()) is None:
        os.sched_yield()
    sample.delete()
    _is_heard.set()
    left = count
    polls = 0
    while left:
        if (sample := take()) is not None:
            sample.delete()
            left -= 1
            continue
        polls += 1
        if polls % 200 == 0:
            os.sched_yield()
    told.send(time.perf_counter())
    subscriber.delete()
    del service, node
