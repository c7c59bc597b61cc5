"""Signals, in and out, between the adapter and programs that know kill(2), sigqueue(3) and sigwaitinfo(2)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bridge import foreign
from tests.bridge.rig import Rig, on_loop, open_descriptors, shell, within
from tests.support.daemon import wait_until
from tests.support.deadlines import DEADLINE_S
from towpath.bindings.signal import SIGNAL
from towpath.errors import BadFrame, BindingFailed, InvalidArgument, PermissionDenied
from towpath.model import Direction, Headers
from towpath_broker.gateways.bridge.adapters.signal import SignalAdapter
from towpath_broker.gateways.bridge.keeping import Keeping
from towpath_broker.gateways.bridge.processes import TOLERANCE_S, find_process, write_pid_file

ALONE = "TOWPATH_TEST_ALONE"
"""Set where a test is run in a process of its own."""
RT = signal.SIGRTMIN + 3
COUNT = 10_000


def start(rig: Rig, place: str, direction: Direction, owner: str = "uid:0", **options: str) -> Rig:
    adapter = SignalAdapter(
        place, direction, SIGNAL.parse_options(options), rig.carrier, rig.tally, rig.keeping, owner=owner
    )
    return rig.run(adapter)


def sender(number: int, count: int) -> subprocess.Popen[bytes]:
    """Start a program that sends us signals. Not by asyncio, which starts a thread that they might go to."""
    return subprocess.Popen(
        [foreign.program("sigqueue_send"), str(os.getpid()), str(int(number)), str(count)]
    )


async def receiver(count: int, pid_file: str = "", number: int = RT) -> asyncio.subprocess.Process:
    """Start a program that takes signals, and wait until it can."""
    process = await foreign.start("sigwait_receive", str(int(number)), str(count), pid_file, reads=True)
    assert process.stdout is not None
    assert await within(process.stdout.readline()) == f"ready {process.pid}\n".encode()
    return process


async def told(process: asyncio.subprocess.Process) -> list[bytes]:
    """What the program took, when it has ended."""
    output, _ = await within(process.communicate())
    assert process.returncode == 0
    return [line.split()[0] for line in output.splitlines()]


@contextlib.contextmanager
def other_thread() -> Iterator[None]:
    """A thread that blocks no signal."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    yield
    over.set()
    thread.join()


@contextlib.contextmanager
def blocked_here(number: int) -> Iterator[None]:
    """Have this thread, which is the one that the adapter runs in, not take a signal for a while."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})


def signals_of(thread: int, line: str, number: int) -> bool:
    """Whether a signal is in one of the sets of a thread's status."""
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    [found] = [each for each in status.splitlines() if each.startswith(f"{line}:")]
    return bool(int(found.split()[1], 16) >> (number - 1) & 1)


def is_pending_for(thread: int, number: int) -> bool:
    """Whether a signal waits for this very thread, not for the process."""
    return signals_of(thread, "SigPnd", number)


def have_others_block(number: int) -> int:
    """Have each other thread of ours hit once, after which it leaves the signal to this one.

    Returns:
        How many messages come of that: standard signals that are passed on coalesce.
    """
    this = threading.get_native_id()
    others = [int(path.name) for path in Path("/proc/self/task").iterdir() if path.name != str(this)]
    open_to_it = [thread for thread in others if not signals_of(thread, "SigBlk", number)]
    for left in reversed(range(len(open_to_it))):
        os.kill(os.getpid(), number)
        wait_until(
            lambda left=left: sum(not signals_of(each, "SigBlk", number) for each in open_to_it) == left  # type: ignore[misc]
        )
        wait_until(lambda: is_pending_for(this, number))
    return min(len(open_to_it), 1)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


# -- inward --------------------------------------------------------------------------------------------------


@on_loop
async def test_ten_thousand_values_come_in_every_one_and_in_order() -> None:
    """Even while the channel does not take them: what the kernel has no room for, it tells the sender.

    The bridge's threads all leave signals to the one that reads them. Those of a test runner do not: each may
    be given some, and hands them on, but not in order. So the test is run where there are none.
    """
    if len(os.listdir("/proc/self/task")) > 1 and ALONE not in os.environ:
        again = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
        name = test_ten_thousand_values_come_in_every_one_and_in_order.__name__
        child = await asyncio.create_subprocess_exec(
            *again, f"{__file__}::{name}", env={**os.environ, ALONE: "1"}, stdout=asyncio.subprocess.PIPE
        )
        told, _ = await within(child.communicate())
        assert child.returncode == 0, told.decode()
        return
    async with Rig() as rig:
        start(rig, "RTMIN+3", "in", format="text")
        await rig.until_state("running")
        rig.carrier.open.clear()
        with sender(RT, COUNT) as sending:
            await rig.until(lambda: rig.carrier.has_waiting_publisher)
            rig.carrier.open.set()
            published = await rig.until_published(COUNT)
            assert published == [b"%d" % number for number in range(COUNT)]
            assert sending.wait(DEADLINE_S) == 0
        await rig.stop()
        assert (rig.tally.messages_in, rig.tally.refused) == (COUNT, 0)


