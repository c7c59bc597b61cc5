"""The machine: ``apply(command, now_ns) -> effects``, the one place where the core decides.

Theory of operation
    The parts each hold one idea: ``registry`` the definitions, ``sessions`` who is connected and owns which
    ids, ``channels`` who publishes and subscribes, ``reports`` how bindings fare, ``watches`` who is told of
    changes. Commands are judged by them, let them change, and say in effects what the world must be told:
    those on what there is in ``definitions``, those that look in ``observing``, those on sources and readers
    in ``attaching``; here the coming and going of runs and sessions, and what is common to all commands.

    Only definitions, the count of starts and the ids of bindings are durable. A durable command changes
    them by what the journal alone says, so that a replay decides as the run did. Where a decision also
    depends on who is connected (undeclaring a channel that is in use), only the run can take it: the engine
    asks :meth:`Machine.verdict` before it writes the record, and writes none for what is refused.

Invariants
    Same commands and times, same effects; nothing else goes in.
    Expected outcomes are effects (Refuse), never exceptions; a refusal leaves everything as it was.
    Each command with a caller that has a session is answered once, except that ``Watch`` streams,
    ``GetBinding`` may wait, and a session that is closed is told no more.
    The machine's time never goes back.

Not here: durability and order of commands (``towpath_broker.engine``), descriptors and frames (the door).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from towpath.errors import TowpathError

from . import commands as c
from . import effects as e
from .attaching import Attaching
from .codec import DurableState, decode_state, encode_state
from .commands import Caller, ChannelOptions, Command
from .definitions import Definitions, opened
from .effects import Effect
from .limits import Limits
from .observing import Observing
from .options import check_defaults
from .parts import BRIDGE, RETURN_MS, Handlers, Parts
from .registry import Change, DefinitionCommand


class Verdict(Enum):
    """What a durable command would do if it were applied now."""

    NEVER = auto()
    """It is refused whatever the state of things."""
    NOT_NOW = auto()
    """As things stand it is refused, or changes nothing."""
    CHANGES = auto()
    """It changes the durable state."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the machine holds and has done; counters start at zero with each run."""

    incarnation: int
    revision: int
    sessions: int
    channels: int
    bindings: int
    sources: int
    readers: int
    watches: int
    waits: int
    commands: int
    refused: int


