"""What the machine is made of, and how its parts answer: shared by all who carry out commands.

Theory of operation
    Commands are carried out by idea: what there is (``definitions``), who looks at it (``observing``), who
    publishes and subscribes (``attaching``), and who is there at all (``machine``). All of them judge by the
    same parts and answer in the same words; both are here, so that none of them has to know another.

Invariants
    A session that is closed is told no more: :meth:`Parts.reply` says nothing to it.

Not here: any decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from . import effects as e
from .channels import Topics
from .commands import Caller, ChannelOptions, Command, Start
from .effects import Effect
from .own import OwnEnds
from .registry import BindingDefinition, ChannelDefinition, Presence, Registry
from .reports import Reports
from .sessions import Sessions
from .watches import Watches

BRIDGE: Final = "bridge"
"""The gateway that hosts the adapters, and alone may report on bindings."""
RETURN_MS: Final = 30_000
"""How long publishers wait for what a binding has not read when its bridge is gone, and started again."""

Handlers = dict[type[Command], Callable[[Any], list[Effect]]]
"""Who carries out which command; each is called with a command of its type."""


class Parts:
    """The parts of one machine.

    Attributes:
        now_ns: the machine's time; it never goes back.
        data_presence: who is on the channels that the data plane has, as it last told.
    """

    def __init__(self, configured: Start) -> None:
        self.registry = Registry(configured.limits, configured.defaults)
        self.sessions = Sessions()
        self.topics = Topics()
        self.own = OwnEnds(self.topics, self.sessions)
        self.reports = Reports()
        self.watches = Watches()
        self.data_presence: dict[str, Presence] = {}
        self.now_ns = 0

    def reply(self, caller: Caller, body: e.ReplyBody) -> list[Effect]:
        """Answer a call, unless its session is closed."""
        if self.sessions.get(caller.session) is None:
            return []
        assert caller.session is not None
        return [e.Reply(caller.session, caller.call, body)]

    def channel_view(self, channel: ChannelDefinition) -> e.ChannelView:
        """What is told of a channel."""
        presence = self.all_presence(channel.name)
        return e.ChannelView(
            name=channel.name,
            options=channel.options,
            owner=channel.owner,
            publishers=presence.publishers,
            subscribers=presence.subscribers + presence.pattern_subscribers,
            bindings=len(self.registry.bindings_of(channel.name)),
            declared_at_ns=channel.declared_at_ns,
        )

    def binding_view(self, binding: BindingDefinition) -> e.BindingView:
        """What is told of a binding."""
        return e.BindingView(
            id=binding.id,
            channel=binding.channel,
            url=binding.url,
            direction=binding.direction,
            options=binding.options,
            owner=binding.owner,
            report=self.reports.get(binding.id),
        )

    def all_presence(self, name: str) -> Presence:
        """Who is on a channel now, by rings or by the data plane."""
        presence = self.topics.presence(name)
        data = self.data_presence.get(name)
        if data is None:
            return presence
        return replace(
            presence,
            publishers=presence.publishers + data.publishers,
            subscribers=presence.subscribers + data.subscribers,
        )

    def options(self, name: str) -> ChannelOptions:
        """The options of a channel that there is."""
        return self.registry.channels[name].options
