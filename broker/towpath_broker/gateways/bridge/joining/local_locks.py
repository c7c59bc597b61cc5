"""The local locks that can be joined: taken and given back, by one who may be killed.

Theory of operation
    A lock of flock(2), and one of fcntl(2) taken with ``F_OFD_SETLK``, belongs to the open file, and so to
    whoever has a descriptor of it. Therefore what is held is a descriptor, which the supervisor keeps too: if
    we are killed the lock stays, until our successor gives it back by that descriptor. ``F_OFD_SETLK``
    conflicts with the classic locks of ``F_SETLK`` and lockf(3), which most programs take.

    A POSIX semaphore belongs to nobody: who has taken it must remember that. What stands for it is a
    descriptor of a memfd. Taking it shared is taking it.

    Waiting is done by a thread, in the kernel: no event loop can wait for these. A thread that is not wanted
    any more goes on waiting, and gives back what it gets; so there is at most one for each joined lock and
    each time that it was unbound.

Invariants
    What ``take`` returned is held until it was given to ``give_back``.

Not here: when (``join``).

Sources: flock(2), fcntl_locking(2), sem_overview(7).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import threading
from typing import Final

from towpath.errors import BindingFailed
from towpath.locks.joined import PLACE_CHARS_MAX, Place
from towpath.locks.semaphores import Semaphore, post

_FLOCK: Final = struct.Struct("hhqqi4x")
"""struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len (0: to the end), l_pid."""
_OPEN: Final = os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
MODE: Final = 0o600


class LocalLock:
    """A local lock.

    Args:
        place: which.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    def check(self) -> None:
        """See that it can be taken, as far as that can be known.

        Raises:
            BindingFailed: it cannot.
        """
        try:
            if self.place.scheme == "sem":
                self._semaphore().close()
            else:
                os.close(self._open())
        except OSError as error:
            raise BindingFailed(f"{self.place.url}: {error.strerror or error}", hint="") from None

    def take_nowait(self, *, shared: bool) -> int:
        """Take it if it is free; returns what it is given back by, -1 where it is not free.

        Raises:
            BindingFailed: it cannot be taken.
        """
        return self._take(shared=shared, is_waiting=False)

    async def take(self, *, shared: bool) -> int:
        """Take it, and wait until it is free. When cancelled it is not held.

        Raises:
            BindingFailed: it cannot be taken.
        """
        held = self.take_nowait(shared=shared)
        if held >= 0:
            return held
        return await _in_thread(self, shared=shared)

    def give_back(self, held: int) -> None:
        """Give it back by what it was taken by, whoever else has that."""
        match self.place.scheme:
            case "flock":
                fcntl.flock(held, fcntl.LOCK_UN)
            case "fcntl":
                fcntl.fcntl(held, fcntl.F_OFD_SETLK, _record(fcntl.F_UNLCK))
            case _:
                with contextlib.suppress(FileNotFoundError):
                    post(self.place.path)
        os.close(held)

    def _take(self, *, shared: bool, is_waiting: bool) -> int:
        try:
            if self.place.scheme == "sem":
                return self._take_semaphore(is_waiting=is_waiting)
            return self._take_file(shared=shared, is_waiting=is_waiting)
        except BlockingIOError:
            return -1
        except OSError as error:
            raise BindingFailed(f"{self.place.url}: {error.strerror or error}", hint="") from None

    def _open(self) -> int:
        try:
            return os.open(self.place.path, os.O_RDWR | _OPEN, MODE)
        except IsADirectoryError:
            if self.place.scheme == "fcntl":
                raise
            return os.open(self.place.path, os.O_RDONLY | os.O_CLOEXEC)

    def _take_file(self, *, shared: bool, is_waiting: bool) -> int:
        descriptor = self._open()
        try:
            if self.place.scheme == "flock":
                operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
                fcntl.flock(descriptor, operation | (0 if is_waiting else fcntl.LOCK_NB))
            else:
                kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
                command = fcntl.F_OFD_SETLKW if is_waiting else fcntl.F_OFD_SETLK
                fcntl.fcntl(descriptor, command, _record(kind))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _semaphore(self) -> Semaphore:
        return Semaphore(self.place.path, is_made=True)

    def _take_semaphore(self, *, is_waiting: bool) -> int:
        held = os.memfd_create("towpath-semaphore", os.MFD_CLOEXEC)
        os.write(held, os.fsencode(self.place.path))
        try:
            semaphore = self._semaphore()
            try:
                semaphore.wait(is_waiting=is_waiting)
            finally:
                semaphore.close()
        except BaseException:
            os.close(held)
            raise
        return held


def give_back_of(held: int) -> None:
    """Give back what a predecessor held, of which nobody knows the place any more, and whose other
    descriptors are closed."""
    link = os.readlink(f"/proc/self/fd/{held}")
    if link.startswith("/memfd:towpath-semaphore"):
        with contextlib.suppress(OSError):
            post(os.fsdecode(os.pread(held, PLACE_CHARS_MAX, 0)))
    os.close(held)


def _record(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


async def _in_thread(lock: LocalLock, *, shared: bool) -> int:
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()

    def tell(held: int, error: BindingFailed | None) -> None:
        if not told.cancelled():
            if error is None:
                told.set_result(held)
            else:
                told.set_exception(error)
        elif error is None:
            lock.give_back(held)

    def wait() -> None:
        held, error = -1, None
        try:
            held = lock._take(shared=shared, is_waiting=True)
        except BindingFailed as failure:
            error = failure
        try:
            loop.call_soon_threadsafe(tell, held, error)
        except RuntimeError:  # the loop has ended meanwhile
            if error is None:
                lock.give_back(held)

    threading.Thread(target=wait, name=f"waits for {lock.place.url}", daemon=True).start()
    try:
        return await told
    except asyncio.CancelledError:
        if told.done() and not told.cancelled() and told.exception() is None:
            lock.give_back(told.result())
        raise