@on_loop
async def test_a_message_says_who_sent_it_and_what() -> None:
    async with Rig() as rig:
        start(rig, "RTMIN+3", "in")
        await rig.until_state("running")
        with sender(RT, 2) as sending:
            published = [json.loads(each) for each in await rig.until_published(2)]
        # The runner's threads hand on what they are given, not in order; see the test of ten thousand.
        second = [each["value"] for each in published].index(1)
        assert published[1 - second]["value"] == 0
        assert published[second] == {
            "signal": "RTMIN+3", "pid": sending.pid, "uid": os.getuid(), "code": "queue", "value": 1,
        }  # fmt: skip
        headers = rig.carrier.published_headers[second]
        assert headers is not None and headers.user == {
            "signal": "RTMIN+3",
            "signal-pid": str(sending.pid),
            "signal-uid": str(os.getuid()),
            "signal-code": "queue",
            "signal-value": "1",
        }
        await rig.stop()


@on_loop
async def test_the_pid_file_finds_the_process_for_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "receiver.pid"
    async with Rig() as rig:
        start(rig, "USR1", "in", pid_file=str(path))
        await rig.until_state("running")
        assert rig.tally.detail == f"pid {os.getpid()}, in {path}"
        await shell(f"kill -USR1 $(cat {path})")
        [message] = await rig.until_published(1)
        assert json.loads(message)["code"] == "user" and json.loads(message)["signal"] == "USR1"
        await rig.stop()
        assert not path.exists()
        os.kill(os.getpid(), signal.SIGUSR1)  # who comes too late does no harm


@on_loop
async def test_a_pid_file_of_one_that_was_killed_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    stale, precious = tmp_path / "stale.pid", tmp_path / "precious"
    stale.write_text("4194304\n")
    precious.write_text("precious\n")
    async with Rig() as rig:
        start(rig, "USR1", "in", pid_file=str(stale))
        await rig.until_state("running")
        assert stale.read_text() == f"{os.getpid()}\n"
        await rig.stop()
    async with Rig() as rig:
        start(rig, "USR1", "in", pid_file=str(precious))
        with pytest.raises(BindingFailed, match="no pid file") as caught:
            await rig.ended()
        assert not caught.value.retryable and precious.read_text() == "precious\n"


@on_loop
async def test_standard_signals_coalesce_and_each_that_was_delivered_is_counted() -> None:
    async with Rig() as rig:
        start(rig, "USR2", "in")
        await rig.until_state("running")
        with blocked_here(signal.SIGUSR2):
            passed_on = have_others_block(signal.SIGUSR2)
        begun = len(await rig.until_published(passed_on))
        with blocked_here(signal.SIGUSR2):
            for _ in range(5):
                os.kill(os.getpid(), signal.SIGUSR2)
        assert len(await rig.until_published(begun + 1)) == begun + 1
        os.kill(os.getpid(), signal.SIGUSR2)
        assert len(await rig.until_published(begun + 2)) == begun + 2
        await rig.stop()
        assert rig.tally.messages_in == begun + 2


@pytest.mark.parametrize("by", ["kill", "sigqueue"])
@on_loop
async def test_a_signal_that_hits_another_thread_is_passed_on_with_all_that_is_known_of_it(by: str) -> None:
    """Which of the threads that do not block it a signal hits, the kernel decides."""
    async with Rig() as rig:
        start(rig, "RTMIN+3", "in")
        await rig.until_state("running")
        with other_thread(), blocked_here(RT):
            if by == "kill":
                sent_by = os.getpid()
                os.kill(sent_by, RT)
            else:
                with sender(RT, 1) as sending:
                    sent_by = sending.pid
            wait_until(lambda: is_pending_for(threading.get_native_id(), RT))
        [message] = await rig.until_published(1)
        assert json.loads(message) == {
            "signal": "RTMIN+3", "pid": sent_by, "uid": os.getuid(), "value": 0,
            "code": "user" if by == "kill" else "queue",
        }  # fmt: skip
        await rig.stop()


