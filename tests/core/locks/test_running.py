"""What holds over crashes, reboots and time: tokens, sessions, leases; the codec; fences."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.locks.rig import MS, Rig, permits, shared, tallies
from towpath.errors import Fenced, InvalidArgument, InvalidConfiguration, SessionLost
from towpath_broker.core.locks import codec, elections, snapshot
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks.commands import EndReason, LockCommand, Policy, Victim, Wanted
from towpath_broker.core.locks.fencing import check_fence
from towpath_broker.core.locks.leases import Leases
from towpath_broker.core.locks.limits import LockLimits
from towpath_broker.core.locks.machine import LockMachine


def again(rig: Rig, boot: str, *, lost: int = 0) -> Rig:
    """Start a core on a rig's journal, of which a loss of power may have taken the last records."""
    other = Rig.__new__(Rig)
    other.__dict__.update(rig.__dict__)
    other.machine = LockMachine()
    other.journal = rig.journal[: len(rig.journal) - lost]
    for record in other.journal:
        other.machine.apply(*codec.decode_command(record))
    other.do(c.Begin(boot, LockLimits()))
    return other


# ---- crashes and reboots -----------------------------------------------------------------------------------


def test_a_crash_of_the_core_leaves_holders_their_locks_and_waiters_their_places() -> None:
    rig = Rig()
    one, two, three = (rig.open() for _ in range(3))
    held = rig.acquire(one, "a")
    token = rig.token(one, held)
    second, third = rig.acquire(two, "a"), rig.acquire(three, "a")
    rig = again(rig, "boot-1")
    check_fence(rig.machine.table, "a", token)
    rig.do(c.Acquire(two, 0, second, (Wanted("a"),)))
    assert rig.effects == [e.Waiting(two, second)]
    rig.release(one, held)
    assert rig.granted() == [(two, second)]
    assert rig.token(two, second) > token
    rig.release(two, second)
    assert rig.granted() == [(three, third)]


def test_tokens_grow_over_a_reboot_that_lost_the_last_records() -> None:
    rig = Rig()
    session = rig.open()
    highest = 0
    for _ in range(20):
        request = rig.acquire(session, "a")
        highest = rig.token(session, request)
        rig.release(session, request)
    rig = again(rig, "boot-2", lost=30)
    session = rig.open()
    assert rig.token(session, rig.acquire(session, "a")) > highest


def test_a_reboot_ends_local_sessions_and_grants_at_once_where_no_lease_was_given() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    rig.acquire(one, "a")
    rig.acquire(two, "a")
    rig = again(rig, "boot-2")
    ended = [(each.session, each.reason) for each in rig.effects if isinstance(each, e.SessionEnded)]
    assert ended == [(one, EndReason.REBOOT), (two, EndReason.REBOOT)]
    rig.acquire(one, "a")
    assert isinstance(rig.error(), SessionLost)
    three = rig.open()
    assert three > two
    rig.acquire(three, "a")
    assert len(rig.granted()) == 1


def test_after_a_reboot_nothing_is_granted_before_the_longest_lease_has_passed() -> None:
    """Not even what the journal does not know of: a remote holder's grant may be among the records that were
    lost."""
    rig = Rig()
    remote = rig.open(lease_ms=30_000)
    rig.acquire(remote, "a")
    rig.open(lease_ms=5_000)
    rig = again(rig, "boot-2", lost=2)
    local = rig.open()
    rig.acquire(local, "a", timeout_ms=0)
    assert "lately" in str(rig.error())
    waiting = rig.acquire(local, "a", shared("b"))
    assert rig.waits(local, waiting)
    settled_at_ns = rig.machine.next_deadline_ns()
    assert settled_at_ns is not None
    assert rig.at(29_000) == []
    rig.now_ns = settled_at_ns
    rig.do(c.Tick())
    assert rig.granted() == [(local, waiting)]
    later = rig.open()
    rig.acquire(later, "c")
    assert len(rig.granted()) == 1


