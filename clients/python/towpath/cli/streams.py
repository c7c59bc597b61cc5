"""Standard input and output as file descriptors: large reads, batched writes, quiet ends.

Theory of operation
    Output is collected and written in large pieces; whoever collects decides when to flush
    (:class:`Output`). Python's own buffered ``sys.stdout`` is not used: what it holds at exit it writes
    once more, and complains when nobody reads. A reader that goes away (``towpath sub x | head -1``) is
    no error: writing raises :class:`OutputClosed`, and the process ends as any filter does, of SIGPIPE. A
    subscriber to a quiet channel would not write and so would not find out;
    :func:`leave_when_output_closes` lets a thread sleep in poll(2) until the kernel says so (POLLERR).

Not here: framing (``towpath.framing``), what is printed (``report``).

Sources: signal(7), pipe(7), poll(2); "Proper handling of SIGINT/SIGQUIT",
https://www.cons.org/cracauer/sigint.html
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import stat
import threading
from collections.abc import Iterator, Sequence
from typing import Final, NoReturn

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2
READ_BYTES: Final = 1 << 20
"""Bytes asked for at once; read(2) gives what there is, so a slow writer's lines are not held back."""
PENDING_BYTES_MAX: Final = 256 << 10
"""Bytes of output collected before they are written, come what may."""


class OutputClosed(Exception):
    """Whoever read our standard output does so no more."""


class StreamError(Exception):
    """Standard input or output failed; ``str()`` says how."""


class Output:
    """Standard output, collected and written in large pieces."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.pending_bytes = 0

    def write(self, pieces: Sequence[bytes]) -> None:
        """Collect, and write once more than ``PENDING_BYTES_MAX`` have come together.

        Raises:
            OutputClosed, StreamError: as from :meth:`flush`.
        """
        self._pieces += pieces
        self.pending_bytes += sum(map(len, pieces))
        if self.pending_bytes > PENDING_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Write all that was collected; waits while the reader is slow.

        Raises:
            OutputClosed: nobody reads.
            StreamError: it cannot be written: the disk is full, say.
        """
        pending = memoryview(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))
        self._pieces = []
        self.pending_bytes = 0
        while pending:
            try:
                pending = pending[os.write(STDOUT, pending) :]
            except BlockingIOError:
                # Somebody who shares the descriptor made it non-blocking; wait as if it were not.
                _wait(STDOUT, select.POLLOUT)
            except BrokenPipeError:
                raise OutputClosed from None
            except OSError as error:
                raise StreamError(f"cannot write to standard output: {error.strerror}") from None


def emit(text: str) -> None:
    """Write a text to standard output at once."""
    output = Output()
    output.write([text.encode("utf-8", "surrogateescape")])
    output.flush()


def warn(text: str) -> None:
    """Write one line, with the program's name before it, to standard error."""
    note(f"towpath: {text}")


def note(text: str) -> None:
    """Write one line to standard error."""
    show(f"{text}\n")


def show(text: str) -> None:
    """Write a text to standard error; where that is closed there is nobody to tell."""
    with contextlib.suppress(OSError):
        os.write(STDERR, text.encode("utf-8", "backslashreplace"))


def read_chunks() -> Iterator[bytes]:
    """Read standard input to its end, in chunks as they come.

    Raises:
        StreamError: it cannot be read: it is a directory, say.
    """
    while True:
        try:
            chunk = os.read(STDIN, READ_BYTES)
        except BlockingIOError:
            _wait(STDIN, select.POLLIN)
            continue
        except OSError as error:
            # A terminal whose other side was closed says EIO where a pipe says end of file.
            if error.errno == errno.EIO and is_terminal(STDIN):
                return
            raise StreamError(f"cannot read standard input: {error.strerror}") from None
        if not chunk:
            return
        yield chunk


def read_little(chunks: Iterator[bytes], bytes_max: int) -> tuple[bytes, bool]:
    """Read what standard input has now, without waiting for what may come later.

    Args:
        chunks: from :func:`read_chunks`.
        bytes_max: what is little: as soon as there is more, no more is read.

    Returns:
        What was read, and whether it was all there is.
    """
    data = b""
    poll = select.poll()
    poll.register(STDIN, select.POLLIN)
    while poll.poll(0):
        chunk = next(chunks, b"")
        if not chunk:
            return data, True
        data += chunk
        if len(data) > bytes_max:
            break
    return data, False


def input_bytes_left() -> int | None:
    """How many bytes standard input still has to give, where that can be known: of a regular file."""
    try:
        status = os.fstat(STDIN)
        if not stat.S_ISREG(status.st_mode):
            return None
        return max(status.st_size - os.lseek(STDIN, 0, os.SEEK_CUR), 0)
    except OSError:
        return None


def is_terminal(descriptor: int) -> bool:
    """Whether a descriptor is a terminal; a closed one is not."""
    return os.isatty(descriptor)


def columns(descriptor: int) -> int:
    """Columns to write in: what COLUMNS says, or the terminal, or 80."""
    stated = os.environ.get("COLUMNS", "")
    if stated.isascii() and stated.isdigit() and int(stated[:5]) > 0:
        return int(stated[:5])
    try:
        return os.get_terminal_size(descriptor).columns or 80
    except OSError:
        return 80


def open_missing_streams() -> None:
    """Make sure that descriptors 0 to 2 are taken.

    Were one closed (``towpath sub x >&-``), the daemon's socket would get its number, and output would go
    there. Opened the wrong way round, so that using it still fails with EBADF.
    """
    for descriptor in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if descriptor == STDIN else os.O_RDONLY)


def leave_when_output_closes() -> None:
    """From now on end the process as soon as nobody reads its output, when that is a pipe or a socket.

    Not when it is a FIFO with a name: there the next reader may be about to open it.
    """
    try:
        what = os.readlink(f"/proc/self/fd/{STDOUT}")
    except OSError:
        return
    if what.startswith(("pipe:[", "socket:[")):
        threading.Thread(target=_watch_output, name="output-watch", daemon=True).start()


class Asked(KeyboardInterrupt):
    """A signal has asked this process to leave, as Ctrl-C does.

    Attributes:
        number: the signal, of which the process is to end.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


def die_of(number: signal.Signals) -> NoReturn:
    """End the process by a signal, so that a shell sees what happened and does with its loop as it should.

    A shell shows 128 + number. The plain exit is for where the signal cannot be had: in another thread
    than the main one, and in process 1 of a container.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(128 + number)


def _wait(descriptor: int, events: int) -> None:
    poll = select.poll()
    poll.register(descriptor, events)
    poll.poll()


def _watch_output() -> None:
    # With no events asked for, poll(2) returns for POLLERR and POLLHUP alone: the last reader closed.
    _wait(STDOUT, 0)
    die_of(signal.SIGPIPE)
