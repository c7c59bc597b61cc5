"""Processes that are signalled, and how one is told from another that has its number now.

Theory of operation
    A pid is looked up once and held as a pidfd, which stands for that process and no other, for ever. What
    lies between a pid's being written down and its pidfd's being opened is bridged by the process's start: a
    process that began after the pid was written is another one. For a pid file that is its time of
    modification (``TOLERANCE_S`` later is still taken, since clocks are coarse); for a pid in a binding's URL
    the start itself, in ticks, which is remembered with the binding.

Sources: pidfd_open(2), proc(5) (``stat`` field 22, ``status`` Uid), kill(2) (who may signal whom).
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from dataclasses import dataclass
from typing import Final

from towpath.errors import BindingFailed, PermissionDenied

TOLERANCE_S: Final = 1.0
PID_FILE_BYTES_MAX: Final = 64
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PID = re.compile(rb"\s*([1-9][0-9]{0,9})\s*\Z")


@dataclass(frozen=True, slots=True)
class Process:
    """A process that was found.

    Attributes:
        pidfd: to be closed by whoever has this.
        started_ticks: since boot.
    """

    pid: int
    pidfd: int
    started_ticks: int

    @property
    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.pidfd)

    def check_owner(self, uid: int) -> None:
        """Refuse what the kernel would refuse to this user: the bridge may be allowed more than the
        binding's owner.

        Raises:
            PermissionDenied: the process is another's.
        """
        if uid in (0, os.geteuid()):
            return  # root may; and for ourselves the kernel judges
        with contextlib.suppress(OSError), open(f"/proc/{self.pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Uid:"):
                    real, _, saved, _ = map(int, line.split()[1:])
                    if uid in (real, saved):
                        return
        raise PermissionDenied(
            f"uid {uid}, the binding's owner, may not signal process {self.pid}",
            hint="bind as the user whose process it is, or as root",
        )


def find_process(pid: int) -> Process | None:
    """Find the process that has this number now; None when none has."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:  # no such process; or it is a thread
        return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            started_ticks = int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        os.close(pidfd)
        return None
    process = Process(pid, pidfd, started_ticks)
    if process.is_alive:  # so what was read under its number was its own
        return process
    process.close()
    return None


def find_by_file(path: str) -> Process | None:
    """Find the process that a pid file names; None when it is gone, or the file is empty or
    not there.

    Raises:
        BindingFailed: the file is no pid file, or may not be read (retryable: it may change).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BindingFailed(f"cannot read {path}: {error.strerror}", retryable=True) from error
    try:
        written_s = os.fstat(descriptor).st_mtime
        content = os.read(descriptor, PID_FILE_BYTES_MAX)
    except OSError as error:
        raise BindingFailed(f"cannot read {path}: {error.strerror}", retryable=True) from error
    finally:
        os.close(descriptor)
    if not content:
        return None  # created, and about to be written
    match = _PID.match(content)
    if match is None:
        raise BindingFailed(
            f"{path} is no pid file", hint="it holds one decimal number and a newline", retryable=True
        )
    process = find_process(int(match[1]))
    if process is None:
        return None
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - process.started_ticks / _TICKS_PER_S
    if time.time() - age_s <= written_s + TOLERANCE_S:
        return process
    process.close()
    return None  # it began after the file was written: the number is another's now


def write_pid_file(path: str) -> None:
    """Name this process in a file, whole or not at all.

    Raises:
        BindingFailed: something else is at the path (not retryable), or it cannot be written.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                content = os.read(descriptor, PID_FILE_BYTES_MAX)
            finally:
                os.close(descriptor)
            if content and _PID.match(content) is None:
                raise BindingFailed(f"{path} exists and is no pid file", hint="it was left alone")
        new = f"{path}.{os.getpid()}"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, b"%d\n" % os.getpid())
            os.fchmod(descriptor, 0o644)
        finally:
            os.close(descriptor)
        os.rename(new, path)
    except OSError as error:
        raise BindingFailed(f"cannot write {path}: {error.strerror}", retryable=True) from error


def remove_pid_file(path: str) -> None:
    """Remove a pid file, if it still names this process."""
    with contextlib.suppress(OSError):
        with open(path, "rb") as file:
            is_ours = file.read(PID_FILE_BYTES_MAX) == b"%d\n" % os.getpid()
        if is_ours:
            os.unlink(path)
