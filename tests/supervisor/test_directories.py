"""Where the daemon lives: found, made safely, held by one daemon only."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.deadlines import DEADLINE_S
from towpath.errors import InvalidConfiguration, PermissionDenied, Unavailable
from towpath_broker.host.directories import (
    find_runtime_dir,
    find_state_dir,
    listen_at,
    lock_directory,
    prepare_directory,
    remove_socket,
)

# A process that locks a directory, says so, and waits to be killed.
HOLDER = """
import sys, signal
from pathlib import Path
from towpath_broker.host.directories import lock_directory
lock_directory(Path(sys.argv[1]))
print("locked", flush=True)
signal.pause()
"""


@pytest.mark.parametrize(
    ("stated", "environment", "uid", "expected"),
    [
        ("/srv/x", {"RUNTIME_DIRECTORY": "/run/a"}, 0, "/srv/x"),
        ("", {"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/a"),
        ("", {"XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/towpath"),
        ("", {}, 0, "/run/towpath"),
        ("", {}, 7, "/tmp/towpath-7"),
    ],
)
def test_runtime_dir(stated: str, environment: dict[str, str], uid: int, expected: str) -> None:
    assert find_runtime_dir(stated, environment, uid) == Path(expected)


@pytest.mark.parametrize(
    ("stated", "environment", "uid", "expected"),
    [
        ("/srv/x", {"STATE_DIRECTORY": "/var/lib/a"}, 7, "/srv/x"),
        ("", {"STATE_DIRECTORY": "/var/lib/a", "HOME": "/home/x"}, 7, "/var/lib/a"),
        ("", {"XDG_STATE_HOME": "/home/x/s", "HOME": "/home/x"}, 7, "/home/x/s/towpath"),
        ("", {"HOME": "/home/x"}, 7, "/home/x/.local/state/towpath"),
        ("", {"HOME": "/root"}, 0, "/var/lib/towpath"),
    ],
)
def test_state_dir(stated: str, environment: dict[str, str], uid: int, expected: str) -> None:
    assert find_state_dir(stated, environment, uid) == Path(expected)


def test_without_a_home_the_state_dir_must_be_stated() -> None:
    with pytest.raises(InvalidConfiguration, match="no state directory"):
        find_state_dir("", {}, 7)


def test_a_directory_is_made_with_its_parents_whatever_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        prepare_directory(tmp_path / "a" / "b", mode=0o711)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o711
    prepare_directory(tmp_path / "a" / "b")


def test_a_directory_that_others_prepared_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(PermissionDenied, match="symbolic link"):
        prepare_directory(tmp_path / "link")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)
    with pytest.raises(PermissionDenied, match="writable by others"):
        prepare_directory(tmp_path / "open")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidConfiguration, match="not a directory"):
        prepare_directory(tmp_path / "file")
    with pytest.raises(InvalidConfiguration, match="cannot be made"):
        prepare_directory(tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_somebody_elses_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 12_345, -1)
    with pytest.raises(PermissionDenied, match="belongs to uid 12345"):
        prepare_directory(tmp_path / "theirs")


def test_one_daemon_per_directory_and_none_after_a_kill(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(Unavailable, match=f"already running, pid {holder.pid}") as caught:
            lock_directory(tmp_path)
        assert not caught.value.retryable
        # A stopped daemon still is the daemon.
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(Unavailable, match="already running"):
            lock_directory(tmp_path)
        holder.kill()
    descriptor = lock_directory(tmp_path)
    assert (tmp_path / "towpath.lock").read_text() == f"{os.getpid()}\n"
    os.close(descriptor)


def test_the_lock_lasts_until_the_core_is_gone_too(tmp_path: Path) -> None:
    """A dead daemon's core still ends: the lock is waited for instead of refused."""
    script = HOLDER.replace(
        "lock_directory(Path(sys.argv[1]))", "fd = lock_directory(Path(sys.argv[1]))"
    ).replace(
        'print("locked", flush=True)\nsignal.pause()',
        'import os\nif os.fork() == 0:\n    print("locked", flush=True)\n    sys.stdin.read()\nos._exit(0)\n',
    )
    daemon = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with daemon:
        assert daemon.stdout is not None
        assert daemon.stdin is not None
        assert daemon.stdout.readline() == "locked\n"
        assert daemon.wait(DEADLINE_S) == 0
        waiting = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        with waiting:
            daemon.stdin.close()
            assert waiting.stdout is not None
            assert waiting.stdout.readline() == "locked\n"
            waiting.kill()


def test_the_socket_has_its_mode_and_replaces_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "towpath.sock"
    listen_at(path, mode=0o600).close()
    assert path.is_socket()
    with listen_at(path, mode=0o660) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            listener.accept()[0].close()
    remove_socket(path)
    remove_socket(path)
    assert not path.exists()


def test_what_is_not_a_socket_is_never_deleted(tmp_path: Path) -> None:
    path = tmp_path / "towpath.sock"
    path.write_text("precious")
    with pytest.raises(InvalidConfiguration, match="not a socket"):
        listen_at(path, mode=0o600)
    assert path.read_text() == "precious"


def test_a_path_too_long_and_a_group_that_is_not_there_are_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="107 bytes"):
        listen_at(tmp_path / ("x" * 120), mode=0o600)
    with pytest.raises(InvalidConfiguration, match="no group 'no-such-group'"):
        listen_at(tmp_path / "s", mode=0o660, group="no-such-group")
