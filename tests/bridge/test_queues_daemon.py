"""Message queues through the real daemon: C programs on both sides, the three ways to declare, what a killed
bridge keeps, and what goes wrong."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import posix_ipc
import pytest
import sysv_ipc

import towpath
from tests.bridge.foreign import program
from tests.bridge.test_daemon import COUNT, receive, wait_report
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath.errors import BindingConflict, BindingFailed, InvalidArgument
from towpath.model import Direction, Headers, Kind


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon"), LOCAL_ONLY) as handle:
        yield handle


@pytest.fixture
def client(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    with towpath.connect(str(daemon.socket), timeout=DEADLINE_S) as client:
        yield client


class Place:
    """A queue's URL, and the C programs for it."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.name = (
            f"/towpath-e2e-{os.getpid()}-{secrets.token_hex(4)}"
            if scheme == "mq"
            else f"{0x60000000 | secrets.randbits(28):#x}"
        )
        self.url = f"{scheme}:{self.name}"

    def sender(self, count: int, *arguments: str) -> subprocess.Popen[bytes]:
        command = [program(f"{self.scheme}_send"), self.name, str(count), *arguments]
        return subprocess.Popen(command)

    def receiver(self, count: int) -> subprocess.Popen[bytes]:
        command = [program(f"{self.scheme}_receive"), self.name, str(count)]
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    def exists(self) -> bool:
        try:
            if self.scheme == "mq":
                posix_ipc.MessageQueue(self.name).close()
            else:
                sysv_ipc.MessageQueue(int(self.name, 16))
        except (posix_ipc.ExistentialError, sysv_ipc.ExistentialError):
            return False
        return True

    def remove(self) -> None:
        with contextlib.suppress(posix_ipc.ExistentialError, sysv_ipc.ExistentialError):
            if self.scheme == "mq":
                posix_ipc.unlink_message_queue(self.name)
            else:
                sysv_ipc.MessageQueue(int(self.name, 16)).remove()


@pytest.fixture(params=["mq", "sysv"])
def places(request: pytest.FixtureRequest) -> Iterator[tuple[Place, Place]]:
    """Two queues of one mechanism that are not there yet."""
    pair = (Place(request.param), Place(request.param))
    yield pair
    for place in pair:
        place.remove()


@pytest.fixture
def channel(client: towpath.Client) -> Iterator[str]:
    name = f"test.{secrets.token_hex(4)}"
    client.declare(name)
    yield name
    client.undeclare(name, force=True)


def numbers(output: bytes) -> list[int]:
    """The numbers that a receiver has printed."""
    return [int(line.split()[2]) for line in output.splitlines()]


@pytest.mark.parametrize("kind", ["topic", "queue"])
def test_from_one_c_program_to_another_through_a_channel(
    daemon: DaemonHandle, client: towpath.Client, places: tuple[Place, Place], kind: Kind
) -> None:
    source, target = places
    name = f"test.{secrets.token_hex(4)}"
    client.declare(name, kind=kind)
    try:
        out = client.bind(name, target.url, direction="out")
        client.bind(name, source.url, direction="in")
        receiver = target.receiver(COUNT)
        sender = source.sender(COUNT)
        output, _ = receiver.communicate(timeout=DEADLINE_S)
        assert sender.wait(DEADLINE_S) == 0
        assert numbers(output) == list(range(COUNT))
        report = wait_report(daemon, out.id, lambda report: report.messages_out == COUNT)
        assert (report.state, report.refused) == ("running", 0)
    finally:
        client.undeclare(name, force=True)


def test_headers_cross(client: towpath.Client, channel: str) -> None:
    source, target = Place("mq"), Place("mq")
    try:
        client.bind(channel, source.url, direction="in")
        client.bind(channel, target.url, direction="out")
        with client.subscribe(channel) as subscription:
            assert source.sender(1, "8", "17").wait(DEADLINE_S) == 0
            assert subscription.receive(timeout=DEADLINE_S).headers.priority == 17
        assert target.receiver(1).communicate(timeout=DEADLINE_S)[0] == b"17 8 0\n"
        with client.publisher(channel) as publisher:
            publisher.publish(b"mine ", headers=Headers(priority=30))
            assert target.receiver(1).communicate(timeout=DEADLINE_S)[0] == b"30 5 mine\n"
    finally:
        source.remove()
        target.remove()


