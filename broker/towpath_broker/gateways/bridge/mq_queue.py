"""One POSIX message queue, opened; and why it could not be. See mq_overview(7).

Theory of operation
    ``posix_ipc`` opens, sends and receives. On Linux its descriptor is a file descriptor: the event loop
    waits for it as for any other. A queue's removal wakes nobody who waits for messages, but its inode's
    link count falls to 0, and inotify(7) tells of that, also where /dev/mqueue is not mounted.

    The kernel's bounds are read when a queue cannot be made, so that the error says which bound it was and
    who may raise it.

Invariants
    A queue is removed only if the bridge made it, its binding is no more, and nothing is in it.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path
from typing import Any, Final

from towpath.bindings import MqOptions
from towpath.errors import BindingFailed
from towpath_broker.gateways.bridge.inotify import IN_ATTRIB, PathWatcher
from towpath_broker.gateways.bridge.keeping import BindingKeeping
from towpath_broker.gateways.bridge.stop import Stop

try:
    import posix_ipc
except ImportError:  # the extra was not installed; told when a binding needs it
    posix_ipc = None

PRIORITY_MAX: Final = 32_767  # MQ_PRIO_MAX - 1
_LIMITS: Final = Path("/proc/sys/fs/mqueue")
_MESSAGE_COST_BYTES: Final = 96
"""What the kernel charges for each message beside its bytes: msg_msg and a tree node; see getrlimit(2)."""
_MADE: Final = "mq made"
_OPEN_ATTEMPTS: Final = 8
YIELDS_MAX: Final = 16
"""Of the processor, before the event loop waits for room: some tens of microseconds."""


class MqQueue:
    """One open queue, non-blocking.

    Args:
        name: with its slash.
        reads: for receiving; otherwise for sending.
        options: as parsed.
        keeping: knows, over a restart of the bridge, whether the queue was made here.

    Attributes:
        maxmsg, msgsize: the queue's own.
        was_made: it was made now, or by a predecessor.

    Raises:
        BindingFailed: it cannot be opened or made.
    """

    def __init__(self, name: str, *, reads: bool, options: MqOptions, keeping: BindingKeeping) -> None:
        if posix_ipc is None:
            raise BindingFailed(
                "mq: bindings need the Python package posix_ipc", hint="pip install 'towpath[mq]'"
            )
        self.name = name
        self._reads = reads
        self._options = options
        self._keeping = keeping
        self.was_made = False
        self._yields = 1
        self._queue = self._open()
        try:
            self._queue.block = False
            self.descriptor: int = self._queue.mqd
            self.maxmsg: int = self._queue.max_messages
            self.msgsize: int = self._queue.max_message_size
            self._recognise()
        except BaseException:
            self._queue.close()
            raise

    @property
    def waiting_count(self) -> int:
        """How many messages are in it."""
        count: int = self._queue.current_messages
        return count

    @property
    def description(self) -> str:
        """One line for the status."""
        stated = [
            f"{name} {value}"
            for name, value, is_so in (
                ("maxmsg", self._options.maxmsg, self._options.maxmsg in (None, self.maxmsg)),
                ("msgsize", self._options.msgsize, self._options.msgsize in (None, self.msgsize)),
            )
            if not is_so
        ]
        how = "made here" if self.was_made else "attached"
        other = f", not {' and '.join(stated)} as stated" if stated else ""
        return f"{how}: maxmsg {self.maxmsg}, msgsize {self.msgsize}{other}"

    def is_there(self) -> bool:
        """Whether the queue still has its name."""
        return os.fstat(self.descriptor).st_nlink > 0

    def watch(self, watcher: PathWatcher, removed: Stop) -> int:
        """Have a stop set when the queue is removed; ends with ``watcher.unwatch``."""
        watch = watcher.watch(
            f"/proc/self/fd/{self.descriptor}", IN_ATTRIB, lambda: None if self.is_there() else removed.set()
        )
        if not self.is_there():
            removed.set()
        return watch

    def receive_nowait(self, count_max: int, bytes_max: int) -> list[tuple[bytes, int]]:
        """Take what is there: messages and their priorities, the bounds as for a carrier."""
        taken: list[tuple[bytes, int]] = []
        receive = self._queue.receive
        with contextlib.suppress(posix_ipc.BusyError):  # that is all there is
            while bytes_max > 0 and len(taken) < count_max:
                message = receive()
                taken.append(message)
                bytes_max -= len(message[0])
        return taken

    def send_nowait(self, data: bytes, mark: int) -> bool:
        """As :meth:`Sink.send_nowait`."""
        try:
            self._queue.send(data, None, mark)
        except posix_ipc.BusyError:
            return False
        return True

    async def send_waiting(self, data: bytes, mark: int, stop: Stop) -> bool:
        """As :meth:`Sink.send_waiting`."""
        # A queue holds few messages, and the event loop's wait costs as much as sending all of them: give
        # the processor to whoever empties it first, fewer times where that has not paid.
        for _ in range(self._yields):
            os.sched_yield()
            if self.send_nowait(data, mark):
                self._yields = min(2 * self._yields, YIELDS_MAX)
                return True
        self._yields = max(self._yields // 2, 1)
        while not self.send_nowait(data, mark):
            if stop.is_set or not await stop.writable(self.descriptor):
                return False
        return True

    def close(self) -> None:
        """Close it; and remove it, where it was made here for a binding that is no more and is empty."""
        if self._keeping.is_over:
            self.unmake()
        self._queue.close()

    def unmake(self) -> None:
        """Remove it, where it was made here and is empty."""
        if not self.was_made:
            return
        if self.waiting_count == 0 and self.is_there():
            with contextlib.suppress(posix_ipc.Error):  # somebody else was quicker
                posix_ipc.unlink_message_queue(self.name)
        self._keeping.forget(_MADE)
        self.was_made = False

    def _open(self) -> Any:
        access = {"read": self._reads, "write": not self._reads}
        for _ in range(_OPEN_ATTEMPTS):
            try:
                return posix_ipc.MessageQueue(self.name, 0, **access)
            except posix_ipc.ExistentialError:
                if not self._options.create:
                    raise BindingFailed(
                        f"there is no message queue {self.name}",
                        hint="it is tried again; without create=false the bridge makes it",
                        retryable=True,
                    ) from None
            except (posix_ipc.Error, OSError, ValueError) as error:
                raise self._refused("opened", error) from error
            try:
                return self._make(access)
            except posix_ipc.ExistentialError:
                continue  # somebody made it in between
        raise BindingFailed(f"{self.name} comes and goes", retryable=True)

    def _make(self, access: dict[str, bool]) -> Any:
        maxmsg = self._options.maxmsg or min(_limit("msg_default", 10), _limit("msg_max", 10))
        msgsize = self._options.msgsize or min(_limit("msgsize_default", 8192), _limit("msgsize_max", 8192))
        try:
            queue = posix_ipc.MessageQueue(
                self.name,
                posix_ipc.O_CREX,
                mode=0o600,
                max_messages=maxmsg,
                max_message_size=msgsize,
                **access,
            )
        except posix_ipc.ExistentialError:
            raise
        except ValueError as error:
            raise _over_limit(self.name, maxmsg, msgsize) from error
        except (posix_ipc.Error, OSError) as error:
            raise _no_room(self.name, maxmsg, msgsize, error) from error
        self.was_made = True
        # Not by mq_open(3), which subtracts the umask.
        os.fchmod(queue.mqd, self._options.mode)
        return queue

    def _recognise(self) -> None:
        """Remember a queue that was made here, or see whether a predecessor had made it."""
        if self.was_made:
            self._keeping.store(_MADE, self.descriptor)
            return
        kept = self._keeping.take(_MADE)
        if kept >= 0:
            self.was_made = os.path.samestat(os.fstat(kept), os.fstat(self.descriptor))
            os.close(kept)
            if not self.was_made:
                self._keeping.forget(_MADE)

    def _refused(self, what: str, error: BaseException) -> BindingFailed:
        who = "read" if self._reads else "written to"
        if isinstance(error, posix_ipc.PermissionsError):
            return BindingFailed(
                f"the message queue {self.name} may not be {who} by uid {os.geteuid()}",
                hint="its owner can: chmod on /dev/mqueue, or mode= where it is made",
                retryable=True,
            )
        return BindingFailed(f"the message queue {self.name} cannot be {what}: {error}", retryable=True)


def _limit(name: str, default: int) -> int:
    """Read one of the kernel's bounds."""
    try:
        return int((_LIMITS / name).read_text())
    except (OSError, ValueError):
        return default


