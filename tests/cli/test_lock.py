"""``lock`` and ``locks`` against a real daemon."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import towpath as library
from tests.cli.shell import Start, bash, output, towpath, until
from tests.support.deadlines import DEADLINE_S
from towpath.cli import locks_plot
from towpath.locks.model import Edge, Explanation, Owner

BELOW = "setsid sh -c 'echo $$ > below; exec sleep 1000' & echo $$ > head; exec sleep 1000"
"""A program, and one that it starts in a session of its own; each writes down its number."""


@pytest.fixture
def lock(request: pytest.FixtureRequest) -> str:
    return "l." + "".join(letter if letter.isalnum() else "_" for letter in request.node.name)[:80]


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def numbers(folder: Path) -> list[int]:
    """The processes of ``BELOW``, once both have written."""
    files = [folder / "head", folder / "below"]
    until(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files), "both run")
    return [int(file.read_text()) for file in files]


def holding(start: Start, lock: str, folder: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    process = start("lock", lock, "--", "sh", "-c", f"cd {folder}; {BELOW}")
    return process, numbers(folder)


def test_a_program_runs_with_the_lock_and_its_status_is_ours(lock: str, env: dict[str, str]) -> None:
    done = towpath("lock", lock, "--", "sh", "-c", "echo $TOWPATH_LOCK; exit 3", env=env)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"{lock}\n".encode(), b"")
    assert towpath("lock", lock, "--", "sh", "-c", "kill -9 $$", env=env).returncode == 128 + 9
    tokens = [int(towpath("lock", lock, "--", "printenv", "TOWPATH_FENCE", env=env).stdout) for _ in range(2)]
    assert tokens[0] < tokens[1]
    told = towpath("lock", "-v", lock, "--", "true", env=env)
    assert f"{lock} is held, with token".encode() in told.stderr
    assert towpath("lock", lock, "--", "no-such-program-here", env=env).returncode == 2
    assert towpath("lock", "a b", "--", "true", env=env).returncode == 2


def test_as_flock_does(lock: str, env: dict[str, str], client: library.Client) -> None:
    with client.lock(lock):
        assert towpath("lock", "-n", lock, "--", "true", env=env).returncode == 1
        assert towpath("lock", "-w", "0.05", lock, "--", "true", env=env).returncode == 1
        refused = towpath("lock", "-v", "-n", "-E", "9", lock, "--", "true", env=env)
        assert refused.returncode == 9 and lock.encode() in refused.stderr
    with client.lock(lock).acquire(shared=True):
        assert towpath("lock", "-n", "-s", lock, "--", "true", env=env).returncode == 0
        assert towpath("lock", "-n", "-x", lock, "--", "true", env=env).returncode == 1
    piped = bash(f"echo in | towpath lock {lock} -- cat; echo $?", env=env)
    assert piped.stdout == b"in\n0\n"


def test_one_after_the_other(lock: str, env: dict[str, str], tmp_path: Path) -> None:
    script = f"n=$(cat {tmp_path}/n); echo $((n + 1)) > {tmp_path}/n"
    (tmp_path / "n").write_text("0")
    loop = f"for i in 1 2 3 4 5; do towpath lock {lock} -- sh -c '{script}'; done"
    done = bash(f"{{ {loop}; }} & {{ {loop}; }} & {loop}; wait", env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "n").read_text() == "15\n"


def test_permits(lock: str, env: dict[str, str], client: library.Client) -> None:
    with client.semaphore(lock, 3).acquire(2):
        arguments = ("lock", "-n", lock, "--permits", "3")
        assert towpath(*arguments, "--", "true", env=env).returncode == 0
        assert towpath(*arguments, "--weight", "2", "--", "true", env=env).returncode == 1
    assert towpath("lock", lock, "--weight", "2", "--", "true", env=env).returncode == 2


def test_a_lost_lock_ends_the_program_and_all_that_it_started(
    lock: str, env: dict[str, str], start: Start, tmp_path: Path
) -> None:
    process, pids = holding(start, lock, tmp_path)
    taken = towpath("locks", "release", lock, "--reason", "for the test", env=env)
    assert taken.returncode == 0 and f"{lock}: taken from session".encode() in taken.stdout
    status, _, told = output(process)
    assert status == 79 and b"for the test" in told
    assert not any(map(is_alive, pids))


def test_killed_itself_it_takes_the_program_along(
    lock: str, start: Start, tmp_path: Path, client: library.Client
) -> None:
    process, pids = holding(start, lock, tmp_path)
    process.kill()
    client.lock(lock).acquire(DEADLINE_S).release()
    until(lambda: not any(map(is_alive, pids)), "nothing is left")


def test_signals_reach_the_program(lock: str, start: Start, tmp_path: Path) -> None:
    process, pids = holding(start, lock, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 128 + signal.SIGTERM
    assert not is_alive(pids[0])
    assert is_alive(pids[1])  # what made itself independent goes on, as after flock(1)
    os.kill(pids[1], signal.SIGKILL)


def test_who_has_it_and_why_another_one_waits(
    lock: str, env: dict[str, str], start: Start, client: library.Client
) -> None:
    assert f"no locks are in use that begin with {lock}".encode() in towpath("locks", lock, env=env).stdout
    with client.lock(lock, note="the nightly run") as guard:
        start("lock", lock, "--", "true")
        until(lambda: any(each.waiters for each in client.list_locks(lock).locks), "one waits")
        listed = towpath("locks", lock, env=env).stdout.decode()
        assert f"token {guard.token}" in listed and "the nightly run" in listed and "waits" in listed
        document = json.loads(towpath("locks", lock, "--json", env=env).stdout)
        assert document["locks"][0]["holders"][0]["token"] == guard.token
        assert {session["pid"] for session in document["sessions"]} >= {os.getpid()}
        why = towpath("locks", "why", lock, env=env).stdout.decode()
        assert f"which holds {lock}" in why
        drawn = towpath("locks", "--dot", env=env).stdout.decode()
        assert drawn.startswith("digraph locks {") and f'label="{lock}"' in drawn
        assert re.search(rf'"lock {lock}" -> "owner [0-9.]+" \[label="exclusive"\]', drawn), drawn
        assert re.search(rf'"owner [0-9.]+" -> "lock {lock}" \[label="exclusive"\]', drawn), drawn
        assert json.loads(towpath("locks", "why", lock, "--json", env=env).stdout)["edges"]
    assert towpath("locks", "why", f"{lock}.other", env=env).returncode != 0
    assert towpath("locks", "one", "two", "three", env=env).returncode == 2


def test_lock_spaces(lock: str, env: dict[str, str], client: library.Client) -> None:
    first, second = f"{lock}.first", f"{lock}.second"
    declared = towpath(
        *("locks", "space", lock, "--policy", "ordered", "--rank", f"{first}=1", "--rank", f"{second}=2"),
        env=env,
    )
    assert (declared.returncode, declared.stderr) == (0, b"")
    shown = towpath("locks", "space", env=env).stdout.decode()
    assert f"{lock}  (ordered)\n  rank 1  {first}\n  rank 2  {second}\n" in shown
    spaces = json.loads(towpath("locks", "space", "--json", env=env).stdout)
    assert [space["policy"] for space in spaces if space["name"] == lock] == ["ordered"]
    assert towpath("locks", "space", lock, "--remove", env=env).returncode == 0
    assert towpath("locks", "space", lock, "--remove", env=env).returncode != 0
    assert towpath("locks", "space", lock, env=env).returncode == 2
    assert towpath("locks", "space", lock, "--policy", "luck", env=env).returncode == 2
    assert towpath("locks", "space", lock, "--policy", "ordered", "--rank", "x", env=env).returncode == 2


def test_why_the_banker_lets_one_wait(lock: str, env: dict[str, str], daemon: Path) -> None:
    cpu = f"{lock}.cpu"
    with library.connect(f"unix:{daemon}") as one, library.connect(f"unix:{daemon}") as two:
        one.declare_lock_space(lock, policy="banker", units={cpu: 3})
        one.claim({cpu: 3})
        two.claim({cpu: 2})
        held = one.semaphore(cpu).acquire(2)
        with ThreadPoolExecutor(1) as thread:

            def claim_and_take() -> library.Guard:
                two.claim({cpu: 2})
                return two.semaphore(cpu).acquire(1)

            waits = thread.submit(claim_and_take)
            until(lambda: any(each.waiters for each in two.list_locks(cpu).locks), "one waits")
            why = towpath("locks", "why", cpu, env=env).stdout.decode()
            held.release()
            waits.result(DEADLINE_S).release()
    for line in (
        f"in all   {cpu} 3",
        f"free     {cpu} 1",
        "safe     everybody can finish in this order: session",
        "unsafe   session",
        "it would be safe when all is released by session",
    ):
        assert line in why, why


def test_watching(lock: str, start: Start, client: library.Client) -> None:
    with client.lock(lock) as held:
        process = start("locks", "watch", lock)
        assert process.stdout is not None
        assert process.stdout.readline().startswith(
            f"held     {lock}  exclusive, token {held.token}".encode()
        )
    assert process.stdout.readline().startswith(f"released {lock}".encode())
    client.lock(lock).acquire(shared=True)
    assert process.stdout.readline().startswith(f"granted  {lock}  shared".encode())
    client.force_release(lock)
    assert process.stdout.readline().endswith(b"(forced)\n")
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == -signal.SIGINT


def test_the_picture(
    lock: str, env: dict[str, str], start: Start, client: library.Client, tmp_path: Path
) -> None:
    picture = tmp_path / "locks.png"
    with client.lock(lock), client.semaphore(f"{lock}.pool", 4).acquire(3):
        start("lock", lock, "--", "true")
        start("lock", lock, "--shared", "--", "true")
        until(lambda: any(len(each.waiters) == 2 for each in client.list_locks(lock).locks), "two wait")
        drawn = towpath("locks", "why", lock, "--plot", str(picture), env=env)
        assert (drawn.returncode, drawn.stdout, drawn.stderr) == (0, b"", b"")
        found = client.explain_locks()
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    svg = tmp_path / "locks.svg"
    locks_plot.draw(found, svg)
    text = svg.read_text()
    for name in (
        "#4c78a8",
        "#e45756",
        "#9d9da1",
    ):  # an owner, a wait, and one that is only a place in the queue
        assert name in text
    locks_plot.draw(Explanation((), (), (), False), tmp_path / "nothing.pdf")
    assert towpath("locks", "--plot", str(tmp_path / "x.gif"), env=env).returncode == 2
    assert towpath("locks", "space", "--plot", str(picture), env=env).returncode == 2


def test_a_picture_of_more_than_can_be_drawn_says_so(tmp_path: Path) -> None:
    owners = [Owner(number, 0) for number in range(1, 101)]
    edges = tuple(Edge(one, other, "l", False) for one, other in itertools.pairwise(owners))
    file = tmp_path / "many.svg"
    locks_plot.draw(Explanation((), (), edges, True), file)
    assert "60 more owners and locks are not drawn" in file.read_text()
