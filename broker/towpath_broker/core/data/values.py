"""A state: the last value, with a version.

Theory of operation
    Each set and each delete makes the next version; none is used twice. Watchers are told once per round, of
    what is then the newest: they see by the version what was in between. ``ShowValue`` has the shell write
    the page that local readers look at.

Invariants
    A durable value is in memory once somebody has asked for it (``machine.needs``).
"""

from __future__ import annotations

from typing import Final

from towpath.errors import ChannelUndeclared, LimitExceeded, MessageTooLarge, VersionConflict
from towpath_broker.core.commands import ChannelOptions
from towpath_broker.core.ids import CallId, SessionId

from .commands import AttachValue, DeleteValue, SetValue, WatchValue
from .effects import PresenceChanged, ShareValue, ShowValue, StreamEnded, ValueItem
from .round import Round
from .rows import PutValue, StoredChannel, StoredValue
from .shared import Shared, add_tally, remove_tally

NOTHING: Final = StoredValue()


class Watcher:
    """Attributes: told: the version that it knows; None: it has been told nothing."""

    __slots__ = ("call", "principal", "session", "state", "told")

    def __init__(
        self, state: State, session: SessionId, call: CallId, principal: str, told: int | None
    ) -> None:
        self.state = state
        self.session = session
        self.call = call
        self.principal = principal
        self.told = told

    def leave(self, round_: Round, *, is_orderly: bool) -> None:
        """It is not to be told any more."""
        self.state.remove_watcher(self, round_)


class State:
    """One state.

    Args:
        stored: what the store has of it; None: it is new.
    """

    def __init__(
        self,
        name: str,
        options: ChannelOptions,
        owner: str,
        declared_at_ns: int,
        shared: Shared,
        stored: StoredChannel | None = None,
    ) -> None:
        self.name = name
        self.options = options
        self.owner = owner
        self.declared_at_ns = declared_at_ns
        self.shared = shared
        self.value = NOTHING
        self.is_loaded = stored is None
        self.watchers: dict[tuple[SessionId, CallId], Watcher] = {}
        self._shown = NOTHING
        self._present = 0

    def load(self, value: StoredValue, round_: Round) -> None:
        """Take what the store has."""
        if not self.is_loaded:
            round_.undo.set(self, "value", value)
            round_.undo.set(self, "_shown", value)
            round_.undo.set(self, "is_loaded", True)
            self.shared.value_bytes.add(self.owner, _size(value), round_.undo)

    def set(self, command: SetValue, round_: Round) -> int:
        """Set the value; returns its version.

        Raises:
            VersionConflict: it has another version than the one stated.
            MessageTooLarge, LimitExceeded, QuotaExceeded: it is too much.
        """
        self._check_version(command.if_version)
        size = len(command.payload) + len(command.headers)
        if size > self.shared.limits.value_bytes_max:
            raise MessageTooLarge(
                f"a value of {size} bytes: value_bytes_max is {self.shared.limits.value_bytes_max}",
                hint="keep large things elsewhere, and their names here; or raise the limit",
            )
        more = size - _size(self.value)
        if more > 0:
            self.shared.value_bytes.check(self.owner, more)
        new = StoredValue(self.value.version + 1, True, command.payload, command.headers, round_.now_ns)
        return self._put(new, more, round_)

    def delete(self, command: DeleteValue, round_: Round) -> int:
        """Delete the value; returns the version that says so. Deleting nothing is a change, too.

        Raises:
            VersionConflict: it has another version than the one stated.
        """
        self._check_version(command.if_version)
        new = StoredValue(self.value.version + 1, False, b"", b"", round_.now_ns)
        return self._put(new, -_size(self.value), round_)

    def _check_version(self, expected: int | None) -> None:
        if expected is not None and expected != self.value.version:
            raise VersionConflict(
                f"the value of {self.name!r} has version {self.value.version}, not {expected}"
            )

    def _put(self, value: StoredValue, more: int, round_: Round) -> int:
        round_.undo.set(self, "value", value)
        self.shared.value_bytes.add(self.owner, more, round_.undo)
        if self.shared.is_durable:
            round_.rows.append(
                PutValue(
                    self.name,
                    value.version,
                    value.is_set,
                    value.payload,
                    value.headers,
                    value.changed_at_ns,
                )
            )
        round_.touch(self)
        return value.version

    # ---- watching ------------------------------------------------------------------------------------------

    def watch(self, command: WatchValue, round_: Round) -> None:
        """Tell the value, unless the watcher knows it, and then each change.

        Raises:
            InvalidArgument, LimitExceeded, QuotaExceeded: it may not.
        """
        session = self.shared.check_call(command.caller)
        limits, principal = self.shared.limits, command.caller.principal
        if len(self.watchers) >= limits.watchers_per_state_max:
            raise LimitExceeded(
                f"state {self.name!r} has {len(self.watchers)} watchers: watchers_per_state_max is"
                f" {limits.watchers_per_state_max}"
            )
        add_tally(self.shared.watchers, principal, limits.watchers_per_principal_max, round_.undo)
        watcher = Watcher(self, session, command.caller.call, principal, command.after_version)
        self.shared.add_stream(watcher, round_.undo)
        round_.undo.put(self.watchers, (session, watcher.call), watcher)
        round_.touch(self)

    def remove_watcher(self, watcher: Watcher, round_: Round) -> None:
        """Tell somebody no more."""
        round_.undo.remove(self.watchers, (watcher.session, watcher.call))
        remove_tally(self.shared.watchers, watcher.principal, round_.undo)
        self.shared.remove_stream(watcher, round_.undo)
        round_.touch(self)

    def attach(self, command: AttachValue, round_: Round) -> None:
        """Have the shell hand out the page."""
        assert command.caller.session is not None
        round_.effects.append(ShareValue(command.caller.session, command.caller.call, self.name, self.value))

    def finish(self, round_: Round) -> None:
        """Tell everybody what is new."""
        if self.value is not self._shown:
            round_.undo.set(self, "_shown", self.value)
            # Before any answer: whoever has set it sees it set.
            round_.effects.insert(0, ShowValue(self.name, self.value))
        for watcher in self.watchers.values():
            if watcher.told != self.value.version:
                round_.undo.set(watcher, "told", self.value.version)
                round_.effects.append(ValueItem(watcher.session, watcher.call, self.value))
        self._tell_presence(round_)

    def _tell_presence(self, round_: Round) -> None:
        if len(self.watchers) != self._present:
            round_.undo.set(self, "_present", len(self.watchers))
            round_.effects.append(PresenceChanged(self.name, 0, self._present))

    # ---- the outside ---------------------------------------------------------------------------------------

    def close(self, round_: Round) -> None:
        """The channel is gone, and its value."""
        for watcher in tuple(self.watchers.values()):
            self.remove_watcher(watcher, round_)
            error = ChannelUndeclared(f"state {self.name!r} was undeclared")
            round_.effects.append(StreamEnded(watcher.session, watcher.call, error))
        self._tell_presence(round_)
        self.shared.value_bytes.add(self.owner, -_size(self.value), round_.undo)
        round_.effects.append(ShowValue(self.name, None))

    def next_deadline_ns(self, now_ns: int) -> int | None:
        """Nothing happens by itself."""
        return None

    def keep(self, now_ns: int) -> None:
        """Nothing is left over of a round."""


def _size(value: StoredValue) -> int:
    return len(value.payload) + len(value.headers)
