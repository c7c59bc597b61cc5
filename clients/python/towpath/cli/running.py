"""Running a program for one message: its standard input is the message, its standard output the answer.

Theory of operation
    The program is the head of a process group of its own, so that what it starts ends with it. It is ended
    (SIGTERM, then SIGKILL) when nobody waits for it any more. What it writes is bounded: beyond the bound it
    is ended, too. Of its standard error the end is kept, for whoever is told of its failure.

    It does not outlive us, however we end: a small process of our own (:class:`Guard`) is told which
    programs run, and ends them when we are gone. PR_SET_PDEATHSIG, prctl(2), would not do: it reaches the
    program alone and not what that started, and must be asked for between fork and exec, which is not safe
    with threads.

Not here: where messages come from.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final, Self

from towpath.cli import _guard
from towpath.errors import InvalidArgument

LOOK_S: Final = 0.1
"""How often it is looked whether somebody still waits."""
GRACE_S: Final = _guard.GRACE_S
"""How long a program has to end after SIGTERM."""
ERROR_BYTES_MAX: Final = 2000


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: its exit status; less than 0: the number of the signal that ended it.
        output: what it wrote to standard output.
        is_cut: it wrote more than it may, and was ended.
        error: the end of what it wrote to standard error.
    """

    status: int
    output: bytes
    is_cut: bool
    error: str

    def failure(self, command: str) -> str:
        """One sentence for whoever is told; empty when it went well."""
        if self.is_cut:
            return f"{command}: it wrote too much"
        if self.status == 0:
            return ""
        how = f"exit status {self.status}" if self.status > 0 else f"ended by signal {-self.status}"
        return f"{command}: {how}{': ' if self.error else ''}{self.error}"


def check_command(command: Sequence[str]) -> None:
    """Raises InvalidArgument when there is no such program."""
    if shutil.which(command[0]) is None:
        raise InvalidArgument(
            f"there is no program {command[0]!r}", hint="is it on the PATH, and executable?"
        )


class Guard:
    """Ends programs that still run when we have ended, by whatever. Use as a context manager.

    Attributes:
        environment: for the programs.
    """

    def __init__(self) -> None:
        mark = secrets.token_hex(8)
        self.environment: Mapping[str, str] = {_guard.MARK: mark}
        # In a session of its own: whoever ends our process group does not end it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", _guard.__file__, mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._lock = threading.Lock()
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Have what still runs ended, and wait for that."""
        with self._lock:
            self._is_over = True
        self._process.communicate()

    def dismiss(self) -> None:
        """What still runs may go on, whatever becomes of us."""
        with self._lock:
            self._is_over = True
        self._process.kill()

    @property
    def pid(self) -> int:
        """Of the process that does it."""
        return self._process.pid

    def add(self, process: subprocess.Popen[bytes]) -> None:
        """The head of a process group was started; it is killed when this is over already."""
        if not self._tell(f"+{process.pid}"):
            _signal(process, signal.SIGKILL)

    def remove(self, process: subprocess.Popen[bytes]) -> None:
        """It has ended, and its group with it."""
        self._tell(f"-{process.pid}")

    def _tell(self, line: str) -> bool:
        assert self._process.stdin is not None
        with self._lock:
            if not self._is_over:
                with contextlib.suppress(BrokenPipeError):  # somebody has killed the guard
                    os.write(self._process.stdin.fileno(), f"{line}\n".encode())
            return not self._is_over


def run(
    command: Sequence[str],
    given: bytes,
    *,
    guard: Guard,
    environment: Mapping[str, str],
    output_bytes_max: int,
    is_cancelled: Callable[[], bool],
) -> Outcome:
    """Run a program to its end.

    Args:
        command: program and arguments.
        given: its standard input.
        guard: is told that it runs.
        environment: added to this process's.
        output_bytes_max: what it may write at most.
        is_cancelled: whether nobody waits any more; asked ten times a second.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment, **guard.environment},
        start_new_session=True,
    ) as process:
        guard.add(process)
        output, error = _Bounded(output_bytes_max), _Tail(ERROR_BYTES_MAX)
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        work: list[tuple[Callable[..., None], tuple[object, ...]]] = [
            (_feed, (process.stdin, given)),
            (output.read, (process.stdout, process)),
            (error.read, (process.stderr,)),
        ]
        threads = [
            threading.Thread(target=function, args=arguments, daemon=True) for function, arguments in work
        ]
        for thread in threads:
            thread.start()
        try:
            while True:
                try:
                    process.wait(LOOK_S)
                    break
                except subprocess.TimeoutExpired:
                    if is_cancelled():
                        end(process)
        finally:
            end(process)
            guard.remove(process)
            for thread in threads:
                thread.join(GRACE_S)
    return Outcome(process.returncode, bytes(output.data), output.is_cut, error.text())


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program and what it started. More than once is fine."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    _signal(process, signal.SIGKILL)  # what it left behind, too


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _feed(stream: IO[bytes], given: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), stream:  # it need not read everything
        stream.write(given)


class _Bounded:
    """Reads what a program may write, and ends it when it writes more."""

    def __init__(self, bytes_max: int) -> None:
        self.data = bytearray()
        self.is_cut = False
        self._bytes_max = bytes_max

    def read(self, stream: IO[bytes], process: subprocess.Popen[bytes]) -> None:
        while chunk := os.read(stream.fileno(), 1 << 16):
            if self.is_cut:
                continue
            self.data += chunk
            if len(self.data) > self._bytes_max:
                self.is_cut = True
                _signal(process, signal.SIGTERM)


class _Tail:
    """Keeps the end of what a program writes."""

    def __init__(self, bytes_max: int) -> None:
        self._data = b""
        self._bytes_max = bytes_max

    def read(self, stream: IO[bytes]) -> None:
        while chunk := os.read(stream.fileno(), 1 << 16):
            self._data = (self._data + chunk)[-self._bytes_max :]

    def text(self) -> str:
        return self._data.decode(errors="replace").strip()
