"""The registry: definitions of channels and bindings, the durable part of the machine.

Theory of operation
    A durable command is judged in three steps, which the engine and the machine share.
    :meth:`Registry.check` refuses what no state of things could make right: a bad name, an option out of
    range, a caller without the permission. :meth:`Registry.plan` judges it against the definitions there
    are and says what it would change. Only then does the machine call one of the methods that change
    something. The first two raise before anything was touched, so a refusal leaves the registry as it was.

Invariants
    ``channels``, ``bindings`` and the indexes over them tell the same; ``assert_consistent`` says so.
    A binding's channel exists. One place has one binding. A binding's id is never used again.

Not here: what options a channel can have (``options``), who publishes or subscribes (``channels``), how
bindings fare (``reports``), who is told of changes (``watches``).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice
from typing import Final

from towpath.bindings import check_options, parse_options, parse_url, place_key
from towpath.errors import (
    BindingConflict,
    BindingNotFound,
    ChannelConflict,
    ChannelInUse,
    ChannelNotFound,
    InvalidArgument,
    LimitExceeded,
    PermissionDenied,
)
from towpath.names import check_name
from towpath.wording import plural

from .commands import (
    Caller,
    ChannelOptions,
    CreateBinding,
    DeclareChannel,
    DeleteBinding,
    Direction,
    Kind,
    UndeclareChannel,
)
from .ids import BindingId
from .limits import Limits
from .options import check_of_kind, check_stated, differences, settled, told
from .quotas import Tally

DefinitionCommand = DeclareChannel | UndeclareChannel | CreateBinding | DeleteBinding

_READERS: Final = {Kind.QUEUE: "consumer", Kind.STATE: "watcher"}
"""What those are called who hold a channel in use; elsewhere subscribers."""


@dataclass(frozen=True, slots=True)
class ChannelDefinition:
    """What is kept of a channel."""

    name: str
    options: ChannelOptions
    owner: str
    declared_at_ns: int


@dataclass(frozen=True, slots=True)
class BindingDefinition:
    """What is kept of a binding. ``options`` are those stated, in canonical spelling."""

    id: BindingId
    channel: str
    url: str
    direction: Direction
    options: Mapping[str, str]
    owner: str


@dataclass(frozen=True, slots=True)
class Presence:
    """Who is on a channel now, and what is in it; nobody and nothing ever is at a replay.

    Attributes:
        subscribers: those that named the channel.
        pattern_subscribers: those to a pattern that stands for it.
        messages: what a queue or a durable topic holds.
    """

    publishers: int = 0
    subscribers: int = 0
    pattern_subscribers: int = 0
    messages: int = 0

    @property
    def is_in_use(self) -> bool:
        """Whether somebody came for this very channel. A pattern stands for whatever channels there are: that
        one of them goes is nothing its subscriber would have to agree to.
        """
        return self.publishers > 0 or self.subscribers > 0


NOBODY = Presence()


class Change(Enum):
    """What a command would change."""

    NOTHING = auto()
    CHANNEL_ADDED = auto()
    CHANNEL_REPLACED = auto()
    CHANNEL_REMOVED = auto()
    BINDING_ADDED = auto()
    BINDING_REMOVED = auto()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command would do: the change, and the definition that it is about."""

    change: Change
    channel: ChannelDefinition | None = None
    binding: BindingDefinition | None = None


class SortedNames:
    """Names in their order, of which a page is found without looking at the others.

    Those that are new are sorted in when somebody asks: so many that are added one after the other are sorted
    once.
    """

    def __init__(self) -> None:
        self._sorted: list[str] = []
        self._new: set[str] = set()

    def add(self, name: str) -> None:
        """Add a name that is not there."""
        self._new.add(name)

    def remove(self, name: str) -> None:
        """Remove a name that is there. O(names), of the cheapest kind: the rest moves up."""
        if name in self._new:
            self._new.remove(name)
        else:
            del self._sorted[bisect_left(self._sorted, name)]

    def page(self, prefix: str, after: str, count_max: int) -> list[str]:
        """Return those that begin with a prefix and come after a name, at most so many."""
        if self._new:
            self._sorted += self._new
            self._sorted.sort()  # nearly sorted already: O(names)
            self._new.clear()
        begin = max(bisect_left(self._sorted, prefix), bisect_right(self._sorted, after) if after else 0)
        page = self._sorted[begin : begin + count_max]
        return page[: bisect_right(page, prefix, key=lambda name: name[: len(prefix)])]