def test_a_second_reboot_does_not_end_the_quiet_time() -> None:
    rig = Rig()
    remote = rig.open(lease_ms=30_000)
    rig.acquire(remote, "a")
    rig = again(rig, "boot-2")
    settled_at_ns = rig.machine.next_deadline_ns()
    rig.acquire(rig.open(), "a")
    rig.at(5_000)
    rig = again(rig, "boot-3", lost=1)
    assert rig.machine.next_deadline_ns() == settled_at_ns


def test_leases_of_sessions_that_have_ended_make_no_quiet_time() -> None:
    rig = Rig()
    rig.end(rig.open(lease_ms=30_000), EndReason.SESSION_CLOSED)
    rig = again(rig, "boot-1")
    rig.acquire(rig.open(), "a")
    rig = again(rig, "boot-2")
    assert rig.machine.next_deadline_ns() is None


def test_deadlines_of_waits_that_ended_early_are_forgotten() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    held = rig.acquire(one, "a")
    for _ in range(3_000):
        waiting = rig.acquire(two, "a", timeout_ms=3_600_000)
        rig.release(one, held)
        one, two, held = two, one, waiting
    assert len(rig.machine.table.deadlines) <= 1_003
    leases = Leases()
    leases.open(1, 3_000, 0, expires_connected=True)
    for at in range(3_000):
        leases.heard(1, at)
    assert leases.take_expired(2_998 + 3_000 * MS) == []
    assert leases.take_expired(2_999 + 3_000 * MS) == [1]


def test_a_crash_does_not_hold_anybody_up() -> None:
    rig = Rig()
    rig.open(lease_ms=30_000)
    rig = again(rig, "boot-1")
    session = rig.open()
    rig.acquire(session, "a")
    assert len(rig.granted()) == 1


def test_what_must_be_synced_is_asked_for_before_it_is_used() -> None:
    machine = LockMachine()
    machine.apply(c.Begin("boot-1"), 1)
    acquire = c.Acquire(1, 0, 1, (Wanted("a"), Wanted("b")))
    reserve = machine.reservation([c.OpenSession("uid:1", lease_ms=9_000), acquire])
    assert reserve is not None
    assert reserve.tokens_end > 2
    assert reserve.lease_ms == 9_000
    machine.apply(reserve, 2)
    assert machine.reservation([acquire]) is None
    longer = machine.reservation([c.OpenSession("uid:1", lease_ms=9_001)])
    assert longer is not None
    assert longer.tokens_end >= reserve.tokens_end


# ---- leases ------------------------------------------------------------------------------------------------


def test_a_session_with_a_lease_may_come_back_within_it() -> None:
    leases = Leases()
    leases.open(1, 5_000, 0)
    assert leases.next_deadline_ns() is None, "connected"
    assert leases.disconnected(1, 1_000 * MS)
    assert leases.next_deadline_ns() == 6_000 * MS
    leases.open(1, 5_000, 2_000 * MS)
    assert leases.take_expired(9_000 * MS) == []
    assert leases.disconnected(1, 9_000 * MS)
    assert leases.take_expired(13_999 * MS) == []
    assert leases.take_expired(14_000 * MS) == [1]
    assert leases.next_deadline_ns() is None


def test_a_session_without_a_lease_ends_with_its_connection_but_has_a_grace_after_a_crash() -> None:
    leases = Leases()
    leases.open(1, 0, 0)
    assert not leases.disconnected(1, 0)
    leases.recovered(2, 0, 500, 0)
    leases.recovered(3, 9_000, 500, 0)
    assert leases.take_expired(500 * MS) == [2]
    leases.open(3, 9_000, 600 * MS)
    assert leases.next_deadline_ns() is None


def test_where_the_carrier_cannot_tell_a_session_must_be_heard_of() -> None:
    leases = Leases()
    leases.open(1, 3_000, 0, expires_connected=True)
    leases.heard(1, 2_000 * MS)
    leases.heard(7, 2_000 * MS)
    assert leases.take_expired(4_999 * MS) == []
    assert leases.take_expired(5_000 * MS) == [1]
    leases.close(1)
    assert not leases.disconnected(1, 0)


# ---- fences ------------------------------------------------------------------------------------------------


