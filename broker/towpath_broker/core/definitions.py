"""What there is: commands that change channels and bindings, judged by the registry and by who is connected.

Theory of operation
    ``registry`` says what a command would change (a plan), given who is on the channel now; here the plan is
    carried out in all parts: the channel's topic is opened or closed, its users and whoever watches are told,
    and so is the data plane of channels that are its own.

Invariants
    What is durable changes by what the journal alone says, so that a replay decides as the run did. So
    :meth:`Definitions.plan` may look at who is connected only to refuse: the engine has asked, by
    ``Machine.verdict``, before the record was written.
    A refusal changes nothing: each command is judged whole before anything is touched.

Not here: the rules themselves (``registry``), listings and watches (``observing``).
"""

from __future__ import annotations

from dataclasses import replace

from towpath.errors import BindingNotFound

from . import commands as c
from . import effects as e
from .effects import Effect
from .parts import BRIDGE, Handlers, Parts
from .registry import (
    NOBODY,
    BindingDefinition,
    Change,
    ChannelDefinition,
    DefinitionCommand,
    Plan,
    Presence,
)


class Definitions:
    """Carries out what changes definitions, on the parts given."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._registry = parts.registry
        self._topics = parts.topics
        self._watches = parts.watches
        self._reports = parts.reports

    def handlers(self) -> Handlers:
        """Return which commands are carried out here, and how."""
        return {
            c.DeclareChannel: self._declare_channel,
            c.UndeclareChannel: self._undeclare_channel,
            c.CreateBinding: self._create_binding,
            c.DeleteBinding: self._delete_binding,
            c.ReportPresence: self._report_presence,
        }

    def plan(self, command: DefinitionCommand) -> Plan:
        """Say what a command would change as things stand.

        Raises:
            TowpathError: it is refused; nothing has changed.
        """
        presence = NOBODY
        if isinstance(command, c.DeclareChannel | c.UndeclareChannel):
            presence = replace(self._presence(command.name), messages=command.messages_held)
        return self._registry.plan(command, presence, self._parts.now_ns)

    def _presence(self, name: str) -> Presence:
        """Who is on a channel now. The bridge's ends of bindings that exist no more do not count: it is about
        to close them."""
        presence = self._parts.all_presence(name)
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

    def _report_presence(self, command: c.ReportPresence) -> list[Effect]:
        if command.name in self._registry.channels:
            self._parts.data_presence[command.name] = Presence(command.publishers, command.subscribers)
        return []

    def _declare_channel(self, command: c.DeclareChannel) -> list[Effect]:
        self._registry.check(command)
        plan = self.plan(command)
        channel = plan.channel
        assert channel is not None
        effects: list[Effect] = []
        if plan.change is Change.CHANNEL_ADDED:
            self._registry.add_channel(channel)
            self._topics.open(channel.name)
        elif plan.change is Change.CHANNEL_REPLACED:
            if self._parts.options(channel.name).is_data and not channel.options.is_data:
                effects.append(e.ChannelClosed(channel.name))
                self._parts.data_presence.pop(channel.name, None)
            self._registry.replace_channel(channel)
            effects.extend(self._topics.detach_own(self._topics.topics[channel.name]))
        view = self._parts.channel_view(channel)
        if plan.change is not Change.NOTHING:
            if channel.options.is_data:
                effects.append(opened(channel))
            effects.extend(self._watches.tell(e.WatchChannelDeclared(view)))
        created = plan.change is Change.CHANNEL_ADDED
        return [*effects, *self._parts.reply(command.caller, e.ChannelDeclared(view, created))]

    def _undeclare_channel(self, command: c.UndeclareChannel) -> list[Effect]:
        self._registry.check(command)
        channel = self.plan(command).channel
        assert channel is not None
        view = self._parts.channel_view(channel)
        effects = self._topics.close(channel.name)
        for binding in self._registry.bindings_of(channel.name):
            effects.extend(self._remove_binding(binding))
        self._registry.remove_channel(channel.name)
        self._parts.data_presence.pop(channel.name, None)
        if channel.options.is_data:
            effects.append(e.ChannelClosed(channel.name))
        effects.extend(self._watches.tell(e.WatchChannelUndeclared(view)))
        return [*effects, *self._parts.reply(command.caller, e.Done())]

    def _create_binding(self, command: c.CreateBinding) -> list[Effect]:
        self._registry.check(command)
        plan = self.plan(command)
        binding = plan.binding
        assert binding is not None
        effects: list[Effect] = []
        created = plan.change is Change.BINDING_ADDED
        if created:
            self._registry.add_binding(binding)
        view = self._parts.binding_view(binding)
        if created:
            effects.extend(self._watches.tell(e.WatchBindingCreated(view)))
        return [*effects, *self._parts.reply(command.caller, e.BindingCreated(view, created))]

    def _delete_binding(self, command: c.DeleteBinding) -> list[Effect]:
        self._registry.check(command)
        binding = self.plan(command).binding
        assert binding is not None
        view = self._parts.binding_view(binding)
        return [*self._remove_binding(binding), *self._parts.reply(command.caller, e.BindingDeleted(view))]

    def _remove_binding(self, binding: BindingDefinition) -> list[Effect]:
        effects = self._watches.tell(e.WatchBindingDeleted(self._parts.binding_view(binding)))
        self._registry.remove_binding(binding.id)
        for waiter in self._reports.forget(binding.id):
            error = BindingNotFound(f"binding {binding.id} was deleted")
            effects.append(e.Refuse(waiter.session.id, waiter.call, error))
        return effects


def opened(channel: ChannelDefinition) -> e.ChannelOpened:
    """What the data plane is told of a channel of its own."""
    return e.ChannelOpened(channel.name, channel.options, channel.owner, channel.declared_at_ns)
