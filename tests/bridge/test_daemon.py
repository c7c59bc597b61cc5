"""The bridge in the real daemon: real rings, real processes, and what is killed comes back."""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest

import towpath
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath.errors import BindingFailed, Timeout
from towpath.model import BindingReport

COUNT = 10_000
NUMBERED = [b"message %05d" % number for number in range(COUNT)]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon"), LOCAL_ONLY) as handle:
        yield handle


@pytest.fixture
def client(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    with towpath.connect(str(daemon.socket), timeout=DEADLINE_S) as client:
        yield client


@pytest.fixture
def channel(client: towpath.Client, tmp_path: Path) -> Iterator[str]:
    """A channel of the test's own; it goes with its bindings."""
    name = tmp_path.name.replace("[", "_").replace("]", "_")
    client.declare(name)
    yield name
    client.undeclare(name, force=True)


def receive(subscription: towpath.Subscription, count: int) -> list[bytes]:
    payloads: list[bytes] = []
    while len(payloads) < count:
        batch = subscription.receive_many(count - len(payloads), timeout=DEADLINE_S)
        assert batch, f"{len(payloads)} of {count} messages came"
        payloads += [message.payload for message in batch]
    return payloads


def wait_report(
    daemon: DaemonHandle, binding: int, condition: Callable[[BindingReport], bool]
) -> BindingReport:
    """Ask the daemon for a binding's report until a condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        report = next(info.report for info in daemon.status().bindings if info.id == binding)
        if condition(report):
            return report
        assert time.monotonic() < deadline, report
        time.sleep(0.02)  # reports are not announced; between two questions only


def run_shell(script: str, **variables: Path) -> bytes:
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(
        ["sh", "-c", script], env=environment, stdout=subprocess.PIPE, timeout=DEADLINE_S, check=True
    ).stdout


def test_ten_thousand_lines_from_another_process_through_a_fifo(
    client: towpath.Client, channel: str, tmp_path: Path
) -> None:
    with client.subscribe(channel) as subscription:
        client.bind(channel, f"fifo:{tmp_path}/in", direction="in")
        run_shell(f"seq -f 'message %05.0f' 0 {COUNT - 1} > $fifo", fifo=tmp_path / "in")
        assert receive(subscription, COUNT) == NUMBERED


def test_ten_thousand_lines_from_a_command(client: towpath.Client, channel: str) -> None:
    with client.subscribe(channel) as subscription:
        url = f"pipe:seq -f 'message %05.0f' 0 {COUNT - 1}"
        client.bind(channel, url, direction="in", options={"restart": "never"})
        assert receive(subscription, COUNT) == NUMBERED


def test_ten_thousand_messages_out_of_a_fifo_into_a_shell_s_read(
    client: towpath.Client, channel: str, tmp_path: Path
) -> None:
    binding = client.bind(channel, f"fifo:{tmp_path}/out", direction="out")
    assert binding.report.state == "waiting"
    loop = f'i=0; while [ $i -lt {COUNT} ]; do read -r line; echo "$line"; i=$((i+1)); done'
    script = f"{loop} < {tmp_path}/out"
    with (
        subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as reader,
        client.publisher(channel) as publisher,
    ):
        publisher.publish_many(NUMBERED)
        output, _ = reader.communicate(timeout=DEADLINE_S)
    assert output.split(b"\n")[:-1] == NUMBERED


def test_a_command_both_ways_does_not_get_back_what_it_brought(client: towpath.Client, channel: str) -> None:
    with client.subscribe(channel) as subscription, client.publisher(channel) as publisher:
        client.bind(channel, "pipe:sed -u s/^/got-/", direction="both")
        for number in range(100):
            publisher.publish(b"%d" % number)
        received = receive(subscription, 200)
        assert sorted(received) == sorted(
            [b"%d" % n for n in range(100)] + [b"got-%d" % n for n in range(100)]
        )
        publisher.publish(b"last")
        assert receive(subscription, 2) == [b"last", b"got-last"]


def test_a_binding_that_cannot_be_is_refused_with_its_reason(
    client: towpath.Client, channel: str, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    with pytest.raises(BindingFailed) as caught:
        client.bind(channel, f"fifo:{precious}", direction="in")
    assert "is not a FIFO" in caught.value.message
    with pytest.raises(BindingFailed) as caught:
        client.bind(channel, "pipe:/no/such/program", direction="in")
    assert "/no/such/program" in caught.value.message
    assert client.bindings(channel) == [] and precious.read_text() == "precious"


def test_status_shows_state_counters_and_the_last_error(
    daemon: DaemonHandle, client: towpath.Client, channel: str, tmp_path: Path
) -> None:
    options = {"frame_bytes_max": "10"}
    with client.subscribe(channel) as subscription:
        binding = client.bind(channel, f"fifo:{tmp_path}/in", direction="in", options=options)
        run_shell("printf 'one\\nmuch too long\\ntwo\\n' > $fifo", fifo=tmp_path / "in")
        assert receive(subscription, 2) == [b"one", b"two"]
    report = wait_report(daemon, binding.id, lambda report: report.messages_in == 2)
    assert (report.state, report.bytes_in, report.refused) == ("running", 6, 1)
    assert report.last_error is not None and "13 bytes; 10 are allowed" in report.last_error.message
    assert report.last_error_at_ns > 0


def test_undeclaring_a_channel_ends_its_bindings(
    daemon: DaemonHandle, client: towpath.Client, tmp_path: Path
) -> None:
    client.declare("undeclared")
    binding = client.bind("undeclared", f"fifo:{tmp_path}/in", direction="in")
    mark = daemon.mark()
    client.undeclare("undeclared", force=True)
    daemon.wait_log(rf"bridge\.binding_stopped binding={binding.id} ", after=mark)
    assert not (tmp_path / "in").exists()


def test_a_core_that_is_killed_and_comes_back_finds_the_bridge_at_work(
    daemon: DaemonHandle, client: towpath.Client, channel: str, tmp_path: Path
) -> None:
    with client.subscribe(channel) as subscription:
        binding = client.bind(channel, f"fifo:{tmp_path}/in", direction="in")
        inode = (tmp_path / "in").stat().st_ino
        run_shell("echo before > $fifo", fifo=tmp_path / "in")
        assert receive(subscription, 1) == [b"before"]
        daemon.kill_core()
        report = wait_report(daemon, binding.id, lambda report: report.state == "running")
        assert report.restarts == 0 and (tmp_path / "in").stat().st_ino == inode
        run_shell("echo after > $fifo", fifo=tmp_path / "in")
        assert receive(subscription, 1) == [b"after"]


def test_a_bridge_that_is_killed_comes_back_with_its_bindings_and_its_commands_do_not_pile_up(
    daemon: DaemonHandle, client: towpath.Client, channel: str, tmp_path: Path
) -> None:
    with client.subscribe(channel) as subscription:
        client.bind(channel, f"fifo:{tmp_path}/in", direction="in")
        client.bind(channel, "pipe:sh -c 'echo $$; exec sleep 1000'", direction="in")
        [first] = receive(subscription, 1)
        command = os.pidfd_open(int(first))
        daemon.kill_gateway("bridge")
        [second] = receive(subscription, 1)
        ended, _, _ = select.select([command], [], [], DEADLINE_S)
        os.close(command)
        assert ended and first != second
        # The FIFO was left by the bridge that was killed, and is adopted.
        run_shell("echo after > $fifo", fifo=tmp_path / "in")
        assert receive(subscription, 1) == [b"after"]


def test_who_writes_into_a_fifo_does_not_notice_that_the_bridge_is_killed(
    daemon: DaemonHandle, client: towpath.Client, channel: str, tmp_path: Path
) -> None:
    """Neither EPIPE, nor is anything lost that the bridge had not read."""
    with client.subscribe(channel) as subscription:
        client.bind(channel, f"fifo:{tmp_path}/in", direction="in")
        with open(tmp_path / "in", "wb", buffering=0) as fifo:
            for first in range(0, COUNT, COUNT // 4):
                batch = [line + b"\n" for line in NUMBERED[first : first + COUNT // 4]]
                os.kill(daemon.gateway("bridge").pid, signal.SIGSTOP)
                fifo.write(b"".join(batch[: len(batch) // 2]))
                killed = daemon.gateway("bridge").pid
                os.kill(killed, signal.SIGKILL)
                fifo.write(b"".join(batch[len(batch) // 2 :]))
                daemon.wait_gateway("bridge", but_not=killed)
                assert receive(subscription, len(batch)) == [line[:-1] for line in batch]
    client.undeclare(channel, force=True)
    wait_until(lambda: not (tmp_path / "in").exists(), lambda: "the FIFO is still there")
    client.declare(channel)


def test_what_is_published_while_the_bridge_is_away_comes_out_of_a_fifo(
    daemon: DaemonHandle, client: towpath.Client, channel: str, tmp_path: Path
) -> None:
    """As far as it fits into the publishers' rings; by one who was there, and by one who came meanwhile."""
    client.bind(channel, f"fifo:{tmp_path}/out", direction="out")
    with client.publisher(channel) as publisher:
        for kill in range(3):
            before = [b"%d before" % kill]
            away = [b"%d away %d" % (kill, number) for number in range(1000)]
            with open(tmp_path / "out", "rb") as reader:
                publisher.publish_many(before)
                assert reader.readline() == before[0] + b"\n"
                daemon.process.send_signal(signal.SIGSTOP)  # so that it does not come back at once
                killed = daemon.gateway("bridge").pid
                os.kill(killed, signal.SIGKILL)
                assert reader.readline() == b""
            publisher.publish_many(away)
            newcomer = client.publisher(channel)
            newcomer.publish(b"%d new" % kill)
            daemon.process.send_signal(signal.SIGCONT)
            daemon.wait_gateway("bridge", but_not=killed)
            with open(tmp_path / "out", "rb") as reader:
                got = [reader.readline().removesuffix(b"\n") for _ in range(1001)]
            newcomer.close()
            assert [line for line in got if b"new" not in line] == away
            assert sorted(got) == sorted([*away, b"%d new" % kill])


@pytest.mark.parametrize("order", ["source", "total"])
def test_publishers_wait_for_a_bridge_that_is_away(
    daemon: DaemonHandle, client: towpath.Client, tmp_path: Path, order: Literal["source", "total"]
) -> None:
    """What is more than their rings hold comes out of the binding, too, whole and in order."""
    client.declare("waited.for", ring_bytes=65536, order=order)
    client.bind("waited.for", f"fifo:{tmp_path}/out", direction="out")
    with client.publisher("waited.for") as publisher, ThreadPoolExecutor(1) as pool:
        with open(tmp_path / "out", "rb") as reader:
            publisher.publish(b"first")
            assert reader.readline() == b"first\n"
            daemon.process.send_signal(signal.SIGSTOP)  # so that it does not come back at once
            killed = daemon.gateway("bridge").pid
            os.kill(killed, signal.SIGKILL)
            assert reader.readline() == b""
        filled = 0
        with pytest.raises(Timeout):
            while True:
                publisher.publish(NUMBERED[filled], timeout=0)
                filled += 1
        assert 0 < filled < COUNT
        rest = pool.submit(publisher.publish_many, NUMBERED[filled:], timeout=DEADLINE_S)
        daemon.process.send_signal(signal.SIGCONT)
        with open(tmp_path / "out", "rb") as reader:
            assert [reader.readline() for _ in NUMBERED] == [line + b"\n" for line in NUMBERED]
        assert rest.result(DEADLINE_S) == COUNT + 1
    client.undeclare("waited.for", force=True)


def test_bindings_of_the_configuration_and_of_clients_survive_a_restart(tmp_path: Path) -> None:
    config = f"""{LOCAL_ONLY}
[channels."configured"]
[[bindings]]
channel = "configured"
url = "fifo:{tmp_path}/configured"
direction = "in"
mode = "0620"
"""
    with running_daemon(tmp_path, config) as daemon, towpath.connect(str(daemon.socket)) as client:
        client.declare("made")
        client.bind("made", f"fifo:{tmp_path}/made", direction="in")
    assert not (tmp_path / "made").exists()
    with running_daemon(tmp_path, config) as daemon, towpath.connect(str(daemon.socket)) as client:
        for name in ("configured", "made"):
            [binding] = client.bindings(name)
            wait_report(daemon, binding.id, lambda report: report.state == "running")
            with client.subscribe(name) as subscription:
                run_shell("echo hello > $fifo", fifo=tmp_path / name)
                assert receive(subscription, 1) == [b"hello"]
        assert stat.S_IMODE((tmp_path / "configured").stat().st_mode) == 0o620
