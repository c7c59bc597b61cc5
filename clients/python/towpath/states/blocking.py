"""A state's value, waiting in the caller's thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from towpath import model
from towpath._value import Value
from towpath.errors import ConnectionLost, LimitExceeded, NotSupported, Timeout, VersionConflict
from towpath.handles import Handle
from towpath.locks.model import Fence
from towpath.names import check_name
from towpath.result import attempt
from towpath.waiting import FOREVER, Buffer, deadline_ns, remaining_ns

from . import requests
from .page import Page
from .requests import WatchState

if TYPE_CHECKING:
    from towpath.sync.kinds import Kinds

T = TypeVar("T")


class State(Handle):
    """One state channel by name; asks nobody until it is used. Any number of threads may use it.

    Attributes:
        name: the channel's name.
    """

    def __init__(self, client: Kinds, name: str) -> None:
        self.name = check_name(name)
        self._client = client
        self._page: Page | None = None
        self._is_paged = True

    def get(self) -> Value | None:
        """Return the value; None when there is none. On the daemon's host this reads shared memory, and asks
        nobody.

        Raises:
            ChannelNotFound, InvalidArgument (no state), Unavailable, ConnectionLost, Timeout.
        """
        page = self._page
        if page is not None and page.is_current and (value := page.get()) is not False:
            return value
        value = self.look()
        return value if value.is_set else None

    def look(self) -> Value:
        """The same, but a :class:`towpath.Value` also when there is none: with the version that says so, for
        a compare-and-set.
        """
        page = self._page
        if page is not None and page.is_usable and (value := page.look()) is not False:
            return value
        if self._is_paged:
            try:
                self._page = page = self._client._value_page(self.name)
            except (NotSupported, LimitExceeded):
                self._is_paged, page = False, None
            if page is not None and (value := page.look()) is not False:
                return value
        return self._client._call(requests.get(self.name))

    def set(
        self,
        payload: Buffer,
        *,
        if_version: int | None = None,
        headers: model.Headers | None = None,
        fence: Fence | None = None,
    ) -> int:
        """Set the value; on disk when this returns, where the state is durable.

        Args:
            payload: any bytes-like object.
            if_version: only if the value has this version now; 0: only if nothing was ever set.
            headers: what is kept beside it.
            fence: only if a lock is held by this token now: ``guard.fence``.

        Returns:
            The new version.

        Raises:
            VersionConflict: it has another version; nothing was changed.
            Fenced: the lock is not held so any more; nothing was changed.
            MessageTooLarge, LimitExceeded, QuotaExceeded, StoreFull: nothing was changed.
            ConnectionLost, Timeout: it is not known whether it was.
            ChannelNotFound, InvalidArgument (no state).
        """
        call = requests.put(self.name, payload, if_version=if_version, headers=headers, fence=fence)
        return self._client._call(call)

    def delete(self, *, if_version: int | None = None, fence: Fence | None = None) -> int:
        """Delete the value; returns the version that says so. Errors as for :meth:`set`."""
        return self._client._call(requests.delete(self.name, if_version=if_version, fence=fence))

    def update(self, change: Callable[[Value | None], Buffer | None]) -> int:
        """Change the value by what it is: compare-and-set, again until nobody was quicker, after pauses of
        chance length up to 50 ms.

        Args:
            change: gets the value, or None, and returns what it shall be; None deletes it. It may be called
                more than once, and must do nothing else.

        Returns:
            The new version.

        Raises:
            VersionConflict: others were quicker, 64 times.
            As for :meth:`set`.
        """
        for tries in range(requests.UPDATE_ATTEMPTS):
            if tries:
                time.sleep(requests.update_pause_s(tries))
            value = self.look()
            payload = change(value if value.is_set else None)
            try:
                if payload is None:
                    return self.delete(if_version=value.version)
                return self.set(payload, if_version=value.version)
            except VersionConflict:
                continue
        raise VersionConflict(requests.quicker(self.name))

    def watch(self, after_version: int | None = None) -> ValueWatch:
        """Follow the value: as it is, unless it has this version, and then each change. Whoever is slow is
        told the newest, and sees by the version that there were others. Close it when done.

        Args:
            after_version: the version that is known already, 0 or more; None: none is.

        Raises:
            InvalidArgument: that is no version.
        """
        return ValueWatch(self._client, self.name, after_version)

    def close(self) -> None:
        """Let go of the page. More than once is fine."""
        page, self._page = self._page, None
        if page is not None:
            page.close()

    try_get = attempt(get)
    try_look = attempt(look)
    try_set = attempt(set)
    try_delete = attempt(delete)


class ValueWatch(Handle):
    """A value's changes, as an iterator; survives reconnections, and misses no newest value."""

    def __init__(self, client: Kinds, name: str, after_version: int | None) -> None:
        self._changed = threading.Condition()
        self._client = client
        self._state = WatchState(name, after_version, self._wake)
        self._closed = False
        self._leave = client._follow(self._state.request, self._state)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def receive(self, timeout: float | None = None) -> Value:
        """Return the next value, also one that is not set (deleted, or never set).

        Args:
            timeout: seconds to wait; None for ever, 0 not at all.

        Raises:
            Timeout: nothing changed.
            ChannelNotFound, ChannelUndeclared, InvalidArgument (no state), LimitExceeded: the watch has
            ended.
            ConnectionLost: the watch, or the client, was closed.
        """
        deadline = deadline_ns(timeout)
        with self._changed:
            while True:
                value = self._state.take()
                if value is not None:
                    return value
                if self._state.why_ended is not None:
                    raise self._state.why_ended.again()
                self._client._check_not_forked()
                left = remaining_ns(deadline)
                if left == 0:
                    raise Timeout(f"the value of {self._state.name} did not change in {timeout} s", hint="")
                self._changed.wait(None if left == FOREVER else left / 1e9)

    def __iter__(self) -> Iterator[Value]:
        """Yield values until the watch is closed; raises ChannelUndeclared when the channel goes."""
        while not self._closed:
            try:
                value = self.receive()
            except ConnectionLost:
                return
            yield value

    def close(self) -> None:
        """Stop watching; an iteration ends. More than once is fine."""
        if not self._closed:
            self._closed = True
            self._leave()
            self._state.ended(ConnectionLost("the watch was closed", hint=""))

    try_receive = attempt(receive)
