"""Who looks: listings, status, calls that wait for a binding, and watches; and what is looked at of bindings.

Theory of operation
    A listing is answered in pages by name or id, so that neither the core nor whoever reads is held up by one
    answer, however much there is. A watch is told the state in pieces, then what changes (``watches`` has how
    they meet): ``definitions`` tells it of changes, this module of the state.

    How a binding fares, only the bridge knows; it reports (``reports``), and a call that waits for a binding
    to settle is answered by the report that settles it.

Invariants
    Nothing here changes what is durable.
    A call number stands for one thing at a time: a watch or a wait.

Not here: what is told of changes (``definitions``), rates and counters of the data plane.
"""

from __future__ import annotations

from towpath.errors import InvalidArgument, PermissionDenied

from . import commands as c
from . import effects as e
from .effects import Effect
from .ids import BindingId, CallId
from .limits import BINDINGS_PER_PAGE, CHANNELS_PER_PAGE, ITEMS_PER_PIECE
from .parts import BRIDGE, Handlers, Parts
from .sessions import Session
from .watches import Telling


class Observing:
    """Carries out what only looks, on the parts given."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._registry = parts.registry
        self._sessions = parts.sessions
        self._topics = parts.topics
        self._watches = parts.watches
        self._reports = parts.reports

    def handlers(self) -> Handlers:
        """Return which commands are carried out here, and how."""
        return {
            c.GetChannel: self._get_channel,
            c.ListChannels: self._list_channels,
            c.GetBinding: self._get_binding,
            c.ListBindings: self._list_bindings,
            c.GetStatus: self._get_status,
            c.Watch: self._watch,
            c.GoOnTelling: self._go_on_telling,
            c.CancelCall: self._cancel_call,
            c.ReportBindings: self._report_bindings,
        }

    def _get_channel(self, command: c.GetChannel) -> list[Effect]:
        channel = self._registry.require(command.name)
        return self._parts.reply(command.caller, e.ChannelFound(self._parts.channel_view(channel)))

    def _list_channels(self, command: c.ListChannels) -> list[Effect]:
        count_max = max(1, min(command.count_max, CHANNELS_PER_PAGE))
        page, is_more = self._registry.channels_page(command.prefix, command.after, count_max)
        views = tuple(self._parts.channel_view(channel) for channel in page)
        return self._parts.reply(command.caller, e.ChannelsListed(views, is_more))

    def _channel_views(self) -> tuple[e.ChannelView, ...]:
        channels, _ = self._registry.channels_page("", "", len(self._registry.channels))
        return tuple(self._parts.channel_view(channel) for channel in channels)

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
        return self._parts.reply(command.caller, e.BindingFound(self._parts.binding_view(binding)))

    def _list_bindings(self, command: c.ListBindings) -> list[Effect]:
        if command.channel:
            self._registry.require(command.channel)
        count_max = max(1, min(command.count_max, BINDINGS_PER_PAGE))
        page, is_more = self._registry.bindings_page(command.channel, command.after, count_max)
        views = tuple(self._parts.binding_view(binding) for binding in page)
        return self._parts.reply(command.caller, e.BindingsListed(views, is_more))

    def _get_status(self, command: c.GetStatus) -> list[Effect]:
        sessions = tuple(self._session_view(session) for session in self._sessions)
        if command.without_listings:
            return self._parts.reply(command.caller, e.StatusTold(sessions, (), ()))
        bindings = tuple(self._parts.binding_view(binding) for binding in self._registry.bindings.values())
        return self._parts.reply(command.caller, e.StatusTold(sessions, self._channel_views(), bindings))

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
            bodies += [e.WatchChannelDeclared(self._parts.channel_view(channel)) for channel in channels]
            telling.channel = channels[-1].name if channels else telling.channel
            telling.binding = None if is_more else BindingId(0)
        if telling.binding is not None:
            room = ITEMS_PER_PIECE - len(bodies)
            bindings, is_more = self._registry.bindings_page("", telling.binding, room)
            bodies += [e.WatchBindingCreated(self._parts.binding_view(binding)) for binding in bindings]
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
            view = self._parts.binding_view(self._registry.bindings[identifier])
            effects.append(e.Reply(waiter.session.id, waiter.call, e.BindingFound(view)))
        return [*effects, *self._parts.reply(command.caller, e.Done())]
