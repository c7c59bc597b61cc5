"""systemctl restart under load, and a core that is killed or hangs, on a real systemd: nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.machine import Machine, booted
from tests.support.daemon import wait_until
from tests.support.deadlines import DEADLINE_S

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a systemd in namespaces"),
]

LOAD = str(Path(__file__).parent / "programs" / "load.py")
PUBLISHERS = ("p0", "p1")
# Passes its input on in pieces of 37 bytes, which end anywhere in a line.
SLOWLY = (
    f"{sys.executable} -c 'import os, time\n"
    "while piece := os.read(0, 37): os.write(1, piece); time.sleep(0.0003)'"
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with booted(tmp_path_factory.mktemp("machine")) as running:
        running.run("sh", "-c", ": >/etc/towpath/towpath.toml")
        running.run("systemctl", "start", "towpath.socket", "towpath.service")
        yield running
        running.run("systemctl", "stop", "towpath.service", "towpath.socket")


class Load:
    """Two publishers and two subscribers on a channel."""

    def __init__(self, machine: Machine, channel: str) -> None:
        self.machine = machine
        self.channel = channel
        self.subscribers = [self.start("subscribe", str(len(PUBLISHERS))) for _ in range(2)]
        for subscriber in self.subscribers:
            assert subscriber.stdout is not None
            assert subscriber.stdout.readline() == "subscribed\n"
        self.publishers = [self.start("publish", name) for name in PUBLISHERS]
        self.wait_flow()

    def start(self, what: str, argument: str) -> subprocess.Popen[str]:
        # Not under a shell or `env`, so that the pid is its own.
        return self.machine.start(sys.executable, LOAD, what, self.channel, argument)

    def published(self) -> int:
        """How much was published on the channel since the core came, by its word."""
        status = json.loads(self.machine.run("towpath", "status", "--json"))
        return int(status["traffic"].get(self.channel, {"messages": 0})["messages"])

    def wait_flow(self) -> None:
        before = self.published()
        wait_until(lambda: self.published() > before, self.machine.journal)

    def end(self) -> None:
        """Let it end, and see that each subscriber got each message once and in order."""
        self.machine.run("pkill", "-TERM", "-f", f"{LOAD} publish {self.channel}")
        counts = {}
        for name, publisher in zip(PUBLISHERS, self.publishers, strict=True):
            output, errors = publisher.communicate(timeout=2 * DEADLINE_S)
            assert publisher.returncode == 0, errors
            counts[name] = [int(output), True]
        for subscriber in self.subscribers:
            output, errors = subscriber.communicate(timeout=2 * DEADLINE_S)
            assert subscriber.returncode == 0, errors + self.machine.journal()
            assert json.loads(output) == counts


@pytest.mark.parametrize("order", ["source", "total"])
def test_restart_under_load_loses_nothing(machine: Machine, order: str) -> None:
    channel = f"under.load.{order}"
    machine.run("towpath", "declare", channel, "--order", order)
    load = Load(machine, channel)
    for _ in range(3):
        before = machine.show("MainPID")
        machine.run("systemctl", "restart", "towpath.service")
        assert machine.show("MainPID") not in ("0", before)
        load.wait_flow()
    load.end()


LINES = 30_000


@pytest.mark.parametrize("order", ["source", "total"])
def test_restart_loses_no_line_of_a_fifo(machine: Machine, order: str) -> None:
    """And who writes into it does not notice; lines are cut in two by the restarts now and then."""
    channel, fifo = f"by.fifo.{order}", f"/run/{order}.fifo"
    machine.run("towpath", "declare", channel, "--order", order, "--ring-bytes", "65536")
    machine.run("sh", "-c", f"mkfifo {fifo}; chown towpath {fifo}")
    machine.run("towpath", "bind", channel, f"fifo:{fifo}", "--direction", "in")
    subscriber = machine.start(sys.executable, LOAD, "subscribe", channel, "1")
    assert subscriber.stdout is not None
    assert subscriber.stdout.readline() == "subscribed\n"
    writer = machine.start(
        "sh", "-c", f"{{ seq -f fifo:%.0f 0 {LINES - 1}; echo fifo:end; }} | {SLOWLY} >{fifo}"
    )
    for _ in range(3):
        assert writer.poll() is None, "the writer was done before the restart"
        machine.run("systemctl", "restart", "towpath.service")
    assert writer.communicate(timeout=2 * DEADLINE_S) == ("", "")
    assert writer.returncode == 0
    output, errors = subscriber.communicate(timeout=2 * DEADLINE_S)
    assert json.loads(output) == {"fifo": [LINES, True]}, errors


@pytest.mark.parametrize("order", ["source", "total"])
def test_a_daemon_that_is_killed_under_load_loses_nothing(machine: Machine, order: str) -> None:
    channel = f"killed.under.load.{order}"
    machine.run("towpath", "declare", channel, "--order", order)
    load = Load(machine, channel)
    for _ in range(3):
        before = machine.show("MainPID")
        machine.run("kill", "-KILL", before)
        wait_until(lambda before=before: machine.show("MainPID") not in ("0", before), machine.journal)  # type: ignore[misc]
        load.wait_flow()
    load.end()


def test_a_core_that_hangs_is_replaced(machine: Machine) -> None:
    """By the daemon, after half of WatchdogSec, and the service goes on; nobody loses a message."""
    short = "/run/systemd/system/towpath.service.d/short.conf"
    machine.run("sh", "-c", f"mkdir -p $(dirname {short}); printf '[Service]\nWatchdogSec=4\n' >{short}")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "towpath.service")
    machine.run("towpath", "declare", "while.it.hangs", "--order", "total")
    load = Load(machine, "while.it.hangs")
    main, restarts = machine.show("MainPID"), machine.show("NRestarts")
    core = machine.run("pgrep", "-f", "-P", main, "towpath_broker.daemon").strip()
    machine.run("kill", "-STOP", core)
    machine.wait_journal("core.wedged")
    load.wait_flow()
    assert (machine.show("MainPID"), machine.show("NRestarts")) == (main, restarts)
    # A supervisor that hangs is systemd's: nobody feeds the watchdog then.
    machine.run("kill", "-STOP", main)
    wait_until(lambda: machine.show("MainPID") not in ("0", main), machine.journal)
    load.wait_flow()
    load.end()
    machine.run("rm", short)
    machine.run("systemctl", "daemon-reload")
