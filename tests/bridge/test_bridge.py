"""The registry's bindings become runners: started, stopped, tried again, reconciled; on the real
mechanisms."""

from __future__ import annotations

import ast
import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

import towpath_broker.gateways.bridge.adapters as adapters
from tests.bridge.hub import Hub
from tests.bridge.rig import has_children, on_loop, open_descriptors, shell, within
from tests.support.deadlines import DEADLINE_S
from towpath.bindings import REGISTERED
from towpath.errors import BindingFailed, ChannelNotFound, InvalidArgument, SlowConsumer
from towpath.model import BindingState
from towpath_broker.gateways.bridge.bridge import Bridge
from towpath_broker.gateways.bridge.keeping import Keeping
from towpath_broker.gateways.bridge.making import MAKERS
from towpath_broker.gateways.bridge.tasks import cancel


class At:
    """A bridge at work on a hub."""

    def __init__(self, drain_s: float = 3.0) -> None:
        self.hub = Hub()
        self.stopping = asyncio.Event()
        self._bridge = Bridge(self.hub, Keeping(), report_interval_s=0.01, retry_delay_ms=10, drain_s=drain_s)

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self._bridge.run(self.stopping))
        self.task.add_done_callback(lambda _: self.hub.changed.set())
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(self.task)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                if self.task.done():
                    self.task.result()
                    raise AssertionError("the bridge ended")
                self.hub.changed.clear()
                await self.hub.changed.wait()

    async def until_state(self, binding: int, state: BindingState) -> None:
        await self.until(lambda: binding in self.hub.reports and self.hub.reports[binding].state == state)

    async def until_counted(self, messages_in: dict[int, int], messages_out: dict[int, int]) -> None:
        await self.until(
            lambda: (
                all(self.hub.reports[binding].messages_in == n for binding, n in messages_in.items())
                and all(self.hub.reports[binding].messages_out == n for binding, n in messages_out.items())
            )
        )

    async def stop(self) -> None:
        self.stopping.set()
        await within(asyncio.shield(self.task))


@on_loop
async def test_bindings_come_and_go_with_the_registry(tmp_path: Path) -> None:
    counts: list[int] = []
    async with At() as at:
        for first in (1, 3):
            at.hub.bind(first, f"fifo:{tmp_path}/in", "in")
            at.hub.bind(first + 1, f"fifo:{tmp_path}/out", "out")
            await at.until_state(first, "running")
            await at.until_state(first + 1, "waiting")
            reading = asyncio.create_task(shell(f"head -n 1 {tmp_path}/out"))
            await shell(f"echo hello > {tmp_path}/in")
            assert await within(reading) == b"hello\n"
            await at.until_counted(messages_in={first: 1}, messages_out={first + 1: 1})
            at.hub.unbind(first)
            at.hub.unbind(first + 1)
            await at.until(lambda: at.hub.open_ends == 0)
            assert os.listdir(tmp_path) == []
            counts.append(open_descriptors())
        await at.stop()
    assert counts[0] == counts[1]


@on_loop
async def test_both_directions_do_not_get_back_what_they_brought() -> None:
    async with At() as at:
        at.hub.bind(1, "pipe:cat", "both")
        await at.until_state(1, "running")
        await at.until(lambda: len(at.hub.subscriptions) == 1)
        at.hub.publish("test", [b"one"])
        await at.until(lambda: at.hub.reports[1].messages_in == 1)
        at.hub.publish("test", [b"two"])
        await at.until(lambda: at.hub.reports[1].messages_in == 2)
        await at.stop()
        # cat sends each message back once; a bridge that echoed would send each for ever.
        assert at.hub.published["test"] == [b"one", b"two"]
        assert at.hub.reports[1].messages_out == 2


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("pipe:/no/such/program", BindingFailed),
        ("fifo:/dev/null", BindingFailed),
        ("fifo:relative", InvalidArgument),
        ("later:/x", InvalidArgument),
    ],
)
@on_loop
async def test_a_definition_that_cannot_work_has_failed_and_disturbs_no_other(
    tmp_path: Path, url: str, error: type[Exception]
) -> None:
    async with At() as at:
        at.hub.bind(1, url, "in")
        at.hub.bind(2, f"fifo:{tmp_path}/in", "in")
        await at.until_state(1, "failed")
        await at.until_state(2, "running")
        assert isinstance(at.hub.reports[1].last_error, error)
        assert at.hub.reports[1].detail
        await at.stop()


