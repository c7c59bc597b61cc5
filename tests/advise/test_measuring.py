"""Measuring, for a moment each: that every mechanism really carries, and that nothing is left behind."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.support.deadlines import DEADLINE_S
from towpath.advise import measuring
from towpath.advise.measuring import Measurer
from towpath.advise.model import MECHANISMS, Measurement, Requirements
from towpath.advise.site import Site
from towpath.advise.ways import WAYS, Load, Pipe, Send

ROOT = Path(__file__).parents[2]
RUN_S = 0.02


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site(has_gateways=True) as made:
        yield made


@pytest.fixture
def measurer(site: Site) -> Measurer:
    return Measurer(site, run_s=RUN_S, rounds=1)


def check(measured: Measurement) -> None:
    """It was measured; or others have all the queues that this user may have at the moment."""
    if measured.mechanism == "mq" and "ulimit -q" in measured.obstacle:
        assert measured.rate == 0
        return
    assert measured.obstacle == ""
    assert measured.rate > 0
    assert 0 < measured.p50_us <= measured.p99_us


REQUIRED = {
    "plain": Requirements(),
    "two receivers and answers": Requirements(size_bytes=5000, fan_out=2, rate=2000.0, is_sync=True),
    "durable": Requirements(is_durable=True),
    "large": Requirements(size_bytes=1 << 20),
}
LARGE = ("pipe", "fifo", "unix", "ring", "loan", "zmq-ipc", "zmq-tcp", "grpc")
CASES = [
    (name, label)
    for name in sorted(MECHANISMS, key=lambda name: name == "grpc")  # which starts threads, last
    for label in REQUIRED
    if (label != "durable" or MECHANISMS[name].is_durable) and (label != "large" or name in LARGE)
]


def measure_each() -> None:
    """In a process of its own, as `towpath advise` is one: threads of other tests are no matter for forks."""
    with Site(has_gateways=True) as made:
        measurer = Measurer(made, run_s=RUN_S, rounds=1)
        for name, label in CASES:
            print(json.dumps(asdict(measurer.measure(name, REQUIRED[label]))), flush=True)


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], Measurement]:
    """What was measured."""
    command = [sys.executable, "-c", "from tests.advise import test_measuring as here; here.measure_each()"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=4 * DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [Measurement(**json.loads(line)) for line in done.stdout.splitlines()]
    return dict(zip(CASES, lines, strict=True))


@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_each_is_measured(found: dict[tuple[str, str], Measurement], case: tuple[str, str]) -> None:
    check(found[case])


def test_a_queue_says_why_it_takes_no_large_message(measurer: Measurer) -> None:
    measured = measurer.measure("mq", Requirements(size_bytes=16 << 20))
    assert measured.rate == 0
    assert "ulimit -q" in measured.obstacle or "fs.mqueue.msgsize_max" in measured.obstacle


def test_a_package_that_is_missing_is_named(measurer: Measurer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("towpath.advise.ways.find_spec", lambda name: None)
    assert measurer.measure("zmq-tcp", Requirements()).obstacle == (
        "zmq is not installed: pip install 'towpath[zmq]'"
    )


def test_nothing_is_begun_when_the_time_is_over(site: Site) -> None:
    measured = Measurer(site, total_s=-1).measure("pipe", Requirements())
    assert measured.obstacle == "there was no time left to measure it"


class Losing(Pipe):
    """A pipe whose sender drops a message now and then."""

    def sender(self, stack: ExitStack) -> Send:
        send = super().sender(stack)
        calls = iter(range(1 << 60))

        def lossy(message: bytes) -> object:
            return send(message) if not message[0] or next(calls) % 10 else None

        return lossy


class Stuck(Pipe):
    """A pipe whose sender never comes to an end."""

    def sender(self, stack: ExitStack) -> Send:
        return lambda message: os.read(os.pipe()[0], 1)


class Dying(Pipe):
    """A pipe whose sender is gone at once."""

    def sender(self, stack: ExitStack) -> Send:
        os._exit(1)


class Broken(Pipe):
    """A pipe whose sender fails."""

    def sender(self, stack: ExitStack) -> Send:
        raise ValueError("no such luck")


@pytest.mark.parametrize(
    ("way", "told"),
    [
        (Losing, "it lost messages: "),
        (Stuck, "it did not come to an end in time"),
        (Dying, "a process of it ended early"),
        (Broken, "ValueError: no such luck"),
    ],
)
def test_a_measurement_that_breaks_is_an_obstacle(
    measurer: Measurer, monkeypatch: pytest.MonkeyPatch, way: type[Pipe], told: str
) -> None:
    monkeypatch.setitem(WAYS, "pipe", way)
    monkeypatch.setattr(measuring, "DEADLINE_S", 2.0)
    assert measurer.measure("pipe", Requirements()).obstacle.startswith(told)


def test_nothing_is_left_behind() -> None:
    def children() -> list[str]:
        return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()

    gc.collect()
    before = children(), len(os.listdir("/proc/self/fd")), queues()
    with Site() as site:
        for name in ("pipe", "fifo", "unix", "mq", "ring", "zmq-ipc"):
            check(Measurer(site, run_s=RUN_S, rounds=1).measure(name, Requirements()))
    assert not site.directory.exists()
    gc.collect()
    assert (children(), len(os.listdir("/proc/self/fd")), queues()) == before


def queues() -> list[str]:
    """The message queues of this measuring that there are."""
    place = Path("/dev/mqueue")
    return [each for each in os.listdir(place) if each.startswith("advise-")] if place.is_dir() else []


def test_a_load_bounds_what_is_under_way() -> None:
    assert Load(1, 1).ahead_count == 1000
    assert Load(16 << 20, 1).ahead_count == 2
