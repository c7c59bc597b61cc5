"""The core's own sources and readers: publishing over the socket, and channels in total order."""

from __future__ import annotations

import pytest

from tests.core.harness import Client, Core, fingerprint, notices, refusal, reply
from towpath.errors import ChannelNotFound, LimitExceeded
from towpath_broker.core import commands as c
from towpath_broker.core import effects as e
from towpath_broker.core.commands import Caller, Order, OwnFound
from towpath_broker.core.effects import Effect, StartAt
from towpath_broker.core.ids import CallId, ReaderId, SessionId, SourceId
from towpath_broker.core.limits import Limits
from towpath_broker.core.own import INTAKE_SLOTS


@pytest.fixture
def core() -> Core:
    made = Core()
    owner = made.open("uid:9")
    owner.declare("a")
    owner.declare("t", order=Order.TOTAL)
    return made


def publish(client: Client, channel: str, *payloads: bytes) -> list[Effect]:
    return client.core.apply(c.Publish(client.caller(), channel, payloads))


def added(effects: list[Effect], session: SessionId) -> list[e.SourceAdded]:
    """The sources that a session is told of, and nothing else."""
    told = notices(effects, session)
    assert all(isinstance(body, e.SourceAdded) for body in told), told
    return [body for body in told if isinstance(body, e.SourceAdded)]


def only(effects: list[Effect], kind: type) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kind)]


def opened_source(effects: list[Effect]) -> e.OpenOwnSource:
    (opened,) = only(effects, e.OpenOwnSource)
    assert isinstance(opened, e.OpenOwnSource)
    return opened


def opened_reader(effects: list[Effect]) -> e.OpenOwnReader:
    (opened,) = only(effects, e.OpenOwnReader)
    assert isinstance(opened, e.OpenOwnReader)
    return opened


# ---- over the socket ---------------------------------------------------------------------------------------


def test_the_source_is_made_once_and_told_to_whom_it_concerns(core: Core) -> None:
    client, subscriber = core.open("uid:1"), core.open("uid:2")
    reader, _ = subscriber.subscribe("a")
    effects = publish(client, "a", b"x", b"y")
    opened = opened_source(effects)
    assert (opened.channel, opened.is_recovered) == ("a", False)
    assert effects[0] is opened
    (told,) = notices(effects, opened.session)
    assert isinstance(told, e.ReaderAdded) and (told.reader, told.start) == (reader, StartAt.START)
    (source,) = added(effects, subscriber.session)
    assert (source.source, source.start, source.session) == (opened.source, StartAt.START, opened.session)
    call = CallId(client.calls)
    assert effects[-1] == e.WriteMessages(client.session, call, "uid:1", opened.source, (b"x", b"y"), ())
    again = publish(client, "a", b"z")
    assert [type(effect) for effect in again] == [e.WriteMessages]
    core.machine.assert_consistent()


def test_later_readers_are_told_to_it_at_once_and_their_end_too(core: Core) -> None:
    client = core.open("uid:1")
    own = opened_source(publish(client, "a", b"x"))
    reader, effects = client.subscribe("a")
    kinds = [(effect.session, type(effect.body)) for effect in effects if isinstance(effect, e.Notice)]
    assert kinds == [(own.session, e.ReaderAdded), (client.session, e.SourceAdded)]
    effects = client.unsubscribe(reader)
    assert notices(effects, own.session) == [e.ReaderGone(own.source, ReaderId(reader))]
    core.machine.assert_consistent()


def test_it_counts_for_nobody(core: Core) -> None:
    core = Core(Limits(publishers_per_channel_max=1, sources_per_principal_max=1))
    client = core.open("uid:1")
    client.declare("a")
    publish(client, "a", b"x")
    assert (
        reply(client.core.apply(c.GetChannel(client.caller(), "a")), e.ChannelFound).channel.publishers == 0
    )
    _, effects = client.publish("a")
    reply(effects, e.SourceAttached)
    refusal(client.publish("a")[1], LimitExceeded, "publishers_per_channel_max")
    assert client.unpublish(client.opened.first_id)
    effects = client.undeclare("a")
    reply(effects, e.Done)
    assert len(only(effects, e.DropSource)) == 1
    core.machine.assert_consistent()