@on_loop
async def test_what_may_pass_is_tried_again_until_it_works(tmp_path: Path) -> None:
    async with At() as at:
        at.hub.bind(1, f"fifo:{tmp_path}/later/in", "in")
        await at.until_state(1, "retrying")
        assert isinstance(at.hub.reports[1].last_error, BindingFailed)
        os.mkdir(tmp_path / "later")
        await at.until_state(1, "running")
        assert at.hub.reports[1].restarts >= 1
        await at.stop()


@on_loop
async def test_a_binding_that_the_host_has_no_descriptors_for_waits_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    async with At() as at:
        at.hub.bind(1, f"fifo:{tmp_path}/one", "in")
        await at.until_state(1, "running")
        at.hub.host_error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        at.hub.bind(2, f"fifo:{tmp_path}/two", "in")
        at.hub.bind(3, f"fifo:{tmp_path}/three", "out")
        await at.until_state(2, "retrying")
        await at.until_state(3, "retrying")
        assert "Too many open files" in at.hub.reports[2].detail
        await shell(f"echo hello > {tmp_path}/one")
        await at.until(lambda: at.hub.published["test"] == [b"hello"])
        at.hub.host_error = None
        await at.until_state(2, "running")
        await at.until_state(3, "waiting")
        await at.stop()


@on_loop
async def test_a_channel_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    async with At() as at:
        at.hub.channels.clear()
        at.hub.bind(1, f"fifo:{tmp_path}/in", "in")
        await at.until_state(1, "retrying")
        assert isinstance(at.hub.reports[1].last_error, ChannelNotFound)
        at.hub.channels.add("test")
        await at.until_state(1, "running")
        await at.stop()


@on_loop
async def test_a_subscription_that_was_cut_off_is_made_again_and_told(tmp_path: Path) -> None:
    async with At() as at:
        at.hub.bind(1, f"fifo:{tmp_path}/out", "out")
        await at.until_state(1, "waiting")
        [subscription] = at.hub.subscriptions
        subscription.error = SlowConsumer("cut off")
        subscription.arrived.set()
        await at.until(lambda: at.hub.reports[1].restarts == 1 and at.hub.reports[1].state == "waiting")
        assert isinstance(at.hub.reports[1].last_error, SlowConsumer)
        assert at.hub.open_ends == 1
        await at.stop()


@on_loop
async def test_a_fifo_that_was_removed_is_made_again(tmp_path: Path) -> None:
    async with At() as at:
        at.hub.bind(1, f"fifo:{tmp_path}/in", "in")
        await at.until_state(1, "running")
        os.unlink(tmp_path / "in")
        await at.until(lambda: at.hub.reports[1].restarts == 1 and at.hub.reports[1].state == "running")
        await shell(f"echo again > {tmp_path}/in")
        await at.until(lambda: at.hub.published["test"] == [b"again"])
        await at.stop()


@on_loop
async def test_a_place_that_is_bound_anew_waits_for_its_predecessor(tmp_path: Path) -> None:
    async with At() as at:
        for binding in range(1, 6):
            at.hub.bind(binding, f"fifo:{tmp_path}/in", "in")
            await at.until_state(binding, "running")
            at.hub.unbind(binding)
        at.hub.bind(6, f"fifo:{tmp_path}/in", "in")
        await at.until_state(6, "running")
        await shell(f"echo hello > {tmp_path}/in")
        await at.until(lambda: at.hub.published["test"] == [b"hello"])
        await at.stop()


