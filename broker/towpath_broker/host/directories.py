"""Where the daemon lives on the host: its directories, the lock that makes it the only one there, its socket.

Theory of operation
    A directory is made 0700 (0711 where the socket is for others too) or, when it is there, must be ours and
    closed to others' writes; a symbolic link is not followed. That makes even /tmp/towpath-UID safe, which
    anybody could have made first.

    Who owns a directory is decided by an flock on a file in it, never by connecting to a socket: a daemon
    that is slow or stopped still is the daemon. The lock is the kernel's and dies with the last process that
    holds its descriptor; the core inherits that of the state directory, so a new daemon cannot open the
    journal while an old core still ends.

Invariants
    A socket is only ever replaced under the lock, and nothing but a socket is ever deleted.

Not here: activated sockets (systemd.py).
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import re
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from towpath.errors import InvalidConfiguration, PermissionDenied, Unavailable

SOCKET_NAME: Final = "towpath.sock"
LOCK_NAME: Final = "towpath.lock"
SOCKET_PATH_BYTES_MAX: Final = 107
"""sun_path holds 108 with the closing NUL, see unix(7)."""
BACKLOG: Final = 1_024
"""Connections that wait while the core restarts; the kernel bounds it further by net.core.somaxconn."""
LOCK_WAIT_S: Final = 5.0
"""How long the lock of a daemon that is dead already is waited for, while its core ends."""
_LOCK_RETRY_S: Final = 0.02


def find_runtime_dir(stated: str, environment: Mapping[str, str], uid: int) -> Path:
    """Return the directory of the socket, which clients look for in the same places.

    Args:
        stated: as configured; empty to search.
    """
    if stated:
        return Path(stated)
    if service := environment.get("RUNTIME_DIRECTORY", ""):
        return Path(service.split(":")[0])
    if session := environment.get("XDG_RUNTIME_DIR", ""):
        return Path(session, "towpath")
    return Path("/run/towpath") if uid == 0 else Path(f"/tmp/towpath-{uid}")


def find_state_dir(stated: str, environment: Mapping[str, str], uid: int) -> Path:
    """Return the directory of the journal.

    Raises:
        InvalidConfiguration: nothing says where, because there is no home directory.
    """
    if stated:
        return Path(stated)
    if service := environment.get("STATE_DIRECTORY", ""):
        return Path(service.split(":")[0])
    if home := environment.get("XDG_STATE_HOME", ""):
        return Path(home, "towpath")
    if uid == 0:
        return Path("/var/lib/towpath")
    if home := environment.get("HOME", ""):
        return Path(home, ".local/state/towpath")
    raise InvalidConfiguration(
        "no state directory: neither $STATE_DIRECTORY, $XDG_STATE_HOME nor $HOME is set",
        hint="state it: towpath serve --state-dir DIR",
    )


def prepare_directory(path: Path, *, mode: int = 0o700) -> None:
    """Make a directory, with its parents, or check the one that is there.

    Raises:
        InvalidConfiguration: it cannot be made, or is no directory.
        PermissionDenied: it is a symbolic link, somebody else's, or others may write to it.
    """
    hint = "state another directory, or see to its owner and mode"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir(mode=mode)
            path.chmod(mode)
        except FileExistsError:
            pass
        status = path.lstat()
    except OSError as error:
        raise InvalidConfiguration(f"directory {path} cannot be made: {error.strerror}", hint=hint) from None
    if stat.S_ISLNK(status.st_mode):
        raise PermissionDenied(f"{path} is a symbolic link, which is not followed", hint=hint)
    if not stat.S_ISDIR(status.st_mode):
        raise InvalidConfiguration(f"{path} is not a directory", hint=hint)
    if status.st_uid != os.geteuid():
        raise PermissionDenied(
            f"directory {path} belongs to uid {status.st_uid}, not to {os.geteuid()}", hint=hint
        )
    if status.st_mode & 0o022:
        raise PermissionDenied(
            f"directory {path} is writable by others (mode {status.st_mode & 0o7777:04o})", hint=hint
        )


def lock_directory(path: Path) -> int:
    """Become the only daemon in a directory.

    Returns:
        The lock's descriptor; the lock lasts until it and all its copies are closed.

    Raises:
        Unavailable: another daemon has it; says its pid.
    """
    descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = _read_pid(descriptor)
            if (holder and _is_alive(holder)) or time.monotonic() > deadline:
                os.close(descriptor)
                raise Unavailable(
                    f"already running, pid {holder or 'unknown'}, in {path}",
                    hint="stop it first, or give this one --runtime-dir and --state-dir of its own",
                    retryable=False,
                ) from None
            # The daemon is dead and its core is about to be: the lock cannot be waited for with a bound
            # otherwise.
            time.sleep(_LOCK_RETRY_S)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _read_pid(descriptor: int) -> int:
    match = re.match(rb"[0-9]{1,10}\n", os.pread(descriptor, 16, 0))
    return int(match[0]) if match else 0


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A zombie is dead, though its pid is still taken.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def listen_at(path: Path, *, mode: int, group: str = "") -> socket.socket:
    """Bind the daemon's socket, in place of one that a dead daemon left. Call it under the directory's lock.

    Args:
        path: at most 107 bytes.
        mode: permissions; nobody can connect before they are set.
        group: owner group by name; empty leaves it.

    Raises:
        InvalidConfiguration: the path is too long or is taken by something that is not a socket, or there is
        no such group. PermissionDenied: the group cannot be set.
    """
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise InvalidConfiguration(
            f"the socket's path has more than the {SOCKET_PATH_BYTES_MAX} bytes that a kernel takes: {path}",
            hint="state a shorter directory: towpath serve --runtime-dir DIR",
        )
    remove_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o777)
    try:
        listener.bind(os.fspath(path))
        if group:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        os.chmod(path, mode)
        listener.listen(BACKLOG)
    except KeyError:
        listener.close()
        raise InvalidConfiguration(
            f"socket_group: there is no group {group!r} on this host", hint=""
        ) from None
    except PermissionError as error:
        listener.close()
        raise PermissionDenied(f"the socket {path} cannot be set up: {error.strerror}") from None
    finally:
        os.umask(mask)
    listener.setblocking(False)
    return listener


def remove_socket(path: Path) -> None:
    """Delete a socket, if it is there and is one.

    Raises:
        InvalidConfiguration: something else has the path.
    """
    try:
        status = path.lstat()
        if not stat.S_ISSOCK(status.st_mode):
            raise InvalidConfiguration(
                f"{path} is there and is not a socket; it is left alone", hint="remove it yourself"
            )
        path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PermissionDenied(f"the old socket {path} cannot be removed: {error.strerror}") from None
        raise
