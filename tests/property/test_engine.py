"""The engine against its journal: however commands arrive, a restart finds what the run left."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from towpath_broker.core import commands as c
from towpath_broker.core import effects as e
from towpath_broker.core.codec import DurableState, decode_command
from towpath_broker.core.commands import Caller, Command, StatedOptions
from towpath_broker.core.effects import Effect
from towpath_broker.core.ids import BindingId, CallId, ConnectionId, ReaderId, SessionId, SourceId
from towpath_broker.core.limits import Limits
from towpath_broker.core.machine import Machine
from towpath_broker.engine import Engine
from towpath_broker.journal.memory import MemoryJournal
from towpath_broker.ports import Journal

LIMITS = Limits(channels_max=3, channels_per_principal_max=2, bindings_max=2)
NAMES = ("a", "a", "a", "b", "b", "c", "not a name")
ADMIN = Caller("uid:0", is_admin=True)
# The first session of the first run, and its ids.
SESSION = SessionId((1 << 40) + 1)
FIRST_ID = SESSION + 1
USER = Caller("uid:1", session=SESSION, call=CallId(1))


class TickingClock:
    """Goes mostly forward."""

    def __init__(self, steps: list[int]) -> None:
        self.time_ns = 1_000
        self.steps = steps

    def now_ns(self) -> int:
        if self.steps:
            self.time_ns = max(0, self.time_ns + self.steps.pop())
        return self.time_ns


callers = st.sampled_from([ADMIN, ADMIN, USER, Caller("uid:2")])
names = st.sampled_from(NAMES)
offsets = st.integers(0, 5)
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(
        c.DeclareChannel,
        callers,
        names,
        st.sampled_from([StatedOptions(), StatedOptions(ring_bytes=4096), StatedOptions(ring_bytes=8192)]),
        st.booleans(),
    ),
    st.builds(c.UndeclareChannel, callers, names, st.booleans()),
    st.builds(c.UndeclareChannel, callers, names),
    st.builds(
        c.CreateBinding,
        callers,
        names,
        st.sampled_from(["fifo:/x", "pipe:cat", "no"]),
        st.just(c.Direction.IN),
    ),
    st.builds(c.DeleteBinding, callers, st.integers(0, 4).map(BindingId)),
    st.builds(
        c.AttachSource, st.just(USER), names, offsets.map(lambda n: SourceId(FIRST_ID + n)), st.just(1 << 20)
    ),
    st.builds(
        c.AttachReader, st.just(USER), names, offsets.map(lambda n: ReaderId(FIRST_ID + n)), st.just(8)
    ),
    st.builds(c.DetachSource, st.just(USER), offsets.map(lambda n: SourceId(FIRST_ID + n))),
    st.builds(c.DetachReader, st.just(USER), offsets.map(lambda n: ReaderId(FIRST_ID + n))),
    st.integers(0, 5).map(lambda number: c.CloseSession(SessionId(SESSION if number == 5 else 1))),
)
bursts = st.lists(st.lists(commands, min_size=1, max_size=12), min_size=1, max_size=6)


def open_session(principal: str) -> c.OpenSession:
    return c.OpenSession(ConnectionId(1), principal, False, 1, "")


def definitions(state: DurableState) -> object:
    return state.channels, state.bindings, state.next_binding, state.incarnation, state.limits, state.defaults


def replayed(journal: Journal) -> Machine:
    """What a restart would make of the journal, before it begins a run of its own."""
    machine = Machine()
    for _, record in journal.replay(0):
        effects = machine.apply(*decode_command(record))
        assert not [effect for effect in effects if not isinstance(effect, e.Warn | e.BumpGeneration)]
    machine.assert_consistent()
    return machine


@settings(max_examples=200, deadline=None, derandomize=True)
@given(bursts, st.lists(st.integers(-2_000, 5_000), max_size=20))
def test_a_restart_finds_what_the_run_left(given_bursts: list[list[Command]], steps: list[int]) -> None:
    """After every burst the journal leads to the definitions of the run, and the effects are those of a
    machine that was given the same commands one by one."""

    async def main() -> None:
        journal, machine = MemoryJournal(), Machine(LIMITS)
        emitted: list[Effect] = []
        engine = Engine(machine, journal, TickingClock(steps), emitted.append)
        await engine.recover()
        plain = Machine(LIMITS)
        plain.apply(plain.start_command(), 0)
        expected: list[Effect] = []
        task = asyncio.create_task(engine.run())
        first: list[Command] = [
            open_session("uid:1"),
            c.DeclareChannel(USER, "a"),
            c.DeclareChannel(USER, "b"),
            c.AttachReader(USER, "a", ReaderId(FIRST_ID), 8),
        ]
        for burst in (first, *given_bursts):
            for command in burst:
                engine.submit(command)
                expected += plain.apply(command, 0)
            await engine.execute(c.CancelCall(SESSION, CallId(9)))
            assert definitions(replayed(journal).durable_state()) == definitions(machine.durable_state())
        assert list(map(shape, emitted)) == list(map(shape, expected))
        engine.stop()
        await task
        restored = Machine()
        saved = journal.load_snapshot()
        assert saved is not None
        restored.restore(saved[1])
        assert definitions(restored.durable_state()) == definitions(machine.durable_state())

    asyncio.run(main())


def shape(effect: Effect) -> object:
    """An effect without the times in it."""
    match effect:
        case e.Refuse():
            return effect.session, effect.call, effect.error.code, effect.error.message
        case e.Reply(_, _, e.ChannelDeclared(channel, created)):
            return effect.session, effect.call, channel.name, channel.options, created
        case e.Notice(_, e.SubscriptionEnded() | e.PublicationEnded()):
            return effect.session, type(effect.body)
        case _:
            return effect
