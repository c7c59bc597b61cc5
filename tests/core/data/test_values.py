"""States: versions, watchers, what is shown; and what is wrong of a kind."""

from __future__ import annotations

import pytest

from tests.core.data.rig import Rig
from towpath.errors import (
    ChannelNotFound,
    InvalidArgument,
    MessageTooLarge,
    NotSupported,
    QuotaExceeded,
    VersionConflict,
)
from towpath_broker.core.commands import ChannelOptions, Kind
from towpath_broker.core.data import commands as c
from towpath_broker.core.data import effects as e
from towpath_broker.core.ids import SessionId
from towpath_broker.core.limits import Limits


def rig(*, is_durable: bool = True, limits: Limits | None = None) -> Rig:
    options = ChannelOptions(kind=Kind.STATE, durable=is_durable)
    queue = ChannelOptions(kind=Kind.QUEUE, durable=is_durable)
    return Rig({"s": options, "t": options, "q": queue}, is_durable=is_durable, limits=limits)


def items(shown: list[e.Effect]) -> list[tuple[int, bytes]]:
    return [(each.value.version, each.value.payload) for each in shown if isinstance(each, e.ValueItem)]


@pytest.mark.parametrize("is_durable", [False, True])
def test_versions_grow_by_one_and_are_never_used_twice(is_durable: bool) -> None:
    it = rig(is_durable=is_durable)
    assert it.ask(c.GetValue(it.caller(), "s"), e.ValueTold).value.version == 0
    assert it.ask(c.SetValue(it.caller(), "s", b"a", if_version=0), e.ValueSet).version == 1
    it.refused(c.SetValue(it.caller(), "s", b"b", if_version=0), VersionConflict)
    assert it.ask(c.DeleteValue(it.caller(), "s"), e.ValueDeleted).version == 2
    told = it.ask(c.GetValue(it.caller(), "s"), e.ValueTold).value
    assert (told.version, told.is_set, told.payload) == (2, False, b"")
    if is_durable:
        it.start()
    assert it.ask(c.SetValue(it.caller(), "s", b"c"), e.ValueSet).version == 3


def test_watchers_are_told_the_newest_of_each_round() -> None:
    it = rig()
    it.ask(c.SetValue(it.caller(), "s", b"a"), e.ValueSet)
    watcher, knows = it.caller(2), it.caller(3)
    assert items(it.run(c.WatchValue(watcher, "s"))) == [(1, b"a")]
    assert items(it.run(c.WatchValue(knows, "s", after_version=1))) == []
    shown = it.run(c.SetValue(it.caller(), "s", b"b"), c.SetValue(it.caller(), "s", b"c"))
    assert items(shown) == [(3, b"c"), (3, b"c")]
    assert [each.value.version for each in shown if isinstance(each, e.ShowValue) and each.value] == [3]
    it.run(c.CancelCall(SessionId(2), watcher.call), c.EndSession(SessionId(3)))
    assert items(it.run(c.SetValue(it.caller(), "s", b"d"))) == []


def test_values_are_bounded() -> None:
    it = rig(limits=Limits(value_bytes_max=10, values_bytes_per_principal_max=15))
    it.refused(c.SetValue(it.caller(), "s", b"x" * 11), MessageTooLarge)
    it.ask(c.SetValue(it.caller(), "s", b"x" * 10), e.ValueSet)
    it.refused(c.SetValue(it.caller(), "t", b"x" * 6), QuotaExceeded)
    it.ask(c.DeleteValue(it.caller(), "s"), e.ValueDeleted)
    it.ask(c.SetValue(it.caller(), "t", b"x" * 6), e.ValueSet)


def test_closing_a_state_ends_its_watches_and_its_page() -> None:
    it = rig()
    it.run(c.WatchValue(it.caller(), "s"))
    shown = it.run(c.CloseChannel("s"))
    assert [type(each) for each in shown] == [e.StreamEnded, e.PresenceChanged, e.ShowValue]


def test_the_wrong_kind_is_refused() -> None:
    it = rig()
    it.refused(c.Publish(it.caller(), "s", [b"a"]), InvalidArgument)
    it.refused(c.GetValue(it.caller(), "q"), InvalidArgument)
    it.refused(c.Consume(it.caller(), "s"), InvalidArgument)
    it.refused(c.ReadStored(it.caller(), "q", 1), InvalidArgument)
    it.refused(c.GetValue(it.caller(), "none"), ChannelNotFound)


def test_a_transaction_needs_parts_and_durable_channels() -> None:
    it = rig()
    it.refused(c.CommitTransaction(it.caller(), "t"), InvalidArgument)
    values = [c.SetValue(it.caller(), "s", b"x")]
    it.refused(c.CommitTransaction(it.caller(), "t" * 129, values=values), InvalidArgument)
    memory = rig(is_durable=False)
    memory.refused(c.CommitTransaction(memory.caller(), "t", values=values), NotSupported)


def test_transactions_are_each_principals_own_and_forgotten_in_time() -> None:
    it = rig()
    values = [c.SetValue(it.caller(), "s", b"x")]
    assert it.ask(c.CommitTransaction(it.caller(), "t", values=values), e.Committed).values == (1,)
    other = it.caller(principal="uid:8")
    assert it.ask(c.CommitTransaction(other, "t", values=values), e.Committed).values == (2,)
    it.start()
    again = it.ask(c.CommitTransaction(it.caller(), "t", values=values), e.Committed)
    assert (again.values, again.is_repeated) == ((1,), True)
    it.advance(600_001)
    assert it.ask(c.CommitTransaction(it.caller(), "t", values=values), e.Committed).values == (3,)
