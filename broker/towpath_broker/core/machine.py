"""The machine: ``apply(command, now_ns) -> effects``, the one place where the core decides.

Theory of operation
    The parts each hold one idea: ``registry`` the definitions, ``sessions`` who is connected and owns which
    ids, ``channels`` who publishes and subscribes, ``reports`` how bindings fare, ``watches`` who is told of
    changes. The machine judges each command by them, lets them change, and says in effects what the world
    must be told.

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

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, Final

from towpath.errors import (
    BindingNotFound,
    InvalidArgument,
    LimitExceeded,
    PermissionDenied,
    SourceNotFound,
    SubscriptionNotFound,
    TowpathError,
)
from towpath.names import check_pattern, is_pattern

from . import commands as c
from . import effects as e
from .channels import Topics
from .codec import DurableState, decode_state, encode_state
from .commands import Caller, ChannelOptions, Command
from .effects import Effect
from .ids import BindingId, CallId, ReaderId, SourceId
from .limits import BINDINGS_PER_PAGE, CHANNELS_PER_PAGE, ITEMS_PER_PIECE, ORIGIN_CHARS_MAX, Limits
from .own import OwnEnds
from .pairs import Reader, Source
from .registry import (
    BindingDefinition,
    Change,
    ChannelDefinition,
    DefinitionCommand,
    Plan,
    Presence,
    Registry,
    check_defaults,
)
from .reports import Reports
from .roles import check_kind
from .sessions import Session, Sessions
from .watches import Telling, Watches

BRIDGE: Final = "bridge"
"""The gateway that hosts the adapters, and alone may report on bindings."""


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
        self._registry = Registry(self._configured.limits, self._configured.defaults)
        self._sessions = Sessions()
        self._topics = Topics()
        self._own = OwnEnds(self._topics, self._sessions)
        self._reports = Reports()
        self._data_presence: dict[str, Presence] = {}  # of channels that the data plane has
        self._watches = Watches()
        self._now_ns = 0
        self._incarnation = 0
        self._commands = 0
        self._refused = 0
        self._handlers: dict[type[Command], Callable[[Any], list[Effect]]] = {
            c.Start: self._start,
            c.OpenSession: self._open_session,
            c.CloseSession: self._close_session,
            c.AllocateIds: self._allocate_ids,
            c.DeclareChannel: self._declare_channel,
            c.UndeclareChannel: self._undeclare_channel,
            c.GetChannel: self._get_channel,
            c.ListChannels: self._list_channels,
            c.CreateBinding: self._create_binding,
            c.DeleteBinding: self._delete_binding,
            c.GetBinding: self._get_binding,
            c.ListBindings: self._list_bindings,
            c.GetStatus: self._get_status,
            c.Watch: self._watch,
            c.GoOnTelling: self._go_on_telling,
            c.CancelCall: self._cancel_call,
            c.ReportBindings: self._report_bindings,
            c.AttachSource: self._attach_source,
            c.DetachSource: self._detach_source,
            c.AttachReader: self._attach_reader,
            c.DetachReader: self._detach_reader,
            c.FetchReaders: self._fetch_readers,
            c.ReleaseSlot: self._release_slot,
            c.DetachStalled: self._detach_stalled,
            c.Publish: self._publish,
            c.ReportPresence: self._report_presence,
            c.PublishLetters: self._publish_letters,
            c.CloseOwnSource: self._close_own_source,
            c.ShowStored: lambda command: self._show_stored(command.channel),
            c.RecoverOwn: self._recover_own,
        }

    # ---- the outside ---------------------------------------------------------------------------------------

    @property
    def now_ns(self) -> int:
        """The latest time that the machine has seen."""
        return self._now_ns

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
        self._now_ns = max(self._now_ns, now_ns)
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
            plan = self._plan(command)
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
            now_ns=self._now_ns,
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
        return [_opened(each) for each in self._registry.channels.values() if each.options.is_data]

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
        self._now_ns = state.now_ns
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

    def _reply(self, caller: Caller, body: e.ReplyBody) -> list[Effect]:
        if self._sessions.get(caller.session) is None:
            return []
        assert caller.session is not None
        return [e.Reply(caller.session, caller.call, body)]

    def _refuse(self, command: Command, error: TowpathError) -> list[Effect]:
        if isinstance(command, c.OpenSession):
            return [e.SessionRefused(command.connection, error)]
        caller: Caller = getattr(command, "caller")  # noqa: B009 (each other command that can be refused has one)
        if caller.session is None:
            return [e.Warn(str(error))]
        if self._sessions.get(caller.session) is None:
            return []
        return [e.Refuse(caller.session, caller.call, error)]

    def _channel_view(self, channel: ChannelDefinition) -> e.ChannelView:
        presence = self._all_presence(channel.name)
        return e.ChannelView(
            name=channel.name,
            options=channel.options,
            owner=channel.owner,
            publishers=presence.publishers,
            subscribers=presence.subscribers + presence.pattern_subscribers,
            bindings=len(self._registry.bindings_of(channel.name)),
            declared_at_ns=channel.declared_at_ns,
        )

    def _binding_view(self, binding: BindingDefinition) -> e.BindingView:
        return e.BindingView(
            id=binding.id,
            channel=binding.channel,
            url=binding.url,
            direction=binding.direction,
            options=binding.options,
            owner=binding.owner,
            report=self._reports.get(binding.id),
        )

    # ---- runs and sessions ---------------------------------------------------------------------------------

    def _start(self, command: c.Start) -> list[Effect]:
        self._incarnation += 1
        self._data_presence.clear()
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
        for reader in tuple(session.readers):
            effects.extend(self._topics.detach_reader(self._topics.readers[reader]))
        for source in tuple(session.sources):
            effects.extend(self._topics.detach_source(self._topics.sources[source]))
        self._sessions.close(session)
        return effects

    def _allocate_ids(self, command: c.AllocateIds) -> list[Effect]:
        session = self._sessions.get(command.caller.session)
        if session is None:
            return []
        block = self._sessions.allocate(session, command.count)
        return self._reply(command.caller, e.IdsAllocated(block.first, block.count))

    # ---- definitions ---------------------------------------------------------------------------------------

    def _plan(self, command: DefinitionCommand) -> Plan:
        name = command.name if isinstance(command, c.DeclareChannel | c.UndeclareChannel) else ""
        return self._registry.plan(command, self._presence(name), self._now_ns)

    def _all_presence(self, name: str) -> Presence:
        """Who is on a channel now, by rings or by the data plane."""
        presence = self._topics.presence(name)
        data = self._data_presence.get(name)
        if data is None:
            return presence
        return replace(
            presence,
            publishers=presence.publishers + data.publishers,
            subscribers=presence.subscribers + data.subscribers,
        )

    def _report_presence(self, command: c.ReportPresence) -> list[Effect]:
        if command.name in self._registry.channels:
            self._data_presence[command.name] = Presence(command.publishers, command.subscribers)
        return []

    def _presence(self, name: str) -> Presence:
        """Who is on a channel now. The bridge's ends of bindings that exist no more do not count: it is about
        to close them."""
        presence = self._all_presence(name)
        if not presence.is_in_use or self._registry.bindings_of(name):
            return presence
        topic = self._topics.topics[name]
        left = sum(each.session.gateway == BRIDGE and bool(each.origin) for each in topic.sources.values())
        right = sum(
            each.session.gateway == BRIDGE and bool(each.exclude_origin) for each in topic.readers.values()
        )
        return replace(
            presence, publishers=presence.publishers - left, subscribers=presence.subscribers - right
        )

    def _declare_channel(self, command: c.DeclareChannel) -> list[Effect]:
        self._registry.check(command)
        plan = self._plan(command)
        channel = plan.channel
        assert channel is not None
        effects: list[Effect] = []
        if plan.change is Change.CHANNEL_ADDED:
            self._registry.add_channel(channel)
            self._topics.open(channel.name)
        elif plan.change is Change.CHANNEL_REPLACED:
            if self._options(channel.name).is_data and not channel.options.is_data:
                effects.append(e.ChannelClosed(channel.name))
                self._data_presence.pop(channel.name, None)
            self._registry.replace_channel(channel)
            effects.extend(self._topics.detach_own(self._topics.topics[channel.name]))
        view = self._channel_view(channel)
        if plan.change is not Change.NOTHING:
            if channel.options.is_data:
                effects.append(_opened(channel))
            effects.extend(self._watches.tell(e.WatchChannelDeclared(view)))
        created = plan.change is Change.CHANNEL_ADDED
        return [*effects, *self._reply(command.caller, e.ChannelDeclared(view, created))]

    def _undeclare_channel(self, command: c.UndeclareChannel) -> list[Effect]:
        self._registry.check(command)
        channel = self._plan(command).channel
        assert channel is not None
        view = self._channel_view(channel)
        effects = self._topics.close(channel.name)
        for binding in self._registry.bindings_of(channel.name):
            effects.extend(self._remove_binding(binding))
        self._registry.remove_channel(channel.name)
        self._data_presence.pop(channel.name, None)
        if channel.options.is_data:
            effects.append(e.ChannelClosed(channel.name))
        effects.extend(self._watches.tell(e.WatchChannelUndeclared(view)))
        return [*effects, *self._reply(command.caller, e.Done())]

    def _get_channel(self, command: c.GetChannel) -> list[Effect]:
        channel = self._registry.require(command.name)
        return self._reply(command.caller, e.ChannelFound(self._channel_view(channel)))

    def _list_channels(self, command: c.ListChannels) -> list[Effect]:
        count_max = max(1, min(command.count_max, CHANNELS_PER_PAGE))
        page, is_more = self._registry.channels_page(command.prefix, command.after, count_max)
        views = tuple(self._channel_view(channel) for channel in page)
        return self._reply(command.caller, e.ChannelsListed(views, is_more))

    def _channel_views(self) -> tuple[e.ChannelView, ...]:
        channels, _ = self._registry.channels_page("", "", len(self._registry.channels))
        return tuple(self._channel_view(channel) for channel in channels)

    def _create_binding(self, command: c.CreateBinding) -> list[Effect]:
        self._registry.check(command)
        plan = self._plan(command)
        binding = plan.binding
        assert binding is not None
        effects: list[Effect] = []
        created = plan.change is Change.BINDING_ADDED
        if created:
            self._registry.add_binding(binding)
        view = self._binding_view(binding)
        if created:
            effects.extend(self._watches.tell(e.WatchBindingCreated(view)))
        return [*effects, *self._reply(command.caller, e.BindingCreated(view, created))]

    def _delete_binding(self, command: c.DeleteBinding) -> list[Effect]:
        self._registry.check(command)
        binding = self._plan(command).binding
        assert binding is not None
        view = self._binding_view(binding)
        return [*self._remove_binding(binding), *self._reply(command.caller, e.BindingDeleted(view))]

    def _remove_binding(self, binding: BindingDefinition) -> list[Effect]:
        effects = self._watches.tell(e.WatchBindingDeleted(self._binding_view(binding)))
        self._registry.remove_binding(binding.id)
        for waiter in self._reports.forget(binding.id):
            error = BindingNotFound(f"binding {binding.id} was deleted")
            effects.append(e.Refuse(waiter.session.id, waiter.call, error))
        return effects

    # ---- bindings' state, status, watches ------------------------------------------------------------------

    def _get_binding(self, command: c.GetBinding) -> list[Effect]:
        binding = self._registry.require_binding(command.binding)
        report = self._reports.get(binding.id)
        session = self._sessions.get(command.caller.session)
        if session is None:
            return []
        if command.wait_settled and report.state is c.BindingState.PENDING:
            self._check_call(session, command.caller.call)
            self._reports.wait(
                session, command.caller.call, binding.id, self._registry.limits.waits_per_session_max
            )
            return []
        return self._reply(command.caller, e.BindingFound(self._binding_view(binding)))

    def _list_bindings(self, command: c.ListBindings) -> list[Effect]:
        if command.channel:
            self._registry.require(command.channel)
        count_max = max(1, min(command.count_max, BINDINGS_PER_PAGE))
        page, is_more = self._registry.bindings_page(command.channel, command.after, count_max)
        views = tuple(self._binding_view(binding) for binding in page)
        return self._reply(command.caller, e.BindingsListed(views, is_more))

    def _get_status(self, command: c.GetStatus) -> list[Effect]:
        sessions = tuple(self._session_view(session) for session in self._sessions)
        if command.without_listings:
            return self._reply(command.caller, e.StatusTold(sessions, (), ()))
        bindings = tuple(self._binding_view(binding) for binding in self._registry.bindings.values())
        return self._reply(command.caller, e.StatusTold(sessions, self._channel_views(), bindings))

    def _session_view(self, session: Session) -> e.SessionView:
        readers = self._topics.readers
        return e.SessionView(
            session.id,
            session.name,
            session.principal,
            session.pid,
            session.gateway,
            tuple(session.sources),
            tuple((reader, dict(readers[reader].slots)) for reader in session.readers),
        )

    def _watch(self, command: c.Watch) -> list[Effect]:
        caller = command.caller
        session = self._sessions.get(caller.session)
        if session is None:
            return []
        self._check_call(session, caller.call)
        self._watches.add(session, caller.call, self._registry.limits.watches_per_session_max)
        revision = self._watches.revision
        after = command.after_revision
        told = self._watches.since(after) if after is not None else None
        if told is None:
            reset = e.StreamItem(session.id, caller.call, revision, e.WatchReset())
            telling = self._watches.begin_telling(session, caller.call)
            piece = self._tell_piece(session, caller.call, telling)
            return piece if after is None else [reset, *piece]
        told.append((revision, e.WatchCurrent()))
        return [e.StreamItem(session.id, caller.call, at, body) for at, body in told]

    def _go_on_telling(self, command: c.GoOnTelling) -> list[Effect]:
        session = self._sessions.get(command.session)
        telling = self._watches.telling(command.session, command.call)
        if session is None or telling is None:
            return []
        return self._tell_piece(session, command.call, telling)

    def _tell_piece(self, session: Session, call: CallId, telling: Telling) -> list[Effect]:
        """Tell a watch more of the state as it stands: at most ``ITEMS_PER_PIECE`` of it."""
        bodies: list[e.WatchBody] = []
        if telling.binding is None:
            channels, is_more = self._registry.channels_page("", telling.channel, ITEMS_PER_PIECE)
            bodies += [e.WatchChannelDeclared(self._channel_view(channel)) for channel in channels]
            telling.channel = channels[-1].name if channels else telling.channel
            telling.binding = None if is_more else BindingId(0)
        if telling.binding is not None:
            room = ITEMS_PER_PIECE - len(bodies)
            bindings, is_more = self._registry.bindings_page("", telling.binding, room)
            bodies += [e.WatchBindingCreated(self._binding_view(binding)) for binding in bindings]
            telling.binding = bindings[-1].id if bindings else telling.binding
        end: Effect = e.StreamPaused(session.id, call)
        if not is_more:
            self._watches.end_telling(session, call)
            end = e.StreamItem(session.id, call, self._watches.revision, e.WatchCurrent())
        return [*(e.StreamItem(session.id, call, self._watches.revision, each) for each in bodies), end]

    def _check_call(self, session: Session, call: CallId) -> None:
        if call in session.watches or call in session.waits:
            raise InvalidArgument(f"call {call} is not over", hint="each call has a number of its own")

    def _cancel_call(self, command: c.CancelCall) -> list[Effect]:
        session = self._sessions.get(command.session)
        if session is not None:
            self._watches.cancel(session, command.call)
            self._reports.cancel(session, command.call)
        return []

    def _report_bindings(self, command: c.ReportBindings) -> list[Effect]:
        session = self._sessions.get(command.caller.session)
        if session is None:
            return []
        if session.gateway != BRIDGE:
            raise PermissionDenied("only the bridge that the daemon started reports on bindings")
        known = {
            binding: report
            for binding, report in command.reports.items()
            if binding in self._registry.bindings
        }
        effects: list[Effect] = []
        for waiter, identifier in self._reports.take(session, known):
            view = self._binding_view(self._registry.bindings[identifier])
            effects.append(e.Reply(waiter.session.id, waiter.call, e.BindingFound(view)))
        return [*effects, *self._reply(command.caller, e.Done())]

    # ---- publishers and subscribers ------------------------------------------------------------------------

    def _attach_source(self, command: c.AttachSource) -> list[Effect]:
        session = self._sessions.get(command.caller.session)
        if session is None:
            return []
        _check_origin(session, command.origin)
        self._check_id(session, command.source, is_resumed=command.resumed)
        channel = self._registry.require(command.channel)
        if command.ring_bytes != channel.options.ring_bytes:
            raise InvalidArgument(
                f"a ring of {command.ring_bytes} bytes is not for channel {channel.name!r}",
                hint=f"its rings have {channel.options.ring_bytes} bytes",
            )
        check_kind(channel.name, channel.options.kind, command.role)
        topic = self._topics.topics[channel.name]
        self._topics.check_source(
            topic, command.source, command.caller.principal, self._registry.limits, command.role
        )
        mediating = self._own.ensure_intake(channel, self._registry.limits)
        effects = self._topics.attach_source(
            topic=topic,
            source_id=command.source,
            session=session,
            principal=command.caller.principal,
            origin=command.origin or f"session:{session.id}",
            is_resumed=command.resumed,
            limits=self._registry.limits,
            role=command.role,
            own_reader=command.own_reader,
            peer=command.peer,
        )
        self._sessions.use(command.source)
        body = e.SourceAttached(topic.cell, self._topics.generation(topic))
        return [*mediating, *effects, *self._reply(command.caller, body)]

    def _detach_source(self, command: c.DetachSource) -> list[Effect]:
        source = self._source_of(command.caller, command.source)
        return [*self._topics.detach_source(source), *self._reply(command.caller, e.Done())]

    def _attach_reader(self, command: c.AttachReader) -> list[Effect]:
        session = self._sessions.get(command.caller.session)
        if session is None:
            return []
        if len(command.exclude_origin) > ORIGIN_CHARS_MAX:
            raise InvalidArgument(f"an origin has at most {ORIGIN_CHARS_MAX} characters")
        if command.held and not command.resumed:
            raise InvalidArgument("only a subscription that is resumed holds slots")
        self._check_id(session, command.reader, is_resumed=command.resumed)
        check_pattern(command.channel)
        if not is_pattern(command.channel):
            check_kind(command.channel, self._registry.require(command.channel).options.kind, command.role)
        elif command.role is not c.ReaderRole.SUBSCRIBER:
            raise InvalidArgument(f"{command.channel!r} is a pattern: a service is served by its name")
        effects = self._topics.attach_reader(
            name=command.channel,
            reader_id=command.reader,
            session=session,
            principal=command.caller.principal,
            slots=command.slots,
            held=command.held,
            exclude_origin=command.exclude_origin,
            wants_doorbell=command.wants_doorbell,
            has_history=lambda name: not command.resumed and self._options(name).history > 0,
            limits=self._registry.limits,
            role=command.role,
        )
        self._sessions.use(command.reader)
        return [*effects, *self._show_stored(command.channel), *self._reply(command.caller, e.Done())]

    def _detach_reader(self, command: c.DetachReader) -> list[Effect]:
        reader = self._reader_of(command.caller, command.reader)
        return [*self._topics.detach_reader(reader), *self._reply(command.caller, e.Done())]

    def _fetch_readers(self, command: c.FetchReaders) -> list[Effect]:
        source = self._source_of(command.caller, command.source)
        effects = self._topics.fetch_readers(source)
        body = e.ReadersFetched(self._topics.generation(source.topic))
        return [*effects, *self._reply(command.caller, body)]

    def _release_slot(self, command: c.ReleaseSlot) -> list[Effect]:
        reader = self._reader_of(command.caller, command.reader)
        self._topics.release_slot(reader, command.source)
        return self._reply(command.caller, e.Done())

    def _detach_stalled(self, command: c.DetachStalled) -> list[Effect]:
        source = self._source_of(command.caller, command.source)
        stall_ms_max = self._options(source.topic.name).stall_ms_max
        if stall_ms_max == 0:
            raise PermissionDenied(
                f"channel {source.topic.name!r} has stall_ms_max = 0: its publishers wait for ever",
                hint="declare it with a stall_ms_max above 0",
            )
        effects = self._topics.detach_stalled(source, command.reader, stall_ms_max)
        return [*effects, *self._reply(command.caller, e.Done())]

    # ---- the core's own ends -------------------------------------------------------------------------------

    def _publish(self, command: c.Publish) -> list[Effect]:
        caller = command.caller
        if self._sessions.get(caller.session) is None:
            return []
        assert caller.session is not None
        channel = self._registry.require(command.channel)
        check_kind(channel.name, channel.options.kind, c.SourceRole.PUBLISHER)
        mediating = self._own.ensure_intake(channel, self._registry.limits)
        source, effects = self._own.ensure_source(channel, self._registry.limits)
        write = e.WriteMessages(
            caller.session, caller.call, caller.principal, source.id, command.payloads, command.headers
        )
        return [*mediating, *effects, write]

    def _show_stored(self, name: str) -> list[Effect]:
        """See to it that what is stored of a durable topic can be shown, unless there is no room for that."""
        channel = self._registry.channels.get(name)
        if channel is None or channel.options.kind is not c.Kind.TOPIC or not channel.options.durable:
            return []
        try:
            return self._own.ensure_intake(channel, self._registry.limits)
        except LimitExceeded:
            return []

    def _publish_letters(self, command: c.PublishLetters) -> list[Effect]:
        try:
            channel = self._registry.require(command.channel)
            check_kind(channel.name, channel.options.kind, c.SourceRole.PUBLISHER)
            mediating = self._own.ensure_intake(channel, self._registry.limits)
            source, effects = self._own.ensure_source(channel, self._registry.limits)
        except TowpathError as error:
            return [e.Warn(f"{len(command.payloads)} dead letters are lost: {error}")]
        session = source.session
        write = e.WriteMessages(
            session.id, CallId(0), session.principal, source.id, command.payloads, command.headers
        )
        return [*mediating, *effects, write]

    def _close_own_source(self, command: c.CloseOwnSource) -> list[Effect]:
        source = self._topics.sources.get(command.source)
        if source is None or not source.session.is_own or source.topic.intake is not None:
            return []
        return self._topics.detach_source(source)

    def _recover_own(self, command: c.RecoverOwn) -> list[Effect]:
        effects: list[Effect] = []
        for found in command.found:
            channel = self._registry.channels.get(found.channel)
            effects.extend(self._own.recover(found, channel, self._registry.limits))
        return effects

    def _options(self, name: str) -> ChannelOptions:
        return self._registry.channels[name].options

    def _check_id(self, session: Session, identifier: int, *, is_resumed: bool) -> None:
        if self._topics.is_live(identifier):
            raise InvalidArgument(f"id {identifier} is in use")
        self._sessions.check_free(session, identifier, is_resumed=is_resumed)

    def _source_of(self, caller: Caller, identifier: SourceId) -> Source:
        source = self._topics.sources.get(identifier)
        if source is None or source.session.id != caller.session:
            raise SourceNotFound(f"the session has no source {identifier}")
        return source

    def _reader_of(self, caller: Caller, identifier: ReaderId) -> Reader:
        reader = self._topics.readers.get(identifier)
        if reader is None or reader.session.id != caller.session:
            raise SubscriptionNotFound(f"the session has no subscription {identifier}")
        return reader


def _opened(channel: ChannelDefinition) -> e.ChannelOpened:
    return e.ChannelOpened(channel.name, channel.options, channel.owner, channel.declared_at_ns)


def _check_origin(session: Session, origin: str) -> None:
    if origin and not session.gateway:
        raise PermissionDenied(
            "only gateways that the daemon started state an origin", hint="leave the origin empty"
        )
    if len(origin) > ORIGIN_CHARS_MAX:
        raise InvalidArgument(f"an origin has at most {ORIGIN_CHARS_MAX} characters")
