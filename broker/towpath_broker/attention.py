"""Whom the core's event loop serves just now: everybody, or one publisher that waits for each message.

Theory of operation
    A commit is made in a worker thread, so that nobody waits for a disk who has nothing to do with it. That
    costs two wake-ups across cores, about as much as a fast disk's fdatasync(2). So when nobody else is there
    the loop makes a small commit itself (:class:`CommitPlace`). It knows by the events that its selector
    brings: a publisher that waits for its commit causes one at most, the doorbell, and in the other way of
    committing the end of the thread's work is a second. What is more is somebody else; then commits go to the
    thread, until nobody else was there for ``CALM_ROUNDS`` rounds. And they do when the disk is slow: when
    about every second commit of late was, or one was very slow.

    Such a publisher has its next message ready some ten microseconds after it was answered, and to be woken
    for it takes longer. So after such a commit the loop looks for it for a while before it sleeps
    (:meth:`Attention.look`): until there is an event, for ``LOOK_NS`` at most, not where there is one core
    only, and more and more seldom while nothing comes of it.

Consequences
    Somebody who comes while such a commit is under way waits for it: the first only, the others find commits
    in the thread. If the disk hangs in just that commit, so does the core.

Not here: rounds (``data_engine``).
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

Look = Callable[[int, float | None], bool]
"""Looks for what no descriptor tells of, before the loop sleeps on a descriptor for so many seconds (0: it
does not; None: for ever). Returns whether it must not sleep: something was there."""

CALM_ROUNDS: Final = 32
"""Rounds without anybody else after which the loop commits itself."""
HERE_BYTES_MAX: Final = 64 << 10
"""Of a round that the loop commits itself."""
HERE_NS_MAX: Final = 4_000_000
"""What most commits take, at most, while the loop makes them itself."""
SLOW_NS: Final = 250_000_000
"""After one commit that took so long the loop makes none for ``SLOW_ROUNDS`` rounds."""
SLOW_ROUNDS: Final = 256
STEP: Final = 16
"""What most commits take is estimated in steps of this part of the estimate: up or down with each commit."""
LOOK_NS: Final = 100_000
"""How long the loop looks for a message before it sleeps."""
LOOKS_PER_CALL: Final = 4
"""How often it looks for the message for each time that it looks for events, which is a system call."""
SKIP_MAX: Final = 1_024
"""How many looks are left out at most when none was worth it."""


class WatchfulSelector(selectors.EpollSelector):
    """Counts the events that it brings.

    Attributes:
        events: that it has brought.
        latest: those that it brought last, so many.
        look: called before each sleep.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events = self.latest = 0
        self.look: Look | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As documented in selectors."""
        if self.look is not None and self.look(self.fileno(), timeout):
            timeout = 0
        found = super().select(timeout)
        self.latest = len(found)
        self.events += self.latest
        return found

    def is_wanted(self) -> bool:
        """Whether there are events; they stay."""
        return bool(super().select(0))


class Attention:
    """What the data plane must know of the event loop that it runs on.

    Args:
        selector: the loop's.
    """

    def __init__(self, selector: WatchfulSelector) -> None:
        self.place = CommitPlace(lambda: selector.events)
        self._selector = selector
        self._is_wanted = selector.is_wanted
        self._has_cores = len(os.sched_getaffinity(0)) > 1
        self._may_look = False
        self._skips = self._left_out = 0

    def is_single(self) -> bool:
        """Whether the loop is about one event only."""
        return self._selector.latest == 1

    def look_before_sleep(self, look: Look) -> None:
        """Have somebody look before each sleep of the loop."""
        self._selector.look = look

    def committed_here(self) -> None:
        """The loop has made a commit: there may be a look."""
        self._may_look = self._has_cores

    def look(self, find: Callable[[], T | None]) -> T | None:
        """Look for something for a while, if a commit was made here just now.

        Args:
            find: returns what it finds; None: nothing.
        """
        if not self._may_look:
            return None
        self._may_look = False
        if self._left_out < self._skips:
            self._left_out += 1
            return None
        self._left_out = 0
        until_ns = time.monotonic_ns() + LOOK_NS
        looks = 0
        is_over = False
        while not is_over:
            found = find()
            if found is not None:
                self._skips = 0
                return found
            if looks % LOOKS_PER_CALL == 0 and self._is_wanted():
                return None
            looks += 1
            is_over = time.monotonic_ns() >= until_ns
        self._skips = min(2 * self._skips + 1, SKIP_MAX)
        return None


class CommitPlace:
    """Says of each commit whether the event loop makes it itself.

    Args:
        events: how many events the loop has had so far.
    """

    def __init__(self, events: Callable[[], int]) -> None:
        self._events = events
        self._seen = events()
        self._expected = 2
        self._calm = 0
        self._usual_ns = HERE_NS_MAX

    def is_here(self, nbytes: int) -> bool:
        """Whether the loop would make a commit that began now, of a round of so many bytes."""
        return (
            self._is_alone()
            and self._calm >= CALM_ROUNDS
            and nbytes <= HERE_BYTES_MAX
            and self._usual_ns < HERE_NS_MAX
        )

    def begin(self, *, is_here: bool) -> None:
        """A commit begins."""
        self._calm = self._calm + 1 if self._is_alone() else min(self._calm, 0)
        self._seen = self._events()
        self._expected = 1 if is_here else 2

    def _is_alone(self) -> bool:
        return self._events() - self._seen <= self._expected

    def took(self, span_ns: int) -> None:
        """The commit took so long."""
        step_ns = self._usual_ns // STEP
        self._usual_ns += step_ns if span_ns > self._usual_ns else -step_ns
        if span_ns >= SLOW_NS:
            self._calm = -SLOW_ROUNDS
