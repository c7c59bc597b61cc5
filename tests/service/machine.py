"""A booted copy of this machine, to try the service on; see boot.sh for how. Needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.daemon import wait_until
from tests.support.deadlines import DEADLINE_S

HERE: Final = Path(__file__).parent
DEPLOY: Final = HERE.parents[1] / "deploy"
PATH: Final = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"

# The unit as shipped, but for where this checkout's programs are, which may be below a home directory.
DROP_IN: Final = f"""
[Service]
Environment=PATH={PATH}
ProtectHome=no
"""


class Machine:
    """The copy, booted.

    Attributes:
        pid: of its systemd, as seen from here.
    """

    def __init__(self, directory: Path) -> None:
        lay_out(directory / "copy")
        self._log = (directory / "boot.log").open("wb+")
        self._boot = subprocess.Popen(
            ["bash", str(HERE / "boot.sh"), str(directory), str(HERE.parents[1])],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self.pid = 0

    def wait_booted(self) -> None:
        """Wait until systemd takes orders."""

        def is_up() -> bool:
            assert self._boot.poll() is None, f"it did not boot:\n{self.boot_log()}"
            pid = self._boot.pid
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            self.pid = int(children[0]) if children else 0
            return self.pid > 0 and Path(f"/proc/{self.pid}/root/run/systemd/private").exists()

        wait_until(is_up, self.boot_log)

    def boot_log(self) -> str:
        """Return what boot.sh and systemd wrote before the journal."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a program inside, as root."""
        inside = ["nsenter", "-t", str(self.pid), "-a", "env", "-i", f"PATH={PATH}", "LANG=C.UTF-8", *command]
        return subprocess.Popen(inside, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *command: str, status: int = 0) -> str:
        """Run a program inside, as root; return its output.

        Raises:
            AssertionError: it exited otherwise than expected.
        """
        program = self.start(*command)
        output, errors = program.communicate(timeout=DEADLINE_S)
        assert program.returncode == status, (
            f"{command}: {program.returncode}\n{output}{errors}{self.journal()}"
        )
        return output

    def show(self, name: str) -> str:
        """Return a property of towpath.service."""
        return self.run("systemctl", "show", "--value", f"--property={name}", "towpath.service").strip()

    def journal(self) -> str:
        """Return what the daemon has logged."""
        arguments = ["journalctl", "--unit=towpath.service", "--no-pager", "--output=cat"]
        output, _ = self.start(*arguments).communicate(timeout=DEADLINE_S)
        return output

    def wait_journal(self, text: str, *, count: int = 1) -> None:
        """Wait until the daemon has logged something so often."""
        wait_until(lambda: self.journal().count(text) >= count, self.journal)

    def halt(self) -> None:
        """End it, and leave nothing behind."""
        if self.pid:
            self.start("systemctl", "halt", "--force", "--no-block").communicate(timeout=DEADLINE_S)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._boot.wait(DEADLINE_S)
        if self._boot.poll() is None:
            self._boot.kill()
        self._boot.wait()
        self._log.close()
        name = f"towpath-test-{self._boot.pid}"
        for top in Path("/sys/fs/cgroup").glob(f"**/{name}"):
            wait_until(lambda top=top: remove_cgroups(top), lambda top=top: str(top))  # type: ignore[misc]


def remove_cgroups(top: Path) -> bool:
    """Remove a cgroup and those in it; they are busy for a moment after their last process has ended."""
    try:
        for place, _, _ in os.walk(top, topdown=False):
            os.rmdir(place)
    except OSError:
        return False
    return True


def lay_out(copy: Path) -> None:
    """Put what a package would install where it would install it."""
    for source, target in (
        (DEPLOY / "systemd" / "towpath.service", "etc/systemd/system/towpath.service"),
        (DEPLOY / "systemd" / "towpath.socket", "etc/systemd/system/towpath.socket"),
        (DEPLOY / "sysusers.d" / "towpath.conf", "usr/lib/sysusers.d/towpath.conf"),
        (DEPLOY / "tmpfiles.d" / "towpath.conf", "usr/lib/tmpfiles.d/towpath.conf"),
        (DEPLOY / "towpath.toml", "etc/towpath/towpath.toml"),
    ):
        (copy / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy / target)
    drop_in = copy / "etc/systemd/system/towpath.service.d/checkout.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(DROP_IN)


@contextlib.contextmanager
def booted(directory: Path) -> Iterator[Machine]:
    """Boot a copy of this machine with the service installed and its user there."""
    machine = Machine(directory)
    try:
        machine.wait_booted()
        # Programs of this checkout may be below /root, which the service's user cannot enter. Only the copy
        # is changed.
        machine.run("sh", "-c", "chmod o+x /root; systemd-sysusers; systemd-tmpfiles --create towpath.conf")
        machine.run("systemctl", "daemon-reload")
        yield machine
    except BaseException as failure:
        if machine.pid:
            failure.add_note(f"---- the service's journal ----\n{machine.journal()}")
        raise
    finally:
        machine.halt()
