"""Watching the registry of this host's daemon, waiting in the caller's thread."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from towpath import convert, model
from towpath.errors import Cancelled, ConnectionLost, Timeout, TowpathError
from towpath.sync.api import Watch
from towpath.v1.frame_pb2 import Frame
from towpath.waiting import CALL_TIMEOUT_S, FOREVER, deadline_ns, remaining_ns

if TYPE_CHECKING:
    from towpath.sync.client import LocalClient


class LocalWatch(Watch):
    """A watch that goes through the door."""

    def __init__(self, client: LocalClient, after_revision: int | None) -> None:
        self._client = client
        self._events: deque[model.WatchEvent | TowpathError] = deque()
        self._arrived = threading.Condition()
        self._call_id = 0
        self._start(deadline_ns(CALL_TIMEOUT_S), after_revision)

    def _start(self, deadline: int | None, after_revision: int | None = None) -> None:
        with self._client._connection.asking(deadline):
            self._call_id = self._client._protocol.watch(self._handle, after_revision)

    def _handle(self, answer: Frame | TowpathError) -> None:
        item = convert.watch_item(answer)
        with self._arrived:
            self._events.append(item)
            self._arrived.notify()

    def receive(self, timeout: float | None = None) -> model.WatchEvent:
        deadline = deadline_ns(timeout)
        self._client._check_not_forked()
        with self._arrived:
            while not self._events:
                left = remaining_ns(deadline)
                if left == 0 or not self._arrived.wait(None if left == FOREVER else left / 1e9):
                    raise Timeout("nothing changed")
            item = self._events.popleft()
        if isinstance(item, ConnectionLost) and not self._client._is_over:
            self._start(deadline)
            return model.WatchEvent("reset", 0)
        if isinstance(item, TowpathError):
            raise item
        return item

    def close(self) -> None:
        with self._client._sending():
            self._client._protocol.cancel(self._call_id)
        self._handle(Cancelled("the watch was closed"))
