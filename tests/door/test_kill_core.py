"""kill -9 of the core, again and again, under load on a channel in total order: every message exactly once,
in one order that all subscribers see alike."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import pytest

import towpath
from tests.door.total_load import Load
from tests.support.daemon import LOCAL_ONLY, running_daemon
from tests.support.deadlines import DEADLINE_S
from towpath import calls
from towpath.sync.brief import BriefClient


def kill_under_load(tmp_path: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    with running_daemon(tmp_path, LOCAL_ONLY) as daemon:
        with towpath.connect(str(daemon.socket)) as client:
            client.declare("total", order="total", ring_bytes=1 << 16)
        load = Load(daemon, "total")
        with load:
            for _ in range(kills):
                # Anywhere: while it recovers, while some are back and some are not, and in full flow.
                load.wait_progress(rng.choice([0, 0, 50, 2000]))
                daemon.kill_core()
            load.wait_progress(2000)
            load.stop()
        load.check()


def test_twenty_times_nothing_is_lost_and_nothing_comes_twice(tmp_path: Path) -> None:
    kill_under_load(tmp_path, 20, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_hundreds_of_times(tmp_path: Path, seed: int) -> None:
    kill_under_load(tmp_path, 40, seed)


def test_a_publisher_that_dies_with_the_core_is_still_taken_in(tmp_path: Path) -> None:
    """What was in its ring is not lost: the supervisor kept the ring."""
    with (
        running_daemon(tmp_path, LOCAL_ONLY) as daemon,
        towpath.connect(str(daemon.socket)) as client,
    ):
        client.declare("total", order="total")
        subscription = client.subscribe("total")
        core = daemon.core_pid
        child = os.fork()
        if child == 0:
            with towpath.connect(str(daemon.socket)) as own:
                publisher = own.publisher("total")
                os.kill(core, signal.SIGSTOP)
                publisher.publish_many([b"%d" % number for number in range(100)])
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        daemon.kill_core()
        got = [subscription.receive(DEADLINE_S).payload for _ in range(100)]
        assert got == [b"%d" % number for number in range(100)]


def test_publishing_by_socket_goes_on_behind_what_was_there(tmp_path: Path) -> None:
    with (
        running_daemon(tmp_path, LOCAL_ONLY) as daemon,
        towpath.connect(str(daemon.socket)) as client,
    ):
        client.declare("total", order="total")
        subscription = client.subscribe("total")
        client.channel("total").publish(b"1")
        assert subscription.receive(DEADLINE_S).payload == b"1"
        for number in range(2, 5):
            daemon.kill_core()
            with BriefClient(str(daemon.socket)) as brief:
                _, seq, _ = brief.call(calls.publish("total", [b"%d" % number]), DEADLINE_S)
            assert seq == number
            message = subscription.receive(DEADLINE_S)
            assert (message.payload, message.seq) == (b"%d" % number, number)


if __name__ == "__main__":
    kill_under_load(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
