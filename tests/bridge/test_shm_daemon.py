"""Shared memory through a real daemon: bound by the configuration and the command line, over restarts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import towpath
from tests.bridge import foreign
from tests.bridge.test_daemon import receive, wait_report
from tests.support.daemon import LOCAL_ONLY, running_daemon
from tests.support.deadlines import DEADLINE_S

NAME = f"/towpath-test-daemon-{os.getpid()}"
PLACE = (NAME, f"{NAME}-ready", f"{NAME}-free")
COUNT = 2000


def peer(role: str, flags: str = "-", messages: int = 0) -> subprocess.Popen[bytes]:
    command = [foreign.program("shm_peer"), role, flags, *PLACE, str(messages)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


@pytest.fixture
def segment() -> Iterator[None]:
    with peer("make") as process:
        assert process.wait(DEADLINE_S) == 0
    yield
    with peer("remove") as process:
        assert process.wait(DEADLINE_S) == 0


def test_in_by_configuration_while_the_bridge_is_killed(segment: None, tmp_path: Path) -> None:
    config = f"""{LOCAL_ONLY}
[channels."frames"]
[[bindings]]
channel = "frames"
url = "shm:{NAME}@64"
direction = "in"
length_offset = 8
generation_offset = 0
semaphore = "{PLACE[1]}"
free = "{PLACE[2]}"
"""
    with (
        running_daemon(tmp_path, config) as daemon,
        towpath.connect(str(daemon.socket)) as client,
        client.subscribe("frames") as subscription,
    ):
        [binding] = client.bindings("frames")
        wait_report(daemon, binding.id, lambda report: report.state == "running")
        for _ in range(3):
            with peer("write", "g", COUNT) as writing:
                got = receive(subscription, COUNT)
                assert writing.wait(DEADLINE_S) == 0
            assert got == [b"message %06d" % number for number in range(COUNT)]
            old = daemon.gateway("bridge").pid
            daemon.kill_gateway("bridge")
            daemon.wait_gateway("bridge", but_not=old)


def test_out_by_the_command_line_from_a_queue(segment: None, tmp_path: Path) -> None:
    with (
        running_daemon(tmp_path, LOCAL_ONLY) as daemon,
        towpath.connect(str(daemon.socket)) as client,
    ):
        client.declare("frames", kind="queue")
        options = ("length_offset=8", f"semaphore={PLACE[1]}", f"free={PLACE[2]}")
        command = [sys.executable, "-m", "towpath", "--socket", str(daemon.socket), "bind", "frames"]
        command += [
            f"shm:{NAME}@64",
            "--direction",
            "out",
            *(x for each in options for x in ("--option", each)),
        ]
        subprocess.run(command, check=True, timeout=DEADLINE_S)
        with peer("read", "-", COUNT) as reading, client.publisher("frames") as publisher:
            publisher.publish_many([b"%d" % number for number in range(COUNT)])
            output, _ = reading.communicate(timeout=DEADLINE_S)
        assert reading.returncode == 0
        assert output.splitlines() == [b"%d" % number for number in range(COUNT)]