def test_made_by_the_command_line_and_gone_with_the_binding(
    daemon: DaemonHandle, client: towpath.Client, channel: str, places: tuple[Place, Place]
) -> None:
    place = places[0]

    def towpath_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "towpath", *arguments]
        return subprocess.run(
            command, env=daemon.environment, capture_output=True, text=True, timeout=DEADLINE_S
        )

    made = towpath_cli("bind", channel, place.url, "--direction", "in", "--option", "mode=0640")
    assert made.returncode == 0, made.stderr
    assert place.exists()
    told = towpath_cli("status")
    assert place.url in told.stdout
    again = towpath_cli("bind", channel, place.url, "--direction", "out")
    assert again.returncode != 0 and "bound already" in again.stderr
    both = towpath_cli("bind", channel, places[1].url, "--direction", "both")
    assert both.returncode != 0 and "hint" in both.stderr.lower()
    mark = daemon.mark()
    assert towpath_cli("unbind", channel, place.url).returncode == 0
    daemon.wait_log(r"bridge\.binding_stopped ", after=mark)
    assert not place.exists()


@pytest.mark.parametrize("direction", ["in", "out"])
def test_gone_with_the_channel_and_nothing_of_it_kept(
    daemon: DaemonHandle, client: towpath.Client, places: tuple[Place, Place], direction: Direction
) -> None:
    """The adapter may learn of it before the bridge does."""
    place, _ = places

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))

    before = descriptors()
    for _ in range(20):
        name = f"test.{secrets.token_hex(4)}"
        client.declare(name)
        client.bind(name, place.url, direction=direction)
        assert place.exists()
        client.undeclare(name, force=True)
        wait_until(lambda: not place.exists(), daemon.log)
    wait_until(lambda: descriptors() == before, daemon.log)


def test_declared_by_the_configuration(tmp_path: Path) -> None:
    mq, sysv = Place("mq"), Place("sysv")
    config = f"""{LOCAL_ONLY}
[channels."configured"]
[[bindings]]
channel = "configured"
url = "{mq.url}"
direction = "in"
mode = "0620"
maxmsg = 5
[[bindings]]
channel = "configured"
url = "{sysv.url}"
direction = "out"
type = 4
"""
    try:
        with running_daemon(tmp_path, config) as daemon, towpath.connect(str(daemon.socket)) as client:
            for binding in client.bindings("configured"):
                wait_report(daemon, binding.id, lambda report: report.state == "running")
            assert mq.sender(3).wait(DEADLINE_S) == 0
            output, _ = sysv.receiver(3).communicate(timeout=DEADLINE_S)
            assert output == b"4 16 0\n4 16 1\n4 16 2\n"
        assert mq.exists() and sysv.exists()  # the bindings are still there, the daemon is not
    finally:
        mq.remove()
        sysv.remove()


def test_a_killed_bridge_and_what_it_made(
    daemon: DaemonHandle, client: towpath.Client, channel: str, places: tuple[Place, Place]
) -> None:
    place = places[0]
    binding = client.bind(channel, place.url, direction="in")
    with client.subscribe(channel) as subscription:
        for turn in range(2):
            killed = daemon.gateway("bridge").pid
            daemon.kill_gateway("bridge")
            assert place.sender(5).wait(DEADLINE_S) == 0  # the queue keeps them, whether anybody is there
            assert [int(payload.split()[0]) for payload in receive(subscription, 5)] == list(range(5)), turn
            daemon.wait_gateway("bridge", but_not=killed)
    wait_report(daemon, binding.id, lambda report: report.state == "running")
    mark = daemon.mark()
    client.unbind(binding.id)
    daemon.wait_log(rf"bridge\.binding_stopped binding={binding.id} ", after=mark)
    assert not place.exists()  # the successor knew that it had been made by its predecessor


