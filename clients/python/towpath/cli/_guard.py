"""A program that ends other programs when whoever started it is gone.

Theory of operation
    Standard input is a pipe that only our parent writes into: ``+PID`` when it has started a program, which
    is the head of a process group, ``-PID`` when that has ended. The kernel closes the pipe when the parent
    is gone, in whatever way. Then what is left is ended, groups whole: SIGTERM, and SIGKILL ``GRACE_S``
    later.

    A parent that is killed may have started a program of which it could not tell us any more. So each
    program has a mark in its environment, by which it is found in /proc.

    Signals that a terminal or a service manager sends to all of its processes are ignored: they are for our
    parent, and it is its end that we wait for. We are run as a file, with nothing but Python's own modules,
    so as to be there at once and small.

Not here: who starts it (``running.Guard``).
"""

from __future__ import annotations

import os
import signal
import sys
import time

MARK = "TOWPATH_GUARDED_BY"
"""The variable; its value is our argument."""
GRACE_S = 2.0
"""How long programs have to end after SIGTERM."""
LOOK_S = 0.02
LOOKS_MIN = 10
"""A program is not found between its fork(2) and its execve(2): so it is looked for more than once."""


def main() -> None:
    """Run until the parent is gone and its programs are."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        pid = int(line[1:])
        if line[0] == "+":
            groups.add(pid)
        else:
            groups.discard(pid)
    end(groups, f"{MARK}={sys.argv[1]}".encode())


def end(groups: set[int], mark: bytes) -> None:
    """End process groups, and those in which somebody has the mark."""
    looks, deadline = 0, time.monotonic() + GRACE_S
    told: set[int] = set()
    while (groups or looks < LOOKS_MIN) and time.monotonic() < deadline:
        groups |= marked(mark)
        groups = {group for group in groups if _reaches(group, 0 if group in told else signal.SIGTERM)}
        told |= groups
        looks += 1
        time.sleep(LOOK_S)  # nobody tells of a group's end
    for group in groups:
        _reaches(group, signal.SIGKILL)


def marked(mark: bytes) -> set[int]:
    """Return the process groups in which somebody has the mark in the environment that it began with."""
    found: set[int] = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    found.add(os.getpgid(int(name)))
        except OSError:
            pass  # it has ended, or is somebody else's
    return found


def _reaches(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    main()
