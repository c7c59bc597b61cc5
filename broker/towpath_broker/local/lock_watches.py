"""Who follows what happens to locks.

Theory of operation
    A watch begins with the locks that are in use (``current``), then gets what happens to those whose names
    begin as it asked. It never makes the door wait: what the socket does not take is counted instead
    (``missed``), and when it has been taken, ``current`` follows anew.

Invariants
    What a watch is told is in the order in which it happened, and a gap is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from towpath.v1 import locks_pb2
from towpath.v1.frame_pb2 import Frame
from towpath_broker.core.ids import CallId
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks.machine import LockMachine
from towpath_broker.core.locks.reports import IsSeen

from . import translate_lock_views, translate_locks

if TYPE_CHECKING:
    from .connection import Connection

UNSENT_BYTES_MAX: Final = 1 << 20


@dataclass(slots=True, eq=False)
class _Watch:
    connection: Connection
    call: CallId
    prefix: str
    is_seen: IsSeen
    is_current: bool = False
    missed: int = 0

    def follows(self, name: str) -> bool:
        """Whether what happens to a lock is told."""
        return name.startswith(self.prefix) and self.is_seen(name)


class LockWatches:
    """All of the door's.

    Args:
        look: has something done with the lock machine.
    """

    def __init__(self, look: Callable[[Callable[[LockMachine], None]], None]) -> None:
        self._look = look
        self._watches: dict[tuple[Connection, int], _Watch] = {}

    def add(self, connection: Connection, call: CallId, prefix: str, is_seen: IsSeen) -> None:
        """Begin a watch, of locks that are seen."""
        watch = self._watches[connection, call] = _Watch(connection, call, prefix, is_seen)
        self._look(lambda machine: self._tell_current(watch, machine))

    def is_watched(self, name: str) -> bool:
        """Whether somebody wants to know what happens to a lock."""
        return any(name.startswith(watch.prefix) for watch in self._watches.values())

    def cancel(self, connection: Connection, call: int) -> bool:
        """End one; whether there was one."""
        return self._watches.pop((connection, call), None) is not None

    def connection_closed(self, connection: Connection) -> None:
        """End all of a connection."""
        for key in [key for key in self._watches if key[0] is connection]:
            del self._watches[key]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._watches)

    def tell(self, effect: e.LockEffect) -> None:
        """Something has happened."""
        if not isinstance(effect, _TOLD):
            return
        grants = effect.grants
        concerned = [
            watch for watch in self._watches.values() for each in grants if each.lock.startswith(watch.prefix)
        ]
        for watch in dict.fromkeys(concerned):
            for response in _responses(effect, watch):
                self._send(watch, response)

    def tell_waits(self, waits: Iterable[locks_pb2.LockWait]) -> None:
        """A request has to wait."""
        if not self._watches:
            return
        for wait in waits:
            for watch in tuple(self._watches.values()):
                if watch.follows(wait.lock):
                    self._send(watch, locks_pb2.WatchLocksResponse(waiting=wait))

    def _send(self, watch: _Watch, response: locks_pb2.WatchLocksResponse) -> None:
        if not watch.is_current:
            return  # it is in what comes first
        if watch.missed or watch.connection.unsent_bytes > UNSENT_BYTES_MAX:
            if not watch.missed:
                watch.connection.when_sent(lambda: self._begin_anew(watch))
            watch.missed += 1
            return
        watch.connection.send(Frame(id=watch.call, watch_locks_response=response))

    def _begin_anew(self, watch: _Watch) -> None:
        if self._watches.get((watch.connection, watch.call)) is watch:
            response = locks_pb2.WatchLocksResponse(missed=watch.missed)
            watch.connection.send(Frame(id=watch.call, watch_locks_response=response))
            watch.missed = 0
            watch.is_current = False
            self._look(lambda machine: self._tell_current(watch, machine))

    def _tell_current(self, watch: _Watch, machine: LockMachine) -> None:
        if self._watches.get((watch.connection, watch.call)) is not watch:
            return
        after = ""
        while True:
            current = translate_lock_views.listed(
                machine.table, watch.prefix, after, 0, lambda _: True, watch.is_seen
            )
            response = locks_pb2.WatchLocksResponse(current=current)
            watch.connection.send(Frame(id=watch.call, watch_locks_response=response))
            after = current.next_page_token
            if not after:
                break
        watch.is_current = True


_TOLD: Final = (e.Granted, e.Released)


def _responses(effect: e.Granted | e.Released, watch: _Watch) -> list[locks_pb2.WatchLocksResponse]:
    match effect:
        case e.Granted():
            return [
                locks_pb2.WatchLocksResponse(
                    granted=translate_locks.grant_to_proto(grant, effect.session, effect.request)
                )
                for grant in effect.grants
                if watch.follows(grant.lock)
            ]
        case e.Released():
            return [
                locks_pb2.WatchLocksResponse(
                    released=locks_pb2.LockFreed(
                        grant=translate_locks.grant_to_proto(grant, effect.session, effect.request),
                        reason=locks_pb2.ReleaseReason.ValueType(effect.reason),
                    )
                )
                for grant in effect.grants
                if watch.follows(grant.lock)
            ]
