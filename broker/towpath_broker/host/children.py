"""Child processes: started with what they need and no more, watched by pidfd, never left behind.

Theory of operation
    A child is ``python -P -m MODULE``: -P, so that a module in the directory the daemon was started from is
    never run by mistake. It is in a process group of its own, so that Ctrl-C reaches the supervisor alone,
    which then ends everything in order. The kernel sends it ``death_signal`` when the supervisor dies in
    whatever way (PR_SET_PDEATHSIG, prctl(2)). Its end is seen by pidfd, pidfd_open(2), without SIGCHLD and
    without threads, and signals go through the pidfd, so that they never hit a stranger.

Invariants
    A child gets exactly the descriptors stated. :meth:`Child.wait` has reaped it. Nothing here blocks the
    event loop but the fork.

Not here: when to start one again (supervisor.py); only how long to wait before: :class:`Backoff`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from . import systemd

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_LAST_S: Final = 10.0
STABLE_S: Final = 5.0
"""A child that worked for this long starts the back-off anew."""
_PR_SET_PDEATHSIG: Final = 1
_STANDARD_ERROR: Final = 2


class Backoff:
    """How long to wait before a child is started again: doubling, until one has worked for a while.

    What counts is how long it worked, not how long it was there: on a busy machine one that fails in its
    start may take long over that. So deaths that lie far apart do not add up, and one that keeps failing is
    started six times a minute at most.

    Args:
        clock: the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._delay_s = BACKOFF_FIRST_S
        self._working_since_s: float | None = None

    def works(self) -> None:
        """The child has begun to work. More than once is fine."""
        if self._working_since_s is None:
            self._working_since_s = self._clock()

    def next_delay_s(self) -> float:
        """Return the pause after a child that has ended."""
        since_s, self._working_since_s = self._working_since_s, None
        if since_s is not None and self._clock() - since_s >= STABLE_S:
            self._delay_s = BACKOFF_FIRST_S
        delay_s = self._delay_s
        self._delay_s = min(2 * delay_s, BACKOFF_LAST_S)
        return delay_s


def _ties_to_parent(death_signal: signal.Signals) -> Callable[[], None]:
    """Return what runs in the child between fork and exec. Everything is looked up here: it must not need a
    lock there."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    getppid, end, parent, number = os.getppid, os._exit, os.getpid(), int(death_signal)

    def tie() -> None:
        # The parent may have died before the kernel was asked: then nobody would tell us.
        if prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0 or getppid() != parent:
            end(os.EX_OSERR)

    return tie


def settings_file(text: str) -> int:
    """Return a descriptor from which a child can read settings, however long; the caller's to close.

    An environment variable, which would be simpler, holds 131,071 bytes at most (execve(2), MAX_ARG_STRLEN).
    """
    descriptor = os.memfd_create("towpath-settings", os.MFD_CLOEXEC)
    with open(descriptor, "w", closefd=False) as file:
        file.write(text)
    return descriptor


def read_settings_file(descriptor: int) -> str:
    """Return what :func:`settings_file` was given. The descriptor stays the caller's."""
    with open(f"/proc/self/fd/{descriptor}") as file:
        return file.read()


class Child:
    """One run of a child process."""

    def __init__(
        self,
        module: str,
        *,
        environment: Mapping[str, str],
        descriptors: Sequence[int],
        death_signal: signal.Signals,
    ) -> None:
        """Start it.

        Args:
            module: what to run: ``towpath_broker.daemon``.
            environment: added to our own, less what is between systemd and us.
            descriptors: inherited under the same numbers, beside standard error; they stay the caller's.
            death_signal: what the kernel sends it when we die.

        Raises:
            OSError: it cannot be started: no memory, too many processes, no descriptors. There is none then.
        """
        inherited = {name: value for name, value in os.environ.items() if name not in systemd.ENVIRONMENT}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.DEVNULL,
            stdout=_STANDARD_ERROR,
            env={**inherited, **environment},
            pass_fds=tuple(descriptors),
            process_group=0,
            preexec_fn=_ties_to_parent(death_signal),  # safe: this process has one thread
        )
        self.pid = self._process.pid
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._process.kill()
            self._process.wait()
            raise
        loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = loop.create_future()
        loop.add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        code = self._process.wait()
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._exited.set_result(code)

    @property
    def has_exited(self) -> bool:
        return self._exited.done()

    async def wait(self) -> int:
        """Return its exit status, negative for a signal, once it has ended."""
        return await asyncio.shield(self._exited)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it has not ended."""
        if not self.has_exited:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def stop(self, grace_s: float) -> bool:
        """End it: SIGTERM, and SIGKILL when that was not enough.

        Returns:
            Whether SIGTERM was enough.
        """
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.wait()
            return True
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.wait()
            return False


def describe_exit(code: int) -> str:
    """Return an exit status in words: ``exited with 1``, ``killed by SIGKILL``."""
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
