"""Very many names: listed page by page, and told to a watch piece by piece."""

from __future__ import annotations

from towpath_broker.core import commands as c
from towpath_broker.core import effects as e
from towpath_broker.core.effects import Effect
from towpath_broker.core.ids import BindingId, CallId
from towpath_broker.core.limits import BINDINGS_PER_PAGE, CHANNELS_PER_PAGE, ITEMS_PER_PIECE
from towpath_broker.core.registry import SortedNames

from .harness import Client, Core, reply


def declare_many(client: Client, count: int, prefix: str = "n") -> list[str]:
    names = [f"{prefix}{number:05}" for number in range(count)]
    for name in reversed(names):
        client.declare(name)
    return names


def items(effects: list[Effect]) -> list[e.WatchBody]:
    return [effect.body for effect in effects if isinstance(effect, e.StreamItem)]


def names_of(bodies: list[e.WatchBody]) -> list[str]:
    return [body.channel.name for body in bodies if isinstance(body, e.WatchChannelDeclared)]


def test_channels_are_listed_page_by_page_and_each_once() -> None:
    core = Core()
    client = core.open()
    names = declare_many(client, CHANNELS_PER_PAGE + 2)
    declare_many(client, 3, "m")
    listed: list[str] = []
    after, is_more = "", True
    pages = 0
    while is_more:
        command = c.ListChannels(client.caller(), "n", after)
        page = reply(core.apply(command), e.ChannelsListed)
        listed += [channel.name for channel in page.channels]
        after, is_more = listed[-1], page.is_more
        pages += 1
    assert (listed, pages) == (names, 2)


def test_a_page_is_never_longer_than_it_may_be() -> None:
    core = Core()
    client = core.open()
    declare_many(client, CHANNELS_PER_PAGE + 2)
    for asked, given in ((1, 1), (0, 1), (2**32 - 1, CHANNELS_PER_PAGE)):
        page = reply(core.apply(c.ListChannels(client.caller(), "", "", asked)), e.ChannelsListed)
        assert (len(page.channels), page.is_more) == (given, True)


def test_bindings_are_listed_page_by_page() -> None:
    core = Core()
    admin = core.admin()
    admin.declare("a"), admin.declare("b")
    for number in range(BINDINGS_PER_PAGE + 1):
        admin.bind("a", f"fifo:/a{number}")
        admin.bind("b", f"fifo:/b{number}")
    first = reply(core.apply(c.ListBindings(admin.caller(), "a")), e.BindingsListed)
    assert (len(first.bindings), first.is_more) == (BINDINGS_PER_PAGE, True)
    last = first.bindings[-1].id
    second = reply(core.apply(c.ListBindings(admin.caller(), "a", last)), e.BindingsListed)
    assert [binding.url for binding in second.bindings] == [f"fifo:/a{BINDINGS_PER_PAGE}"]
    assert not second.is_more
    beyond = reply(core.apply(c.ListBindings(admin.caller(), "", BindingId(2**63))), e.BindingsListed)
    assert (beyond.bindings, beyond.is_more) == ((), False)


def test_a_watch_is_told_the_state_in_pieces_and_the_core_waits_in_between() -> None:
    core = Core()
    admin = core.admin()
    names = declare_many(admin, 2 * ITEMS_PER_PIECE + 1)
    admin.bind(names[0], "fifo:/x")
    watcher = core.open()
    told = watcher.watch()
    call = CallId(watcher.calls)
    bodies: list[e.WatchBody] = []
    pieces = 1
    while isinstance(told[-1], e.StreamPaused):
        assert told[-1] == e.StreamPaused(watcher.session, call)
        assert len(told) == ITEMS_PER_PIECE + 1
        bodies += items(told)
        told = core.apply(c.GoOnTelling(watcher.session, call))
        pieces += 1
    bodies += items(told)
    assert (names_of(bodies), pieces) == (names, 3)
    assert [type(body) for body in bodies[-2:]] == [e.WatchBindingCreated, e.WatchCurrent]
    assert core.apply(c.GoOnTelling(watcher.session, call)) == []
    core.machine.assert_consistent()


def test_what_changes_while_the_state_is_told_is_told_once() -> None:
    core = Core()
    admin = core.admin()
    names = declare_many(admin, 2 * ITEMS_PER_PIECE)
    watcher = core.open()
    first = items(watcher.watch())
    call = CallId(watcher.calls)
    known = set(names_of(first))

    assert [type(body) for body in items(admin.undeclare(names[0]))] == [e.WatchChannelUndeclared]  # was told
    known.discard(names[0])
    assert items(admin.undeclare(names[-1])) == []  # never will be
    (early,) = items(admin.declare("a"))
    assert isinstance(early, e.WatchChannelDeclared)
    known.add("a")
    assert items(admin.declare("z")) == []  # comes with its piece
    assert items(admin.bind("a", "fifo:/x")) == []  # bindings come last
    rest: list[e.WatchBody] = []
    while more := core.apply(c.GoOnTelling(watcher.session, call)):
        rest += items(more)
    assert not known & set(names_of(rest))
    known |= set(names_of(rest))
    assert known == set(core.machine._registry.channels)
    assert [type(body) for body in rest[-2:]] == [e.WatchBindingCreated, e.WatchCurrent]
    assert [type(body) for body in items(admin.unbind(1))] == [e.WatchBindingDeleted]


def test_a_watch_that_is_cancelled_in_between_is_told_no_more() -> None:
    core = Core()
    client = core.open()
    declare_many(client, ITEMS_PER_PIECE + 1)
    watcher = core.open()
    watcher.watch()
    call = CallId(watcher.calls)
    core.apply(c.CancelCall(watcher.session, call))
    assert core.apply(c.GoOnTelling(watcher.session, call)) == []
    watcher.watch()
    watcher.close()
    assert core.apply(c.GoOnTelling(watcher.session, CallId(watcher.calls))) == []
    core.machine.assert_consistent()


def test_sorted_names() -> None:
    names = SortedNames()
    for name in ("b", "a.b", "a", "a.a", "ab"):
        names.add(name)
    names.remove("b")
    assert names.page("", "", 9) == ["a", "a.a", "a.b", "ab"]
    assert names.page("a.", "", 9) == ["a.a", "a.b"]
    assert names.page("a.", "a.a", 9) == ["a.b"]
    assert names.page("a.", "zz", 9) == names.page("c", "", 9) == []
    names.add("a.ab")
    names.remove("a.b")
    assert names.page("a.", "", 1) == ["a.a"]
    assert names.page("a.", "a.a", 9) == ["a.ab"]
