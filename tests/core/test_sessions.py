"""Sessions and the ids they own."""

from __future__ import annotations

import pytest

from tests.core.harness import Client, Core, fingerprint, refusal, reply
from towpath.errors import InvalidArgument, LimitExceeded, PermissionDenied, QuotaExceeded
from towpath_broker.core import commands as c
from towpath_broker.core import effects as e
from towpath_broker.core.effects import Effect
from towpath_broker.core.ids import COUNTER_BITS, INCARNATION_MAX, ConnectionId, SessionId, end_id, first_id
from towpath_broker.core.limits import ID_BLOCKS_PER_SESSION_MAX, Limits


def allocate(client: Client, count: int) -> list[Effect]:
    return client.core.apply(c.AllocateIds(client.caller(), count))


def test_session_is_opened() -> None:
    core = Core()
    command = c.OpenSession(ConnectionId(7), "uid:1000", False, 4711, "sensor")
    (opened,) = core.apply(command)
    start = first_id(1)
    assert opened == e.SessionOpened(ConnectionId(7), SessionId(start), 1, "uid:1000", start + 1, 256)


def test_blocks_of_sessions_are_disjoint() -> None:
    core = Core()
    taken: set[int] = set()
    for _ in range(5):
        client = core.open()
        more = reply(allocate(client, 100), e.IdsAllocated)
        assert more.count == 100
        own = {client.session, *range(client.opened.first_id, client.opened.first_id + 256)}
        own |= set(range(more.first_id, more.first_id + 100))
        assert len(own) == 357
        assert not own & taken
        taken |= own
        client.close()


@pytest.mark.parametrize("count", [0, -1, 4097, 1 << 40])
def test_allocation_out_of_range(count: int) -> None:
    client = Core().open()
    refusal(allocate(client, count), InvalidArgument, "1 to 4096")


@pytest.mark.parametrize("count", [1, 4096])
def test_allocation_in_range(count: int) -> None:
    assert reply(allocate(Core().open(), count), e.IdsAllocated).count == count


def test_ids_run_out_one_day() -> None:
    core = Core()
    client = core.open()
    core.machine._sessions._next = end_id(1) - 100
    refusal(allocate(client, 101), LimitExceeded, "restart the daemon")
    (refused,) = core.apply(c.OpenSession(ConnectionId(9), "uid:1", False, 1, ""))
    assert isinstance(refused, e.SessionRefused) and isinstance(refused.error, LimitExceeded)
    assert reply(allocate(client, 100), e.IdsAllocated).first_id == end_id(1) - 100
    refusal(allocate(client, 1), LimitExceeded)
    assert end_id(1) == first_id(2) - 1


def test_incarnations_never_share_ids() -> None:
    assert first_id(INCARNATION_MAX) < 1 << 64
    assert first_id(2) - first_id(1) == 1 << COUNTER_BITS


def test_unused_ids_of_old_blocks_lapse_and_used_ones_live_on() -> None:
    core = Core()
    core.open().declare("a")
    client = core.open()
    source, _ = client.publish("a")
    for _ in range(ID_BLOCKS_PER_SESSION_MAX):
        reply(allocate(client, 1), e.IdsAllocated)
    refusal(client.publish("a", client.next_id())[1], InvalidArgument, "not of a block")
    reply(client.fetch(source), e.ReadersFetched)
    other = core.open()
    refusal(other.publish("a", source, resumed=True)[1], InvalidArgument, "in use")
    core.machine.assert_consistent()


def test_sessions_per_principal() -> None:
    core = Core(Limits(sessions_per_principal_max=2))
    first, _ = core.open("uid:1"), core.open("uid:1")
    core.open("uid:2")
    (refused,) = core.apply(c.OpenSession(ConnectionId(9), "uid:1", False, 1, ""))
    assert isinstance(refused, e.SessionRefused) and refused.connection == 9
    assert isinstance(refused.error, QuotaExceeded)
    assert "sessions_per_principal_max is 2" in str(refused.error)
    first.close()
    core.open("uid:1")


def test_sessions_in_all() -> None:
    core = Core(Limits(sessions_max=2))
    core.open("uid:1"), core.open("uid:2")
    (refused,) = core.apply(c.OpenSession(ConnectionId(9), "uid:3", False, 1, ""))
    assert isinstance(refused, e.SessionRefused) and isinstance(refused.error, LimitExceeded)


def test_closing_an_unknown_session_does_nothing() -> None:
    core = Core()
    client = core.open()
    client.close()
    before = fingerprint(core.machine)
    assert client.close() == []
    assert fingerprint(core.machine) == before


def test_a_session_that_is_closed_is_told_no_more() -> None:
    core = Core()
    client = core.open()
    client.declare("a")
    source, _ = client.publish("a")
    reader, _ = client.subscribe("a")
    client.close()
    for effects in (
        client.publish("a")[1],
        client.subscribe("a")[1],
        client.unpublish(source),
        client.unsubscribe(reader),
        client.watch(),
        client.get_binding(1),
        allocate(client, 1),
        core.apply(c.GetStatus(client.caller())),
        client.report({}),
        client.declare("a"),
        client.declare("..bad"),
    ):
        assert effects == []
    core.machine.assert_consistent()


# ---- which ids may be used ---------------------------------------------------------------------------------


def test_id_is_used_once() -> None:
    core = Core()
    client = core.open()
    client.declare("a")
    source, _ = client.publish("a")
    refusal(client.publish("a", source)[1], InvalidArgument, "in use")
    refusal(client.subscribe("a", source)[1], InvalidArgument, "in use")
    client.unpublish(source)
    refusal(client.publish("a", source)[1], InvalidArgument, "used before")
    refusal(client.subscribe("a", source)[1], InvalidArgument, "used before")


def test_refused_attach_leaves_the_id_unused() -> None:
    core = Core()
    client = core.open()
    client.declare("a")
    source = client.next_id()
    assert isinstance(client.publish("none", source)[1][0], e.Refuse)
    reply(client.publish("a", source)[1], e.SourceAttached)


def test_ids_of_others_and_of_nobody() -> None:
    core = Core()
    client, other = core.open(), core.open()
    client.declare("a")
    for identifier in (0, 1, other.session, other.opened.first_id, other.opened.first_id + 300, first_id(9)):
        refusal(client.publish("a", identifier)[1], InvalidArgument, "not of a block of this session's")


def test_resumed_ids() -> None:
    core = Core()
    client, other = core.open(), core.open()
    client.declare("a")
    source, _ = client.publish("a")
    refusal(other.publish("a", source, resumed=True)[1], InvalidArgument, "in use")
    client.unpublish(source)
    refusal(other.publish("a", source, resumed=True)[1], PermissionDenied, "session that is open")
    refusal(other.publish("a", client.next_id(), resumed=True)[1], PermissionDenied)
    client.close()
    reply(other.publish("a", source, resumed=True)[1], e.SourceAttached)
    for identifier in (0, core.machine._sessions._next, first_id(2), (1 << 64) - 1):
        refusal(other.publish("a", identifier, resumed=True)[1], InvalidArgument, "never given out")


def test_ids_of_an_earlier_incarnation_can_be_resumed() -> None:
    core = Core()
    core.open().declare("a")
    restarted = Core()
    restarted.machine = type(core.machine)()
    restarted.machine.restore(core.machine.snapshot())
    restarted.apply(restarted.machine.start_command())
    client = restarted.open()
    assert client.opened.incarnation == 2
    reply(client.publish("a", first_id(1) + 77, resumed=True)[1], e.SourceAttached)
    reply(client.subscribe("a", first_id(1) + 78, resumed=True)[1], e.Done)