# -- outward -------------------------------------------------------------------------------------------------


@on_loop
async def test_ten_thousand_values_go_out_every_one_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "app.pid"
    async with Rig() as rig:
        process = await receiver(COUNT, str(path))
        start(rig, f"RTMIN+3@{path}", "out")
        rig.carrier.send([number.to_bytes(8, "little") for number in range(COUNT)])
        assert await told(process) == [b"%d" % number for number in range(COUNT)]
        await rig.until(lambda: rig.tally.messages_out == COUNT)
        await rig.stop()
        assert rig.tally.refused == 0


@pytest.mark.parametrize(
    ("form", "payload", "value"),
    [
        ("binary", b"\x05", 5),
        ("binary", b"\xff" * 9, (1 << 64) - 1),
        ("text", b" 42\n", 42),
        ("text", b"-1", (1 << 64) - 1),
        ("json", b'{"value": 7}', 7),
    ],
)
@on_loop
async def test_a_payload_is_a_value(form: str, payload: bytes, value: int) -> None:
    async with Rig() as rig:
        process = await receiver(2)
        rig.keeping.is_new = True
        start(rig, f"RTMIN+3@{process.pid}", "out", format=form)
        rig.carrier.send([payload])
        rig.carrier.send([b"?"], Headers(user={"signal-value": "99"}))
        assert await told(process) == [b"%d" % value, b"99"]


@pytest.mark.parametrize(
    ("form", "payload"),
    [("text", b"many"), ("text", b"1" * 30), ("json", b"{}"), ("json", b"3"), ("json", b'{"value": true}')],
)
@on_loop
async def test_a_payload_that_is_no_value_is_counted(form: str, payload: bytes, tmp_path: Path) -> None:
    async with Rig() as rig:
        start(rig, f"RTMIN+3@{tmp_path}/none", "out", format=form)
        rig.carrier.send([payload])
        await rig.until(lambda: rig.tally.refused == 1)
        assert isinstance(rig.tally.last_error, BadFrame)
        await rig.stop()


@on_loop
async def test_it_finds_the_process_again_after_its_restart_and_counts_what_nobody_got(
    tmp_path: Path,
) -> None:
    path = tmp_path / "app.pid"
    async with Rig() as rig:
        start(rig, f"RTMIN+3@{path}", "out", format="text")
        await rig.until_state("waiting")
        for run in range(20):
            process = await receiver(1, str(path))
            rig.carrier.send([b"%d" % run])
            assert await told(process) == [b"%d" % run]
            await rig.until_state("waiting")
            rig.carrier.send([b"7"])
            await rig.until(lambda run=run: rig.tally.refused == run + 1)  # type: ignore[misc]
        await rig.stop()
        assert (rig.tally.messages_out, rig.tally.state) == (20, "waiting")


@on_loop
async def test_a_message_waits_for_a_process_where_it_is_to_block(tmp_path: Path) -> None:
    path = tmp_path / "app.pid"
    async with Rig() as rig:
        start(rig, f"RTMIN+3@{path}", "out", format="text", when_absent="block")
        rig.carrier.send([b"1", b"2"])
        await rig.until_state("waiting")
        assert await told(await receiver(2, str(path))) == [b"1", b"2"]
        await rig.stop()
        assert rig.tally.refused == 0


@on_loop
async def test_a_pid_file_that_is_created_and_not_written_yet_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "app.pid"
    path.touch()
    async with Rig() as rig:
        start(rig, f"RTMIN+3@{path}", "out", format="text", when_absent="block")
        rig.carrier.send([b"1"])
        await rig.until_state("waiting")
        assert await told(await receiver(1, str(path))) == [b"1"]
        await rig.stop()
        assert rig.tally.refused == 0


@on_loop
async def test_of_a_queue_only_what_was_sent_is_settled(tmp_path: Path) -> None:
    path = tmp_path / "app.pid"
    async with Rig() as rig:
        rig.carrier.is_settled = True
        process = await receiver(1, str(path))
        start(rig, f"RTMIN+3@{path}", "out", format="text")
        rig.carrier.send([b"1"])
        assert await told(process) == [b"1"]
        await rig.until_state("waiting")
        rig.carrier.send([b"2"])
        await rig.settle()
        await rig.stop()
        assert (rig.carrier.settled, rig.carrier.rejected, rig.tally.refused) == ([b"1"], [], 0)


