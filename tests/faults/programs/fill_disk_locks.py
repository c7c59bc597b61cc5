"""A daemon that keeps locks, whose state directory is on a disk of its own, which is full, and then is not.

``fill_disk_locks.py DIRECTORY``: as ``fill_disk.py``. Prints what happened, line by line.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import towpath
from tests.support.daemon import running_daemon
from tests.support.deadlines import DEADLINE_S
from towpath import errors

WAITED_S = 0.5
DISK = "size=24m,mode=700"
PROGRAM = ("-P", "-m", "towpath")
"""With its growing pauses: without them its starts are used up before there is room."""


def main() -> None:
    directory = Path(sys.argv[1])
    state = directory / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", state], check=True)
    with (
        running_daemon(directory, "zeromq = false\ngrpc = false\n", program=PROGRAM) as daemon,
        towpath.connect(str(daemon.socket)) as client,
        towpath.connect(str(daemon.socket)) as other,
    ):
        held = client.lock("held").acquire()
        filler = state / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        while True:  # there may be room for some in what is allocated
            try:
                client.lock("more").acquire(WAITED_S).release()
            except (errors.Timeout, errors.ConnectionLost, errors.Unavailable):
                break
        daemon.wait_log(r" core\.exited ")
        print("not granted")
        filler.unlink()
        token = client.lock("more").acquire(DEADLINE_S).token
        assert token > held.token
        print("granted when there is room")
        assert held.is_valid and other.lock("held").acquire_nowait() is None
        held.release()
        assert other.lock("held").acquire(DEADLINE_S).token > token
        print("held all the while")


main()
