"""``fifo:PATH``: a named pipe.

Theory of operation, inward
    The bridge opens the FIFO for reading and *also* for writing, and never writes. So there always is a
    writer, and when the last program that wrote goes away there is no end of file: no storm of empty reads,
    and the unfinished line it may have left is kept until somebody completes it. Reading stops while the
    channel's publishers wait, and the program then waits in its own write(2).

Theory of operation, outward
    Opening a FIFO for writing alone fails while nobody reads (ENXIO). So the bridge opens it for both, then
    for writing, and closes the first: it has a write end that outlives every reader, and a reader's open(2)
    never hangs. Whether anybody reads, poll(2) says; that this changed, inotify says. While nobody reads the
    state is ``waiting``, and what comes is held or dropped as ``outflow`` describes; what the last reader
    left unread goes to the next one.

What users should know
    *Several writers.* write(2) of at most PIPE_BUF (4096) bytes is atomic: such lines never mix. Larger
    writes of several programs may interleave, inside the kernel, before the bridge sees a byte: it cannot be
    repaired here. With ``line`` framing the damage ends at the next newline; with ``length`` and
    ``netstring`` write a frame with one write(2) of at most 4096 bytes, or have one writer.
    *Several readers* of an outgoing FIFO share its bytes, as with any pipe.
    *A writer that dies inside a line* leaves its half in front of the next writer's first line.
    *What exists already.* A FIFO at the path is adopted with its permissions as they are. Anything else is
    refused and left alone, and is not even opened. The path's last component may not be a symbolic link: a
    link in a directory that others may write to would choose the FIFO for us. Directories on the way may be
    links.
    *What is removed.* The FIFO that this binding made, when the binding ends or the bridge stops, if the path
    still leads to it (device and inode). A bridge that is killed leaves it; the next run adopts it, and then
    leaves it too, unless the supervisor kept it (below). While no FIFO is there, a shell's ``echo x > PATH``
    makes a file, which is refused afterwards: make the FIFO yourself where writers do not wait for the
    daemon.
    *A restart.* The supervisor keeps an inward FIFO open (``keeping``). So while the bridge is killed and
    started again, what was written stays in it, and who writes waits instead of getting EPIPE; its successor
    goes on with it, as its maker if the bridge was. Under systemd the same holds for the whole daemon: at its
    stop the FIFO stays, and an unfinished frame is kept too; of an outward one what was held for it, and
    whoever reads it does not notice. When the bridge is killed, who reads an outward FIFO sees its end, and
    the last frame may have been cut off. A daemon that is not started again leaves its FIFOs behind.
    *A path that was removed or replaced meanwhile* is noticed; the binding begins anew: it makes the FIFO
    again (unless ``create=no``), because what the binding stands for is that writers find one there. To be
    rid of the FIFO, unbind. That a directory above it was renamed is not noticed.
    *Access.* The bridge must be allowed to read and write the FIFO, whatever the direction.

Sources: fifo(7), pipe(7), open(2) (O_PATH), inotify(7).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Final

from towpath.bindings import FifoOptions
from towpath.errors import BindingFailed
from towpath.model import Direction
from towpath_broker.gateways.bridge.inflow import Ended, Inflow
from towpath_broker.gateways.bridge.inotify import IN_ATTRIB, IN_CLOSE, IN_MOVE_SELF, IN_OPEN, PathWatcher
from towpath_broker.gateways.bridge.keeping import BindingKeeping
from towpath_broker.gateways.bridge.outflow import Outflow
from towpath_broker.gateways.bridge.pipes import PIPE_IN_BYTES, PIPE_OUT_BYTES, grow_pipe, has_reader
from towpath_broker.gateways.bridge.ports import Carrier
from towpath_broker.gateways.bridge.publishing import Publishing
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.stop import Stop

_GONE: Final = IN_ATTRIB | IN_MOVE_SELF
_MADE: Final = "made"
_FOUND: Final = "found"
_REST: Final = "rest"
"""What is kept: a FIFO that was made here, one that was there, where in a frame reading stopped."""


class FifoAdapter:
    """One FIFO, one way.

    Args:
        path: absolute.
        direction: ``in`` or ``out``.
        options: as parsed.
        carrier: the channel.
        tally: the binding's account.
        watcher: the bridge's.
        keeping: what outlives the bridge.

    Raises:
        BindingFailed: direction ``both``: it would read back what it wrote.
    """

    def __init__(
        self,
        path: str,
        direction: Direction,
        options: FifoOptions,
        carrier: Carrier,
        tally: Tally,
        watcher: PathWatcher,
        keeping: BindingKeeping,
    ) -> None:
        if direction == "both":
            raise BindingFailed("a FIFO carries one way", hint="bind two FIFOs, one in and one out")
        self._path = path
        self._direction = direction
        self._options = options
        self._carrier = carrier
        self._tally = tally
        self._watcher = watcher
        self._keeping = keeping

    async def run(self, stop: Stop) -> None:
        """As :meth:`Adapter.run`.

        Raises:
            BindingFailed: the path is not a FIFO (not retryable), cannot be made or opened, or was removed
                (retryable).
            TowpathError: the channel takes or gives no more.
        """
        place = _Place(self._path, self._options, self._keeping)
        try:
            if self._direction == "in":
                await self._run_in(place, stop)
            else:
                await self._run_out(place, stop)
        finally:
            place.close()

    async def _run_in(self, place: _Place, stop: Stop) -> None:
        read_end = place.open(os.O_RDONLY)
        write_end = watch = -1
        publishing = Publishing(self._carrier, self._tally, hands_over=lambda: self._keeping.hands_over)
        inflow = Inflow(self._options.framing, publishing, self._tally)
        ending = stop.child()
        try:
            self._take_up(place, inflow)
            watch = self._watcher.watch(place.link, _GONE, lambda: None if place.is_there() else ending.set())
            write_end = place.open(os.O_WRONLY)
            place.set_mode()
            grow_pipe(read_end, PIPE_IN_BYTES)
            both_ends = place.open(os.O_RDWR)
            place.keep(both_ends)
            os.close(both_ends)
            self._tally.set_state("running")
            try:
                ended = await inflow.carry(read_end, ending)
            except asyncio.CancelledError:
                self._hand_over(place, inflow)
                raise
            if ended is Ended.STOPPED and self._hand_over(place, inflow):
                return
            was_removed = not place.is_there()
            place.remove()  # before the last read: nobody who comes now can write what would not be read
            if ended is Ended.STOPPED:
                ended = await inflow.carry_rest(read_end)
            await inflow.finish(is_whole=False)
        finally:
            self._watcher.unwatch(watch)
            os.close(read_end)
            if write_end >= 0:
                os.close(write_end)
        if ended is Ended.BROKEN:
            raise inflow.broken()
        if was_removed and not stop.is_set:
            raise place.removed()

    def _take_up(self, place: _Place, inflow: Inflow) -> None:
        """Go on with the frame inside which a predecessor was stopped, if it was in this very FIFO."""
        rest = self._keeping.take_bytes(_REST)
        if rest and place.was_kept:
            with contextlib.suppress(ValueError):  # its framing was another
                inflow.restore(rest)

    def _hand_over(self, place: _Place, inflow: Inflow) -> bool:
        """Leave everything as it is to a successor, if there may be one."""
        if not self._keeping.hands_over or not place.is_there():
            return False
        self._keeping.store_bytes(_REST, inflow.state())
        place.leave()
        return True

    async def _run_out(self, place: _Place, stop: Stop) -> None:
        both_ends = place.open(os.O_RDWR)
        try:
            write_end = place.open(os.O_WRONLY)
        finally:
            os.close(both_ends)
        ending = stop.child()

        def look() -> None:
            """See who is there; called whenever that may have changed."""
            if not place.is_there():
                ending.set()
                return
            if not has_reader(write_end):
                outflow.pause()
            elif not outflow.is_read:
                outflow.attach(write_end)
            if outflow.is_read:
                self._tally.set_state("running")
            else:
                self._tally.set_state("waiting", "nobody reads")

        def hands_over() -> bool:
            # What came out of a queue is not ours to keep: it goes back there.
            may_be = self._keeping.hands_over and not self._carrier.is_settled
            return may_be and stop.is_set and place.is_there()

        outflow = Outflow(
            self._options.framing,
            self._carrier,
            self._tally,
            when_absent=self._options.when_absent,
            look=look,
            hands_over=hands_over,
        )
        watch = -1
        try:
            grow_pipe(write_end, PIPE_OUT_BYTES)
            place.set_mode()
            rest = self._keeping.take_bytes(_REST)
            if rest and place.was_kept:
                with contextlib.suppress(ValueError):
                    outflow.restore(rest)
            place.forget_kept()  # were it kept on, who reads would not see the end when we are killed
            watch = self._watcher.watch(place.link, _GONE | IN_OPEN | IN_CLOSE, look)
            look()
            try:
                await outflow.run(ending)
            finally:
                if hands_over():
                    self._keeping.store_bytes(_REST, outflow.state())
                    place.keep(write_end)
                    place.leave()
        finally:
            self._watcher.unwatch(watch)
            os.close(write_end)
        if ending.is_set and not stop.is_set:
            raise place.removed()


class _Place:
    """The FIFO at a path: made or adopted, and removed if made.

    ``O_PATH`` opens the file without opening the FIFO; its type is looked at, and then that very file is
    opened through ``/proc/self/fd``. So nothing that is no FIFO is ever opened, and nobody can exchange it in
    between.

    Raises:
        BindingFailed: it is not a FIFO; or it cannot be made or opened.
    """

    def __init__(self, path: str, options: FifoOptions, keeping: BindingKeeping) -> None:
        self.path = path
        self.was_kept = False
        self._keeping = keeping
        self._mode = options.mode
        self._is_ours = False
        self._is_left = False
        if options.create:
            with _failure(f"cannot make {path}"), contextlib.suppress(FileExistsError):
                os.mkfifo(path, 0o600)
                self._is_ours = True
        with _failure(f"cannot open {path}"):
            self._handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._check()
            self._take_kept()
        except BaseException:
            self.close()
            raise

    def _take_kept(self) -> None:
        """See whether this is the FIFO that a predecessor had; if not, nobody needs that one any longer."""
        for what in (_MADE, _FOUND):
            kept = self._keeping.take(what)
            if kept < 0:
                continue
            if os.path.samestat(os.fstat(kept), os.fstat(self._handle)):
                self.was_kept = True
                self._is_ours = what == _MADE
            else:
                self._keeping.forget(what)
            os.close(kept)

    def keep(self, descriptor: int) -> None:
        """Have the FIFO outlive this process, with what is in it: both ends, so that writers find it read; or
        the end for writing, so that readers do not see the end of the file.
        """
        self._keeping.store(_MADE if self._is_ours else _FOUND, descriptor)

    def forget_kept(self) -> None:
        """Nobody else is to have it open any longer; whose it is, is known here."""
        for what in (_MADE, _FOUND):
            self._keeping.forget(what)

    def leave(self) -> None:
        """Leave the FIFO, and what is kept of it, to a successor."""
        self._is_left = True

    @property
    def link(self) -> str:
        """A path that leads to this very file, whatever happens to its name."""
        return f"/proc/self/fd/{self._handle}"

    def open(self, access: int) -> int:
        """Open the FIFO, non-blocking.

        Raises:
            BindingFailed: the bridge may not read and write it.
        """
        with _failure(f"cannot open {self.path}"):
            return os.open(self.link, access | os.O_NONBLOCK | os.O_CLOEXEC)

    def set_mode(self) -> None:
        """Give a FIFO that was made here the binding's permissions.

        Not by mkfifo(2), which subtracts the umask; and after opening it, which they may not allow.
        """
        if self._is_ours:
            with _failure(f"cannot set the permissions of {self.path}"):
                os.chmod(self.link, self._mode)

    def is_there(self) -> bool:
        """Whether the path still leads to this file."""
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self._handle))
        except OSError:
            return False

    def removed(self) -> BindingFailed:
        """The error for a path that leads elsewhere now."""
        return BindingFailed(f"{self.path} was removed or replaced", retryable=True)

    def remove(self) -> None:
        """Remove what was made here, if the path still leads to it."""
        if self._is_ours and self.is_there():
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self._is_ours = False

    def close(self) -> None:
        """Remove what was made here, and forget it; unless it is left to a successor."""
        if not self._is_left:
            self.remove()
            self.forget_kept()
        os.close(self._handle)

    def _check(self) -> None:
        found = os.fstat(self._handle)
        # In a directory that others may write to, what was made may have been exchanged before it was opened.
        self._is_ours = self._is_ours and found.st_uid == os.geteuid() and found.st_nlink == 1
        if stat.S_ISFIFO(found.st_mode):
            return
        self._is_ours = False
        if stat.S_ISLNK(found.st_mode):
            raise BindingFailed(f"{self.path} is a symbolic link", hint="name the FIFO itself")
        raise BindingFailed(
            f"{self.path} exists and is not a FIFO", hint="it was left alone; choose another path"
        )


@contextlib.contextmanager
def _failure(what: str) -> Iterator[None]:
    """Turn the host's refusals into the binding's, to be tried again: a directory may come, a permission
    change."""
    try:
        yield
    except OSError as error:
        raise BindingFailed(f"{what}: {os.strerror(error.errno or 0)}", retryable=True) from error
