"""Being told that somebody opened, closed or removed a path: inotify(7), one instance for the whole bridge.

Theory of operation
    A writer can wait in poll(2) for room in a FIFO, but for a reader's arrival there is no such wait: the
    kernel wakes nobody. Polling would cost an idle machine its rest. inotify tells of each open. One instance
    serves all bindings, because a user has few (``fs.inotify.max_user_instances``, 128) and many watches.

    An event says only "look again": whoever watches asks the kernel how things are. So lost, merged and late
    events do no harm, and after an overflow of the queue everybody looks.

Not here: what is looked at (``adapters/fifo.py``).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import struct
from collections.abc import Callable
from typing import Final

from towpath.errors import BindingFailed

IN_ATTRIB: Final = 0x0004
"""The link count changed: the path was removed."""
IN_CLOSE: Final = 0x0018
IN_OPEN: Final = 0x0020
IN_MOVE_SELF: Final = 0x0800
_IN_MASK_CREATE: Final = 0x1000_0000
"""Fail where there is a watch of this file already, instead of changing that one."""
_IN_Q_OVERFLOW: Final = 0x4000
_IN_IGNORED: Final = 0x8000
_EVENT: Final = struct.Struct("iIII")
_READ_BYTES: Final = 65_536

_libc: Final = ctypes.CDLL(None, use_errno=True)


class PathWatcher:
    """Calls back when something happens to a watched file. Used on one event loop.

    Raises:
        BindingFailed: the user has no inotify instance left.
    """

    def __init__(self) -> None:
        self._descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "instances")
        self._callbacks: dict[int, Callable[[], object]] = {}
        asyncio.get_running_loop().add_reader(self._descriptor, self._on_readable)

    def watch(self, path: str, mask: int, callback: Callable[[], object]) -> int:
        """Watch a file, followed through links. A file has one watch, whatever names lead to it.

        Args:
            path: e.g. ``/proc/self/fd/7`` for an open file.
            mask: which events.
            callback: called on the loop, with no more than the fact that something happened.

        Returns:
            The watch, for :meth:`unwatch`.

        Raises:
            BindingFailed: the user has no watch left; or another binding watches this file, which is then
                the same FIFO under another name.
        """
        mask |= _IN_MASK_CREATE
        watch = _checked(_libc.inotify_add_watch(self._descriptor, os.fsencode(path), mask), "watches")
        self._callbacks[watch] = callback
        return watch

    def unwatch(self, watch: int) -> None:
        """End a watch; the file may be gone already. -1 is none."""
        if watch < 0:
            return
        del self._callbacks[watch]
        _libc.inotify_rm_watch(self._descriptor, watch)

    def close(self) -> None:
        """End all watches."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._callbacks.clear()

    def _on_readable(self) -> None:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        happened: set[int] = set()
        offset = 0
        while offset < len(data):
            watch, mask, _, name_bytes = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + name_bytes
            if mask & _IN_Q_OVERFLOW:
                happened.update(self._callbacks)
            elif not mask & _IN_IGNORED:
                happened.add(watch)
        for watch in happened:
            # A callback may have ended another's watch; events of a watch that ended may still come.
            if watch in self._callbacks:
                self._callbacks[watch]()


def _checked(result: int, what: str) -> int:
    if result >= 0:
        return result
    error = ctypes.get_errno()
    if error == errno.EEXIST:
        raise BindingFailed(
            "another binding has the same FIFO, by a path through a link",
            hint="one place has one binding; remove one of the two",
            retryable=True,
        )
    raise BindingFailed(
        f"inotify: {os.strerror(error)}", hint=f"raise fs.inotify.max_user_{what}", retryable=True
    )
