"""A daemon whose state directory is on a disk of its own, which is full, and then is not.

``fill_disk.py DIRECTORY``: mounts a small tmpfs there, so call it under ``unshare --user --map-root-user
--mount``. Prints what happened, line by line.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import towpath
from tests.support.daemon import LOCAL_ONLY, running_daemon, wait_until
from towpath import errors

DEADLINE_S = 60.0
DISK = "size=24m,mode=700"


def main() -> None:
    directory = Path(sys.argv[1])
    state = directory / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", state], check=True)
    with (
        running_daemon(directory, LOCAL_ONLY) as daemon,
        towpath.connect(str(daemon.socket)) as client,
    ):
        client.declare("log", durable=True, ring_bytes=1 << 16)
        live = client.subscribe("log")
        ring, socket = client.publisher("log"), client
        ring.publish(b"0")
        ring.flush(DEADLINE_S)
        filler = state / "filler"
        fill(filler)
        count = 1
        try:
            while count < 10_000:
                ring.publish(b"%d" % count + b"." * 1000, timeout=DEADLINE_S)
                count += 1
                ring.flush(DEADLINE_S)
        except errors.StoreFull:
            print("ring refused")
        try:
            for _ in range(1_000):
                publish_over_socket(socket, b"x" * 100_000)
                count += 1
        except errors.StoreFull:
            print("socket refused")
        filler.unlink()
        ring.flush(DEADLINE_S)
        print("goes on")
        ring.publish(b"last")
        ring.flush(DEADLINE_S)
        wait_until(lambda: check(client, live))
    print("done")


def fill(path: Path) -> None:
    """Take all the room that there is."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def publish_over_socket(client: towpath.Client, payload: bytes) -> None:
    with client.transaction() as transaction:
        transaction.publish("log", payload)


def check(client: towpath.Client, live: towpath.Subscription) -> bool:
    """Whether what was shown live is what is stored, whole, up to the last."""
    shown = [live.receive(DEADLINE_S)]
    while shown[-1].payload != b"last":
        shown.append(live.receive(DEADLINE_S))
    with client.subscribe("log", start="all") as replay:
        stored = [replay.receive(DEADLINE_S) for _ in shown]
    assert [m.seq for m in shown] == [*range(1, len(shown) + 1)]
    assert [(m.seq, m.payload) for m in shown] == [(m.seq, m.payload) for m in stored]
    numbers = [int(m.payload.split(b".")[0]) for m in shown[:-1] if m.payload[:1].isdigit()]
    assert numbers == [*range(len(numbers))]
    print("whole")
    return True


main()
