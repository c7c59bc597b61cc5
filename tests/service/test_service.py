"""The service on a real systemd: it is started by its socket, reloads, survives a kill, and ends in order."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.service.machine import Machine, booted
from tests.support.daemon import wait_until
from tests.support.deadlines import DEADLINE_S

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a systemd in namespaces"),
]

CONFIG = "/etc/towpath/towpath.toml"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with booted(tmp_path_factory.mktemp("machine")) as running:
        yield running


@pytest.fixture(autouse=True)
def service(machine: Machine) -> Iterator[None]:
    """Each test begins with the service stopped and only its socket there."""
    machine.run("sh", "-c", f": >{CONFIG}")
    machine.run("systemctl", "start", "towpath.socket")
    yield
    machine.run("systemctl", "stop", "towpath.service", "towpath.socket")
    machine.run("systemctl", "reset-failed")


def test_a_client_starts_it_and_it_says_ready(machine: Machine) -> None:
    assert machine.show("ActiveState") == "inactive"
    assert machine.run("stat", "-c", "%a %U %G", "/run/towpath/towpath.sock").split() == [
        "660",
        "towpath",
        "towpath",
    ]
    assert machine.run("towpath", "channels") != ""
    machine.run("systemctl", "start", "towpath.service")
    assert machine.show("ActiveState") == "active"
    # Started as its own user, and READY came only when it could serve.
    assert machine.run("ps", "-o", "user=", "-p", machine.show("MainPID")).strip() == "towpath"
    assert machine.journal().index("core.ready") < machine.journal().index("daemon.ready")
    assert "gateway=zeromq" in machine.journal()
    wait_until(lambda: "sessions" in machine.show("StatusText"), lambda: machine.show("StatusText"))


def test_the_bridge_works_inside_the_sandbox(machine: Machine) -> None:
    """FIFOs where people put them, and commands."""
    machine.run("towpath", "declare", "plant.temp")
    fifo = ("fifo:/tmp/temp", "--direction", "in", "--option", "mode=0622")
    machine.run("towpath", "bind", "plant.temp", *fifo)
    with subscribed(machine, "plant.temp") as subscriber:
        machine.run("sh", "-c", "echo 21.5 >/tmp/temp")
        assert subscriber.communicate(timeout=DEADLINE_S) == ("21.5\n", "")
    machine.run("towpath", "declare", "ticks")
    with subscribed(machine, "ticks") as subscriber:
        machine.run(
            "towpath", "bind", "ticks", "pipe:echo tick", "--direction", "in", "--option", "restart=never"
        )
        assert subscriber.communicate(timeout=DEADLINE_S) == ("tick\n", "")


@contextlib.contextmanager
def subscribed(machine: Machine, channel: str) -> Iterator[subprocess.Popen[str]]:
    """A program that has subscribed, and ends after one message."""

    def is_subscribed() -> bool:
        channels = json.loads(machine.run("towpath", "channels", "--json"))
        return any(item["name"] == channel and item["subscribers"] == 1 for item in channels)

    with machine.start("towpath", "sub", channel, "--count", "1") as subscriber:
        wait_until(is_subscribed, machine.journal)
        yield subscriber


def processes(machine: Machine) -> set[str]:
    """The pids of all that runs as the service's user."""
    return set(machine.run("sh", "-c", "ps -o pid= -u towpath || true").split())


def test_reload(machine: Machine) -> None:
    machine.run("systemctl", "start", "towpath.service")
    main = machine.show("MainPID")
    machine.run("sh", "-c", f"echo '[channels.\"from.the.file\"]' >{CONFIG}")
    machine.run("systemctl", "reload", "towpath.service")
    machine.wait_journal("daemon.reloaded")
    assert "from.the.file" in machine.run("towpath", "channels")
    machine.run("sh", "-c", f"echo '[chanels.x]' >{CONFIG}")
    machine.run("systemctl", "reload", "towpath.service")
    machine.wait_journal("config.refused")
    wait_until(
        lambda: "did you mean 'channels'" in machine.show("StatusText"), lambda: machine.show("StatusText")
    )
    assert "from.the.file" in machine.run("towpath", "channels")
    assert (machine.show("ActiveState"), machine.show("MainPID")) == ("active", main)


def test_killed_it_is_started_again_and_no_client_fails(machine: Machine) -> None:
    machine.run("systemctl", "start", "towpath.service")
    machine.run("towpath", "declare", "kept")
    killed = machine.show("MainPID")
    before = processes(machine)
    assert killed in before
    machine.run("kill", "-KILL", killed)
    # The socket is systemd's: whoever comes now waits.
    assert "kept" in machine.run("towpath", "channels")
    assert machine.show("MainPID") not in ("0", killed)
    assert machine.show("NRestarts") == "1"
    assert not before & processes(machine)


def test_it_ends_in_order_and_the_socket_stays(machine: Machine) -> None:
    machine.run("systemctl", "start", "towpath.service")
    machine.run("towpath", "declare", "before")
    machine.run("systemctl", "stop", "towpath.service")
    assert machine.show("Result") == "success"
    assert machine.show("ActiveState") == "inactive"
    journal = machine.journal()
    events = ["daemon.stopping", "daemon.gateways_stopped", "core.stopped", "daemon.stopped status=0"]
    places = [journal.rindex(event) for event in events]
    assert places == sorted(places)
    assert processes(machine) == set()
    # The next client starts it again.
    assert "before" in machine.run("towpath", "channels")


def test_a_configuration_that_cannot_work_is_not_tried_again(machine: Machine) -> None:
    machine.run("sh", "-c", f"echo '[daemon]\nsocket_modes = 1' >{CONFIG}")
    machine.run("systemctl", "start", "towpath.service", status=1)
    assert machine.show("ExecMainStatus") == "78"
    assert machine.show("NRestarts") == "0"
    assert "socket_modes: unknown key (did you mean 'socket_mode'?)" in machine.journal()
