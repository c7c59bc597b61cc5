"""What the daemon is told, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from tests.bridge.hub import Hub
from tests.bridge.rig import on_loop, within
from towpath import convert, wire
from towpath.errors import BindingFailed, ConnectionLost, PermissionDenied, Timeout, TowpathError
from towpath.model import BindingReport
from towpath_broker.gateways.bridge.report import Reporter
from towpath_broker.gateways.bridge.tasks import cancel


class Daemon(Hub):
    """Takes reports, or fails to."""

    def __init__(self) -> None:
        super().__init__()
        self.told: asyncio.Queue[Mapping[int, BindingReport]] = asyncio.Queue()
        self.failures: list[TowpathError] = []

    async def report_bindings(self, reports: Mapping[int, BindingReport], /) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.told.put_nowait(reports)


@on_loop
async def test_a_state_is_told_at_once_and_with_all_that_is_known() -> None:
    daemon = Daemon()
    reporter = Reporter(daemon, interval_s=3600)
    running = asyncio.create_task(reporter.run())
    tally = reporter.open(7)
    tally.count_in(3, 30)
    tally.count_out(2, 20)
    tally.count_restart()
    error = BindingFailed("gone")
    tally.refuse(4, error)
    assert daemon.told.empty()
    tally.set_state("retrying", "again in 1 s", error)
    assert await within(daemon.told.get()) == {
        7: BindingReport(
            state="retrying",
            detail="again in 1 s",
            messages_in=3,
            bytes_in=30,
            messages_out=2,
            bytes_out=20,
            refused=4,
            restarts=1,
            last_error=error,
            last_error_at_ns=tally.last_error_at_ns,
        )
    }
    await cancel(running)


@on_loop
async def test_counters_are_told_together_after_the_interval_and_then_there_is_silence() -> None:
    daemon = Daemon()
    reporter = Reporter(daemon, interval_s=0.01)
    running = asyncio.create_task(reporter.run())
    tallies = [reporter.open(1), reporter.open(2)]
    for _ in range(1000):
        for tally in tallies:
            tally.count_in(1, 10)
    reports = await within(daemon.told.get())
    assert {binding: report.messages_in for binding, report in reports.items()} == {1: 1000, 2: 1000}
    for _ in range(100):
        await asyncio.sleep(0)
    assert daemon.told.empty()
    tallies[0].count_in(1, 10)
    assert list(await within(daemon.told.get())) == [1]
    await cancel(running)


@on_loop
async def test_the_same_state_is_told_once() -> None:
    daemon = Daemon()
    reporter = Reporter(daemon, interval_s=3600)
    tally = reporter.open(1)
    tally.set_state("running")
    await reporter.flush()
    tally.set_state("running")
    await reporter.flush()
    assert daemon.told.qsize() == 1


@pytest.mark.parametrize("failure", [ConnectionLost("gone"), Timeout("slow")], ids=["lost", "slow"])
@on_loop
async def test_what_could_not_be_told_is_told_later(failure: TowpathError) -> None:
    daemon = Daemon()
    daemon.failures = [failure]
    reporter = Reporter(daemon, interval_s=0.01)
    running = asyncio.create_task(reporter.run())
    reporter.open(1).set_state("running")
    assert (await within(daemon.told.get()))[1].state == "running"
    await cancel(running)


@on_loop
async def test_run_by_hand_it_carries_without_reporting() -> None:
    daemon = Daemon()
    daemon.failures = [PermissionDenied("only from the bridge")]
    reporter = Reporter(daemon)
    reporter.open(1).set_state("running")
    await reporter.flush()
    assert daemon.told.empty()


@on_loop
async def test_after_a_reset_everything_is_told_again_and_closed_ones_never() -> None:
    daemon = Daemon()
    reporter = Reporter(daemon)
    kept, closed = reporter.open(1), reporter.open(2)
    kept.set_state("running")
    closed.set_state("running")
    await reporter.flush()
    await daemon.told.get()
    reporter.close(2)
    closed.count_in(1, 1)
    reporter.tell_all()
    await reporter.flush()
    assert list(await daemon.told.get()) == [1]


@on_loop
async def test_no_call_is_longer_than_the_daemon_takes_and_none_is_left_out() -> None:
    daemon = Daemon()
    reporter = Reporter(daemon)
    path = "/".join(["", *["\N{SNOWMAN}" * 80] * 16])
    count = 1000
    for binding in range(count):
        error = BindingFailed(f"cannot make {path}")
        reporter.open(binding).set_state("retrying", f"{error.message}, again in 1 s", error)
    await reporter.flush()
    told: list[int] = []
    while not daemon.told.empty():
        reports = daemon.told.get_nowait()
        size = sum(convert.report_to_proto(report).ByteSize() + 16 for report in reports.values())
        assert size < wire.REQUEST_BYTES_MAX
        told += reports
    assert told == list(range(count))
