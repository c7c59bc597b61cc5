"""What signals and foreign memory need of the kernel and Python cannot say. Private to the bridge.

A record of a signal is 24 bytes, ``struct`` format ``iiiIQ``: number, si_code, pid, uid, value. Addresses
are integers; memory at an address that has gone is ``OSError`` (EFAULT) everywhere but in ``*_semaphore``.
Failing system calls are ``OSError``; arguments out of range ``ValueError`` or ``OverflowError``.
"""

from typing import final

from typing_extensions import Buffer

def open_signal(number: int, descriptor: int, /) -> None:
    """Have each signal of this number written into a pipe (the write end, non-blocking) as a record."""

def resume_signal(number: int, /) -> bytes | None:
    """After the pipe was emptied: return the record that it had no room for, and take signals again."""

def close_signal(number: int, /) -> None:
    """Write no more; signals that still come are counted, and do no harm."""

def dropped_signals(number: int, /) -> int:
    """How many came that were not written since ``open_signal``."""

def send_signal(pidfd: int, number: int, value: int, /) -> None:
    """Send a signal with a value of 64 bits, as sigqueue(3) does."""

def set_slice(slice_ns: int, /) -> None:
    """Have the calling thread scheduled in slices of this length, where the kernel knows of such."""

def map_memory(descriptor: int, length: int, is_writable: bool, /) -> int:
    """mmap(2), shared; return the address."""

def unmap_memory(address: int, length: int, /) -> None:
    """munmap(2)."""

def find_segment(key: int, /) -> tuple[int, int]:
    """Return a System V segment's id and size."""

def attach_segment(segment: int, is_writable: bool, /) -> int:
    """shmat(2); return the address."""

def detach_segment(address: int, /) -> None:
    """shmdt(2)."""

def read_memory(address: int, length: int, /) -> bytes:
    """Copy bytes out."""

def write_memory(address: int, data: Buffer, /) -> None:
    """Copy bytes in."""

def add_and_wake(address: int, amount: int, /) -> None:
    """Add to a word, atomically (-2048 to 2047), and wake everybody who waits on it. A full fence."""

def fence() -> None:
    """Keep what is read and written before from what is read and written after."""

def semaphore_words() -> tuple[int, int, int] | None:
    """Where in a POSIX semaphore its value and its count of sleepers lie, and its size; None where this C
    library keeps them elsewhere."""

def open_semaphore(name: str, /) -> int:
    """sem_open(3) of one that is there; return its address."""

def take_semaphore(semaphore: int, /) -> bool:
    """sem_trywait(3)."""

def post_semaphore(semaphore: int, /) -> bool:
    """sem_post(3)."""

def close_semaphore(semaphore: int, /) -> bool:
    """sem_close(3)."""

def find_semaphores(key: int, /) -> int:
    """Return the id of a set of System V semaphores."""

def change_semaphores(semaphores: int, index: int, amount: int, /) -> bool:
    """semop(2) without waiting; False where it would wait."""

@final
class FutexWaiter:
    """A thread that sleeps on up to 127 words of memory, and makes a descriptor readable."""

    def fileno(self) -> int: ...
    def arm(self, word: int, expected: int, sleepers: int, /) -> int:
        """Wait for a word (address) that is another than expected, or woken. ``sleepers``: a word to be
        raised by one meanwhile, 0 for none. Return the slot; ENOSPC when there is none."""

    def disarm(self, slot: int, /) -> None:
        """Free a slot, whether it has fired or not."""

    def fired(self) -> list[int]:
        """Slots that fired since the last call, still to be freed."""

    def close(self) -> None: ...

@final
class SemaphoreWaiter:
    """A thread that takes what is posted to a System V semaphore."""

    def __new__(cls, semaphores: int, index: int, /) -> SemaphoreWaiter: ...
    def fileno(self) -> int: ...
    def taken(self) -> int:
        """How many were taken since the last call. OSError (EIDRM) when the set was removed."""

    def close(self) -> None: ...

@final
class SignalTaker:
    """Makes signals of messages in C, for ``Reader.hand_on``: of those without headers, whose value is their
    first 8 bytes, or their text, at most 18 characters."""

    def __new__(cls, number: int, is_text: bool, /) -> SignalTaker: ...
    def aim(
        self,
        pidfds: tuple[int, ...],
        stamps: tuple[tuple[bytes, int, int, int, int] | tuple[bytes], ...],
        /,
    ) -> None:
        """Say whom to signal, and what must be so for that: of each path inode, times of modification and of
        change in ns, and size; or that nothing is there. To nobody (an empty tuple): messages are left."""

    def served(self) -> list[int]:
        """Who has had the message that was left, as pidfds; asked once for each."""

    def taken(self) -> tuple[int, int]:
        """How many messages were taken since the last call, and their bytes."""

    def fileno(self) -> int:
        """A descriptor that is readable when one was taken since the last ``taken``."""

    def capsule(self) -> object:
        """What ``Reader.hand_on`` takes."""

    def close(self) -> None:
        """Aim at nobody, and close what it has open. Once it is not handed messages any more."""