def _over_limit(name: str, maxmsg: int, msgsize: int) -> BindingFailed:
    """The error for what the kernel calls an invalid argument."""
    over = [
        f"{option}={value} is more than fs.mqueue.{limit}, {bound}"
        for option, value, limit, bound in (
            ("maxmsg", maxmsg, "msg_max", _limit("msg_max", 10)),
            ("msgsize", msgsize, "msgsize_max", _limit("msgsize_max", 8192)),
        )
        if value > bound
    ]
    return BindingFailed(
        f"the message queue {name} cannot be made: {'; '.join(over) or 'the kernel calls it invalid'}",
        hint="ask for less, or have root raise it: sysctl -w fs.mqueue.msg_max=N fs.mqueue.msgsize_max=N;"
        " longer messages go with split=true between two bindings",
    )


def _no_room(name: str, maxmsg: int, msgsize: int, error: BaseException) -> BindingFailed:
    """The error for a limit that other queues, or files, have used up."""
    if isinstance(error, posix_ipc.PermissionsError):
        return BindingFailed(f"uid {os.geteuid()} may not make the message queue {name}", retryable=True)
    needed_bytes = maxmsg * (msgsize + _MESSAGE_COST_BYTES)
    soft, _ = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    return BindingFailed(
        f"the message queue {name} cannot be made ({error}): it takes about {needed_bytes} bytes, and"
        f" RLIMIT_MSGQUEUE allows this user {'any' if soft == resource.RLIM_INFINITY else soft} in all queues"
        f" together; the host has room for fs.mqueue.queues_max={_limit('queues_max', 256)} queues",
        hint="smaller maxmsg and msgsize; remove queues that nobody uses; or LimitMSGQUEUE= in the unit,"
        " ulimit -q by hand",
        retryable=True,
    )
