"""``towpath lock``: a program that runs while a lock is held.

Theory of operation
    The lock is acquired first, then the program is started, as the head of a process group of its own that
    is given the terminal, if there is one. When it ends, the lock is released and its exit status is ours:
    128 + N when signal N ended it.

    Whoever runs without the lock may do harm. So if the lock is lost (an operator takes it, or the daemon has
    not been heard of for as long as it keeps locks without that), the program is ended, and all that it has
    started: we are the reaper of its orphans (PR_SET_CHILD_SUBREAPER, prctl(2)), so also what has made
    itself a session of its own is found below us. If we are killed ourselves, a guard does it
    (``running.Guard``).

    From afar the daemon gives the lock to the next when it has not heard of us for as long as the lease. By
    then nothing of ours may run: so the program is asked to end (SIGTERM) while there is still time for that,
    and what is left is killed before the lease can have run out.

    Nothing is looked at again and again: one poll(2) waits for the program's end and for news of the lock;
    with a timeout only while the daemon is not there, and from afar until the lease comes near its end.

Exit statuses are those of flock(1) where it has them: 1 (``-E``) if the lock could not be had in time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Final

from towpath.cli.connection import connect
from towpath.cli.grammar import UsageError
from towpath.cli.running import GRACE_S, Guard, check_command
from towpath.errors import LockHeld, SessionLost, Timeout, TowpathError
from towpath.locks.blocking import Guard as Held
from towpath.locks.joined import SCHEMES
from towpath.locks.session import LockSession

EXIT_LOST: Final = 79
"""The lock was lost while the program ran; it has been ended."""
GRACE_OF_LEASE: Final = 5
"""The part of a lease, one in so many, that a program has to end, if it is less than that."""
DISCONNECTED_LOOK_S: Final = 0.2
END_LOOK_S: Final = 0.02
PR_SET_CHILD_SUBREAPER: Final = 36
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run(arguments: Namespace) -> int:
    """Acquire, run, release; return the exit status. Or, where that is asked for: join to a local lock."""
    if arguments.name in ("bind", "unbind") and len(arguments.command) == 2:
        name, url = arguments.command
        if url.partition(":")[0] in SCHEMES or shutil.which(name) is None:
            from towpath.cli import lock_bind

            change = lock_bind.bind if arguments.name == "bind" else lock_bind.unbind
            return change(arguments, name, url)
    if arguments.permits is None and arguments.weight != 1:
        raise UsageError("--weight is for a semaphore", "towpath lock NAME --permits 8 --weight 2 -- CMD")
    check_command(arguments.command)
    timeout = 0.0 if arguments.nonblock else arguments.timeout
    with connect(arguments) as client:
        if arguments.lease is not None:
            client.set_lock_lease(arguments.lease)
        try:
            if arguments.permits is not None:
                semaphore = client.semaphore(arguments.name, arguments.permits)
                held = semaphore.acquire(arguments.weight, timeout)
            else:
                lock = client.lock(arguments.name, note=arguments.note or " ".join(arguments.command)[:512])
                held = lock.acquire(timeout, shared=arguments.shared)
        except (LockHeld, Timeout) as error:
            if arguments.verbose:
                print(f"towpath: {error.message}", file=sys.stderr)
            return int(arguments.conflict_exit_code)
        if arguments.verbose:
            print(f"towpath: {held.name} is held, with token {held.token}", file=sys.stderr)
        return _run_held(arguments, held)


def _run_held(arguments: Namespace, held: Held) -> int:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    environment = {**os.environ, "TOWPATH_LOCK": held.name, "TOWPATH_FENCE": str(held.token)}
    if arguments.socket:
        environment["TOWPATH_SOCKET"] = os.path.abspath(arguments.socket)
    with Guard() as guard, _terminal() as give_terminal:
        process = subprocess.Popen(
            arguments.command, env={**environment, **guard.environment}, process_group=0
        )
        guard.add(process)
        give_terminal(process.pid)
        for number in _PASSED_ON:
            signal.signal(number, lambda number, _: _signal_group(process.pid, number))
        # A function, and not SIG_IGN, which the program would have inherited.
        signal.signal(signal.SIGINT, lambda *_: _signal_group(process.pid, signal.SIGINT))
        try:
            why_lost = _wait(process, held)
        except BaseException:
            _end_tree(process, guard.pid, GRACE_S)
            raise
        if why_lost is not None:
            _end_tree(process, guard.pid, _grace_s(held.session))
            print(
                f"towpath: {held.name} was lost, and the program ended: {why_lost.message}", file=sys.stderr
            )
            return EXIT_LOST
        guard.dismiss()  # what it left behind goes on, as after flock(1)
    with contextlib.suppress(TowpathError):  # it has ended in time all the same
        held.release()
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _wait(process: subprocess.Popen[bytes], held: Held) -> TowpathError | None:
    """Wait until the program has ended, or the lock is lost: then return why."""
    session: LockSession = held.session
    ended = os.pidfd_open(process.pid)
    news_read, news_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def changed() -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(news_write, b"x")

    session.on_change.append(changed)
    try:
        poller = select.poll()
        poller.register(ended, select.POLLIN)
        poller.register(news_read, select.POLLIN)
        while True:
            try:
                held.check()
            except TowpathError as error:
                return error
            look_s = None if session.is_connected else DISCONNECTED_LOOK_S
            if session.lease_s:
                look_s = session.left_s - min(GRACE_S, session.lease_s / GRACE_OF_LEASE)
                if look_s <= 0:
                    return SessionLost(
                        f"the daemon was not heard of, and the lease ends in {session.left_s:.1f} s"
                    )
            found = poller.poll(None if look_s is None else look_s * 1e3 + 1)
            if any(descriptor == ended for descriptor, _ in found):
                process.wait()
                return None
            with contextlib.suppress(BlockingIOError):
                os.read(news_read, 4096)
    finally:
        session.on_change.remove(changed)
        for descriptor in (ended, news_read, news_write):
            os.close(descriptor)


@contextlib.contextmanager
def _terminal() -> Iterator[Callable[[int], None]]:
    """Give a function that makes a process group the terminal's foreground; it is taken back at the end."""
    ours = None
    with contextlib.suppress(OSError):
        if os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp():
            ours = os.getpgrp()

    def give(group: int) -> None:
        if ours is not None:
            with contextlib.suppress(OSError):
                os.tcsetpgrp(0, group)

    try:
        yield give
    finally:
        if ours is not None:
            before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # we are in the background now
            with contextlib.suppress(OSError):
                os.tcsetpgrp(0, ours)
            signal.signal(signal.SIGTTOU, before)


