"""A daemon that keeps locks, whose state directory is on a disk of its own, which is full, and then is not.

``fill_disk_locks.py DIRECTORY``: as ``fill_disk.py``. Prints what happened, line by line.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import towpath
from tests.support.daemon import running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.locks import model

DISK = "size=24m,mode=700"


def fill(state: Path, client: towpath.Client) -> Path:
    """Let nothing be left; return what is to be removed."""
    filler = state / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    more = client.lock("more", fast=False)
    with contextlib.suppress(errors.StoreFull):
        while True:  # there may be room for some in what is allocated
            more.acquire(DEADLINE_S).release()
    return filler


def when_there_is_room(client: towpath.Client, name: str) -> towpath.Guard:
    """Take a lock as soon as the daemon goes on."""
    taken: list[towpath.Guard] = []

    def try_it() -> bool:
        with contextlib.suppress(errors.StoreFull):
            taken.append(client.lock(name).acquire(DEADLINE_S))
        return bool(taken)

    wait_until(try_it)
    return taken[0]


def main() -> None:
    directory = Path(sys.argv[1])
    state = directory / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", state], check=True)
    with (
        running_daemon(directory, "zeromq = false\ngrpc = false\n") as daemon,
        ThreadPoolExecutor(1) as threads,
        towpath.connect(str(daemon.socket)) as client,
        towpath.connect(str(daemon.socket)) as other,
        towpath.connect(str(daemon.socket)) as third,
    ):
        core = daemon.core_pid
        client.declare("value", kind="state")
        held, free = (client.lock(name, fast=False).acquire() for name in ("held", "free"))
        waiting = threads.submit(other.lock("held", fast=False).acquire, DEADLINE_S)
        wait_until(lambda: any(lock.waiters for lock in client.list_locks("held").locks))
        filler = fill(state, client)
        for each in (client, third):  # one has a lock session, the other has not
            with pytest.raises(errors.StoreFull):
                each.lock("more", fast=False).acquire(DEADLINE_S)
        print("refused")
        assert held.is_valid and not waiting.done()
        assert client.state("value").set(b"1", fence=held.fence)
        # What filled the last of it may have been granted, and its being given back is what found no room.
        assert {lock.name for lock in client.list_locks().locks} - {"more"} == {"free", "held"}
        print("held all the while")
        free.release()
        filler.unlink()
        assert when_there_is_room(third, "free").token > free.token
        assert not waiting.done()
        held.release()
        assert waiting.result(DEADLINE_S).token > held.token
        with pytest.raises(errors.Fenced):
            client.state("value").set(b"2", fence=model.Fence("held", held.token))
        print("goes on when there is room")
        assert daemon.core_pid == core and "core.exited" not in daemon.log()


if __name__ == "__main__":
    main()
