"""The other kinds of channels, each beside what one would use otherwise, a round of each in turn.

Theory of operation
    Queues: a process publishes in batches, another consumes in batches and acknowledges; beside a Redis
    stream with a consumer group and a JetStream work queue. Durable: everything is acknowledged after it is
    on disk; beside the same two with their own setting for that. Durable topics: 1 KiB, one at a time and by
    the batch, beside a loop that appends to a file and calls fdatasync, and beside those two. Services: a
    round trip, beside pyzmq REQ and REP over ipc. State: ``get``, beside copying as many bytes. Replay: what
    is stored, to one subscriber.

    What is noted is the median of the rounds' figures, and of their ratios; the peers may be missing.

Not here: messages in rings (``mechanisms``), what the peers do (``stored_peers``).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.bench import stored_peers
from tests.bench.cases import is_there
from tests.bench.results import Results
from tests.bench.site import Site
from tests.bench.stored_peers import BATCH, QUEUE_BYTES, RECORD_BYTES, beside


@dataclass
class Rounds:
    """Figures of several rounds, by name."""

    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, figure: float) -> float:
        self.figures.setdefault(name, []).append(figure)
        return figure

    def note(self, results: Results) -> None:
        for name, figures in self.figures.items():
            results.singles[name] = statistics.median(figures)


# ---- queues ------------------------------------------------------------------------------------------------


def queue_rate(socket: str, name: str, count: int, *, durable: bool) -> float:
    """Messages a second, published, consumed and acknowledged."""
    import towpath

    with towpath.connect(socket) as client:
        client.declare(name, kind="queue", durable=durable)
        payloads = [bytes(QUEUE_BYTES)] * BATCH

        def publish() -> None:
            with towpath.connect(socket) as publishing:
                publisher = publishing.publisher(name)
                for _ in range(count // BATCH):
                    publisher.publish_many(payloads)
                time.sleep(3600)  # until it is killed

        with client.consume(name, prefetch=4 * BATCH) as consumer, beside(publish):
            taken = len(consumer.receive_many(BATCH))
            began = time.perf_counter()
            first = taken
            while taken < count:
                deliveries = consumer.receive_many(BATCH, timeout=30)
                consumer.ack(deliveries)
                taken += len(deliveries)
            consumer.flush(30)
            rate = (count - first) / (time.perf_counter() - began)
        client.undeclare(name, force=True)
    return rate


# ---- durable topics ----------------------------------------------------------------------------------------


def append_rate(path: str, count: int, batch: int) -> float:
    """Records a second that a loop appends, ``batch`` of them for each fdatasync."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        data = bytes(RECORD_BYTES * batch)
        began = time.perf_counter()
        for _ in range(count // batch):
            os.write(descriptor, data)
            os.fdatasync(descriptor)
        return count / (time.perf_counter() - began)
    finally:
        os.close(descriptor)
        os.unlink(path)


def durable_rates(socket: str, name: str, count: int, batched: int) -> tuple[float, float, float]:
    """Messages a second, published one at a time, and by the batch, each on disk; and replayed."""
    import towpath

    with towpath.connect(socket) as client:
        client.declare(name, durable=True, ring_bytes=4 << 20)
        publisher = client.publisher(name)
        began = time.perf_counter()
        for _ in range(count):
            publisher.publish(bytes(RECORD_BYTES))
            publisher.flush(30)
        one = count / (time.perf_counter() - began)
        payloads = [bytes(RECORD_BYTES)] * BATCH
        began = time.perf_counter()
        for _ in range(batched // BATCH):
            publisher.publish_many(payloads)
        publisher.flush(60)
        many = batched / (time.perf_counter() - began)
        publisher.close()
        client.undeclare(name, force=True)
        client.declare(name, durable=True, ring_bytes=4 << 20)
        with client.publisher(name) as publisher:
            small = [bytes(QUEUE_BYTES)] * BATCH
            for _ in range(4 * batched // BATCH):
                publisher.publish_many(small)
            publisher.flush(60)
        taken = 0
        began = time.perf_counter()
        with client.subscribe(name, start="all") as subscription:
            while taken < 4 * batched // BATCH * BATCH:
                taken += len(subscription.receive_many(4096, timeout=30))
        replay = taken / (time.perf_counter() - began)
        client.undeclare(name, force=True)
    return one, many, replay


# ---- services and state ------------------------------------------------------------------------------------


def call_us(socket: str, name: str, count: int) -> float:
    """The median of a service's round trips."""
    import towpath

    with towpath.connect(socket) as client:
        client.declare(name, kind="service")

        def answer() -> None:
            with towpath.connect(socket) as serving, serving.serve(name) as server:
                for request in server:
                    request.reply(request.payload)

        with beside(answer):
            client.call(name, b"x", timeout=30, wait=True)
            return median_us(lambda: client.call(name, b"x", timeout=30), count)


def zeromq_us(path: str, count: int) -> float:
    """The same by REQ and REP over ipc."""
    import zmq

    def answer() -> None:
        with zmq.Context() as context, context.socket(zmq.REP) as server:
            server.bind(f"ipc://{path}")
            while True:
                server.send(server.recv())

    with beside(answer), zmq.Context() as context, context.socket(zmq.REQ) as client:
        client.connect(f"ipc://{path}")

        def ask() -> None:
            client.send(b"x")
            client.recv()

        ask()
        return median_us(ask, count)


def get_us(socket: str, name: str, count: int) -> tuple[float, float]:
    """What a state's ``get`` takes, and copying as many bytes out of a bytearray."""
    import towpath

    with towpath.connect(socket) as client:
        client.declare(name, kind="state")
        state = client.state(name)
        state.set(bytes(QUEUE_BYTES))
        source = bytearray(QUEUE_BYTES)
        state.get()
        return each_us(state.get, count), each_us(lambda: bytes(source), count)


def median_us(work: Callable[[], object], count: int) -> float:
    """The median of single timings."""
    times = []
    for _ in range(count):
        began_ns = time.perf_counter_ns()
        work()
        times.append(time.perf_counter_ns() - began_ns)
    return statistics.median(times) / 1e3


def each_us(work: Callable[[], object], count: int) -> float:
    """What one of many takes."""
    began_ns = time.perf_counter_ns()
    for _ in range(count):
        work()
    return (time.perf_counter_ns() - began_ns) / count / 1e3


# ---- all of it ---------------------------------------------------------------------------------------------


def measure(results: Results, site: Site, *, number: int, scale: float) -> None:
    """Measure everything.

    Args:
        number: of rounds.
        scale: how much in each.
    """
    rounds = Rounds()
    socket = site.daemon.socket
    for index in range(number):
        _queues(rounds, site, socket, f"bench.queue{index}", scale)
        _durable(rounds, site, socket, f"bench.durable{index}", scale)
        ours = rounds.add("call us", call_us(socket, f"bench.call{index}", int(1_000 * scale)))
        if is_there("zmq"):
            theirs = zeromq_us(f"{site.directory}/rep{index}", int(1_000 * scale))
            rounds.add("REQ by call", theirs / ours)
        get, copy = get_us(socket, f"bench.state{index}", int(20_000 * scale))
        rounds.add("state get us", get)
        rounds.add("state get by copy", get / copy)
    rounds.note(results)


def _queues(rounds: Rounds, site: Site, socket: str, name: str, scale: float) -> None:
    count = int(20_000 * scale) // BATCH * BATCH
    few = max(count // 4 // BATCH, 2) * BATCH  # of a peer that waits for the disk
    ours = rounds.add("queue k/s", queue_rate(socket, name, count, durable=False) / 1e3)
    kept = rounds.add("durable queue k/s", queue_rate(socket, f"{name}d", count, durable=True) / 1e3)
    if stored_peers.has_redis():
        rate = stored_peers.redis_queue_rate(site.redis_port, name, count)
        rounds.add("queue by Redis", 1e3 * ours / rate)
        with stored_peers.synchronous_redis(site) as port:
            rate = stored_peers.redis_queue_rate(port, name, few)
            rounds.add("durable queue by Redis", 1e3 * kept / rate)
    if stored_peers.has_jetstream():
        with stored_peers.jetstream(site) as port:
            rate = stored_peers.jetstream_queue_rate(port, name, count, is_durable=False)
            rounds.add("queue by JetStream", 1e3 * ours / rate)
            rate = stored_peers.jetstream_queue_rate(port, f"{name}d", few, is_durable=True)
            rounds.add("durable queue by JetStream", 1e3 * kept / rate)


def _durable(rounds: Rounds, site: Site, socket: str, name: str, scale: float) -> None:
    path = f"{site.directory}/append"
    single, batched = int(200 * scale), int(20_000 * scale) // BATCH * BATCH
    few = max(single // 2, 1)
    one, many, replay = durable_rates(socket, name, single, batched)
    rounds.add("durable publish /s", one)
    rounds.add("durable publish by raw", one / append_rate(path, single, 1))
    rounds.add("durable batch k/s", many / 1e3)
    rounds.add("durable batch by raw", many / append_rate(path, batched, BATCH))
    rounds.add("replay M/s", replay / 1e6)
    if stored_peers.has_redis():
        with stored_peers.synchronous_redis(site) as port:
            rounds.add("durable publish by Redis", one / stored_peers.redis_append_rate(port, few))
            rounds.add("durable batch by Redis", many / stored_peers.redis_batch_rate(port, 10 * few))
    if stored_peers.has_jetstream():
        with stored_peers.jetstream(site) as port:
            theirs, batch = stored_peers.jetstream_append_rates(port, name, few, 2 * few)
            rounds.add("durable publish by JetStream", one / theirs)
            rounds.add("durable batch by JetStream", many / batch)
