"""``signal:NAME@unit:NAME`` on a real systemd: the unit's main process, and the one after it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bridge.foreign import program
from tests.service.machine import PATH, Machine, booted
from tests.support.daemon import wait_until

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a systemd in namespaces"),
]

SIGNAL = 38  # RTMIN+4
LOG = "/run/received"
# Takes three signals, writes their values, and ends; then systemd starts it again, as another process.
UNIT = f"""
[Service]
Type=exec
ExecStart=/usr/local/bin/sigwait_receive {SIGNAL} 3 ""
StandardOutput=append:{LOG}
Restart=always
RestartSec=0
[Unit]
StartLimitIntervalSec=0
"""
SOCKET = "/run/by-root/towpath.sock"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    directory = tmp_path_factory.mktemp("machine")
    installed = directory / "copy" / "usr" / "local" / "bin" / "sigwait_receive"
    installed.parent.mkdir(parents=True)
    shutil.copy(program("sigwait_receive"), installed)
    with booted(directory) as running:
        yield running


@pytest.fixture
def receiver(machine: Machine) -> Iterator[str]:
    """A unit that is running."""
    install(machine, "receiver.service", UNIT)
    machine.run("systemctl", "start", "receiver.service")
    yield "receiver.service"
    machine.run("systemctl", "stop", "receiver.service")


@pytest.fixture
def socket(machine: Machine) -> Iterator[str]:
    """A daemon's, run by root."""
    machine.run(
        *("systemd-run", "--quiet", "--unit=by-root", "--service-type=notify", f"--setenv=PATH={PATH}"),
        *("towpath", "serve", "--runtime-dir", "/run/by-root", "--state-dir", "/run/by-root/state"),
        *("--set", "zeromq.sub=tcp://127.0.0.1:0"),
    )
    yield SOCKET
    machine.run("sh", "-c", "systemctl stop by-root.service; rm -r /run/by-root")


def install(machine: Machine, name: str, text: str) -> None:
    machine.run("sh", "-c", f"cat > /etc/systemd/system/{name} <<'EOT'\n{text}\nEOT\nsystemctl daemon-reload")


def towpath(machine: Machine, *arguments: str) -> str:
    return machine.run("towpath", "--socket", SOCKET, *arguments)


def received(machine: Machine) -> list[int]:
    """The values, in the order in which they came."""
    lines = machine.run("sh", "-c", f"grep -v ready {LOG} || true").splitlines()
    return [int(line.split()[0]) for line in lines]


def main_pid(machine: Machine, unit: str) -> int:
    """As systemd says; 0 for none."""
    return int(machine.run("systemctl", "show", "--property=MainPID", "--value", unit))


def state(machine: Machine, channel: str) -> tuple[str, str]:
    """A binding's state and its detail."""
    bindings = json.loads(towpath(machine, "status", "--json"))["bindings"]
    [found] = [each for each in bindings if each["channel"] == channel]
    return found["report"]["state"], found["report"]["detail"]


def bind(machine: Machine, channel: str, unit: str, *options: str) -> None:
    towpath(machine, "declare", channel)
    stated = [word for option in ("format=text", *options) for word in ("--option", option)]
    towpath(machine, "bind", channel, f"signal:RTMIN+4@unit:{unit}", "--direction", "out", *stated)


def test_values_reach_the_unit_over_its_restarts(machine: Machine, socket: str, receiver: str) -> None:
    """By itself, by systemctl restart, by a kill: each time another process is found, and no value missed."""
    bind(machine, "values", receiver, "when_absent=block")
    pids = set()
    sent = 0
    for run in range(12):
        wait_until(lambda: main_pid(machine, receiver) > 0, machine.journal)
        pids.add(main_pid(machine, receiver))
        for _ in range(3):  # with the third its process ends, and systemd starts another
            sent += 1
            towpath(machine, "pub", "values", str(sent))
        wait_until(lambda sent=sent: received(machine) == list(range(1, sent + 1)), machine.journal)  # type: ignore[misc]
        if run % 3 == 1:
            machine.run("systemctl", "restart", receiver)
        elif run % 3 == 2:
            machine.run("systemctl", "kill", "--signal=KILL", receiver)
    assert len(pids) == 12


def test_a_unit_that_has_no_process_is_said_and_found_when_it_has(
    machine: Machine, socket: str, receiver: str
) -> None:
    machine.run("systemctl", "stop", receiver)
    for name, unit in (("stopped", receiver), ("unknown", "no-such.service")):
        bind(machine, name, unit)
        assert state(machine, name) == ("waiting", f"unit {unit} has no main process")
        towpath(machine, "pub", name, "1")
    before = len(received(machine))
    machine.run("systemctl", "start", receiver)
    towpath(machine, "pub", "stopped", "7")
    wait_until(lambda: state(machine, "stopped")[0] == "running", machine.journal)
    assert state(machine, "stopped")[1] == f"pid {main_pid(machine, receiver)}"
    for value in ("8", "9"):
        towpath(machine, "pub", "stopped", value)
    wait_until(lambda: received(machine)[before:] == [7, 8, 9], machine.journal)


def test_the_service_signals_what_its_user_may(machine: Machine, receiver: str) -> None:
    """A unit of its own user's, and not root's, though root has bound it."""
    install(machine, "own.service", f"{UNIT.replace(LOG, '/run/received-own')}[Service]\nUser=towpath\n")
    machine.run("sh", "-c", ": >/etc/towpath/towpath.toml")
    machine.run("systemctl", "start", "towpath.service", "own.service")
    try:
        for channel, unit in (("denied", receiver), ("own", "own.service")):
            machine.run("towpath", "declare", channel)
            url = f"signal:RTMIN+4@unit:{unit}"
            machine.run("towpath", "bind", channel, url, "--direction", "out", "--option", "format=text")
            for value in ("1", "2", "3"):
                machine.run("towpath", "pub", channel, value)

        def reports() -> dict[str, Any]:
            bindings = json.loads(machine.run("towpath", "status", "--json"))["bindings"]
            return {each["channel"]: each["report"] for each in bindings}

        wait_until(lambda: reports()["denied"]["refused"] == 3, machine.journal)
        assert reports()["denied"]["last_error"]["name"] == "PERMISSION_DENIED"
        wait_until(lambda: reports()["own"]["messages_out"] == 3, machine.journal)
        received_own = machine.run("grep", "-v", "ready", "/run/received-own").splitlines()
        assert [line.split()[0] for line in received_own] == ["1", "2", "3"]
    finally:
        machine.run("systemctl", "stop", "own.service", "towpath.service", "towpath.socket")