@on_loop
async def test_one_fifo_by_two_names_is_bound_once_and_the_second_comes_when_the_first_goes(
    tmp_path: Path,
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    async with At() as at:
        at.hub.bind(1, f"fifo:{tmp_path}/place", "out")
        await at.until_state(1, "waiting")
        at.hub.bind(2, f"fifo:{tmp_path}/link/place", "in")
        await at.until_state(2, "retrying")
        assert at.hub.reports[1].state == "waiting"
        at.hub.unbind(1)
        await at.until_state(2, "running")
        await shell(f"echo hello > {tmp_path}/place")
        await at.until(lambda: at.hub.published["test"] == [b"hello"])
        await at.stop()
    assert not (tmp_path / "place").exists()


@on_loop
async def test_after_a_reconnect_what_stayed_goes_on_and_what_went_is_stopped(tmp_path: Path) -> None:
    async with At() as at:
        at.hub.bind(1, f"fifo:{tmp_path}/stays", "in")
        at.hub.bind(2, f"fifo:{tmp_path}/goes", "in")
        await at.until_state(1, "running")
        await at.until_state(2, "running")
        inode = os.stat(tmp_path / "stays").st_ino
        at.hub.reconnect(without=2)
        await at.until(lambda: at.hub.open_ends == 1)
        await at.until_state(1, "running")  # told again: the daemon had forgotten it
        assert os.listdir(tmp_path) == ["stays"]
        assert os.stat(tmp_path / "stays").st_ino == inode
        assert at.hub.reports[1].restarts == 0
        await at.stop()


@on_loop
async def test_the_stop_drains_closes_and_tells_the_last_counts(tmp_path: Path) -> None:
    async with At() as at:
        at.hub.bind(1, f"fifo:{tmp_path}/in", "in")
        at.hub.bind(
            2, "pipe:sh -c 'trap \"echo bye; exit 0\" TERM; echo up; while :; do sleep 0.01; done'", "in"
        )
        await at.until_state(1, "running")
        await at.until(lambda: at.hub.published["test"] == [b"up"])
        writer = os.open(tmp_path / "in", os.O_WRONLY | os.O_NONBLOCK)
        os.write(writer, b"last words\n")
        await at.stop()
        os.close(writer)
        assert sorted(at.hub.published["test"]) == [b"bye", b"last words", b"up"]
        assert (at.hub.reports[1].messages_in, at.hub.reports[2].messages_in) == (1, 2)
        assert at.hub.open_ends == 0 and os.listdir(tmp_path) == []


@on_loop
async def test_what_does_not_end_in_time_is_cancelled(capfd: pytest.CaptureFixture[str]) -> None:
    async with At(drain_s=0.05) as at:
        at.hub.bind(2, "pipe:sh -c 'while :; do sleep 0.01; done'", "out")
        await at.until_state(2, "running")
        at.hub.bind(1, "pipe:sh -c 'trap \"\" TERM; echo up; while :; do sleep 0.01; done'", "in")
        await at.until(lambda: at.hub.published["test"] == [b"up"])
        at.hub.publish("test", [b"nobody", b"reads", b"this"])
        await at.until_counted({}, {2: 4})
        await at.stop()
        assert at.hub.open_ends == 0
    told = capfd.readouterr().err
    assert "bridge.drain_timeout" in told
    assert "bridge.binding_stopped binding=1 channel=test refused=0" in told
    assert "bridge.binding_stopped binding=2 channel=test refused=4" in told
    assert not has_children()


@on_loop
async def test_a_bug_ends_the_bridge_and_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    async with At() as at:
        monkeypatch.setattr("towpath_broker.gateways.bridge.runner.make_adapter", broken)
        at.hub.bind(1, f"fifo:{tmp_path}/in", "in")
        with pytest.raises(ZeroDivisionError):
            await within(asyncio.shield(at.task))
        assert at.hub.open_ends == 0


def test_each_scheme_has_an_adapter() -> None:
    assert MAKERS.keys() == REGISTERED.keys()


def test_adapters_do_not_know_each_other() -> None:
    folder = Path(adapters.__file__).parent
    files = sorted(folder.glob("[a-z]*.py"))
    assert {file.stem for file in files} >= set(MAKERS)
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any("bridge.adapters" in name or "bridge.runner" in name for name in names)
