"""Whom an outward ``signal:`` binding signals: found, held, and found again.

Theory of operation
    Processes are held as pidfds, watched for their end. A pid file, or a directory of them, is looked at by
    its stat before each batch of signals, and read again when that has changed; a unit is asked for again
    when its process has ended.

Invariants
    Nobody is held whom the binding's owner may not signal. A pidfd is closed once, by whoever forgets it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Final

from towpath.bindings.signal import SignalPlace, TargetKind
from towpath.errors import BindingFailed, LimitExceeded, TowpathError
from towpath_broker.gateways.bridge.keeping import BindingKeeping
from towpath_broker.gateways.bridge.processes import Process, find_by_file, find_process
from towpath_broker.gateways.bridge.stop import Stop

TARGETS_MAX: Final = 256
"""Pid files in a directory that are taken."""
_UNIT_TIMEOUT_S: Final = 5.0
_START: Final = "process"
_FILES: Final = (TargetKind.PID_FILE, TargetKind.DIRECTORY)
_Stamp = tuple[()] | tuple[int, int, int, int]
"""What stat(2) says of a file; empty when there is none."""


class Target:
    """Whom to signal.

    Args:
        place: with a target.
        owner: the binding's.
        keeping: the binding's.

    Attributes:
        processes: who was found and has not ended, as far as is known.
        error: why nobody will ever be found again.
        stamped: the files by which they were found, each as it was then.
    """

    def __init__(self, place: SignalPlace, owner: str, keeping: BindingKeeping) -> None:
        assert place.kind is not None
        self._kind = place.kind
        self._target = place.target
        self._owner_uid = int(owner.removeprefix("uid:")) if owner.startswith("uid:") else os.geteuid()
        self._keeping = keeping
        self._on_exit: Callable[[Process], None] | None = None
        self.processes: list[Process] = []
        self.stamped: tuple[tuple[str, _Stamp], ...] = ()
        self.error: TowpathError | None = None

    @property
    def absent(self) -> str:
        """What is said while nobody is there."""
        return {
            TargetKind.PID: f"process {self._target} has ended",
            TargetKind.PID_FILE: f"{self._target} names no process that runs",
            TargetKind.DIRECTORY: f"no pid file in {self._target} names a process that runs",
        }.get(self._kind, f"unit {self._target} has no main process")

    def is_fresh(self) -> bool:
        """Whether what was found is still what there is to be found."""
        if not self.processes:
            return False
        return self._kind not in _FILES or self.stamped == self._stamps()

    async def refresh(self, on_exit: Callable[[Process], None]) -> None:
        """Look again; ``on_exit`` is called when somebody who was found has ended.

        Raises:
            BindingFailed: nobody can be found so, or ever again.
            PermissionDenied: the owner may not signal who was found.
        """
        if self.is_fresh():
            return
        self.close()
        self._on_exit = on_exit
        if self._kind is TargetKind.PID:
            self._hold(self._find_pid())
        elif self._kind is TargetKind.PID_FILE:
            self.stamped = self._stamps()
            self._hold(find_by_file(self._target))
        elif self._kind is TargetKind.DIRECTORY:
            self.stamped = self._stamps()
            for path in self._files():
                self._hold(find_by_file(path))
        else:
            self._hold(await self._find_unit())

    def forget(self, process: Process) -> None:
        """Somebody has ended."""
        if process not in self.processes:
            return
        self.processes.remove(process)
        asyncio.get_running_loop().remove_reader(process.pidfd)
        process.close()
        if self._kind is TargetKind.PID:
            self.error = BindingFailed(self.absent, hint="bind again, or name a pid file: signal:NAME@/PATH")

    def close(self) -> None:
        """Let go of everybody."""
        for process in self.processes:
            asyncio.get_running_loop().remove_reader(process.pidfd)
            process.close()
        self.processes.clear()

    def _hold(self, process: Process | None) -> None:
        if process is None:
            return
        if len(self.processes) == TARGETS_MAX:
            process.close()
            raise LimitExceeded(f"{self._target} has more than {TARGETS_MAX} pid files of processes that run")
        try:
            process.check_owner(self._owner_uid)
        except BaseException:
            process.close()
            raise
        self.processes.append(process)
        assert self._on_exit is not None
        asyncio.get_running_loop().add_reader(process.pidfd, self._on_exit, process)

    def _find_pid(self) -> Process:
        """Find the process that had the pid when the binding was made."""
        process = find_process(int(self._target))
        known = self._keeping.note or self._keeping.take_bytes(_START).decode()
        if not known and process is not None and self._keeping.is_new:
            known = str(process.started_ticks)
        if process is None or known != str(process.started_ticks):
            if process is not None:
                process.close()
            raise BindingFailed(
                self.absent if process is None else f"process {self._target} may be another one by now",
                hint="bind again, or name a pid file: signal:NAME@/PATH",
            )
        if not self._keeping.note:
            self._keeping.note = known
            self._keeping.store_bytes(_START, known.encode())
        return process

    def _files(self) -> Iterator[str]:
        try:
            with os.scandir(self._target) as entries:
                names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
        except FileNotFoundError:
            return
        except OSError as error:
            raise BindingFailed(f"cannot read {self._target}: {error.strerror}", retryable=True) from error
        for name in names:
            yield os.path.join(self._target, name)

    def _stamps(self) -> tuple[tuple[str, _Stamp], ...]:
        paths = (self._target,) if self._kind is TargetKind.PID_FILE else (self._target, *self._files())
        return tuple((path, _stamp(path)) for path in paths)

    async def _find_unit(self) -> Process | None:
        """Ask systemd, and ask again when the pidfd is open: then it is the unit's."""
        pid = await self._unit_pid()
        process = find_process(pid) if pid else None
        if process is not None and await self._unit_pid() != pid:
            process.close()
            return None
        return process

    async def _unit_pid(self) -> int:
        manager = ["--user"] if self._kind is TargetKind.USER_UNIT else []
        asking = _start("systemctl", *manager, "show", "--property=MainPID", "--value", "--", self._target)
        pidfd = os.pidfd_open(asking.pid)
        try:
            # Its pipes hold what it has to say. asyncio's own way starts a thread, which signals may hit.
            async with asyncio.timeout(_UNIT_TIMEOUT_S):
                await Stop().readable(pidfd)
        except TimeoutError:
            raise BindingFailed(
                f"systemctl gave no answer in {_UNIT_TIMEOUT_S:g} s", retryable=True
            ) from None
        finally:
            os.close(pidfd)
            asking.kill()
            output, complaint = asking.communicate()
        if asking.returncode or not output.strip().isdigit():
            said = complaint.decode(errors="replace").strip().partition("\n")[0][:200]
            raise BindingFailed(f"systemctl says of {self._target}: {said or 'nothing'}", retryable=True)
        return int(output)


def _start(*argv: str) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise BindingFailed(f"cannot run {argv[0]}: {error.strerror}", retryable=True) from error


def _stamp(path: str) -> _Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