def test_only_the_grant_that_counts_passes_a_fence() -> None:
    rig = Rig()
    table = rig.machine.table
    one, two = rig.open(), rig.open()
    held = rig.acquire(one, "a")
    token = rig.token(one, held)
    waiting = rig.acquire(two, "a")
    check_fence(table, "a", token)
    for name, wrong in (("a", token + 1), ("a", 0), ("b", token)):
        with pytest.raises(Fenced):
            check_fence(table, name, wrong)
    rig.end(one, EndReason.LEASE_EXPIRED)
    newer = rig.token(two, waiting)
    check_fence(table, "a", newer)
    with pytest.raises(Fenced, match=f"there has been {newer} since"):
        check_fence(table, "a", token)
    rig.release(two, waiting)
    with pytest.raises(Fenced, match="nobody holds it"):
        check_fence(table, "a", newer)


def test_every_reader_and_every_holder_of_permits_passes() -> None:
    rig = Rig()
    for wants in (shared("a"), permits("s", 1, 2)):
        sessions = [rig.open(), rig.open()]
        for session in sessions:
            request = rig.acquire(session, wants)
            check_fence(rig.machine.table, wants.name, rig.token(session, request))


def test_an_upgrade_ends_the_token_of_before() -> None:
    rig = Rig()
    session = rig.open()
    held = rig.acquire(session, shared("a"))
    before = rig.token(session, held)
    rig.upgrade(session, held)
    check_fence(rig.machine.table, "a", rig.token(session, held))
    with pytest.raises(Fenced):
        check_fence(rig.machine.table, "a", before)


# ---- elections ---------------------------------------------------------------------------------------------


def test_who_leads_and_since_when() -> None:
    rig = Rig()
    table = rig.machine.table
    one, two = rig.open(), rig.open()
    assert elections.leader(table, "boss") is None
    first = rig.acquire(one, "boss", note="10.0.0.1:80")
    rig.acquire(two, "boss", note="10.0.0.2:80")
    leader = elections.leader(table, "boss")
    assert leader is not None
    assert (leader.session, leader.note) == (one, "10.0.0.1:80")
    assert elections.candidates(table, "boss") == 1
    rig.release(one, first)
    following = elections.leader(table, "boss")
    assert following is not None
    assert (following.session, following.note) == (two, "10.0.0.2:80")
    assert following.term > leader.term


# ---- records -----------------------------------------------------------------------------------------------

COMMANDS: list[LockCommand] = [
    c.Begin("boot", LockLimits(locks_max=7)),
    c.Begin("boot"),
    c.Reserve(1 << 40, 30_000),
    c.Tick(),
    c.OpenSession("uid:1", "näme", 7, "place", 3_000, -4),
    c.OpenSession("uid:1"),
    c.EndSession(3, EndReason.LEASE_EXPIRED),
    c.Acquire(1, 2, 3, (Wanted("a"), Wanted("b", 3, 2, 5)), 50, True, True, "note"),
    c.Acquire(1, 0, 3, (Wanted("a"),)),
    c.Upgrade(1, 2, 0),
    c.Downgrade(1, 2),
    c.Release(1, 2),
    c.Release(1, 2, b"\x00\xff", True, True),
    c.Release(1, 2, None, False, True),
    c.Cancel(1, 2),
    c.WriteGuarded(1, 2, b""),
    c.WaitCondition(1, 2, "full", 9),
    c.NotifyCondition(1, 2, "full", 0),
    c.ArriveBarrier(1, 2, 3, "b", 4, 5, True, False, True),
    c.ForceRelease("uid:0", "a", 5, "stuck"),
    c.DeclareClaims(1, 2, {"a": 3}),
    c.DefineSpace("p", Policy.ORDERED, Victim.YOUNGEST, {"p.a": 1}),
    c.DefineSpace("p", Policy.BANKER, resources={"p.a": 1}),
    c.DefineSpace("p", is_removed=True),
    c.Delegate(1, "a", 7),
    c.Recall("a"),
    c.Recall("a", 3, c.PageHolder(1, 2, 9), (c.PageWaiter(1, 3, 4, -1), c.PageWaiter(2, 0, 5, 60))),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_a_record_says_all_of_its_command(command: LockCommand) -> None:
    decoded, now_ns = codec.decode_command(codec.encode_command(command, 1 << 60))
    assert decoded == command
    assert type(decoded) is type(command)
    assert now_ns == 1 << 60


@given(
    st.builds(
        c.Acquire,
        *[st.integers(0, 2**63)] * 3,
        st.lists(st.builds(Wanted, st.text(), *[st.integers(0, 2**31)] * 3), min_size=1, max_size=2).map(
            tuple
        ),
        st.integers(-1, 2**32),
        st.booleans(),
        st.booleans(),
        st.text(max_size=2),
    )
    | st.builds(
        c.Release,
        *[st.integers(0, 2**63)] * 2,
        st.none() | st.binary(max_size=3),
        st.booleans(),
        st.booleans(),
    ),
    st.integers(0, 2**63),
)
def test_what_is_encoded_quickly_is_encoded_alike(command: LockCommand, now_ns: int) -> None:
    quickly = codec.encode_command(command, now_ns)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(codec, "_QUICK", {})
        assert codec.encode_command(command, now_ns) == quickly


def test_every_command_has_a_record() -> None:
    assert {type(command) for command in COMMANDS} == set(LockCommand.__subclasses__()) == set(codec.NAMES)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"[]",
        b"{}",
        b'[1,2,"nothing"]',
        b'[1,2,"acquire",1]',
        b'[2,2,"tick"]',
        b'[1,2,"tick",3]',
        b"\xff",
    ],
)
def test_a_damaged_record_is_refused(record: bytes) -> None:
    with pytest.raises(InvalidConfiguration):
        codec.decode_command(record)


