"""Signals through a real daemon: by the command line and the API, over restarts of the bridge."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import towpath
from tests.bridge import foreign
from tests.bridge.test_daemon import NO_OTHER_GATEWAYS, receive, wait_report
from tests.support.daemon import DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath.model import BindingReport

RT = int(signal.SIGRTMIN + 5)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("signal"), NO_OTHER_GATEWAYS) as handle:
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
                running_daemon(tmp_path, NO_OTHER_GATEWAYS) as daemon,
                towpath.connect(str(daemon.socket)) as client,
            ):
                client.declare("pid")
                binding = client.bind("pid", f"signal:CONT@{sleeper.pid}", direction="out")
                wait_report(daemon, binding.id, lambda report: report.state == "running")
                old = daemon.gateway("bridge").pid
                daemon.kill_gateway("bridge")
                daemon.wait_gateway("bridge", but_not=old)
                wait_report(daemon, binding.id, lambda report: report.state == "running")
            with running_daemon(tmp_path, NO_OTHER_GATEWAYS) as daemon:
                report = wait_report(daemon, binding.id, lambda report: report.state == "failed")
                assert report.last_error is not None and "another one" in report.last_error.message
        finally:
            sleeper.kill()


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
