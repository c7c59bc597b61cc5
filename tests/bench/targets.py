"""What Towpath shall reach, each target a named row: measured, wanted, reached or not.

A target compares medians of ratios between cases of the same round, or holds a figure against a bound. It is
judged in the placement it names; rates are judged in free placement and shown for one core beside it. A
timing decides nothing but a word in the table: the exit status of a run does not depend on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from tests.bench.cases import MECHANISMS, PAUSE_NS, Case
from tests.bench.load import Pattern
from tests.bench.results import Results
from tests.bench.site import PLACEMENTS, Placement

NOISE: Final = 0.05
"""Where the wish is "no slower", two figures so close count as equal."""
SLOPE_MAX: Final = 1.1
"""Of cost against something, both logarithmic: 1 is linear."""


@dataclass(frozen=True)
class Row:
    """One line of the table of targets."""

    target: str
    measured: str
    beside: str
    is_reached: bool | None


@dataclass(frozen=True)
class Ratio:
    """A wish about one mechanism's figure by another's (of several: the best)."""

    target: str
    pattern: Pattern
    size_bytes: int
    ours: str
    theirs: tuple[str, ...]
    sense: Literal["at least", "at most"]
    bound: float
    is_checked: bool = True
    pause_ns: int = 0
    placement: Placement = "free"

    def _case(self, mechanism: str, placement: Placement) -> Case:
        return Case(mechanism, placement, self.pattern, self.size_bytes, self.is_checked, self.pause_ns)

    def measure(self, results: Results, placement: Placement) -> tuple[float | None, str]:
        """The ratio in a placement, and against which mechanism."""
        figure = "p50_us" if self.pattern == "round trip" else "rate"
        others = [self._case(name, placement) for name in self.theirs]
        other = others[0] if len(others) == 1 else results.best(others, figure)
        if other is None:
            return None, ""
        return results.ratio(self._case(self.ours, placement), other, figure), other.mechanism

    def row(self, results: Results) -> Row:
        """Its line."""
        measured, against = self.measure(results, self.placement)
        others = [placement for placement in PLACEMENTS if placement != self.placement]
        beside = [(placement, self.measure(results, placement)[0]) for placement in others]
        text = f"{self.target}: {self.sense} {self.bound:g}"
        if measured is None:
            return Row(text, "not measured", "", None)
        note = f" (of {against})" if len(self.theirs) > 1 else ""
        is_reached = measured >= self.bound if self.sense == "at least" else measured <= self.bound
        return Row(
            text,
            f"{measured:.2f}{note}",
            ", ".join(f"{ratio:.2f} {placement}" for placement, ratio in beside if ratio is not None),
            is_reached,
        )


@dataclass(frozen=True)
class Bound:
    """A wish about a single figure."""

    target: str
    figure: str
    bound: float
    unit: str

    def row(self, results: Results) -> Row:
        """Its line."""
        text = f"{self.target}: at most {self.bound:g} {self.unit}"
        measured = results.singles.get(self.figure)
        if measured is None:
            return Row(text, "not measured", "", None)
        return Row(text, f"{measured:,.4g} {self.unit}", "", measured <= self.bound)


@dataclass(frozen=True)
class Least:
    """A wish that a single figure is not less."""

    target: str
    figure: str
    bound: float
    unit: str = "times"

    def row(self, results: Results) -> Row:
        """Its line."""
        text = f"{self.target}: at least {self.bound:g} {self.unit}"
        measured = results.singles.get(self.figure)
        if measured is None:
            return Row(text, "not measured", "", None)
        return Row(text, f"{measured:,.4g} {self.unit}", "", measured >= self.bound)


@dataclass(frozen=True)
class Linear:
    """A wish that a cost grows no worse than linearly."""

    curve: str

    def row(self, results: Results) -> Row:
        """Its line."""
        text = f"{self.curve}: exponent at most {SLOPE_MAX:g}"
        points = results.curves.get(self.curve, [])
        if len(points) < 3:
            return Row(text, "not measured", "", None)
        slope = exponent(points)
        return Row(text, f"{slope:.2f}", "", slope <= SLOPE_MAX)


def exponent(points: list[tuple[float, float]]) -> float:
    """The slope of a line through the points, both axes logarithmic (least squares)."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return covariance / sum((x - x_mean) ** 2 for x in xs)


_OTHERS: Final = tuple(mechanism.name for mechanism in MECHANISMS if mechanism.family != "towpath")
_KIB64: Final = 1 << 16
_MIB: Final = 1 << 20

