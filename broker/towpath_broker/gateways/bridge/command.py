"""One run of a command: its process, its pipes, its end.

Theory of operation
    The command gets a session, and so a process group, of its own. It is waited for through a pidfd and *not*
    reaped when it has exited: as long as it is a zombie its number names it and its group and nobody else, so
    signals cannot hit a stranger. They go to the whole group, and so to what it left running; only ``reap``
    lets go of the number.

    It does not outlive the bridge: the kernel sends it SIGKILL when the bridge is gone (PR_SET_PDEATHSIG).
    Its own children see their pipes close; under systemd they end with the service.

    Its standard error goes to the log, line by line, at most ``STDERR_LINES_MAX`` lines in
    ``STDERR_WINDOW_S``; the rest is counted. It is always read, so that a talkative command is not stopped by
    a full pipe; one that floods it is slowed to ``STDERR_BYTES_PER_S``: the bridge has others to serve.

Not here: when to start it again (``adapters/pipe.py``).

Sources: pidfd_open(2), waitid(2), prctl(2), setsid(2).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Final

from towpath.errors import BindingFailed
from towpath.framing import FramingOptions, decoder
from towpath_broker.gateways.bridge.pipes import PIPE_IN_BYTES, PIPE_OUT_BYTES, grow_pipe, unread_bytes
from towpath_broker.gateways.bridge.stop import Stop
from towpath_broker.log import log

STDERR_LINES_MAX: Final = 100
STDERR_WINDOW_S: Final = 10.0
STDERR_BYTES_PER_S: Final = 1 << 22
"""Of one command; beyond it the command waits in its own write."""
_READ_BYTES: Final = 65_536
_PR_SET_PDEATHSIG: Final = 1

# Looked up here: between fork and exec nothing should be imported or looked up.
_prctl: Final = ctypes.CDLL(None, use_errno=True).prctl


class Command:
    """A started command.

    Args:
        argv: the command and its arguments; found through PATH, run without a shell.
        channel: for the log.
        reads: whether its standard input is a pipe (else it is empty).
        writes: whether its standard output is a pipe (else it is thrown away: it may contain payloads, and a
            log must not).

    Attributes:
        stdin, stdout: our ends, non-blocking; -1 where there is none.
        pid: of the process, and of its group.

    Raises:
        BindingFailed: it cannot be started. Not retryable when there is no such program, or it may not be
            run.
    """

    def __init__(self, argv: Sequence[str], *, channel: str, reads: bool, writes: bool) -> None:
        self._channel = channel
        self._process: subprocess.Popen[bytes] | None = None
        self.stdin = self._stdin_rest = self.stdout = self._stderr = self._pidfd = -1
        theirs: list[int] = []
        try:
            self._start(argv, reads, writes, theirs)
        except OSError as error:
            is_final = isinstance(error, (FileNotFoundError, PermissionError)) or error.errno == errno.ENOEXEC
            raise BindingFailed(
                f"cannot run {argv[0]!r}: {os.strerror(error.errno or 0)}",
                hint="is it installed, executable, and on the PATH of the daemon?",
                retryable=not is_final,
            ) from error
        finally:
            for descriptor in theirs:
                os.close(descriptor)

    def _start(self, argv: Sequence[str], reads: bool, writes: bool, theirs: list[int]) -> None:
        try:
            if reads:
                read_end, self.stdin = _pipe(theirs, 0, PIPE_OUT_BYTES)
            if writes:
                self.stdout, write_end = _pipe(theirs, 1, PIPE_IN_BYTES)
            self._stderr, error_end = _pipe(theirs, 1, 0)
            self._process = subprocess.Popen(
                argv,
                stdin=read_end if reads else subprocess.DEVNULL,
                stdout=write_end if writes else subprocess.DEVNULL,
                stderr=error_end,
                env=_environment(),
                start_new_session=True,
                preexec_fn=_death_with(os.getpid()),
            )
            self.pid = self._process.pid
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:
            self.destroy()
            raise

    async def wait_exited(self, stop: Stop) -> bool:
        """Wait until the process has exited; it is not reaped.

        Returns:
            False when stopping was asked for first.
        """
        return await stop.readable(self._pidfd)

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the process and all that it started and that stayed in its group."""
        os.killpg(self.pid, number)

    def close_stdin(self) -> None:
        """Let the command see the end of its input; we keep an eye on what it leaves unread."""
        if self.stdin >= 0:
            self._stdin_rest = os.open(
                f"/proc/self/fd/{self.stdin}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            )
            os.close(self.stdin)
            self.stdin = -1

    def unread_input_bytes(self) -> int:
        """How much of its input the command did not read, so far; known after ``close_stdin``."""
        return unread_bytes(self._stdin_rest) if self._stdin_rest >= 0 else 0

    def reap(self) -> int:
        """Let go of the process, which has exited.

        Returns:
            Its exit status, or minus the number of the signal that ended it.
        """
        assert self._process is not None
        return self._process.wait()

    def destroy(self) -> None:
        """End at once what has not been reaped, and close our ends."""
        if self._process is not None and self._process.returncode is None:
            self.signal_group(signal.SIGKILL)
            self._process.wait()  # not long: nothing can refuse SIGKILL
        self._close()

    def _close(self) -> None:
        for descriptor in (self.stdin, self._stdin_rest, self.stdout, self._stderr, self._pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        self.stdin = self._stdin_rest = self.stdout = self._stderr = self._pidfd = -1

    async def log_stderr(self, stop: Stop) -> None:
        """Hand its standard error to the log until it ends, or stop is set; what is there is handed on in any
        case."""
        lines = decoder(FramingOptions())
        window = _LogWindow(self._channel, self.pid)
        while True:
            try:
                data = os.read(self._stderr, _READ_BYTES)
            except BlockingIOError:
                if not await stop.readable(self._stderr):
                    break
                continue
            if not data:
                break
            window.log_lines(lines.feed(data))
            await asyncio.sleep(0)
            await stop.sleep(len(data) / STDERR_BYTES_PER_S)
        window.log_lines(lines.end())
        window.close()


class _LogWindow:
    """Logs a command's lines, within bounds."""

    def __init__(self, channel: str, pid: int) -> None:
        self._channel = channel
        self._pid = pid
        self._began_s = asyncio.get_running_loop().time()
        self._logged = 0
        self._suppressed = 0

    def log_lines(self, lines: Sequence[bytes]) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._began_s >= STDERR_WINDOW_S:
            self.close()
            self._began_s, self._logged = now_s, 0
        room = STDERR_LINES_MAX - self._logged
        for line in lines[:room]:
            log("bridge.stderr", channel=self._channel, pid=self._pid, line=line.decode(errors="replace"))
        self._logged += min(len(lines), room)
        self._suppressed += max(len(lines) - room, 0)

    def close(self) -> None:
        if self._suppressed:
            log("bridge.stderr_suppressed", channel=self._channel, pid=self._pid, lines=self._suppressed)
            self._suppressed = 0


def describe_exit(status: int) -> str:
    """Say for people how a process ended: ``exited with 1``, ``killed by SIGSEGV``."""
    if status >= 0:
        return f"exited with {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _pipe(theirs: list[int], their_end: int, size_bytes: int) -> tuple[int, int]:
    """Make a pipe (read end, write end); ours does not block, theirs is noted to be closed after the
    start."""
    ends = os.pipe2(os.O_CLOEXEC)
    theirs.append(ends[their_end])
    os.set_blocking(ends[1 - their_end], False)
    if size_bytes:
        grow_pipe(ends[1 - their_end], size_bytes)
    return ends


def _environment() -> dict[str, str]:
    """Ours, without what is between the daemon and its gateway."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TOWPATH_GATEWAY_")}


def _death_with(parent: int) -> Callable[[], None]:
    def prepare() -> None:
        """Runs in the child, between fork and exec. The bridge has one thread of Python's, and others take
        no lock that is needed here, so none can be held there."""
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a signal: binding that is full blocks its signal
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(127)  # it went away in between

    return prepare
