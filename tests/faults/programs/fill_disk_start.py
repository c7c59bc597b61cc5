"""A core that is killed while the disk is full, and starts on it.

``fill_disk_start.py DIRECTORY``: as ``fill_disk.py``. Prints what happened, line by line.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import towpath
from tests.faults.programs.fill_disk_locks import DISK, fill, when_there_is_room
from tests.support.daemon import LOCAL_ONLY, running_daemon
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath_broker.host import reserve

STARTS = 3


def main() -> None:
    directory = Path(sys.argv[1])
    state = directory / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", state], check=True)
    with running_daemon(directory, LOCAL_ONLY) as daemon, towpath.connect(str(daemon.socket)) as client:
        client.declare("value", kind="state")
        held = client.lock("held", fast=False).acquire()
        filler = fill(state, client)
        for _ in range(STARTS):
            daemon.kill_core()
            assert client.state("value").set(b"1", fence=held.fence)
            with pytest.raises(errors.StoreFull):
                while True:  # there may be room for some in what is allocated
                    client.lock("more", fast=False).acquire(DEADLINE_S).release()
            assert held.is_valid
            assert (state / reserve.NAME).stat().st_blocks * 512 >= reserve.BYTES_MAX // 4
        print("starts, and refuses")
        filler.unlink()
        held.release()
        assert when_there_is_room(client, "held").token > held.token
        print("goes on when there is room")


if __name__ == "__main__":
    main()
