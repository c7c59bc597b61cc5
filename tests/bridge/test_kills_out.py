"""The bridge is killed, again and again, while it hands a topic on: to a process that it signals, a region
of shared memory, a command. Its successor goes on where it had come to; what may be missing, or come twice,
is no more than is documented. (Queues, and what programs bring: ``test_kills``.)
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import towpath
from tests.bridge.foreign import program
from tests.bridge.test_kills import (
    MANY,
    RT,
    SHM_OPTIONS,
    Load,
    few_kills_of_the_bridge,
    kill_bridge,
    killed_in_the_end,
    lines_of,
    numbers_in,
    shm_peer,
)
from tests.bridge.test_kills import channel as channel  # fixtures
from tests.bridge.test_kills import client as client
from tests.bridge.test_kills import daemon as daemon
from tests.bridge.test_kills import segment as segment
from tests.bridge.test_kills import stress as stress
from tests.support.daemon import DaemonHandle, wait_until


def signalled(taken: Path) -> list[int]:
    return [int(line.split()[0]) for line in lines_of(taken)[1:]]


@few_kills_of_the_bridge
def test_the_bridge_is_killed_while_it_signals(
    daemon: DaemonHandle, client: towpath.Client, channel: str, tmp_path: Path, kills: int
) -> None:
    """Nothing is lost, though it was killed with messages to carry; the one that it was at may come twice."""
    pid_file, taken = tmp_path / "app.pid", tmp_path / "taken"
    command = ["stdbuf", "-oL", program("sigwait_receive"), str(RT), str(MANY), str(pid_file)]
    sent = 0
    with (
        taken.open("wb") as output,
        killed_in_the_end(subprocess.Popen(command, stdout=output)),
        client.publisher(channel) as publisher,
    ):
        wait_until(pid_file.exists)
        options = {"format": "text", "when_absent": "block"}
        client.bind(channel, f"signal:RTMIN+7@{pid_file}", direction="out", options=options)

        def publish(count: int) -> None:
            nonlocal sent
            for number in range(sent, sent + count):
                publisher.publish(b"%d" % number)
            sent += count

        for _ in range(kills):
            publish(200)
            wait_until(lambda: signalled(taken)[-1:] == [sent - 1])
            publish(200)
            kill_bridge(daemon)
        wait_until(lambda: signalled(taken)[-1:] == [sent - 1])
    numbers = signalled(taken)
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(sent))
    assert len(numbers) - sent <= kills


def snapshots(name: str) -> Callable[[], int]:
    """What reads the number that a region shows, whole or not at all: -1 while it is being changed."""
    file = os.open(f"/dev/shm{name}", os.O_RDONLY)
    memory = mmap.mmap(file, os.fstat(file).st_size, prot=mmap.PROT_READ)
    os.close(file)

    def look() -> int:
        [before] = struct.unpack_from("<I", memory)
        [length] = struct.unpack_from("<I", memory, 8)
        data = memory[64 : 64 + min(length, 64)]
        [after] = struct.unpack_from("<I", memory)
        if before != after or before % 2 or not length:
            return -1
        assert len(data) == 31, data
        return int(data)

    return look


@few_kills_of_the_bridge
def test_the_bridge_is_killed_while_it_writes_shared_memory(
    daemon: DaemonHandle, client: towpath.Client, channel: str, segment: str, kills: int
) -> None:
    """Wherever in a change it was killed: what is seen is whole, and newer than what was seen before."""
    client.bind(channel, f"shm:{segment}@64", direction="out", options=SHM_OPTIONS)
    look, seen = snapshots(segment), [-1]

    def has_moved_on() -> bool:
        number = look()
        assert number == -1 or number >= seen[-1]
        if number > seen[-1]:
            seen.append(number)
        return number > 0

    with client.publisher(channel) as publisher:
        sent = 0
        for _ in range(kills):
            for count in (200, 2_000):
                publisher.publish_many([b"%030d " % number for number in range(sent, sent + count)])
                sent += count
                if count == 200:
                    wait_until(lambda: has_moved_on() and seen[-1] == sent - 1)  # noqa: B023
            kill_bridge(daemon)
        publisher.publish(b"%030d " % sent)
        wait_until(lambda: has_moved_on() and seen[-1] == sent)


@few_kills_of_the_bridge
def test_the_bridge_is_killed_while_a_command_reads(
    daemon: DaemonHandle, client: towpath.Client, channel: str, tmp_path: Path, kills: int
) -> None:
    """Its commands end with it. Each next one goes on behind what the one before has had: in order, nothing
    twice. Nobody waits for it meanwhile: of what was published then comes what the ring still has.
    """
    taken = tmp_path / "taken"
    taken.touch()
    script = f"exec {program('lines')} read - >> {taken}"
    client.bind(channel, f'pipe:sh -c "{script}"', direction="out")
    with Load(client, channel, lambda n: b"%030d " % n) as load:
        for _ in range(kills):
            before = taken.stat().st_size
            wait_until(lambda: taken.stat().st_size > before + 100 * 32)  # noqa: B023
            kill_bridge(daemon)
        before = taken.stat().st_size
        wait_until(lambda: taken.stat().st_size > before + 100 * 32)
        load.__exit__()
        wait_until(lambda: load.sent - 1 in numbers_in(taken))
    in_order = [int(line.split()[-1]) for line in lines_of(taken) if len(line.split()[-1]) == 30]
    assert all(earlier < later for earlier, later in itertools.pairwise(in_order))


def test_the_region_read_here_is_the_one_that_programs_read(segment: str) -> None:
    """That ``snapshots`` sees what a C program writes."""
    assert shm_peer("write", segment, 0).wait() == 0
    assert snapshots(segment)() == -1
