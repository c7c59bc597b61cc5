"""Two real users and their locks: who may take, wait for, watch and take away what, as is configured."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import towpath
from tests.door.test_two_users_kinds import acting_as
from tests.support.daemon import DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.locks.watching import LockEvent

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two users")

OWNER, OTHER = 65533, 65534
CONFIG = f"""
[daemon]
socket_mode = "0666"
[lock_permissions."theirs"]
take = ["uid:{OWNER}"]
see = ["uid:{OWNER}"]
force_release = ["uid:{OWNER}"]
"""
OTHERS = f"""
[daemon]
socket_mode = "0666"
[lock_permissions."theirs"]
take = ["uid:{OTHER}"]
"""


@pytest.fixture
def daemon() -> Iterator[DaemonHandle]:
    with (
        tempfile.TemporaryDirectory(prefix="towpath-test-") as directory,
        running_daemon(Path(directory), CONFIG) as handle,
    ):
        handle.socket.parent.chmod(0o711)  # the socket's own mode shall decide
        yield handle


@pytest.fixture
def clients(daemon: DaemonHandle) -> Iterator[tuple[towpath.Client, towpath.Client]]:
    """The owner's, and the other's."""
    with ExitStack() as stack:
        found: list[towpath.Client] = []
        for uid in (OWNER, OTHER):
            with acting_as(uid):
                found.append(stack.enter_context(towpath.connect(str(daemon.socket))))
        yield found[0], found[1]


def test_only_who_may_takes_and_waits(clients: tuple[towpath.Client, towpath.Client]) -> None:
    owner, other = clients
    for _ in range(3):  # by the core, and by the lock page
        owner.lock("theirs.x").acquire(DEADLINE_S).release()
    for _ in range(3):
        with pytest.raises(errors.PermissionDenied, match=r"uid:65534 may not take .* 'theirs\.x'"):
            other.lock("theirs.x").acquire(DEADLINE_S)
    with owner.lock("theirs.x").acquire(), pytest.raises(errors.PermissionDenied):
        other.lock("theirs.x").acquire(DEADLINE_S)
    with pytest.raises(errors.PermissionDenied):
        other.guarded("theirs.value").write(DEADLINE_S)
    assert other.lock("ours.x").acquire(DEADLINE_S).is_valid


def of(event: LockEvent) -> tuple[str, str]:
    """What happened, and to which lock."""
    return event.kind, event.grant.lock if event.grant is not None else ""


def test_only_who_may_is_told(clients: tuple[towpath.Client, towpath.Client]) -> None:
    owner, other = clients
    seen, seen_by_owner = other.watch_locks(), owner.watch_locks()
    for name in ("theirs.x", "ours.x"):
        with owner.lock(name).acquire():
            told = [[lock.name for lock in client.list_locks().locks] for client in clients]
            assert told == [[name], [name] if name == "ours.x" else []]
    with owner.lock("theirs.x").acquire():
        with pytest.raises(errors.PermissionDenied):
            other.explain_locks("theirs.x")
        assert not other.explain_locks().locks and owner.explain_locks().locks
    assert [of(seen.receive(DEADLINE_S)) for _ in range(2)] == [("granted", "ours.x"), ("released", "ours.x")]
    assert of(seen_by_owner.receive(DEADLINE_S)) == ("granted", "theirs.x")


def test_only_who_may_takes_away(clients: tuple[towpath.Client, towpath.Client]) -> None:
    owner, other = clients
    theirs, ours = owner.lock("theirs.x").acquire(), other.lock("ours.x").acquire()
    with pytest.raises(errors.PermissionDenied):
        other.force_release("theirs.x")
    with pytest.raises(errors.PermissionDenied):
        owner.force_release("ours.x")
    assert theirs.is_valid and ours.is_valid
    owner.force_release("theirs.x", reason="mine")
    wait_until(lambda: not theirs.is_valid)


def test_new_tables_hold_from_a_reload_on_and_holders_keep_what_they_have(
    daemon: DaemonHandle, clients: tuple[towpath.Client, towpath.Client]
) -> None:
    owner, other = clients
    held = owner.lock("theirs.x").acquire()
    daemon.config.write_text(OTHERS)
    assert "daemon.reloaded" in daemon.reload()
    assert other.lock("theirs.y").acquire(DEADLINE_S).is_valid
    with pytest.raises(errors.PermissionDenied):
        owner.lock("theirs.y").acquire(DEADLINE_S)
    assert held.is_valid
    held.release()
    assert other.lock("theirs.x").acquire(DEADLINE_S).token > held.token