class Machine:
    """The core's state and its only way to change.

    Args:
        limits: the bounds that hold from the next ``Start`` on.
        defaults: the options of channels that do not state them, likewise.

    Raises:
        InvalidArgument, LimitExceeded: no channel could be declared with these defaults.
    """

    def __init__(self, limits: Limits | None = None, defaults: ChannelOptions | None = None) -> None:
        self._configured = c.Start(limits or Limits(), defaults or ChannelOptions())
        check_defaults(self._configured.defaults, self._configured.limits)
        self._parts = parts = Parts(self._configured)
        self._registry = parts.registry
        self._sessions = parts.sessions
        self._topics = parts.topics
        self._own = parts.own
        self._reports = parts.reports
        self._watches = parts.watches
        self._definitions = Definitions(parts)
        self._incarnation = 0
        self._commands = 0
        self._refused = 0
        self._handlers: Handlers = {
            c.Start: self._start,
            c.OpenSession: self._open_session,
            c.CloseSession: self._close_session,
            c.AllocateIds: self._allocate_ids,
            **self._definitions.handlers(),
            **Observing(parts).handlers(),
            **Attaching(parts).handlers(),
        }

    # ---- the outside ---------------------------------------------------------------------------------------

    @property
    def now_ns(self) -> int:
        """The latest time that the machine has seen."""
        return self._parts.now_ns

    @property
    def incarnation(self) -> int:
        """How often the core has started on this host."""
        return self._incarnation

    def start_command(self) -> c.Start:
        """Return the command that begins a run with the limits and defaults this machine was made with."""
        return self._configured

    def apply(self, command: Command, now_ns: int) -> list[Effect]:
        """Carry out one command.

        Args:
            command: any of ``commands``.
            now_ns: nanoseconds since the epoch; a time before the latest counts as the latest.

        Returns:
            What must be emitted, in order.
        """
        self._parts.now_ns = max(self._parts.now_ns, now_ns)
        self._commands += 1
        try:
            return self._handlers[type(command)](command)
        except TowpathError as error:
            self._refused += 1
            return self._refuse(command, error)

    def verdict(self, command: Command) -> Verdict:
        """Say what a durable command would do if it were applied now, without applying it."""
        if isinstance(command, c.Start):
            return Verdict.CHANGES
        assert isinstance(command, DefinitionCommand)
        try:
            self._registry.check(command)
        except TowpathError:
            return Verdict.NEVER
        try:
            plan = self._definitions.plan(command)
        except TowpathError:
            return Verdict.NOT_NOW
        return Verdict.NOT_NOW if plan.change is Change.NOTHING else Verdict.CHANGES

    def statistics(self) -> Statistics:
        """Return counts of what the machine holds and has done."""
        return Statistics(
            incarnation=self._incarnation,
            revision=self._watches.revision,
            sessions=len(self._sessions),
            channels=len(self._registry.channels),
            bindings=len(self._registry.bindings),
            sources=len(self._topics.sources),
            readers=len(self._topics.readers),
            watches=len(self._watches),
            waits=self._reports.waiting(),
            commands=self._commands,
            refused=self._refused,
        )

    def durable_state(self) -> DurableState:
        """Return all of the machine that survives a restart. O(channels + bindings)."""
        return DurableState(
            now_ns=self._parts.now_ns,
            incarnation=self._incarnation,
            next_binding=self._registry.next_binding,
            revision=self._watches.revision,
            limits=self._registry.limits,
            defaults=self._registry.defaults,
            channels=tuple(self._registry.channels.values()),
            bindings=tuple(self._registry.bindings.values()),
        )

    def kind_of(self, name: str) -> c.Kind | None:
        """Return a channel's kind; None: there is none of that name."""
        channel = self._registry.channels.get(name)
        return channel.options.kind if channel is not None else None

    def data_channels(self) -> list[e.ChannelOpened]:
        """Return what the data plane is to have after a recovery, when no effect told of it. O(channels)."""
        return [opened(each) for each in self._registry.channels.values() if each.options.is_data]

    def snapshot(self) -> bytes:
        """Return the durable state as bytes. O(channels + bindings)."""
        return encode_state(self.durable_state())

    def restore(self, snapshot: bytes) -> None:
        """Put the durable state of a snapshot into a machine that was just made.

        Raises:
            InvalidConfiguration: the snapshot is of another version, or damaged.
        """
        assert self._commands == 0 and not self._registry.channels
        state = decode_state(snapshot)
        self._parts.now_ns = state.now_ns
        self._incarnation = state.incarnation
        self._watches.restore(state.revision)
        self._registry.limits = state.limits
        self._registry.defaults = state.defaults
        for channel in state.channels:
            self._registry.add_channel(channel)
            self._topics.open(channel.name)
        for binding in state.bindings:
            self._registry.add_binding(binding)
        self._registry.next_binding = state.next_binding

    def assert_consistent(self) -> None:
        """Assert the invariants of all parts; for tests."""
        self._registry.assert_consistent()
        self._sessions.assert_consistent()
        self._topics.assert_consistent()
        assert set(self._topics.topics) == set(self._registry.channels)

    # ---- answers -------------------------------------------------------------------------------------------

    def _refuse(self, command: Command, error: TowpathError) -> list[Effect]:
        if isinstance(command, c.OpenSession):
            return [e.SessionRefused(command.connection, error)]
        caller: Caller = getattr(command, "caller")  # noqa: B009 (each other command that can be refused has one)
        if caller.session is None:
            return [e.Warn(str(error))]
        if self._sessions.get(caller.session) is None:
            return []
        return [e.Refuse(caller.session, caller.call, error)]

    # ---- runs and sessions ---------------------------------------------------------------------------------

    def _start(self, command: c.Start) -> list[Effect]:
        self._incarnation += 1
        self._parts.data_presence.clear()
        self._sessions.start(self._incarnation)
        self._topics.start()
        self._own.start()
        self._registry.limits = command.limits
        self._registry.defaults = command.defaults
        self._commands = self._refused = 0
        return []

    def _open_session(self, command: c.OpenSession) -> list[Effect]:
        session, block = self._sessions.open(command, self._registry.limits)
        return [
            e.SessionOpened(
                connection=command.connection,
                session=session.id,
                incarnation=self._incarnation,
                principal=session.principal,
                first_id=block.first,
                id_count=block.count,
            )
        ]

    def _close_session(self, command: c.CloseSession) -> list[Effect]:
        session = self._sessions.get(command.session)
        if session is None:
            return []
        self._watches.end_session(session)
        self._reports.end_session(session)
        effects: list[Effect] = []
        # Readers first: then no source of the session has to tell a reader of the session that it is gone.
        for reader in [self._topics.readers[each] for each in session.readers]:
            reader.parted.difference_update(session.sources)
            if session.gateway == BRIDGE and reader.exclude_origin:
                reader.return_ms = RETURN_MS  # its successor takes the binding's page up again
            effects.extend(self._topics.detach_reader(reader))
        for source in tuple(session.sources):
            effects.extend(self._topics.detach_source(self._topics.sources[source]))
        self._sessions.close(session)
        return effects

    def _allocate_ids(self, command: c.AllocateIds) -> list[Effect]:
        session = self._sessions.get(command.caller.session)
        if session is None:
            return []
        block = self._sessions.allocate(session, command.count)
        return self._parts.reply(command.caller, e.IdsAllocated(block.first, block.count))
