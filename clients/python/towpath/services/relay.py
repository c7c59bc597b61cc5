"""Several threads wait for what one control page brings: one of them reads, for all.

Theory of operation
    Whoever finds nobody reading reads, until it has what it waits for; then it hands the reading over to one
    that still waits. Whoever finds somebody reading sleeps on a lock of its own under the *key* of what it
    waits for, until the reader has something under that key, or hands over. A lone thread pays for two
    uncontended locks.

Invariants
    At most one thread reads at a time. While somebody waits, somebody reads, or has been woken to.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable

from towpath.waiting import FOREVER, remaining_ns


class Relay:
    """Takes turns in reading.

    Args:
        read: reads once, or waits until the deadline or until it is notified; called by one thread at a time.
            It calls :meth:`wake` for what it took in.
    """

    def __init__(self, read: Callable[[int | None], None]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._is_reading = False
        self._asleep: dict[Hashable, deque[threading.Lock]] = {}

    @property
    def has_sleepers(self) -> bool:
        """Whether anybody waits for who reads."""
        return bool(self._asleep)

    def wait(self, key: Hashable, is_done: Callable[[], bool], deadline: int | None) -> bool:
        """Wait until something is so.

        Args:
            key: what :meth:`wake` says when it may have become so.
            is_done: looks; cheap.
            deadline: on the monotonic clock; None for ever.

        Returns:
            Whether it is so; False when the time is over.
        """
        while True:
            mine = None
            with self._lock:
                if is_done():
                    return True
                if self._is_reading:
                    mine = threading.Lock()
                    mine.acquire()
                    self._asleep.setdefault(key, deque()).append(mine)
                else:
                    self._is_reading = True
            if mine is None:
                return self._lead(is_done, deadline)
            self._follow(key, mine, deadline)
            if remaining_ns(deadline) == 0:
                return is_done()

    def look(self) -> None:
        """Read what there is, without waiting, unless somebody reads already."""
        with self._lock:
            if self._is_reading:
                return
            self._is_reading = True
        try:
            self._read(0)
        finally:
            self._stop_reading()

    def wake(self, key: Hashable) -> None:
        """What is waited for under a key may have become so, for one of those who wait for it."""
        if self._asleep:
            with self._lock:
                self._wake(key)

    def wake_all(self) -> None:
        """The same for all."""
        with self._lock:
            for key in list(self._asleep):
                while key in self._asleep:
                    self._wake(key)

    def _lead(self, is_done: Callable[[], bool], deadline: int | None) -> bool:
        try:
            while True:
                self._read(deadline)
                if is_done():
                    return True
                if remaining_ns(deadline) == 0:
                    return False
        finally:
            self._stop_reading()

    def _follow(self, key: Hashable, mine: threading.Lock, deadline: int | None) -> None:
        left = remaining_ns(deadline)
        try:
            mine.acquire(timeout=-1 if left == FOREVER else left / 1e9)
        finally:
            with self._lock:
                sleepers = self._asleep.get(key)
                if sleepers is not None and mine in sleepers:
                    sleepers.remove(mine)
                    if not sleepers:
                        del self._asleep[key]
                elif not self._is_reading:
                    self._hand_over()  # it was woken to read, perhaps, and may not do so

    def _stop_reading(self) -> None:
        with self._lock:
            self._is_reading = False
            self._hand_over()

    def _hand_over(self) -> None:
        for key in self._asleep:
            self._wake(key)
            return

    def _wake(self, key: Hashable) -> None:
        sleepers = self._asleep.get(key)
        if sleepers:
            sleepers.popleft().release()
            if not sleepers:
                del self._asleep[key]
