"""A relay between a client and a gateway, which tests cut, stop and mend.

Theory of operation
    One thread accepts; for each connection two copy bytes, one each way, between UNIX sockets. While the
    relay is cut, what connects is closed at once; while it is stopped, nothing is copied and everything
    waits in the sockets.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Final

_CHUNK: Final = 1 << 16


class Relay:
    """Listens at ``path``, and connects to ``target``."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self._target = target
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._is_cut = False
        self._flows = threading.Event()
        self._flows.set()
        self._start(self._accept)

    def cut(self) -> None:
        """Break all connections, and all that come."""
        with self._lock:
            self._is_cut = True
            for each in self._open:
                # The threads that wait in them close them.
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        self._flows.set()

    def mend(self) -> None:
        """Let connections through again, and bytes."""
        with self._lock:
            self._is_cut = False
        self._flows.set()

    def stop(self) -> None:
        """Copy nothing until further notice."""
        self._flows.clear()

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, name="relay")  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            with self._lock:
                is_through = not self._is_cut and far.connect_ex(str(self._target)) == 0
                if is_through:
                    self._open |= {near, far}
            if is_through:
                ends = threading.Semaphore(0)
                self._start(self._copy, near, far, ends)
                self._start(self._copy, far, near, ends)
            else:
                near.close()
                far.close()

    def _copy(self, source: socket.socket, target: socket.socket, ends: threading.Semaphore) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                self._flows.wait()
                target.sendall(data)
        with self._lock:
            for each in (source, target):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        if ends.acquire(blocking=False):  # the other direction has ended too
            with self._lock:
                self._open -= {source, target}
            source.close()
            target.close()
        else:
            ends.release()
