"""What is shipped for systemd is right by systemd's own word."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.deadlines import DEADLINE_S
from towpath_broker.gateway_keeper import STOP_SECONDS
from towpath_broker.supervisor import CORE_STOP_S, GATEWAYS_READY_S

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").iterdir())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd on this machine")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_the_unit_without_a_word(unit: Path) -> None:
    verify = ["systemd-analyze", "verify", "--recursive-errors=yes", str(unit)]
    run = subprocess.run(verify, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="there is no systemd on this machine")
def test_systemd_accepts_the_users() -> None:
    dry = ["systemd-sysusers", "--dry-run", str(DEPLOY / "sysusers.d" / "towpath.conf")]
    run = subprocess.run(dry, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_service_and_socket_agree_with_each_other_and_with_the_daemon() -> None:
    service = read_unit("towpath.service")
    socket = read_unit("towpath.socket")
    assert service["Unit"]["Requires"] == "towpath.socket"
    assert socket["Socket"]["ListenStream"] == f"/run/{service['Service']['RuntimeDirectory']}/towpath.sock"
    assert socket["Socket"]["SocketGroup"] == service["Service"]["Group"]
    assert service["Service"]["RestartPreventExitStatus"] == "78"
    # The daemon's own deadlines (gateways, then the core) come before systemd's.
    assert int(service["Service"]["TimeoutStopSec"]) > STOP_SECONDS + CORE_STOP_S
    assert int(service["Service"]["TimeoutStartSec"]) > GATEWAYS_READY_S


def read_unit(name: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "systemd" / name)
    return unit
