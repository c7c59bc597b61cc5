"""Services: who may be what on which channel, who reads whom, and who is told of whom."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.harness import RING_BYTES, Client, Core, fingerprint, notices, refusal, reply
from towpath.errors import InvalidArgument, LimitExceeded
from towpath_broker.core import commands as c
from towpath_broker.core import effects as e
from towpath_broker.core.commands import Kind, ReaderRole, SourceRole
from towpath_broker.core.effects import Effect
from towpath_broker.core.ids import ReaderId, SourceId
from towpath_broker.core.limits import Limits


@pytest.fixture
def core() -> Core:
    return serving_core()


def serving_core(limits: Limits | None = None) -> Core:
    core = Core(limits)
    owner = core.open("uid:9")
    owner.declare("s", kind=Kind.SERVICE)
    owner.declare("t")
    return core


def read(
    client: Client, role: ReaderRole, channel: str = "s", *, slots: int = 8, **resumed: Any
) -> tuple[int, list[Effect]]:
    reader = resumed.get("reader") or client.next_id()
    command = c.AttachReader(
        client.caller(),
        channel,
        ReaderId(reader),
        slots,
        "reader" in resumed,
        held=resumed.get("held", {}),
        role=role,
    )
    return reader, client.core.apply(command)


def write(
    client: Client, role: SourceRole, own_reader: int, peer: int = 0, channel: str = "s", source: int = 0
) -> tuple[int, list[Effect]]:
    identifier = source or client.next_id()
    command = c.AttachSource(
        client.caller(),
        channel,
        SourceId(identifier),
        RING_BYTES,
        bool(source),
        role=role,
        own_reader=ReaderId(own_reader),
        peer=ReaderId(peer),
    )
    return identifier, client.core.apply(command)


class Conversation:
    """A server and a caller that it has answered."""

    def __init__(self, core: Core) -> None:
        self.server, self.caller = core.open("uid:1"), core.open("uid:2")
        self.requests, _ = read(self.server, ReaderRole.SERVER)
        self.replies, _ = read(self.caller, ReaderRole.REPLIES)
        self.asking, self.asked = write(self.caller, SourceRole.CALLER, self.replies)
        self.answering, self.answered = write(self.server, SourceRole.ANSWERER, self.requests, self.replies)


def test_a_caller_and_a_server_are_told_of_each_other(core: Core) -> None:
    talk = Conversation(core)
    (added,) = notices(talk.asked, talk.server.session)
    assert isinstance(added, e.SourceAdded)
    assert (added.source, added.reader) == (talk.asking, talk.requests)
    assert (added.own_reader, added.principal) == (talk.replies, "uid:2")
    (met,) = notices(talk.asked, talk.caller.session)
    assert isinstance(met, e.ReaderAdded) and met.reader == talk.requests
    core.machine.assert_consistent()


def test_replies_are_for_the_caller_alone(core: Core) -> None:
    other = core.open("uid:3")
    elsewhere, _ = read(other, ReaderRole.REPLIES)
    write(other, SourceRole.CALLER, elsewhere)
    talk = Conversation(core)
    (added,) = notices(talk.answered, talk.caller.session)
    assert isinstance(added, e.SourceAdded)
    assert (added.source, added.own_reader) == (talk.answering, talk.requests)
    assert notices(talk.answered, other.session) == []
    assert [type(each) for each in notices(talk.answered, talk.server.session)] == [e.ReaderAdded]


def test_every_server_reads_every_caller(core: Core) -> None:
    talk = Conversation(core)
    second = core.open("uid:4")
    requests, effects = read(second, ReaderRole.SERVER)
    (added,) = notices(effects, second.session)
    assert isinstance(added, e.SourceAdded) and added.source == talk.asking
    (met,) = notices(effects, talk.caller.session)  # at once: a caller does not ask
    assert isinstance(met, e.ReaderAdded) and met.reader == requests


def test_whoever_comes_for_replies_disturbs_nobody(core: Core) -> None:
    talk = Conversation(core)
    other = core.open("uid:3")
    _, effects = read(other, ReaderRole.REPLIES)
    assert not any(isinstance(effect, e.BumpGeneration) for effect in effects)
    assert notices(effects, talk.caller.session) == notices(effects, talk.server.session) == []


def test_a_caller_is_told_at_once_that_its_server_is_gone(core: Core) -> None:
    talk = Conversation(core)
    told = notices(talk.server.close(), talk.caller.session)
    assert told == [
        e.ReaderGone(SourceId(talk.asking), ReaderId(talk.requests)),
        e.SourceGone(ReaderId(talk.replies), SourceId(talk.answering)),
    ]
    core.machine.assert_consistent()


def test_a_server_that_leaves_answers_no_more(core: Core) -> None:
    talk = Conversation(core)
    effects = talk.server.unsubscribe(talk.requests)
    assert e.DropSource(SourceId(talk.answering)) in effects
    assert e.SourceGone(ReaderId(talk.replies), SourceId(talk.answering)) in notices(
        effects, talk.caller.session
    )
    core.machine.assert_consistent()


def test_a_caller_that_leaves_is_drained_by_servers(core: Core) -> None:
    talk = Conversation(core)
    effects = talk.caller.close()
    told = notices(effects, talk.server.session)
    assert e.SourceGone(ReaderId(talk.requests), SourceId(talk.asking)) in told
    assert e.ReaderGone(SourceId(talk.answering), ReaderId(talk.replies)) in told
    core.machine.assert_consistent()


def test_roles_belong_to_kinds(core: Core) -> None:
    client = core.open()
    before = fingerprint(core.machine)
    refusal(client.publish("s")[1], InvalidArgument, "is a service")
    refusal(client.subscribe("s")[1], InvalidArgument, "is a service")
    refusal(read(client, ReaderRole.SERVER, "t")[1], InvalidArgument, "is a topic")
    refusal(read(client, ReaderRole.REPLIES, "t")[1], InvalidArgument, "is a topic")
    refusal(write(client, SourceRole.CALLER, 1, channel="t")[1], InvalidArgument, "is a topic")
    refusal(read(client, ReaderRole.SERVER, "s.>")[1], InvalidArgument, "pattern")
    refusal(core.apply(c.Publish(client.caller(), "s", [b"x"])), InvalidArgument, "is a service")
    assert fingerprint(core.machine) == before


def test_patterns_do_not_hear_services(core: Core) -> None:
    listener = core.open()
    listener.subscribe("*")
    talk = Conversation(core)
    assert notices([*talk.asked, *talk.answered], listener.session) == []


def test_an_end_needs_those_that_go_with_it(core: Core) -> None:
    talk = Conversation(core)
    thief = core.open("uid:7")
    own, _ = read(thief, ReaderRole.SERVER)
    before = fingerprint(core.machine)
    for role, own_reader, peer, why in (
        (SourceRole.CALLER, talk.replies, 0, "takes replies"),  # another's
        (SourceRole.CALLER, own, 0, "takes replies"),  # a server
        (SourceRole.CALLER, 0, 0, "takes replies"),
        (SourceRole.ANSWERER, talk.requests, talk.replies, "takes requests"),  # another's
        (SourceRole.ANSWERER, own, talk.requests, "takes no replies"),  # a server is not answered
    ):
        refusal(write(thief, role, own_reader, peer)[1], InvalidArgument, why)
    refusal(
        write(talk.server, SourceRole.ANSWERER, talk.requests, talk.replies)[1],
        InvalidArgument,
        "answered by the session already",
    )
    assert fingerprint(core.machine) == before


def test_whoever_finds_no_slot_is_refused_and_nobody_else_is_harmed(core: Core) -> None:
    server = core.open("uid:1")
    requests, _ = read(server, ReaderRole.SERVER, slots=1)
    first, second = core.open("uid:2"), core.open("uid:3")
    reply(write(first, SourceRole.CALLER, read(first, ReaderRole.REPLIES)[0])[1], e.SourceAttached)
    late, _ = read(second, ReaderRole.REPLIES)
    refusal(write(second, SourceRole.CALLER, late)[1], LimitExceeded, "no slot left")
    server.release(requests, 1)
    core.machine.assert_consistent()


def test_callers_and_servers_are_counted_and_bounded() -> None:
    core = serving_core(Limits(publishers_per_channel_max=2, subscribers_per_channel_max=1))
    talk = Conversation(core)
    other = core.open("uid:3")
    refusal(read(other, ReaderRole.SERVER)[1], LimitExceeded, "subscribers_per_channel_max")
    write(other, SourceRole.CALLER, read(other, ReaderRole.REPLIES)[0])
    third = core.open("uid:4")
    late, _ = read(third, ReaderRole.REPLIES)
    refusal(write(third, SourceRole.CALLER, late)[1], LimitExceeded, "publishers_per_channel_max")
    found = reply(core.apply(c.GetChannel(talk.caller.caller(), "s")), e.ChannelFound).channel
    assert (found.publishers, found.subscribers) == (2, 1)


def test_a_conversation_is_taken_up_again(core: Core) -> None:
    """After a restart of the core: whoever comes first, the pairs are as they were."""
    talk = Conversation(core)
    slots = {talk.asking: 0}
    talk.server.close()
    talk.caller.close()
    server, caller = core.open("uid:1"), core.open("uid:2")
    _, effects = read(server, ReaderRole.SERVER, reader=talk.requests, held=slots)
    reply(effects, e.Done)
    reply(
        write(server, SourceRole.ANSWERER, talk.requests, talk.replies, source=talk.answering)[1],
        e.SourceAttached,
    )
    _, effects = read(caller, ReaderRole.REPLIES, reader=talk.replies, held={talk.answering: 0})
    assert [type(each) for each in notices(effects, caller.session)] == [e.SourceAdded]
    assert [type(each) for each in notices(effects, server.session)] == [e.ReaderAdded]
    _, effects = write(caller, SourceRole.CALLER, talk.replies, source=talk.asking)
    assert [type(each) for each in notices(effects, server.session)] == [e.SourceAdded]
    core.machine.assert_consistent()


def test_an_answerer_may_come_before_its_caller(core: Core) -> None:
    """After a restart of the core; and what it writes meanwhile is read from the beginning."""
    talk = Conversation(core)
    talk.caller.close()
    caller = core.open("uid:2")
    _, effects = write(talk.server, SourceRole.ANSWERER, talk.requests, 4711)
    reply(effects, e.SourceAttached)
    _, effects = read(caller, ReaderRole.REPLIES, reader=talk.replies)
    (added,) = notices(effects, caller.session)
    assert isinstance(added, e.SourceAdded)
    assert (added.source, added.start) == (talk.answering, e.StartAt.START)
    core.machine.assert_consistent()


def test_those_who_wait_to_answer_do_not_keep_a_caller_away(core: Core) -> None:
    talk = Conversation(core)
    talk.caller.close()
    for uid in range(3, 7):
        thief = core.open(f"uid:{uid}")
        write(thief, SourceRole.ANSWERER, read(thief, ReaderRole.SERVER)[0], talk.replies)
    caller = core.open("uid:2")
    _, effects = read(caller, ReaderRole.REPLIES, reader=talk.replies, slots=2)
    reply(effects, e.Done)
    assert len(notices(effects, caller.session)) == 2
    core.machine.assert_consistent()


def test_an_undeclared_service_ends_both_sides(core: Core) -> None:
    talk = Conversation(core)
    effects = core.admin().undeclare("s", force=True)
    assert {type(each) for each in notices(effects, talk.caller.session)} == {
        e.PublicationEnded,
        e.SubscriptionEnded,
    }
    assert {type(each) for each in notices(effects, talk.server.session)} == {
        e.PublicationEnded,
        e.SubscriptionEnded,
    }
    core.machine.assert_consistent()
