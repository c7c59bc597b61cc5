"""The other kinds of channels, each beside what one would use otherwise, a round of each in turn.

Theory of operation
    Queues: a process publishes in batches, another consumes in batches and acknowledges; beside a Redis
    stream with a consumer group and a JetStream work queue. Durable: everything is acknowledged after it is
    on disk; beside the same two with their own setting for that. Durable topics are ``durable``'s. Services:
    a round trip, beside pyzmq REQ and REP over ipc. State: ``get``, beside copying as many bytes. Replay:
    what is stored, to one subscriber.

    What is noted is the median of the rounds' figures, and of their ratios; the peers may be missing.

Not here: messages in rings (``mechanisms``), what the peers do (``stored_peers``).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.bench import durable, stored_peers
from tests.bench.cases import is_there
from tests.bench.results import Results
from tests.bench.site import Site
from tests.bench.stored_peers import BATCH, QUEUE_BYTES, beside


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


def replay_rate(socket: str, name: str, count: int) -> float:
    """Messages a second that are stored, and given to one subscriber who asks for all."""
    import towpath

    with towpath.connect(socket) as client:
        client.declare(name, durable=True, ring_bytes=4 << 20)
        with client.publisher(name) as publisher:
            for _ in range(count // BATCH):
                publisher.publish_many([bytes(QUEUE_BYTES)] * BATCH)
            publisher.flush(60)
        taken = 0
        began = time.perf_counter()
        with client.subscribe(name, start="all") as subscription:
            while taken < count // BATCH * BATCH:
                taken += len(subscription.receive_many(4096, timeout=30))
        rate = taken / (time.perf_counter() - began)
        client.undeclare(name, force=True)
    return rate


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
    ones, manys = durable.rates(site, name, scale)
    for what, found, kilo in (("durable publish", ones, 1), ("durable batch", manys, 1e3)):
        ours = found["Towpath"]
        rounds.add(f"{what} {'k/s' if kilo > 1 else '/s'}", statistics.median(ours) / kilo)
        for other, theirs in found.items():
            if other != "Towpath":
                ratio = statistics.median(mine / its for mine, its in zip(ours, theirs, strict=True))
                rounds.add(f"{what} by {other}", ratio)
    rounds.add("replay M/s", replay_rate(socket, f"{name}r", int(80_000 * scale)) / 1e6)
