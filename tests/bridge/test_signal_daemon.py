"""Signals through a real daemon: by the command line and the API, over restarts of the bridge."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import towpath
from tests.bridge import foreign
from tests.bridge.test_daemon import receive, wait_report
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath.model import BindingReport
from towpath_broker.gateways.bridge.threads import THREADS_MAX

RT = int(signal.SIGRTMIN + 5)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("signal"), LOCAL_ONLY) as handle:
        yield handle


def cli(daemon: DaemonHandle, *arguments: str) -> str:
    command = [sys.executable, "-m", "towpath", "--socket", str(daemon.socket), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE_S).stdout


def _names(pid: int) -> Callable[[BindingReport], bool]:
    return lambda report: report.detail.startswith(f"pid {pid},")


def test_kill_finds_the_process_before_and_after_its_restart(daemon: DaemonHandle) -> None:
    path = daemon.socket.parent / "signal-USR1.pid"
    with towpath.connect(str(daemon.socket)) as client:
        client.declare("usr1")
        with client.subscribe("usr1") as subscription:
            cli(daemon, "bind", "usr1", "signal:USR1", "--direction", "in")
            [binding] = client.bindings("usr1")
            for _ in range(3):
                pid = int(path.read_text())
                assert pid == daemon.gateway("bridge").pid
                assert f"pid {pid}, in {path}" in cli(daemon, "status")
                subprocess.run(["sh", "-c", f"kill -USR1 $(cat {path})"], check=True)
                [message] = receive(subscription, 1)
                told = json.loads(message)
                assert (told["signal"], told["code"], told["uid"]) == ("USR1", "user", os.getuid())
                daemon.kill_gateway("bridge")
                daemon.wait_gateway("bridge", but_not=pid)
                now = daemon.gateway("bridge").pid
                wait_report(daemon, binding.id, _names(now))
            client.unbind(binding.id)
        wait_until(lambda: not path.exists(), daemon.log)


def test_values_go_through_a_channel_to_a_process_that_was_started_again(
    daemon: DaemonHandle, tmp_path: Path
) -> None:
    pid_file = tmp_path / "app.pid"
    with towpath.connect(str(daemon.socket)) as client:
        client.declare("values", kind="queue")
        client.bind("values", "signal:RTMIN+5", direction="in")
        client.bind("values", f"signal:RTMIN+5@{pid_file}", direction="out")
        for first in (0, 100):
            bridge = daemon.gateway("bridge").pid
            subprocess.run([foreign.program("sigqueue_send"), str(bridge), str(RT), "100"], check=True)
            taken = subprocess.run(
                [foreign.program("sigwait_receive"), str(RT), "100", str(pid_file)],
                check=True, capture_output=True, timeout=DEADLINE_S,
            ).stdout.splitlines()[1:]  # fmt: skip
            assert taken == [f"{number} {bridge}".encode() for number in range(100)], first


def test_a_pid_in_a_url_is_not_looked_up_again_after_a_restart_of_the_daemon(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        try:
            with (
                running_daemon(tmp_path, LOCAL_ONLY) as daemon,
                towpath.connect(str(daemon.socket)) as client,
            ):
                client.declare("pid")
                binding = client.bind("pid", f"signal:CONT@{sleeper.pid}", direction="out")
                wait_report(daemon, binding.id, lambda report: report.state == "running")
                old = daemon.gateway("bridge").pid
                daemon.kill_gateway("bridge")
                daemon.wait_gateway("bridge", but_not=old)
                wait_report(daemon, binding.id, lambda report: report.state == "running")
            with running_daemon(tmp_path, LOCAL_ONLY) as daemon:
                report = wait_report(daemon, binding.id, lambda report: report.state == "failed")
                assert report.last_error is not None and "another one" in report.last_error.message
        finally:
            sleeper.kill()


@pytest.fixture
def client(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    with towpath.connect(str(daemon.socket)) as client:
        yield client


def start_receiver(pid_file: Path, count: int) -> subprocess.Popen[bytes]:
    command = ["stdbuf", "-oL", foreign.program("sigwait_receive"), str(RT), str(count), str(pid_file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready %d\n" % process.pid
    return process


def values_of(process: subprocess.Popen[bytes]) -> list[int]:
    output, _ = process.communicate(timeout=DEADLINE_S)
    return [int(line.split()[0]) for line in output.splitlines()]


@pytest.mark.parametrize("form", ["binary", "text"])
def test_plain_messages_and_others_keep_their_order(
    daemon: DaemonHandle, client: towpath.Client, tmp_path: Path, form: str
) -> None:
    """Most go from the ring to the process in a thread, those with headers by the event loop."""
    client.declare(f"mixed.{form}")
    options = {"format": form, "when_absent": "block"}
    url = f"signal:RTMIN+5@{tmp_path}/app.pid"
    binding = client.bind(f"mixed.{form}", url, direction="out", options=options)
    count, refused = 2_000, 0
    with client.publisher(f"mixed.{form}") as publisher:
        receiver = start_receiver(tmp_path / "app.pid", count)
        for number in range(count):
            payload = number.to_bytes(8, "little") if form == "binary" else b"%d" % number
            if number % 50 == 7:
                stated = towpath.Headers(user={"signal-value": str(number)})
                publisher.publish(b"by its header", headers=stated)
            else:
                publisher.publish(payload)
            if number % 100 == 9 and form == "text":
                publisher.publish(b"none")
                refused += 1
    assert values_of(receiver) == list(range(count))
    report = wait_report(daemon, binding.id, lambda report: report.messages_out == count)
    assert report.refused == refused
    client.unbind(binding.id)


def test_a_pid_file_that_was_written_before_a_message_counts_for_it(
    client: towpath.Client, tmp_path: Path
) -> None:
    """Two take turns, in one file: written in place, renamed into its place, or a link that is moved."""
    pid_file = tmp_path / "app.pid"
    client.declare("turns")
    binding = client.bind("turns", f"signal:RTMIN+5@{pid_file}", direction="out")
    receivers = {name: start_receiver(tmp_path / f"{name}.pid", 1000) for name in "ab"}
    try:
        with client.publisher("turns") as publisher:
            for turn in range(60):
                name = "ab"[turn % 2]
                if turn % 3 == 0:
                    pid_file.unlink(missing_ok=True)
                    pid_file.write_bytes((tmp_path / f"{name}.pid").read_bytes())
                elif turn % 3 == 1:
                    (tmp_path / "new").symlink_to(tmp_path / f"{name}.pid")
                    (tmp_path / "new").rename(pid_file)
                else:
                    (tmp_path / "new").write_bytes((tmp_path / f"{name}.pid").read_bytes())
                    (tmp_path / "new").rename(pid_file)
                for number in (2 * turn, 2 * turn + 1):
                    publisher.publish(number.to_bytes(8, "little"))
                    output = receivers[name].stdout
                    assert output is not None
                    assert int(output.readline().split()[0]) == number
    finally:
        for receiver in receivers.values():
            receiver.kill()
            receiver.communicate()
    client.unbind(binding.id)


def test_of_several_each_has_each_message_once_though_one_takes_none(
    daemon: DaemonHandle, client: towpath.Client, tmp_path: Path
) -> None:
    """The one is stopped, and has no more room; the other waits for it as long as patience lasts, and misses
    nothing."""
    client.declare("several")
    few, count = 20, 22
    [stopped, other] = [start_receiver(tmp_path / f"{each}.pid", count + 1) for each in "ba"]
    resource.prlimit(stopped.pid, resource.RLIMIT_SIGPENDING, (few, few))
    stopped.send_signal(signal.SIGSTOP)
    try:
        binding = client.bind("several", f"signal:RTMIN+5@{tmp_path}/", direction="out")
        wait_report(daemon, binding.id, lambda report: f"pid {other.pid}, {stopped.pid}" in report.detail)
        with client.publisher("several") as publisher:
            for number in range(count):
                publisher.publish(number.to_bytes(8, "little"))
            report = wait_report(daemon, binding.id, lambda report: report.messages_out == count)
            assert 0 < report.refused <= count
            stopped.kill()
            publisher.publish(count.to_bytes(8, "little"))
        assert values_of(other) == list(range(count + 1))
    finally:
        stopped.kill()
        stopped.communicate()
    client.unbind(binding.id)


def test_more_bindings_than_there_are_threads(client: towpath.Client, tmp_path: Path) -> None:
    """Those for which there is none go by the event loop; one that is unbound gives its thread back."""
    count = THREADS_MAX + 2
    client.declare("wide")
    receivers = [start_receiver(tmp_path / f"{each}.pid", 2) for each in range(count)]
    urls = [f"signal:RTMIN+5@{tmp_path}/{each}.pid" for each in range(count)]
    bindings = [client.bind("wide", url, direction="out") for url in urls]
    with client.publisher("wide") as publisher:
        publisher.publish(b"\1")
        assert publisher.wait_drained(DEADLINE_S)
        for binding, url in list(zip(bindings, urls, strict=True))[:2]:
            client.unbind(binding.id)
            client.bind("wide", url, direction="out")
        publisher.publish(b"\2")
    assert [values_of(receiver) for receiver in receivers] == [[1, 2]] * count
    client.undeclare("wide", force=True)


@pytest.mark.parametrize(
    ("url", "direction", "text"),
    [
        ("signal:NONE", "in", "names no signal"),
        ("signal:RTMIN+99", "in", "no such realtime signal"),
        ("signal:USR1@x", "out", "nobody who could be signalled"),
        ("signal:USR1", "both", "carries one way"),
    ],
)
def test_bad_urls_are_refused_with_a_hint(daemon: DaemonHandle, url: str, direction: str, text: str) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        client.declare("bad")
        with pytest.raises(towpath.InvalidArgument, match=text) as caught:
            client.bind("bad", url, direction=direction)  # type: ignore[arg-type]
        assert caught.value.hint