TARGETS: Final[tuple[Ratio | Bound | Least | Linear, ...]] = (
    Ratio("64 B, one call per message, by FIFO", "one-way", 64, "towpath", ("FIFO",), "at least", 1.8),
    Ratio(
        "the same with receive() calls, by FIFO",
        "one-way",
        64,
        "towpath, receive()",
        ("FIFO",),
        "at least",
        1.8,
    ),
    Ratio("64 B batched, by the best peer", "one-way", 64, "towpath, batched", _OTHERS, "at least", 8),
    Ratio("the same unchecked", "one-way", 64, "towpath, batched", _OTHERS, "at least", 8, is_checked=False),
    Ratio(
        "64 B batched to 4, by pyzmq PUB/SUB",
        "fan-out",
        64,
        "towpath, batched",
        ("pyzmq ipc", "pyzmq tcp"),
        "at least",
        8,
    ),
    Ratio(
        "the same to 4 unchecked",
        "fan-out",
        64,
        "towpath, batched",
        ("pyzmq ipc", "pyzmq tcp"),
        "at least",
        8,
        is_checked=False,
    ),
    Ratio(
        "64 KiB copied, by FIFO", "one-way", _KIB64, "towpath", ("FIFO",), "at least", 2.5, is_checked=False
    ),
    Ratio(
        "64 KiB copied, by iceoryx2",
        "one-way",
        _KIB64,
        "towpath",
        ("iceoryx2",),
        "at least",
        1,
        is_checked=False,
    ),
    Ratio("1 MiB copied, by FIFO", "one-way", _MIB, "towpath", ("FIFO",), "at least", 1.3, is_checked=False),
    Ratio(
        "64 KiB batched, by single",
        "one-way",
        _KIB64,
        "towpath, batched",
        ("towpath",),
        "at least",
        1 - NOISE,
        is_checked=False,
    ),
    Ratio(
        "1 MiB batched, by single",
        "one-way",
        _MIB,
        "towpath, batched",
        ("towpath",),
        "at least",
        1 - NOISE,
        is_checked=False,
    ),
    Ratio("round trip, awake, by os.pipe", "round trip", 64, "towpath", ("os.pipe",), "at most", 0.3),
    Ratio("round trip, awake, by iceoryx2", "round trip", 64, "towpath", ("iceoryx2",), "at most", 0.15),
    Ratio(
        "round trip on one core, by os.pipe",
        "round trip",
        64,
        "towpath",
        ("os.pipe",),
        "at most",
        1.3,
        placement="one core",
    ),
    Ratio(
        "round trip after sleep, by C futex, across",
        "round trip",
        64,
        "towpath",
        ("C futex",),
        "at most",
        1.5,
        pause_ns=PAUSE_NS,
        placement="two cores",
    ),
    Ratio(
        "the same on one core",
        "round trip",
        64,
        "towpath",
        ("C futex",),
        "at most",
        1.5,
        pause_ns=PAUSE_NS,
        placement="one core",
    ),
    Ratio(
        "asyncio round trip, by Protocol echo",
        "round trip",
        64,
        "towpath, asyncio",
        ("asyncio Protocol echo",),
        "at most",
        1 + NOISE,
    ),
    Ratio(
        "asyncio round trip, by Protocol callbacks",
        "round trip",
        64,
        "towpath, asyncio",
        ("asyncio Protocol echo, callbacks only",),
        "at most",
        1 + NOISE,
    ),
    Ratio(
        "64 B via zeromq to SUB, by zmq.proxy",
        "one-way",
        64,
        "towpath via zeromq to SUB",
        ("zmq.proxy, 3 frames",),
        "at least",
        1,
    ),
    Ratio(
        "64 B via grpc batched, by 1 per frame",
        "one-way",
        64,
        "towpath via grpc, batched",
        ("grpc.aio, 1 per frame",),
        "at least",
        50,
    ),
    Ratio(
        "64 B via grpc batched, by bare batched",
        "one-way",
        64,
        "towpath via grpc, batched",
        ("grpc.aio, batched",),
        "at least",
        0.4,
    ),
    Least("queue, published, consumed, acknowledged", "queue k/s", 100, "k/s"),
    Least("the same, by Redis streams", "queue by Redis", 2),
    Least("the same, by a JetStream work queue in memory", "queue by JetStream", 2),
    Least("durable queue, by Redis, appendfsync always", "durable queue by Redis", 5),
    Least("the same, by a JetStream work queue, sync always", "durable queue by JetStream", 5),
    Least("durable publish, one at a time, by append and fdatasync", "durable publish by raw", 0.6),
    Least("the same, by Redis, appendfsync always", "durable publish by Redis", 1),
    Least("the same, by JetStream, sync always", "durable publish by JetStream", 1),
    Least("durable publish, pipelined, by 500 a fdatasync", "durable batch by raw", 0.5),
    Least("the same, by Redis, appendfsync always", "durable batch by Redis", 1),
    Least("the same, by JetStream, sync always", "durable batch by JetStream", 1),
    Least("replay of 100 B", "replay M/s", 1, "M/s"),
    Least("request and reply, by pyzmq REQ and REP", "REQ by call", 2),
    Bound("state get", "state get us", 1, "us"),
    Bound("state get, by copying the bytes", "state get by copy", 5, "times"),
    Bound("towpath pub NAME x, by python -c pass", "pub by pass", 5, "times"),
    Bound("idle: CPU of core, supervisor and gateways", "idle cpu permille", 0.5, "permille"),
    Bound("idle: memory of the core", "core resident MB", 60, "MB"),
    Bound("mq in to ring, by a C loop from mq to mq", "mq in to ring, time by C loop's", 1.43, "its time"),
    Bound("ring to mq, by a C loop from mq to mq", "ring to mq, time by C loop's", 1.43, "its time"),
    Least("lines of 1 KiB from a FIFO, by cat", "lines into a channel, by cat", 0.5),
    Least("lines of 1 KiB into a FIFO, by cat", "lines out of a channel, by cat", 0.5),
    Bound("message to signal, asleep, by sigqueue, across", "signal by sigqueue, two cores", 3, "times"),
    Bound("the same on one core", "signal by sigqueue, one core", 3, "times"),
    Bound("loan, publish, receive 64 KiB, by 64 B's time", "loan 64 KiB by 64 B", 2, "times"),
    Bound("the same at 1 MiB", "loan 1 MiB by 64 B", 2, "times"),
    Bound("the same at 16 MiB", "loan 16 MiB by 64 B", 2, "times"),
    Least("loan 64 KiB, by iceoryx2's rate", "loan 64 KiB by iceoryx2", 2),
    Least("loan 1 MiB, by iceoryx2's rate", "loan 1 MiB by iceoryx2", 2),
    Bound("loan 1 MiB filled, by numpy's copy", "loan 1 MiB filled by numpy's copy", 1.3, "times"),
    Bound("loan 16 MiB filled, by numpy's copy", "loan 16 MiB filled by numpy's copy", 1.3, "times"),
    Least("lock, taken and given back, by multiprocessing.Lock", "lock by multiprocessing.Lock", 1),
    Least("the same through the daemon, by redis-py's Lock", "daemon lock by Redis", 4),
    Least("the same, by etcd v3's lock", "daemon lock by etcd", 20),
    Least(
        "4 contend for a lock, each holds it 100 us: in all", "contended lock, held 100 us, /s", 7_000, "/s"
    ),
    Least("the same: least share by greatest", "contended lock, held 100 us, least share by greatest", 0.8),
    Least("4 contend, none holds it, by redis-py's Lock", "contended lock, held 0 us, by Redis", 20),
    *(
        Bound(f"deadlock of {size} sessions reported, p99", f"deadlock of {size}, p99 ms", 10, "ms")
        for size in (2, 10, 50, 100)
    ),
    Bound("a request while 10,000 wait, p99", "10,000 waiters: a further request, p99 ms", 5, "ms"),
    Bound(
        "banker's, 100 sessions, 20 resources: a request, p99",
        "banker's, 100 sessions, 20 resources: a request, p99 ms",
        5,
        "ms",
    ),
    Bound("holder killed to next granted, p99", "holder killed to next granted, p99 ms", 20, "ms"),
    Bound("replay of a million lock commands", "replay of a million lock commands, s", 10, "s"),
    Bound(
        "replay of the longest tail since a snapshot",
        "replay of the longest tail of the lock journal, s",
        3,
        "s",
    ),
    Bound("1,000 declared channels add", "declared added MB", 10, "MB"),
    Bound("1,000 used channels: descriptors of any process", "used descriptors", 4_000, "descriptors"),
    Linear("cost of a message against channels in use"),
    Linear("cost of a publish against subscribers"),
    Linear("cost of a message against its size"),
    Linear("cost of a request against waiters"),
    Linear("cost of a banker's request against sessions"),
    Linear("time to report a deadlock against sessions in it"),
    Linear("time to replay a lock command against the journal's length"),
)


def rows(results: Results) -> list[Row]:
    """The table of targets."""
    return [target.row(results) for target in TARGETS]
