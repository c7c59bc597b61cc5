"""Locks that are joined to local ones: with flock(1), lockf(3) and POSIX semaphores of programs that know
nothing of Towpath."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import towpath
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.locks.joined import JOINED
from towpath.locks.semaphores import Semaphore

LIBRARY = ctypes.CDLL(None)

HOLDS = {
    "flock": "import fcntl; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX)",
    "flock shared": "import fcntl; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_SH)",
    "fcntl": "import fcntl; file = open(sys.argv[1], 'r+'); fcntl.lockf(file, fcntl.LOCK_EX)",
    "sem": (
        "import ctypes; c = ctypes.CDLL(None); c.sem_open.restype = ctypes.c_void_p\n"
        "sem = ctypes.c_void_p(c.sem_open(sys.argv[1].encode(), 0)); c.sem_wait(sem)"
    ),
}
GIVES_BACK = {"sem": "c.sem_post(sem)"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon"), LOCAL_ONLY) as handle:
        yield handle


@pytest.fixture
def client(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    with towpath.connect(str(daemon.socket)) as client:
        yield client


class Place:
    """A local lock of a test's own, with the lock that is joined to it."""

    def __init__(self, scheme: str, path: str, daemon: DaemonHandle) -> None:
        self.scheme = scheme
        self.path = path
        self.name = f"joined.{scheme}"
        self._daemon = daemon

    @property
    def url(self) -> str:
        return f"{self.scheme}:{self.path}"

    def towpath(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "towpath", *arguments],
            env=self._daemon.environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def bind(self) -> None:
        done = self.towpath("lock", "bind", self.name, self.url)
        assert (done.returncode, done.stdout) == (0, f"{self.name}: joined to {self.url}\n"), done.stderr

    def is_free(self) -> bool:
        """Whether a program of this host could have it now."""
        if self.scheme == "sem":
            semaphore = Semaphore(self.path)
            value = semaphore.value
            semaphore.close()
            return value == 1
        with open(self.path, "r+") as file:
            try:
                lock = fcntl.flock if self.scheme == "flock" else fcntl.lockf
                lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    @contextlib.contextmanager
    def foreign(self, how: str = "") -> Iterator[subprocess.Popen[str]]:
        """A program that has it, until the end of the block or of its standard input."""
        code = (
            f"import sys\n{HOLDS[how or self.scheme]}\nprint('has', flush=True)\nsys.stdin.read()\n"
            f"{GIVES_BACK.get(self.scheme, '')}"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, self.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == "has\n"
            yield process


@pytest.fixture(scope="module", params=["flock", "fcntl", "sem"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, daemon: DaemonHandle
) -> Iterator[Place]:
    scheme = request.param
    folder = tmp_path_factory.mktemp("place")
    path = f"/towpath-test-{os.getpid()}" if scheme == "sem" else str(folder / "lock")
    place = Place(scheme, path, daemon)
    place.bind()
    yield place
    done = place.towpath("lock", "unbind", place.name, place.url)
    assert done.returncode == 0, done.stderr
    if scheme == "sem":
        LIBRARY.sem_unlink(path.encode())


def waiting(client: towpath.Client, name: str) -> int:
    return sum(len(lock.waiters) for lock in client.list_locks(name).locks if lock.name == name)


def test_while_nobody_wants_it_it_is_free(place: Place) -> None:
    assert place.is_free()
    with place.foreign():
        assert not place.is_free()
    wait_until(place.is_free)


def test_who_has_the_lock_keeps_programs_of_the_host_out(place: Place, client: towpath.Client) -> None:
    for _ in range(3):
        with client.lock(place.name).acquire(DEADLINE_S):
            assert not place.is_free()
        wait_until(place.is_free)


def test_a_program_of_the_host_keeps_everybody_out(place: Place, client: towpath.Client) -> None:
    with ThreadPoolExecutor(1) as threads, place.foreign() as program:
        with pytest.raises(errors.Timeout):
            client.lock(place.name).acquire(0.05)
        got = threads.submit(client.lock(place.name).acquire)
        wait_until(lambda: waiting(client, place.name) == 1)
        shown = place.towpath("locks", place.name).stdout
        assert f"pid {program.pid}" in shown and place.path in shown, shown
        assert not got.done()
        assert program.stdin is not None
        program.stdin.close()
        guard = got.result(DEADLINE_S)
        assert not place.is_free()
        guard.release()
    wait_until(place.is_free)


def test_one_after_the_other_of_both_worlds(place: Place, client: towpath.Client, tmp_path: Path) -> None:
    """Each adds one to a number in a file, without any other protection."""
    number = tmp_path / "number"
    number.write_text("0")
    adds = f"import pathlib; p = pathlib.Path({str(number)!r}); p.write_text(str(int(p.read_text()) + 1))"
    code = f"import sys\nfor _ in range(10):\n  {HOLDS[place.scheme]}\n".replace("\nsem =", "\n  sem =")
    code += f"  {adds}\n  {GIVES_BACK.get(place.scheme, 'file.close()')}\n"
    programs = [subprocess.Popen([sys.executable, "-c", code, place.path]) for _ in range(2)]
    for _ in range(10):
        with client.lock(place.name).acquire(DEADLINE_S):
            number.write_text(str(int(number.read_text()) + 1))
    assert [program.wait(DEADLINE_S) for program in programs] == [0, 0]
    assert number.read_text() == "30"


def test_readers_of_both_worlds_together(
    daemon: DaemonHandle, client: towpath.Client, tmp_path: Path
) -> None:
    place = Place("flock", str(tmp_path / "shared"), daemon)
    place.name = "joined.shared"
    place.bind()
    with towpath.connect(str(daemon.socket)) as other, place.foreign("flock shared") as program:
        first = client.lock(place.name).acquire(DEADLINE_S, shared=True)
        with pytest.raises(errors.Timeout):
            other.lock(place.name).acquire(0.05)
        with pytest.raises(errors.Deadlock):
            first.upgrade(DEADLINE_S)  # that would be without the foreign reader's leave
        first.release()
        with pytest.raises(errors.Timeout):
            other.lock(place.name).acquire(0.05)
        assert program.stdin is not None
        program.stdin.close()
        other.lock(place.name).acquire(DEADLINE_S).release()
    wait_until(place.is_free)


def test_flock_of_the_shell(daemon: DaemonHandle, client: towpath.Client, tmp_path: Path) -> None:
    path = tmp_path / "shell"
    place = Place("flock", str(path), daemon)
    place.name = "joined.shell"
    place.bind()
    with client.lock(place.name).acquire(DEADLINE_S):
        assert subprocess.run(["flock", "-n", path, "true"], check=False).returncode == 1
        waits = subprocess.Popen(["flock", path, "echo", "had it"], stdout=subprocess.PIPE, text=True)
    assert waits.communicate(timeout=DEADLINE_S)[0] == "had it\n"
    again = place.towpath("lock", "bind", place.name, f"flock:{path}.other")
    assert again.returncode != 0 and "unbind that first" in again.stderr


@pytest.mark.parametrize("url", ["flock:relative", "fcntl:", "sem:/a/b", "sem:name", "fifo:/x"])
def test_places_that_are_none(daemon: DaemonHandle, url: str) -> None:
    with towpath.connect(str(daemon.socket)):
        place = Place("flock", "/nowhere", daemon)
        refused = place.towpath("lock", "bind", "joined.bad", url)
        assert refused.returncode == 2
        assert "no program" not in refused.stderr


def test_a_place_that_cannot_be_opened_is_told_and_nothing_is_joined(
    daemon: DaemonHandle, client: towpath.Client, tmp_path: Path
) -> None:
    place = Place("flock", str(tmp_path / "no-such-folder" / "lock"), daemon)
    done = place.towpath("lock", "bind", "joined.nowhere", place.url)
    assert done.returncode != 0 and "No such file" in done.stderr
    client.lock("joined.nowhere").acquire(DEADLINE_S).release()
    assert place.towpath("lock", "unbind", "joined.nowhere", place.url).returncode != 0


# ---- deaths ------------------------------------------------------------------------------------------------


def test_a_bridge_that_is_killed_lets_nobody_in(
    place: Place, daemon: DaemonHandle, client: towpath.Client
) -> None:
    guard = client.lock(place.name).acquire(DEADLINE_S)
    killed = daemon.gateway("bridge").pid
    daemon.kill_gateway("bridge")
    assert not place.is_free()
    daemon.wait_gateway("bridge", but_not=killed)
    assert guard.is_valid and not place.is_free()
    guard.release()
    wait_until(place.is_free)
    with place.foreign(), pytest.raises(errors.Timeout):
        client.lock(place.name).acquire(0.05)
    client.lock(place.name).acquire(DEADLINE_S).release()


def test_a_bridge_that_is_killed_while_the_lock_is_idle(
    place: Place, daemon: DaemonHandle, client: towpath.Client
) -> None:
    with place.foreign() as program:
        killed = daemon.gateway("bridge").pid
        daemon.kill_gateway("bridge")
        with pytest.raises(errors.Timeout):
            client.lock(place.name).acquire(0.2)
        daemon.wait_gateway("bridge", but_not=killed)
        with pytest.raises(errors.Timeout):
            client.lock(place.name).acquire(0.2)
        assert program.stdin is not None
        program.stdin.close()
        client.lock(place.name).acquire(DEADLINE_S).release()
    wait_until(place.is_free)


def test_a_core_that_is_killed_changes_nothing(
    place: Place, daemon: DaemonHandle, client: towpath.Client
) -> None:
    guard = client.lock(place.name).acquire(DEADLINE_S)
    daemon.kill_core()
    wait_until(lambda: client.is_connected)
    assert guard.is_valid and not place.is_free()
    guard.release()
    wait_until(place.is_free)
    client.lock(place.name).acquire(DEADLINE_S).release()


def test_a_holder_that_is_killed(place: Place, daemon: DaemonHandle) -> None:
    code = (
        "import sys, towpath; guard = towpath.connect(sys.argv[1]).lock(sys.argv[2]).acquire();"
        "print('has', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(daemon.socket), place.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"has\n"
        assert not place.is_free()
        program.kill()
    wait_until(place.is_free)


def test_a_semaphore_whose_holder_died_is_told_and_repaired(
    daemon: DaemonHandle, client: towpath.Client
) -> None:
    place = Place("sem", f"/towpath-test-dead-{os.getpid()}", daemon)
    place.name = "joined.dead"
    place.bind()
    try:
        with place.foreign() as program:
            refused = place.towpath("locks", "repair", place.name, "--force")
            assert refused.returncode != 0 and f"process {program.pid}" in refused.stderr
            program.kill()
        assert not place.is_free()
        assert "its holder has died" in place.towpath("locks", place.name).stdout
        with pytest.raises(errors.Timeout):
            client.lock(place.name).acquire(0.05)
        # Not all processes of a container's host can be looked at; hence --force.
        repaired = place.towpath("locks", "repair", place.name, "--force")
        assert repaired.returncode == 0 and "free again" in repaired.stdout, repaired.stderr
        client.lock(place.name).acquire(DEADLINE_S).release()
        wait_until(place.is_free)
        assert place.towpath("locks", "repair", place.name, "--force").returncode != 0  # it is free
    finally:
        LIBRARY.sem_unlink(place.path.encode())


def test_who_is_no_administrator_may_not_join(client: towpath.Client) -> None:
    """The door's rule, by its own words: tests run as the daemon's user, who may."""
    from towpath_broker.core.locks import commands as c
    from towpath_broker.local.lock_calls import _check_not_joined_list

    with pytest.raises(errors.PermissionDenied):
        _check_not_joined_list(c.Acquire(1, 1, 1, (c.Wanted("a"), c.Wanted(JOINED))))
    _check_not_joined_list(c.Acquire(1, 1, 1, (c.Wanted("a"),)))


def test_a_policy_that_lets_nobody_wait_cannot_be_joined(
    daemon: DaemonHandle, client: towpath.Client, tmp_path: Path
) -> None:
    place = Place("flock", str(tmp_path / "policy"), daemon)
    place.name = "joined-policy.lock"
    client.declare_lock_space("joined-policy", policy="timeout-only")
    done = place.towpath("lock", "bind", place.name, place.url)
    assert done.returncode != 0 and "timeout" in done.stderr
    assert place.is_free()


QUICK_GRACE = """
import sys
if "towpath_broker.gateways.bridge" in sys.orig_argv:
    from towpath_broker.gateways.bridge.joining import joins
    joins.GRACE_MS = 1_000  # a lease is not shorter
"""


def test_the_bridge_has_its_locks_for_longer_than_a_successor_has_time_to_come(tmp_path: Path) -> None:
    """A program of the host has it; nobody is granted it, however long that lasts."""
    (tmp_path / "sitecustomize.py").write_text(QUICK_GRACE)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH", ""))))
    with (
        running_daemon(tmp_path, LOCAL_ONLY, env={"PYTHONPATH": path}) as daemon,
        towpath.connect(str(daemon.socket)) as client,
    ):
        place = Place("flock", str(tmp_path / "lock"), daemon)
        place.bind()
        with place.foreign(), pytest.raises(errors.Timeout):
            client.lock(place.name).acquire(2.5)
        client.lock(place.name).acquire(DEADLINE_S).release()


def test_what_was_unbound_while_the_bridge_was_away_is_given_back(
    place: Place, daemon: DaemonHandle, client: towpath.Client, tmp_path: Path
) -> None:
    """While another lock is joined, so that the session goes on."""
    places = [
        Place("flock", str(tmp_path / "gone"), daemon),
        Place("sem", f"/towpath-test-gone-{os.getpid()}", daemon),
    ]
    guards = []
    for each in places:
        each.name = f"joined.gone-{each.scheme}"
        each.bind()
        guards.append(client.lock(each.name).acquire(DEADLINE_S))
        assert not each.is_free()
    bridge = daemon.gateway("bridge").pid
    os.kill(bridge, signal.SIGSTOP)
    for each in places:
        assert each.towpath("lock", "unbind", each.name, each.url).returncode == 0
    daemon.kill_gateway("bridge")
    daemon.wait_gateway("bridge", but_not=bridge)
    for each in places:
        wait_until(each.is_free)
    LIBRARY.sem_unlink(places[1].path.encode())
    for guard in guards:
        guard.release()
        client.lock(guard.name).acquire(DEADLINE_S).release()  # nobody of ours stands in the queue


def test_an_operator_who_takes_the_lock_from_the_bridge_gives_it_back_at_once(
    place: Place, client: towpath.Client
) -> None:
    def token() -> int:
        holders = [lock.holders for lock in client.list_locks(place.name).locks if lock.name == place.name]
        return holders[0][0].token if holders and holders[0] else 0

    wait_until(lambda: token() > 0)
    before = token()
    client.force_release(place.name)
    with client.lock(place.name).acquire(DEADLINE_S):
        pass
    wait_until(lambda: token() > before)
    with place.foreign(), pytest.raises(errors.Timeout):
        client.lock(place.name).acquire(0.2)
    with client.lock(place.name).acquire(DEADLINE_S):
        assert not place.is_free()