def test_a_killed_bridge_does_not_lose_what_a_queue_had_not_been_told(
    daemon: DaemonHandle, client: towpath.Client, places: tuple[Place, Place]
) -> None:
    """Outward from a queue: acknowledged only after it was handed over, so a full mechanism and a killed
    bridge lose nothing; what was handed over and not acknowledged may come twice."""
    target = places[1]
    name = f"test.{secrets.token_hex(4)}"
    client.declare(name, kind="queue")
    try:
        binding = client.bind(name, target.url, direction="out")
        count = 2000
        with client.publisher(name) as publisher:
            publisher.publish_many([b"%d " % number + b"." * 60 for number in range(count)])
        wait_report(daemon, binding.id, lambda report: report.state == "waiting")
        killed = daemon.gateway("bridge").pid
        daemon.kill_gateway("bridge")
        daemon.wait_gateway("bridge", but_not=killed)
        seen: set[int] = set()
        with subprocess.Popen(
            [program(f"{target.scheme}_receive"), target.name, str(10 * count)], stdout=subprocess.PIPE
        ) as receiver:
            assert receiver.stdout is not None
            too_long = threading.Timer(DEADLINE_S, receiver.kill)
            too_long.start()
            for line in receiver.stdout:
                seen.add(int(line.split()[2]))
                if len(seen) == count:
                    break
            too_long.cancel()
            receiver.kill()
        assert set(range(count)) - seen == set(), client.bindings(name)
    finally:
        client.undeclare(name, force=True)


def test_a_full_mechanism_does_not_have_messages_delivered_twice(
    daemon: DaemonHandle, client: towpath.Client, places: tuple[Place, Place]
) -> None:
    """The deadline of what the bridge holds is extended for as long as it holds it."""
    target = places[1]
    name = f"test.{secrets.token_hex(4)}"
    client.declare(name, kind="queue", ack_ms=400)
    try:
        binding = client.bind(name, target.url, direction="out")
        count = 500
        with client.publisher(name) as publisher:
            publisher.publish_many([b"%d " % number + b"." * 60 for number in range(count)])
        # A binding is said to wait when it has waited for five times the deadline.
        wait_report(daemon, binding.id, lambda report: report.state == "waiting")
        assert numbers(target.receiver(count).communicate(timeout=DEADLINE_S)[0]) == list(range(count))
        report = wait_report(daemon, binding.id, lambda report: report.messages_out >= count)
        assert (report.messages_out, report.refused) == (count, 0)
    finally:
        client.undeclare(name, force=True)


def test_what_cannot_be_is_refused_with_its_reason(client: towpath.Client, channel: str) -> None:
    for url, text in (
        ("mq:/towpath-none", "no message queue /towpath-none"),
        ("sysv:0x6fffffff", "no System V message queue"),
    ):
        binding = client.bind(channel, url, direction="in", options={"create": "false"})
        assert binding.report.state == "retrying"
        assert binding.report.last_error is not None and text in binding.report.last_error.message
        client.unbind(binding.id)
    with pytest.raises(BindingFailed) as failed:
        client.bind(channel, "mq:/towpath-none", direction="out", options={"split": "true", "msgsize": "10"})
    assert "split=true needs more than" in failed.value.message
    with pytest.raises(posix_ipc.ExistentialError):
        posix_ipc.MessageQueue("/towpath-none")
    with pytest.raises(InvalidArgument):
        client.bind(channel, "mq:no-slash", direction="in")
    with pytest.raises(InvalidArgument):
        client.bind(channel, "sysv:0x6fffffff", direction="both")
    place = Place("sysv")
    try:
        client.bind(channel, place.url, direction="in")
        with pytest.raises(BindingConflict):
            client.bind(channel, f"sysv:{int(place.name, 16)}", direction="out")
    finally:
        place.remove()
    assert [binding.url for binding in client.bindings(channel)] == [place.url]