class Registry:
    """Definitions of channels and bindings, in the order in which they were made."""

    def __init__(self, limits: Limits, defaults: ChannelOptions) -> None:
        self.limits = limits
        self.defaults = defaults
        self.channels: dict[str, ChannelDefinition] = {}
        self.bindings: dict[BindingId, BindingDefinition] = {}
        self.next_binding = 1
        self._owned = Tally("channels_per_principal_max", "channels")
        self._names = SortedNames()
        self._of_channel: dict[str, dict[BindingId, BindingDefinition]] = {}
        self._of_place: dict[tuple[str, ...], BindingId] = {}

    # ---- judging -------------------------------------------------------------------------------------------

    def check(self, command: DefinitionCommand) -> None:
        """Refuse what is wrong whatever the state of things.

        Raises:
            InvalidName, InvalidArgument, LimitExceeded: what it asks for cannot be asked for.
            PermissionDenied: the caller may not ask for it.
        """
        if isinstance(command, DeclareChannel):
            check_name(command.name)
            check_stated(command.options, self.limits)
            if command.replace and not command.caller.is_admin:
                raise PermissionDenied(f"{command.caller.principal} may not replace a channel's options")
        elif isinstance(command, UndeclareChannel):
            check_name(command.name)
        else:
            _check_may_bind(command.caller)
            if isinstance(command, CreateBinding):
                check_name(command.channel)
                scheme, _ = parse_url(command.url)
                check_options(scheme, command.direction.name.lower(), command.options)
            elif not command.binding:
                if not command.url:
                    raise InvalidArgument("a binding is named by its id, or by channel and URL")
                parse_url(command.url)

    def plan(self, command: DefinitionCommand, presence: Presence, now_ns: int) -> Plan:
        """Judge a command that :meth:`check` let through.

        Args:
            presence: who uses the channel that it names.
            now_ns: when, for a channel that it declares.

        Raises:
            TowpathError: it is refused as things stand.
        """
        if isinstance(command, DeclareChannel):
            return self._plan_declare(command, presence, now_ns)
        if isinstance(command, UndeclareChannel):
            return self._plan_undeclare(command, presence)
        if isinstance(command, CreateBinding):
            return self._plan_create_binding(command)
        return Plan(Change.BINDING_REMOVED, binding=self._named(command))

    def _plan_declare(self, command: DeclareChannel, presence: Presence, now_ns: int) -> Plan:
        channel = self.channels.get(command.name)
        kind = command.options.kind or (channel.options if channel is not None else self.defaults).kind
        check_of_kind(command.options, kind)
        if channel is None:
            limits = self.limits
            if len(self.channels) >= limits.channels_max:
                raise LimitExceeded(
                    f"there are {len(self.channels)} channels: channels_max is {limits.channels_max}"
                )
            principal = command.caller.principal
            self._owned.check(principal, limits.channels_per_principal_max)
            options = settled(command.options, self.defaults)
            self._check_options_together(command.name, options)
            return Plan(Change.CHANNEL_ADDED, ChannelDefinition(command.name, options, principal, now_ns))
        options = settled(command.options, channel.options)
        if options == channel.options:
            return Plan(Change.NOTHING, channel)
        self._check_options_together(command.name, options)
        changes = differences(channel.options, options)
        if not command.replace:
            raise ChannelConflict(f"channel {command.name!r} is declared with other options: {changes}")
        if presence.is_in_use:
            raise ChannelConflict(
                f"channel {command.name!r} keeps its options while it is used: {changes}",
                hint="the configured options are taken at the next start when nobody uses the channel",
            )
        has = channel.options
        if presence.messages and (options.kind is not has.kind or options.durable is not has.durable):
            raise ChannelConflict(
                f"channel {command.name!r} keeps its kind, and whether it is durable, while it holds"
                f" {plural(presence.messages, 'message')}: {changes}",
                hint="have what it holds read, or remove it: towpath undeclare --force; then start again",
            )
        replaced = ChannelDefinition(channel.name, options, channel.owner, channel.declared_at_ns)
        return Plan(Change.CHANNEL_REPLACED, replaced)

    def _check_options_together(self, name: str, options: ChannelOptions) -> None:
        """Refuse settled options that contradict each other, or what there is.

        A dead-letter channel need not exist yet. If it does not when letters come, or has become a state or a
        service by then, they are lost, and counted.
        """
        if options.kind is not Kind.QUEUE or not options.dead_letter:
            return
        if options.dead_letter == name:
            raise InvalidArgument(
                f"queue {name!r} cannot be its own dead-letter channel", hint="name another queue, or a topic"
            )
        target = self.channels.get(options.dead_letter)
        if target is not None and target.options.kind not in (Kind.QUEUE, Kind.TOPIC):
            raise InvalidArgument(
                f"dead_letter of queue {name!r} cannot be {target.name!r}: that is a"
                f" {told(target.options.kind)}, and takes no letters",
                hint="dead letters go to a queue or a topic",
            )

    def _plan_undeclare(self, command: UndeclareChannel, presence: Presence) -> Plan:
        channel = self.require(command.name, hint="towpath channels lists those there are")
        caller = command.caller
        if caller.principal != channel.owner and not caller.is_admin:
            raise PermissionDenied(
                f"{caller.principal} may not undeclare channel {channel.name!r}",
                hint=f"it belongs to {channel.owner}; its owner and the daemon's administrators may",
            )
        if not command.force:
            self._check_is_free(channel, presence)
        return Plan(Change.CHANNEL_REMOVED, channel)

    def _check_is_free(self, channel: ChannelDefinition, presence: Presence) -> None:
        """Refuse to remove a channel that is used, or what it holds."""
        users = [
            plural(count, what)
            for count, what in (
                (presence.publishers, "publisher"),
                (presence.subscribers, _READERS.get(channel.options.kind, "subscriber")),
                (len(self.bindings_of(channel.name)), "binding"),
            )
            if count
        ]
        reasons = [f"is in use by {', '.join(users)}"] if users else []
        if presence.messages:
            reasons.append(f"holds {plural(presence.messages, 'message')}")
            raise ChannelInUse(
                f"channel {channel.name!r} {', and '.join(reasons)}",
                hint="its messages are lost with it: if that is meant, force it (towpath undeclare --force)",
                retryable=False,
            )
        if reasons:
            raise ChannelInUse(f"channel {channel.name!r} {reasons[0]}")

    def _plan_create_binding(self, command: CreateBinding) -> Plan:
        self.require(command.channel)
        scheme, _ = parse_url(command.url)
        options = check_options(scheme, command.direction.name.lower(), command.options)
        taken = self._of_place.get(place_key(command.url))
        if taken is not None:
            binding = self.bindings[taken]
            if (
                binding.channel == command.channel
                and binding.direction is command.direction
                and parse_options(scheme, binding.options) == parse_options(scheme, options)
            ):
                return Plan(Change.NOTHING, binding=binding)
            stated = " ".join(f"{name}={value}" for name, value in binding.options.items())
            raise BindingConflict(
                f"{command.url} is bound already: binding {binding.id}, channel {binding.channel!r},"
                f" {binding.direction.name.lower()}{', ' if stated else ''}{stated}",
                hint=f"one place has one binding; remove that one first: towpath unbind {binding.id}",
            )
        if len(self.bindings) >= self.limits.bindings_max:
            raise LimitExceeded(
                f"there are {len(self.bindings)} bindings: bindings_max is {self.limits.bindings_max}"
            )
        new = BindingDefinition(
            BindingId(self.next_binding),
            command.channel,
            command.url,
            command.direction,
            options,
            command.caller.principal,
        )
        return Plan(Change.BINDING_ADDED, binding=new)

    def _named(self, command: DeleteBinding) -> BindingDefinition:
        if command.binding:
            return self.require_binding(command.binding)
        identifier = self._of_place.get(place_key(command.url))
        binding = None if identifier is None else self.bindings[identifier]
        if binding is None or (command.channel and binding.channel != command.channel):
            on = f" on channel {command.channel!r}" if command.channel else ""
            raise BindingNotFound(f"no binding of {command.url}{on}")
        return binding

    # ---- reading -------------------------------------------------------------------------------------------

    def require(self, name: str, *, hint: str = "") -> ChannelDefinition:
        """Return a channel.

        Args:
            hint: what to do where there is none; empty: declare it.

        Raises:
            InvalidName, ChannelNotFound: there can be, or is, none of that name.
        """
        channel = self.channels.get(name)
        if channel is None:
            check_name(name)
            declare_it = f"declare it first: towpath declare {name}"
            raise ChannelNotFound(f"no channel {name!r}", hint=hint or declare_it)
        return channel

    def require_binding(self, identifier: BindingId) -> BindingDefinition:
        """Return a binding.

        Raises:
            BindingNotFound: there is none of that id.
        """
        binding = self.bindings.get(identifier)
        if binding is None:
            raise BindingNotFound(f"no binding {identifier}")
        return binding

    def bindings_of(self, channel: str) -> tuple[BindingDefinition, ...]:
        """Return a channel's bindings, oldest first."""
        return tuple(self._of_channel.get(channel, {}).values())

    def channels_page(self, prefix: str, after: str, count_max: int) -> tuple[list[ChannelDefinition], bool]:
        """Return the channels whose names begin with a prefix and come after a name, by name, and whether
        more follow. O(count_max), but for the sorting of names that are new.
        """
        names = self._names.page(prefix, after, count_max + 1)
        return [self.channels[name] for name in names[:count_max]], len(names) > count_max

    def bindings_page(
        self, channel: str, after: BindingId, count_max: int
    ) -> tuple[list[BindingDefinition], bool]:
        """Return the bindings after an id, the oldest first, and whether more follow. O(bindings)."""
        bindings = self._of_channel.get(channel, {}) if channel else self.bindings
        found = list(islice((each for each in bindings.values() if each.id > after), count_max + 1))
        return found[:count_max], len(found) > count_max

    # ---- changing ------------------------------------------------------------------------------------------

    def add_channel(self, channel: ChannelDefinition) -> None:
        """Add a channel that :meth:`plan` planned, or that a snapshot has."""
        assert channel.name not in self.channels
        self.channels[channel.name] = channel
        self._names.add(channel.name)
        self._owned.add(channel.owner)

    def replace_channel(self, channel: ChannelDefinition) -> None:
        """Put a channel's new definition in the place of the old."""
        assert self.channels[channel.name].owner == channel.owner
        self.channels[channel.name] = channel

    def remove_channel(self, name: str) -> None:
        """Remove a channel, whose bindings are removed already."""
        assert name not in self._of_channel
        self._owned.remove(self.channels.pop(name).owner)
        self._names.remove(name)

    def add_binding(self, binding: BindingDefinition) -> None:
        """Add a binding that :meth:`plan` planned, or that a snapshot has."""
        place = place_key(binding.url)
        assert binding.id not in self.bindings and place not in self._of_place
        assert binding.channel in self.channels
        self.bindings[binding.id] = binding
        self._of_place[place] = binding.id
        self._of_channel.setdefault(binding.channel, {})[binding.id] = binding
        self.next_binding = max(self.next_binding, binding.id + 1)

    def remove_binding(self, identifier: BindingId) -> None:
        """Remove a binding."""
        binding = self.bindings.pop(identifier)
        del self._of_place[place_key(binding.url)]
        siblings = self._of_channel[binding.channel]
        del siblings[identifier]
        if not siblings:
            del self._of_channel[binding.channel]

    def assert_consistent(self) -> None:
        """Assert the invariants; for tests. O(channels + bindings)."""
        assert self._owned.total() == len(self.channels)
        assert all(name == channel.name for name, channel in self.channels.items())
        assert self._names.page("", "", len(self.channels) + 1) == sorted(self.channels)
        assert {place_key(b.url): b.id for b in self.bindings.values()} == self._of_place
        assert sum(map(len, self._of_channel.values())) == len(self.bindings)
        assert all(self._of_channel[b.channel][b.id] is b for b in self.bindings.values())
        assert all(b.channel in self.channels and b.id < self.next_binding for b in self.bindings.values())
        assert all(self._of_channel.values())


def _check_may_bind(caller: Caller) -> None:
    if not caller.is_admin:
        raise PermissionDenied(
            f"{caller.principal} may not make or remove bindings",
            hint="a binding acts with the daemon's authority: only its own uid, root and members of the admin"
            " group may",
        )