@on_loop
async def test_everybody_who_subscribed_is_signalled(tmp_path: Path) -> None:
    async with Rig() as rig:
        start(rig, f"RTMIN+3@{tmp_path}/", "out", format="text", when_absent="block")
        receivers = [await receiver(2, str(tmp_path / str(number))) for number in range(3)]
        (tmp_path / "stale").write_text("4194304\n")
        rig.carrier.send([b"1", b"2"])
        for process in receivers:
            assert await told(process) == [b"1", b"2"]
        await rig.stop()


@on_loop
async def test_a_recycled_pid_is_never_signalled(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    """The process began after the file was written: it is another one under that number."""
    path = tmp_path / "app.pid"
    path.write_text(f"{sleeper.pid}\n")
    found = path.stat().st_mtime
    os.utime(path, (found, found - TOLERANCE_S - 1))
    async with Rig() as rig:
        start(rig, f"KILL@{path}", "out")
        rig.carrier.send([b""])
        await rig.until(lambda: rig.tally.refused == 1)
        assert sleeper.poll() is None
        os.utime(path)
        rig.carrier.send([b""])
        await rig.until(lambda: rig.tally.messages_out == 1)
        assert sleeper.wait(DEADLINE_S) == -signal.SIGKILL
        await rig.stop()


@on_loop
async def test_a_pid_in_the_url_stands_for_one_process(sleeper: subprocess.Popen[bytes]) -> None:
    process = find_process(sleeper.pid)
    assert process is not None
    process.close()
    started = str(process.started_ticks)
    others = str(process.started_ticks + 1)
    for note, is_new, is_right in (
        ("", True, True),
        (started, False, True),
        ("", False, False),
        (others, True, False),
    ):
        async with Rig(Keeping().of(1)) as rig:
            rig.keeping.note, rig.keeping.is_new = note, is_new
            start(rig, f"CONT@{sleeper.pid}", "out")
            if is_right:
                await rig.until_state("running")
                await rig.stop()
            else:
                with pytest.raises(BindingFailed, match="another one") as caught:
                    await rig.ended()
                assert not caught.value.retryable
    async with Rig() as rig:
        rig.keeping.is_new = True
        start(rig, f"CONT@{sleeper.pid}", "out")
        await rig.until_state("running")
        sleeper.kill()
        with pytest.raises(BindingFailed, match="has ended"):
            await rig.ended()


@on_loop
async def test_the_owner_may_signal_no_more_than_the_kernel_lets_him(
    sleeper: subprocess.Popen[bytes],
) -> None:
    async with Rig() as rig:
        rig.keeping.is_new = True
        start(rig, f"KILL@{sleeper.pid}", "out", owner=f"uid:{os.geteuid() + 1}")
        with pytest.raises(PermissionDenied, match="owner"):
            await rig.ended()
    assert sleeper.poll() is None


@on_loop
async def test_nothing_is_left_open(tmp_path: Path) -> None:
    process = await receiver(1, str(tmp_path / "app.pid"))
    for place, direction in (("USR1", "in"), (f"RTMIN+3@{tmp_path}/app.pid", "out")):
        async with Rig() as rig:
            before = open_descriptors()
            start(rig, place, direction)  # type: ignore[arg-type]
            await rig.until_state("running")
            await rig.stop()
            assert open_descriptors() == before
    process.kill()
    await process.communicate()


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "direction", "text"),
    [
        ("USR1", "out", "to nobody"),
        ("USR1@/run/x", "in", "no target"),
        ("TERM", "in", "means something to the bridge"),
        ("SEGV", "in", "means something to the bridge"),
    ],
)
def test_a_definition_that_cannot_be_is_refused(place: str, direction: Direction, text: str) -> None:
    async def make() -> None:
        async with Rig() as rig:
            start(rig, place, direction)

    with pytest.raises(InvalidArgument, match=text):
        asyncio.run(make())


@pytest.mark.parametrize(
    ("content", "text"), [("\n", "no pid file"), ("12 13\n", "no pid file"), ("-1\n", "no pid file")]
)
@on_loop
async def test_what_is_no_pid_file_is_said(tmp_path: Path, content: str, text: str) -> None:
    (tmp_path / "app.pid").write_text(content)
    async with Rig() as rig:
        start(rig, f"USR1@{tmp_path}/app.pid", "out")
        with pytest.raises(BindingFailed, match=text) as caught:
            await rig.ended()
        assert caught.value.retryable


def test_a_pid_file_where_none_can_be(tmp_path: Path) -> None:
    with pytest.raises(BindingFailed, match="cannot write"):
        write_pid_file(str(tmp_path / "no" / "such" / "folder"))