def test_it_closes_when_told_that_it_is_idle_and_is_made_anew(core: Core) -> None:
    client = core.open("uid:1")
    reader, _ = client.subscribe("a")
    own = opened_source(publish(client, "a", b"x"))
    effects = core.apply(c.CloseOwnSource(own.source))
    assert effects == [
        e.Notice(client.session, e.SourceGone(ReaderId(reader), own.source)),
        e.DropSource(own.source),
    ]
    assert core.apply(c.CloseOwnSource(own.source)) == []
    assert opened_source(publish(client, "a", b"x")).source > own.source
    ordinary, _ = client.publish("a")
    assert core.apply(c.CloseOwnSource(SourceId(ordinary))) == []


def test_own_sources_are_bounded_and_refusals_change_nothing() -> None:
    core = Core(Limits(own_sources_max=1))
    client = core.open()
    client.declare("a")
    client.declare("b")
    client.declare("t", order=Order.TOTAL)
    publish(client, "a", b"x")
    before = fingerprint(core.machine)
    refusal(publish(client, "b", b"x"), LimitExceeded, "own_sources_max")
    refusal(client.publish("t")[1], LimitExceeded, "own_sources_max")
    refusal(publish(client, "none", b"x"), ChannelNotFound)
    assert fingerprint(core.machine) == before


def test_nobody_publishes_for_a_session_that_is_gone(core: Core) -> None:
    client = core.open()
    client.close()
    assert publish(client, "a", b"x") == []


# ---- total order -------------------------------------------------------------------------------------------