@pytest.mark.parametrize("state", [b"", b"{}", b'{"v":2}', b'{"v":1}'])
def test_a_damaged_snapshot_is_refused(state: bytes) -> None:
    with pytest.raises(InvalidConfiguration):
        snapshot.restore(LockMachine(), state)


def test_a_snapshot_of_everything() -> None:
    """What the walks have not: conditions, barriers, values, claims, wounds, quiet times."""
    rig = Rig()
    rig.space("bank", Policy.BANKER, resources={"bank.x": 2})
    rig.space("w", Policy.WOUND_WAIT)
    one, two, three = (rig.open(lease_ms=lease_ms, pid=4, name="n", place="p") for lease_ms in (0, 5_000, 0))
    rig.claim(one, x=2)
    rig.claim(two, x=1)
    rig.acquire(one, permits("bank.x", 2))
    rig.acquire(two, permits("bank.x", 1))
    young = rig.acquire(three, "w.a", is_guarded=True)
    rig.acquire(one, "w.a")
    rig.do(c.WriteGuarded(three, young, b"value"))
    monitor = rig.acquire(three, "m")
    rig.do(c.WaitCondition(three, monitor, "go", 10_000))
    rig.do(c.ArriveBarrier(two, 5, 99, "gate", 2))
    rig.do(c.ArriveBarrier(one, 6, 98, "latch", 2, is_latch=True, is_passing=True))
    state = snapshot.encode(rig.machine)
    assert json.loads(state)["barriers"][0]["name"] == "gate"
    restored = LockMachine()
    snapshot.restore(restored, state)
    assert snapshot.encode(restored) == state
    assert tallies(restored) == tallies(rig.machine)
    for command in (
        c.Acquire(one, 9, 1_000, (Wanted("m"),)),
        c.NotifyCondition(one, 1_000, "go"),
        c.Release(one, 1_000),
        c.ArriveBarrier(one, 7, 1_001, "gate", 2),
        c.EndSession(one, EndReason.SESSION_DIED),
        c.Tick(),
        c.EndSession(three, EndReason.SESSION_DIED),
    ):
        rig.now_ns += 20 * MS
        told = repr(rig.machine.apply(command, rig.now_ns))
        assert repr(restored.apply(command, rig.now_ns)) == told, command
    assert snapshot.encode(restored) == snapshot.encode(rig.machine)


def test_sessions_that_cannot_be() -> None:
    rig = Rig()
    for options in ({"lease_ms": 999}, {"lease_ms": 3_600_001}, {"name": "x" * 513}, {"priority": 1 << 31}):
        rig.do(c.OpenSession("uid:1", reference=5, **options))
        assert isinstance(rig.error(), InvalidArgument)
    assert rig.machine.statistics().sessions == 0
