"""Who may do what: decided by what the kernel says of the other end of the socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import towpath
from tests.support.daemon import DaemonHandle, running_daemon
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath_broker.local.credentials import Admins, Peer, open_pidfd, peer_of

PROGRAM = Path(__file__).parent / "programs" / "as_nobody.py"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two users")


def daemon_with_mode(mode: str, limits: str = "") -> Iterator[DaemonHandle]:
    with tempfile.TemporaryDirectory(prefix="towpath-test-") as directory:
        config = f'[daemon]\nsocket_mode = "{mode}"\n{limits}'
        with running_daemon(Path(directory), config) as handle:
            handle.socket.parent.chmod(0o711)  # the socket's own mode shall decide
            yield handle


@pytest.fixture
def open_daemon() -> Iterator[DaemonHandle]:
    yield from daemon_with_mode("0666")


@pytest.fixture
def closed_daemon() -> Iterator[DaemonHandle]:
    yield from daemon_with_mode("0600")


@pytest.fixture
def small_daemon() -> Iterator[DaemonHandle]:
    limits = (
        "sessions_per_principal_max = 6\nchannels_per_principal_max = 2\npublishers_per_channel_max = 2\n"
    )
    yield from daemon_with_mode("0600", f"[limits]\n{limits}readers_per_principal_max = 3\n")


@needs_root
def test_another_user_may_talk_but_not_bind_nor_undeclare_what_is_not_theirs(
    open_daemon: DaemonHandle,
) -> None:
    with towpath.connect(str(open_daemon.socket)) as client:
        client.declare("roots")
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(open_daemon.socket)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(6)]
        client.channel("roots").publish(b"hello")
        rest, _ = process.communicate(timeout=DEADLINE_S)
    assert said == [
        "principal: uid:65534",
        "declare: done",
        "bind: PermissionDenied",
        "undeclare roots: PermissionDenied",
        "undeclare own: done",
        "subscribed",
    ]
    assert rest == "received: hello\n"


@needs_root
def test_by_hand_the_socket_is_for_its_owner_alone(closed_daemon: DaemonHandle) -> None:
    output = subprocess.run(
        [sys.executable, str(PROGRAM), str(closed_daemon.socket)], capture_output=True, text=True, timeout=30
    )
    assert output.stdout == "connect: Unavailable\n"


def test_quotas_and_limits_are_refused_by_name(small_daemon: DaemonHandle) -> None:
    with towpath.connect(str(small_daemon.socket)) as client:
        client.declare("one")
        client.declare("two")
        with pytest.raises(errors.QuotaExceeded, match="channels_per_principal_max"):
            client.declare("three")
        publishers = [client.publisher("one") for _ in range(2)]
        with pytest.raises(errors.LimitExceeded, match="publishers_per_channel_max"):
            client.publisher("one")
        publishers[0].close()
        client.publisher("one")
        subscriptions = [client.subscribe("two") for _ in range(3)]
        with pytest.raises(errors.QuotaExceeded, match="readers_per_principal_max"):
            client.subscribe("two")
        subscriptions[0].close()
        client.subscribe("two")
        others = []
        with pytest.raises(errors.QuotaExceeded, match="sessions_per_principal_max"):
            for _ in range(6):
                others.append(towpath.connect(str(small_daemon.socket)))
        for other in others:
            other.close()
        with towpath.connect(str(small_daemon.socket)) as again:
            again.status()


def test_the_peer_is_who_the_kernel_says() -> None:
    here, there = socket.socketpair()
    with here, there:
        peer = peer_of(here)
    assert (peer.pid, peer.uid) == (os.getpid(), os.getuid())
    assert os.getgid() in peer.groups
    assert peer.principal == f"uid:{os.getuid()}"


def test_admins() -> None:
    import grp

    group = grp.getgrgid(0).gr_name
    admins = Admins(group)
    assert admins.is_admin(Peer(1, 0, frozenset()))
    assert admins.is_admin(Peer(1, os.geteuid(), frozenset()))
    assert admins.is_admin(Peer(1, 4242, frozenset({0})))
    assert not admins.is_admin(Peer(1, 4242, frozenset({4242})))
    assert not Admins("").is_admin(Peer(1, 4242, frozenset({0})))
    assert not Admins("no-such-group").is_admin(Peer(1, 4242, frozenset({0})))


def test_a_hidden_or_dead_process_has_no_pidfd() -> None:
    assert open_pidfd(0) is None
    process = subprocess.Popen(["true"])
    process.wait()
    assert open_pidfd(process.pid) is None
    mine = open_pidfd(os.getpid())
    assert mine is not None
    os.close(mine)
