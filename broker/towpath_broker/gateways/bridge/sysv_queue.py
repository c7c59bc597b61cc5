"""One System V message queue, opened; and why it could not be. See sysvipc(7), msgget(2), ftok(3).

Invariants
    A queue is removed only if the bridge made it, its binding is no more, and nothing is in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any, Final

from towpath.bindings import SysvOptions, parse_sysv_place
from towpath.errors import BindingFailed
from towpath_broker.gateways.bridge.keeping import BindingKeeping
from towpath_broker.gateways.bridge.sysv_helper import QueueGone

try:
    import sysv_ipc
except ImportError:  # the extra was not installed; told when a binding needs it
    sysv_ipc = None

TYPE_LIMIT: Final = (1 << 63) - 1
MESSAGE_BYTES_LIMIT: Final = 16 << 20
"""Whatever kernel.msgmax is: a buffer of this size is made for each message that is taken."""
_LIMITS: Final = Path("/proc/sys/kernel")
_MADE: Final = "sysv made"
_OPEN_ATTEMPTS: Final = 8


class SysvQueue:
    """One open queue.

    Args:
        place: as in the URL.
        options: as parsed.
        keeping: knows, over a restart of the bridge, whether the queue was made here.

    Attributes:
        key, identifier: the queue's.
        message_bytes_max: its largest message.
        was_made: it was made now, or by a predecessor.

    Raises:
        BindingFailed: it cannot be opened or made.
    """

    def __init__(self, place: str, *, options: SysvOptions, keeping: BindingKeeping) -> None:
        if sysv_ipc is None:
            raise BindingFailed(
                "sysv: bindings need the Python package sysv_ipc", hint="pip install 'towpath[sysv]'"
            )
        self.place = place
        self.key = key_of(place)
        self._options = options
        self._keeping = keeping
        self.was_made = False
        self.message_bytes_max = min(_limit("msgmax", 8192), MESSAGE_BYTES_LIMIT)
        self._queue = self._open()
        self.identifier: int = self._queue.id
        self._queue_bytes: int = self._queue.max_size
        self.message_bytes_max = min(self.message_bytes_max, self._queue_bytes)
        made = self._keeping.take_bytes(_MADE)
        self.was_made = self.was_made or made == b"%d" % self.identifier
        if self.was_made:
            self._keeping.store_bytes(_MADE, b"%d" % self.identifier)

    @property
    def waiting_count(self) -> int:
        """How many messages are in it; 0 when it is gone."""
        try:
            count: int = self._queue.current_messages
        except (sysv_ipc.Error, OSError):
            return 0
        return count

    @property
    def description(self) -> str:
        """One line for the status."""
        how = "made here" if self.was_made else "attached"
        return (
            f"{how}: key {self.key:#x}, id {self.identifier}, {self._queue_bytes} bytes in all,"
            f" {self.message_bytes_max} in a message"
        )

    def receive_nowait(self, kind: int, count_max: int, bytes_max: int) -> list[tuple[bytes, int]]:
        """Take what is there: messages and their types, the bounds as for a carrier.

        Raises:
            QueueGone: it was removed, and nothing had been taken.
        """
        taken: list[tuple[bytes, int]] = []
        receive = self._queue.receive
        try:
            while bytes_max > 0 and len(taken) < count_max:
                message = receive(False, type=kind)
                taken.append(message)
                bytes_max -= len(message[0])
        except sysv_ipc.BusyError:
            pass  # that is all there is
        except (sysv_ipc.Error, OSError) as error:
            if not taken:
                raise self._failed(error) from error
        return taken

    def send_nowait(self, data: bytes, kind: int) -> bool:
        """Send; False when there is no room.

        Raises:
            QueueGone: it was removed.
        """
        try:
            self._queue.send(data, False, type=kind)
        except sysv_ipc.BusyError:
            return False
        except (sysv_ipc.Error, OSError) as error:
            raise self._failed(error) from error
        return True

    def close(self) -> None:
        """Remove it, where it was made here for a binding that is no more and is empty."""
        if self._keeping.is_over and self.was_made:
            if self.waiting_count == 0:
                with contextlib.suppress(sysv_ipc.Error, OSError):  # somebody else was quicker
                    self._queue.remove()
            self._keeping.forget(_MADE)

    def _open(self) -> Any:
        for _ in range(_OPEN_ATTEMPTS):
            try:
                return sysv_ipc.MessageQueue(self.key, 0, max_message_size=self.message_bytes_max)
            except sysv_ipc.ExistentialError:
                if not self._options.create:
                    raise BindingFailed(
                        f"there is no System V message queue {self.place}",
                        hint="it is tried again; without create=false the bridge makes it",
                        retryable=True,
                    ) from None
            except (sysv_ipc.Error, OSError) as error:
                raise self._failed(error) from error
            try:
                queue = sysv_ipc.MessageQueue(
                    self.key,
                    sysv_ipc.IPC_CREX,
                    mode=self._options.mode,
                    max_message_size=self.message_bytes_max,
                )
            except sysv_ipc.ExistentialError:
                continue  # somebody made it in between
            except (sysv_ipc.Error, OSError) as error:
                raise BindingFailed(
                    f"the System V message queue {self.place} cannot be made: {error}",
                    hint=f"there is room for kernel.msgmni={_limit('msgmni', 32_000)} queues;"
                    " ipcs -q shows them, ipcrm -Q removes one",
                    retryable=True,
                ) from error
            self.was_made = True
            return queue
        raise BindingFailed(f"the System V message queue {self.place} comes and goes", retryable=True)

    def _failed(self, error: Exception) -> BindingFailed:
        if isinstance(error, sysv_ipc.PermissionsError):
            return BindingFailed(
                f"uid {os.geteuid()} may not use the System V message queue {self.place}",
                hint="ipcs -q shows its owner and permissions",
                retryable=True,
            )
        # EINVAL: there is no queue of this id any more; the arguments have been checked.
        is_gone = isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.EIDRM)
        if is_gone or isinstance(error, sysv_ipc.ExistentialError):
            return QueueGone(f"the System V message queue {self.place} was removed", retryable=True)
        return BindingFailed(f"the System V message queue {self.place} failed: {error}", retryable=True)


def key_of(place: str) -> int:
    """Return the key that a place stands for, signed as the host has it.

    Raises:
        BindingFailed: there is no file at its path.
    """
    parsed = parse_sysv_place(place)
    if isinstance(parsed, int):
        key = parsed
    else:
        path, project = parsed
        try:
            found = os.stat(path)
        except OSError as error:
            raise BindingFailed(
                f"no key for {place}: {path}: {os.strerror(error.errno or 0)}",
                hint="ftok(3) needs a file that is there",
                retryable=True,
            ) from error
        key = (project & 0xFF) << 24 | (found.st_dev & 0xFF) << 16 | found.st_ino & 0xFFFF
    return key - (1 << 32) if key >= 1 << 31 else key


def _limit(name: str, default: int) -> int:
    """Read one of the kernel's bounds."""
    try:
        return int((_LIMITS / name).read_text())
    except (OSError, ValueError):
        return default
