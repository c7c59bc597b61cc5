"""The commands of deploy/README.md, typed by root on a machine where Towpath was never installed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT
from tests.service.machine import booted

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a systemd in namespaces"),
]

INSTALLED = (
    "/etc/systemd/system/towpath.service",
    "/etc/systemd/system/towpath.socket",
    "/usr/lib/sysusers.d/towpath.conf",
    "/usr/lib/tmpfiles.d/towpath.conf",
    "/etc/towpath/towpath.toml",
)


def test_installing_as_written(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "README.md").read_text()
    install, add_user = re.findall(r"(?:^    .+\n)+", text, re.MULTILINE)
    with booted(tmp_path) as machine:
        # What the machine was booted with goes again, but for the drop-in that says where the programs are.
        machine.run("rm", *INSTALLED)
        machine.run("sh", "-euc", f"cd {ROOT} && {install}")
        assert machine.run("systemctl", "is-active", "towpath.service").strip() == "active"
        machine.run("sh", "-euc", f"useradd alice; {add_user}")
        fifo = ("bind", "plant.temp", "fifo:/tmp/temp", "--direction", "in", "--option", "mode=0622")
        as_alice = ("setpriv", "--reuid=alice", "--regid=alice", "--init-groups")
        machine.run(*as_alice, "towpath", "declare", "plant.temp")
        assert "running" in machine.run(*as_alice, "towpath", *fifo)
