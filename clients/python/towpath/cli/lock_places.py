"""Who has the local lock that a lock is joined to: looked up on this host, when it is to be shown.

The kernel's list of file locks (``/proc/locks``) has the process of each flock(2) and classic fcntl(2) lock.
A POSIX semaphore has no owner. But whoever could give it back has it mapped: where its value is 0 and no
process has (``/proc/PID/maps``), but the bridge that waits for it, its holder has died.

Source: proc_locks(5), proc_pid_maps(5), sem_overview(7).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from towpath.errors import InvalidArgument
from towpath.locks.joined import NOTE, Place, parse_place
from towpath.locks.model import LockInfo
from towpath.locks.semaphores import Semaphore

_BRIDGE = b"towpath_broker.gateways.bridge"


def foreign_lines(lock: LockInfo) -> Iterator[str]:
    """What keeps a lock that is joined, if it is the local one; nothing where it is not."""
    notes = [grant.note for grant in lock.holders] + [wait.note for wait in lock.waiters]
    urls = [note.removeprefix(NOTE) for note in notes if note.startswith(NOTE)]
    if not urls:
        return
    try:
        place = parse_place(urls[0])
        yield from _semaphore_lines(place) if place.scheme == "sem" else _file_lines(place)
    except (InvalidArgument, OSError):
        return  # it is of another host, or gone


def _file_lines(place: Place) -> Iterator[str]:
    for pid in file_lock_pids(place):
        yield f"  foreign  {place.scheme} of {place.path}, pid {pid}{_command(pid)}"


def file_lock_pids(place: Place) -> list[int]:
    """The processes that have a local lock, but the bridge's.

    Raises:
        OSError: there is no such file.
    """
    status = os.stat(place.path)
    kinds = ("FLOCK",) if place.scheme == "flock" else ("POSIX", "OFDLCK")
    found = []
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "->" in words or words[1] not in kinds:
            continue
        device, _, inode = words[5].rpartition(":")
        if (
            int(inode) != status.st_ino
            or device != f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
        ):
            continue
        pid = int(words[4])
        if pid > 0 and not _is_bridge(pid):
            found.append(pid)
    return found


def semaphore_of(url: str) -> str | None:
    """The name of a semaphore that a lock is joined to; None: it is something else."""
    place = parse_place(url)
    return place.path if place.scheme == "sem" else None


def _semaphore_lines(place: Place) -> Iterator[str]:
    semaphore = Semaphore(place.path)
    value = semaphore.value
    semaphore.close()
    if value:
        return
    pids, unseen = _mapping_pids(place.path)
    for pid in pids:
        yield f"  foreign  sem {place.path} may be held by pid {pid}{_command(pid)}"
    if not pids:
        sure = f", as far as can be seen: {unseen} processes cannot be looked at" if unseen else ""
        yield f"  foreign  sem {place.path}: its holder has died{sure}; see towpath locks repair"


def why_not_abandoned(path: str, value: int, *, is_forced: bool) -> str:
    """Why a semaphore is not one whose holder has died; empty: it is.

    Args:
        is_forced: also where not all processes can be looked at.
    """
    if value:
        return f"its value is {value}"
    pids, unseen = _mapping_pids(path)
    if pids:
        return f"process {pids[0]}{_command(pids[0])} has it open"
    if unseen and not is_forced:
        return f"{unseen} processes cannot be looked at, and may have it open"
    return ""


def _mapping_pids(path: str) -> tuple[list[int], int]:
    """The processes that have a semaphore mapped, but for us and the bridge; and how many cannot be looked
    at."""
    name = f"/dev/shm/sem.{path[1:]}".encode()
    pids, unseen = [], 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            maps = (folder / "maps").read_bytes()
        except PermissionError:
            unseen += 1
            continue
        except OSError:
            continue
        if any(line.endswith(name) for line in maps.splitlines()) and not _is_bridge(int(folder.name)):
            pids.append(int(folder.name))
    return pids, unseen


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _is_bridge(pid: int) -> bool:
    return _BRIDGE in _words(pid).split(b"\0")


def _command(pid: int) -> str:
    text = _words(pid).rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    shown = "".join(char if char.isprintable() else "?" for char in text)[:80]
    return f" ({shown})" if shown else ""