# ---- the whole tree ----------------------------------------------------------------------------------------


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _grace_s(session: LockSession) -> float:
    """How long a program has to end after SIGTERM, when the lock is lost."""
    return max(0.0, min(GRACE_S, session.left_s)) if session.lease_s else GRACE_S


def _end_tree(process: subprocess.Popen[bytes], guard: int, grace_s: float) -> None:
    """End the program and all that it has started: SIGTERM, then SIGKILL until nothing is below us."""
    deadline = time.monotonic() + grace_s
    told: set[int] = set()
    while below := _descendants(os.getpid()) - {guard}:
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for pid in below:
            if number is signal.SIGKILL or pid not in told:
                told.add(pid)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
                    os.kill(pid, signal.SIGCONT)  # one that is stopped could not end
        _reap(process)
        time.sleep(END_LOOK_S)  # nobody tells of the end of a child's child
    process.wait()


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Take what has ended: of orphans we are the parent."""
    process.poll()
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if found.si_pid == process.pid:
                process.poll()
            else:
                os.waitpid(found.si_pid, 0)


def _descendants(pid: int) -> set[int]:
    """Return the processes below one."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        try:
            tasks = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue
        for task in tasks:
            with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{task}/children") as file:
                waiting.extend(children := [int(word) for word in file.read().split()])
                found.update(children)
    return found
