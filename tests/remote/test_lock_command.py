"""``towpath lock`` and ``towpath locks`` from afar."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import towpath
from tests.cli.shell import command, environment, output
from tests.cli.shell import towpath as run
from tests.cli.test_lock import is_alive, numbers
from tests.remote.relay import Relay
from tests.support.deadlines import DEADLINE_S

STUBBORN = (
    "trap '' TERM; setsid sh -c 'echo $$ > below; exec sleep 1000' & echo $$ > head;"
    " while :; do sleep 1; done"
)
"""A program that SIGTERM does not end, and one that it starts in a session of its own."""


@pytest.fixture
def url(carrier: str, relay: Relay) -> str:
    scheme = {"grpc": "grpc+unix", "zmq": "zmq+ipc"}[carrier]
    return f"{scheme}://{relay.path}"


def test_a_program_runs_with_the_lock_and_everybody_sees_it(
    url: str, carrier: str, local: towpath.Client, tmp_path: Path
) -> None:
    env = environment(None)
    done = run("lock", "--url", url, "far.lock", "--", "sh", "-c", "echo $TOWPATH_LOCK; exit 3", env=env)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"far.lock\n", b"")
    with local.lock("far.lock").acquire(DEADLINE_S):  # released at once, not when the lease has passed
        busy = run("lock", "-n", "--url", url, "far.lock", "--", "true", env=env)
        assert busy.returncode == 1
        listed = run("locks", "--url", url, env=env)
        assert (listed.returncode, listed.stderr) == (0, b"")
        assert b"far.lock  (lock)" in listed.stdout and b"held     exclusive" in listed.stdout
    wrong = run("lock", "--lease", "3", "no", "--", "true", env={**env, "TOWPATH_SOCKET": str(local._url)})
    assert wrong.returncode != 0 and b"has no lease" in wrong.stderr


def test_who_cannot_be_heard_of_has_ended_its_program_before_the_next_has_the_lock(
    url: str, carrier: str, relay: Relay, local: towpath.Client, tmp_path: Path
) -> None:
    lock = f"far.silent.{carrier}"
    words = command(
        "lock", "--url", url, "--lease", "4", lock, "--", "sh", "-c", f"cd {tmp_path}; {STUBBORN}"
    )
    process = subprocess.Popen(
        words,
        env=environment(None),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process, ThreadPoolExecutor(1) as thread:
        pids = numbers(tmp_path)

        def alive_when_granted() -> list[bool]:
            with local.lock(lock):
                return [is_alive(pid) for pid in pids]

        alive = thread.submit(alive_when_granted)
        relay.stop()
        assert alive.result(DEADLINE_S) == [False, False]
        relay.cut()
        status, _, errors = output(process)
        assert status == 79 and b"was lost, and the program ended" in errors
