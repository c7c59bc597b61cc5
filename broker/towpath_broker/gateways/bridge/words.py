"""Waiting for words of foreign memory and for semaphores, on the event loop.

Theory of operation
    One thread for the whole bridge sleeps on all words at once (``_native.FutexWaiter``), POSIX semaphores
    among them; it is started with the first and ends with the last. A System V semaphore can be waited for
    in semop(2) alone, so each has a thread of its own (``SYSV_MAX`` at most); it takes what is posted.
    io_uring could wait without a thread, and is switched off on many hosts.

Invariants
    A semaphore's posts are taken once, and what was taken and not used is posted back.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Iterator
from typing import ClassVar, Final, Protocol

from towpath.bindings.shm import SemaphorePlace
from towpath.errors import BindingFailed, LimitExceeded, NotSupported
from towpath_broker.gateways.bridge import _native
from towpath_broker.gateways.bridge.stop import Stop

SHM_FOLDER: Final = "/dev/shm"
SYSV_MAX: Final = 32
"""System V semaphores waited for at a time; each costs a thread."""


@contextlib.contextmanager
def failure(what: str) -> Iterator[None]:
    """Turn the host's refusals into the binding's, to be tried again: the owner may come, or let us in."""
    try:
        yield
    except OSError as error:
        raise BindingFailed(f"{what}: {os.strerror(error.errno or 0)}", retryable=True) from error


class Words:
    """The words that are waited for, of all bindings. Use :meth:`shared`, and :meth:`release` it."""

    _shared: ClassVar[Words | None] = None

    def __init__(self) -> None:
        self._users = 0
        self._waiter = _native.FutexWaiter()
        self._waits: dict[int, asyncio.Future[bool]] = {}
        asyncio.get_running_loop().add_reader(self._waiter.fileno(), self._on_fired)

    @classmethod
    def shared(cls) -> Words:
        """Return the bridge's one, to be released."""
        if cls._shared is None:
            with failure("cannot wait for memory"):
                cls._shared = cls()
        cls._shared._users += 1
        return cls._shared

    def release(self) -> None:
        """Need it no longer."""
        self._users -= 1
        if not self._users:
            Words._shared = None
            asyncio.get_running_loop().remove_reader(self._waiter.fileno())
            self._waiter.close()

    async def changed(self, word: int, expected: int, stop: Stop, *, sleepers: int = 0) -> bool:
        """Wait until a word (its address) is another than expected, or was woken, or is no more.

        Returns:
            False when stopping was asked for.

        Raises:
            LimitExceeded: too many words are waited for.
        """
        try:
            slot = self._waiter.arm(word, expected, sleepers)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise LimitExceeded("more than 127 words of memory are waited for") from None
        wait: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waits[slot] = wait
        try:
            return await stop.resolved(wait)
        finally:
            del self._waits[slot]
            self._waiter.disarm(slot)

    def _on_fired(self) -> None:
        try:
            fired = self._waiter.fired()
        except OSError as error:  # a kernel before 5.16 has no futex_waitv(2)
            why = BindingFailed(f"this kernel does not wait for words of memory: {error.strerror}")
            for wait in self._waits.values():
                if not wait.done():
                    wait.set_exception(why)
            return
        for slot in fired:
            asked = self._waits.get(slot)
            if asked is not None and not asked.done():
                asked.set_result(True)


class Semaphore(Protocol):
    """A semaphore of a foreign program's.

    Attributes:
        path: of a POSIX semaphore's file; empty for System V.
    """

    path: str

    def take(self) -> int:
        """Take all that is posted, without waiting; return how much that was."""

    async def wait(self, stop: Stop) -> bool:
        """Wait until :meth:`take` may return something; False when stopping was asked for."""

    def post(self, count: int = 1) -> None:
        """Post."""

    def close(self) -> None:
        """Let go of it."""


class PosixSemaphore:
    """A named POSIX semaphore that is there.

    Raises:
        BindingFailed: there is none (retryable), or it is none.
        NotSupported: this C library's cannot be waited for.
    """

    def __init__(self, name: str) -> None:
        layout = _native.semaphore_words()
        if layout is None:
            raise NotSupported(
                "POSIX semaphores of this C library cannot be waited for", hint="use futex_offset"
            )
        self._value_offset, self._sleepers_offset, size_bytes = layout
        self.path = f"{SHM_FOLDER}/sem.{name[1:]}"
        with failure(f"cannot open the semaphore {name}"):
            # sem_open(3) maps what it finds, and would die of a file that is too short.
            if os.stat(self.path).st_size < size_bytes:
                raise BindingFailed(f"{self.path} is no semaphore: it is too short", retryable=True)
            self._address = _native.open_semaphore(name)
        self._size_bytes = size_bytes
        self._words = Words.shared()

    def take(self) -> int:
        """As :meth:`Semaphore.take`."""
        count = 0
        while _native.take_semaphore(self._address):
            count += 1
        return count

    async def wait(self, stop: Stop) -> bool:
        """As :meth:`Semaphore.wait`."""
        word, sleepers = self._address + self._value_offset, self._address + self._sleepers_offset
        return await self._words.changed(word, 0, stop, sleepers=sleepers)

    def post(self, count: int = 1) -> None:
        """As :meth:`Semaphore.post`."""
        for _ in range(count):
            _native.post_semaphore(self._address)

    def close(self) -> None:
        """As :meth:`Semaphore.close`."""
        self._words.release()
        _native.close_semaphore(self._address)


class SysvSemaphore:
    """A System V semaphore that is there.

    Raises:
        BindingFailed: there is none (retryable).
        LimitExceeded: too many are waited for.
    """

    _count: ClassVar[int] = 0

    def __init__(self, key: int, index: int, *, is_waited_for: bool) -> None:
        self.path = ""
        self._index = index
        self._waiter: _native.SemaphoreWaiter | None = None
        with failure(f"cannot open the System V semaphore 0x{key:x}:{index}"):
            self._id = _native.find_semaphores(key)
            if not is_waited_for:
                return
            if SysvSemaphore._count == SYSV_MAX:
                raise LimitExceeded(f"more than {SYSV_MAX} System V semaphores are waited for")
            self._waiter = _native.SemaphoreWaiter(self._id, index)
            SysvSemaphore._count += 1

    def take(self) -> int:
        """As :meth:`Semaphore.take`."""
        assert self._waiter is not None
        with failure("the System V semaphore is gone"):
            return self._waiter.taken()

    async def wait(self, stop: Stop) -> bool:
        """As :meth:`Semaphore.wait`."""
        assert self._waiter is not None
        return await stop.readable(self._waiter.fileno())

    def post(self, count: int = 1) -> None:
        """As :meth:`Semaphore.post`."""
        with failure("the System V semaphore is gone"):
            _native.change_semaphores(self._id, self._index, count)

    def close(self) -> None:
        """As :meth:`Semaphore.close`."""
        if self._waiter is not None:
            SysvSemaphore._count -= 1
            with contextlib.suppress(OSError):
                if left := self._waiter.taken():
                    _native.change_semaphores(self._id, self._index, left)
            self._waiter.close()


def open_semaphore(place: SemaphorePlace, *, is_waited_for: bool) -> PosixSemaphore | SysvSemaphore:
    """Open a semaphore, for waiting or only for posting.

    Raises:
        BindingFailed, LimitExceeded, NotSupported: as its class.
    """
    if place.name:
        return PosixSemaphore(place.name)
    return SysvSemaphore(place.key, place.index, is_waited_for=is_waited_for)