def test_publishers_meet_the_intake_and_subscribers_the_source(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    reader, effects = subscriber.subscribe("t")
    assert notices(effects, subscriber.session) == []
    source, effects = publisher.publish("t")
    own, intake = opened_source(effects), opened_reader(effects)
    assert effects.index(own) < effects.index(intake)
    assert notices(effects, subscriber.session) == [
        e.SourceAdded(ReaderId(reader), own.source, 0, StartAt.START, "core", "t", own.session)
    ]
    assert notices(effects, publisher.session) == [
        e.ReaderAdded(SourceId(source), intake.reader, 0, StartAt.START, own.session, True)
    ]
    assert notices(effects, own.session) == [
        e.ReaderAdded(own.source, ReaderId(reader), 0, StartAt.START, subscriber.session, False),
        e.SourceAdded(
            intake.reader,
            SourceId(source),
            0,
            StartAt.START,
            f"session:{publisher.session}",
            "t",
            publisher.session,
        ),
    ]
    _, effects = subscriber.subscribe("t")
    assert [body.source for body in added(effects, subscriber.session)] == [own.source]
    assert notices(publisher.fetch(source), publisher.session) == []
    assert publisher.core.machine._topics.presence("t").subscribers == 2
    assert notices(publisher.unpublish(source), own.session) == [
        e.SourceGone(intake.reader, SourceId(source))
    ]
    core.machine.assert_consistent()


def test_a_pattern_follows_the_core_not_the_publishers(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    _, effects = subscriber.subscribe("*")
    _, effects = publisher.publish("t")
    own = opened_source(effects)
    assert [body.source for body in added(effects, subscriber.session)] == [own.source]
    _, effects = subscriber.subscribe(">")
    assert [body.source for body in added(effects, subscriber.session)] == [own.source]
    core.machine.assert_consistent()


def test_no_echo_readers_are_told_which_sources_to_leave_out(core: Core) -> None:
    bridge, other = core.bridge(), core.open("uid:1")
    reader, _ = bridge.subscribe("t", exclude_origin="binding:7")
    source, effects = bridge.publish("t", origin="binding:7")
    told = notices(effects, bridge.session)
    assert e.SourceExcluded(ReaderId(reader), SourceId(source)) in told
    # Before the answer that lets it publish.
    assert isinstance(effects[-1], e.Reply)
    _, effects = other.publish("t")
    assert only(effects, e.Notice) and not any(
        isinstance(body, e.SourceExcluded) for body in notices(effects, bridge.session)
    )
    late, effects = bridge.subscribe("t", exclude_origin="binding:7")
    assert e.SourceExcluded(ReaderId(late), SourceId(source)) in notices(effects, bridge.session)


def test_a_slot_of_the_intake_is_free_again_when_the_shell_says_so() -> None:
    core = Core(Limits(publishers_per_channel_max=4096))
    owner = core.open()
    owner.declare("t", order=Order.TOTAL)
    first, effects = owner.publish("t")
    own, intake = opened_source(effects), opened_reader(effects)
    shell = Caller("core", session=own.session)
    sources = [first]
    clients = [core.open() for _ in range(5)]
    for _ in range(INTAKE_SLOTS - 1):
        client = next(each for each in clients if each.used < each.opened.id_count)
        sources.append(client.publish("t")[0])
    before = fingerprint(core.machine)
    refusal(owner.publish("t")[1], LimitExceeded, "as many publishers as the core can read")
    assert fingerprint(core.machine) == before
    assert core.apply(c.ReleaseSlot(shell, intake.reader, SourceId(first))) == []  # it still publishes
    owner.unpublish(first)
    refusal(owner.publish("t", owner.next_id())[1], LimitExceeded)
    assert core.apply(c.ReleaseSlot(shell, intake.reader, SourceId(first))) == []
    _, effects = owner.publish("t")
    assert [body.slot for body in added(effects, own.session)] == [0]
    core.machine.assert_consistent()


def test_the_shell_parts_the_source_from_a_stalled_subscriber(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    own = opened_source(publisher.publish("t")[1])
    reader, _ = subscriber.subscribe("t")
    effects = core.apply(c.DetachStalled(Caller("core", session=own.session), own.source, ReaderId(reader)))
    assert notices(effects, own.session) == [e.ReaderGone(own.source, ReaderId(reader), is_parted=True)]
    (parted,) = notices(effects, subscriber.session)
    assert isinstance(parted, e.SourceDetached) and parted.reader == reader
    core.machine.assert_consistent()


def test_undeclaring_ends_all_of_it(core: Core) -> None:
    publisher = core.open("uid:9")
    source, effects = publisher.publish("t")
    own, intake = opened_source(effects), opened_reader(effects)
    effects = publisher.undeclare("t", force=True)
    assert {effect.source for effect in effects if isinstance(effect, e.DropSource)} == {own.source, source}
    assert [effect.reader for effect in effects if isinstance(effect, e.DropReader)] == [intake.reader]
    core.machine.assert_consistent()
    publisher.declare("t")
    publisher.publish("t")
    core.machine.assert_consistent()


def test_new_options_take_the_cores_own_ends_off(core: Core) -> None:
    owner = core.admin()
    own = opened_source(publish(owner, "t", b"x"))
    effects = owner.declare("t", order=Order.SOURCE, replace=True)
    assert e.DropSource(own.source) in effects
    _, effects = owner.publish("t")
    assert only(effects, e.OpenOwnSource) == []
    core.machine.assert_consistent()


# ---- recovery ----------------------------------------------------------------------------------------------


def next_run(core: Core) -> Core:
    """The same machine in its next run: all sessions are gone with the last one."""
    later = Core.__new__(Core)
    later.machine = type(core.machine)()
    later.machine.restore(core.machine.snapshot())
    later.now_ns, later.connections = core.now_ns, 0
    later.apply(later.machine.start_command())
    return later


def test_the_next_run_goes_on_with_ids_and_slots(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    reader, _ = subscriber.subscribe("t")
    gone, effects = publisher.publish("t")
    own, intake = opened_source(effects), opened_reader(effects)
    source, _ = publisher.publish("t")
    later = next_run(core)
    found = OwnFound(
        "t", own.source, own.options.ring_bytes, intake.reader, {SourceId(source): 1, SourceId(gone): 0}
    )
    effects = later.apply(c.RecoverOwn([found]))
    assert opened_source(effects).source == own.source and opened_source(effects).is_recovered
    assert opened_reader(effects).reader == intake.reader and opened_reader(effects).is_recovered
    session = opened_source(effects).session
    publisher, subscriber = later.open("uid:1"), later.open("uid:2")
    _, effects = publisher.publish("t", source, resumed=True)
    assert [body.slot for body in added(effects, session)] == [1]
    _, effects = subscriber.subscribe("t", reader, resumed=True, held={own.source: 0})
    assert [(body.source, body.slot) for body in added(effects, subscriber.session)] == [(own.source, 0)]
    later.apply(c.ReleaseSlot(Caller("core", session=session), intake.reader, SourceId(gone)))
    _, effects = publisher.publish("t")
    assert [body.slot for body in added(effects, session)] == [0]
    later.machine.assert_consistent()


@pytest.mark.parametrize("what", ["gone", "direct", "size", "future"])
def test_what_does_not_fit_is_not_recovered(core: Core, what: str) -> None:
    owner = core.open("uid:9")
    _, effects = owner.publish("t")
    own, intake = opened_source(effects), opened_reader(effects)
    later = next_run(core)
    source = SourceId(own.source + ((5 << 40) if what == "future" else 0))
    channel = {"gone": "z", "direct": "a"}.get(what, "t")
    size = own.options.ring_bytes * (2 if what == "size" else 1)
    assert later.apply(c.RecoverOwn([OwnFound(channel, source, size, intake.reader)])) == []
    later.machine.assert_consistent()
