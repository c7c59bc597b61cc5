"""The machine against a naive model: what each party was told must be what is so, after every step.

The model keeps plain facts (who publishes and subscribes where) and, apart from them, what each client and
the shell came to know from effects alone. After each step it compares the two: a subscriber knows exactly the
publishers it should, each at a slot of its own; a publisher that does not know its subscribers will see that
the cell of its channel differs from the value it last learned; the shell holds the descriptors of what is
live, and no others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.core.harness import fingerprint
from towpath.errors import (
    BindingConflict,
    BindingNotFound,
    ChannelConflict,
    ChannelInUse,
    ChannelNotFound,
    InvalidArgument,
    LimitExceeded,
    PermissionDenied,
    QuotaExceeded,
    SubscriptionNotFound,
    TowpathError,
)
from towpath_broker.core import commands as c
from towpath_broker.core import effects as e
from towpath_broker.core.commands import Caller, StatedOptions
from towpath_broker.core.effects import Effect
from towpath_broker.core.ids import BindingId, CallId, ConnectionId, ReaderId, SessionId, SourceId
from towpath_broker.core.limits import Limits
from towpath_broker.core.machine import Machine

LIMITS = Limits(
    sessions_max=6,
    sessions_per_principal_max=3,
    channels_max=3,
    channels_per_principal_max=2,
    bindings_max=3,
    sources_per_principal_max=4,
    readers_per_principal_max=4,
    publishers_per_channel_max=3,
    subscribers_per_channel_max=3,
    patterns_max=3,
    patterns_per_principal_max=2,
)
NAMES = ("a",) * 5 + ("b",) * 2 + ("c", "d")
"""More often the same than not: what is interesting happens where many meet."""
PATTERNS = (*NAMES, "*", "*", ">", "a.>")
HISTORIES = {"a": 0, "b": 5, "c": 5, "d": 0}
"""Of each channel, always the same."""
STALLS = {"a": 250, "b": 0, "c": 250, "d": 250}
PRINCIPALS = ("uid:0", "uid:1", "uid:2")
ORIGINS = ("", "binding:1", "binding:2")
SIZES = (4096, 8192)
SLOTS = 3
PLACES = ("fifo:/x", "fifo:/y", "pipe:cat", "pipe:tac")

pick = st.integers(0, 1 << 16)
"""Chooses among what there is at that step: an index, taken modulo the number of choices."""
seldom = st.integers(0, 7).map(lambda number: number == 5)
"""True now and then: for what ends much at once."""


@dataclass
class Party:
    """A client: what is so of it, and what it knows of bindings of pages and rings."""

    session: SessionId
    principal: str
    is_gateway: bool
    unused: list[int]
    calls: int = 0


@dataclass
class Publisher:
    party: Party
    channel: str
    origin: str
    cell: int = -1
    seen_generation: int = -1
    told: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By reader: its attachment's number, and the slot."""
    starts: dict[int, e.StartAt] = field(default_factory=dict)
    """By reader: where it was told to begin, which must be what the source is told."""
    parted: set[int] = field(default_factory=set)
    """Readers that it was parted from because they stalled, by attachment's number."""
    outlived: set[int] = field(default_factory=set)
    """Readers that it was parted from and told so, and not yet told that they have gone."""


@dataclass
class Subscriber:
    party: Party
    channel: str
    exclude_origin: str
    attachment: int
    told: dict[int, int] = field(default_factory=dict)
    """By live source: the slot."""
    draining: dict[int, int] = field(default_factory=dict)
    """By source that is gone, or that is held and has not come back: the slot."""

    def follows(self, name: str) -> bool:
        """Whether what is published on a channel is for it; the channels here have one level."""
        return self.channel in (name, "*", ">")


@dataclass
class Channel:
    owner: str
    ring_bytes: int


class Comparison(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.machine = Machine(LIMITS)
        self.now_ns = 0
        self.parties: list[Party] = []
        self.channels: dict[str, Channel] = {}
        self.bindings: dict[int, tuple[str, str]] = {}
        self.bindings_made = 0
        self.ids_given: set[int] = set()
        self.ids_ended: list[int] = []
        self.attachments = 0
        self.run()
        for principal in PRINCIPALS:
            self.open_session(principal, principal == "uid:0")
        for name in ("a", "b"):
            self.declare(1, name, SIZES[0], False)

    def run(self) -> None:
        """A run of the core begins; whoever was connected is gone, with all that was theirs."""
        self.parties.clear()
        self.publishers: dict[int, Publisher] = {}
        self.subscribers: dict[int, Subscriber] = {}
        self.shell_rings: set[int] = set()
        self.shell_pages: set[int] = set()
        self.table: dict[int, int] = {}
        self.apply(self.machine.start_command())

    # ---- talking to the machine ----------------------------------------------------------------------------

    def apply(self, command: c.Command) -> list[Effect]:
        self.now_ns += 1
        before = fingerprint(self.machine)
        effects = self.machine.apply(command, self.now_ns)
        if effects and isinstance(effects[-1], e.Refuse | e.SessionRefused):
            assert len(effects) == 1
            assert fingerprint(self.machine) == before
        for effect in effects:
            self.learn(effect)
        return effects

    def caller(self, party: Party) -> Caller:
        party.calls += 1
        return Caller(party.principal, party.principal == "uid:0", party.session, CallId(party.calls))

    def expect(self, party: Party, effects: list[Effect], error: type[TowpathError] | None) -> bool:
        """Check that the call was answered once, last, and as foretold; return whether it was carried out."""
        answers = [effect for effect in effects if isinstance(effect, e.Reply | e.Refuse)]
        assert [(answer.session, answer.call) for answer in answers] == [(party.session, party.calls)], (
            effects
        )
        answer = answers[0]
        assert answer is effects[-1]
        if isinstance(answer, e.Refuse):
            assert error is not None and isinstance(answer.error, error), (answer.error, error)
            return False
        assert error is None, (effects, error)
        return True

    def learn(self, effect: Effect) -> None:
        """What an effect lets a client, or the shell, know. A notice must reach the session it is about."""
        match effect:
            case e.BumpGeneration():
                assert effect.generation == self.table.get(effect.index, 0) + 1
                self.table[effect.index] = effect.generation
            case e.DropSource():
                self.shell_rings.remove(effect.source)
            case e.DropReader():
                self.shell_pages.remove(effect.reader)
            case e.Notice():
                self.learn_notice(effect.session, effect.body)
            case _:
                pass

    def learn_notice(self, session: SessionId, body: e.NoticeBody) -> None:
        match body:
            case e.SourceAdded():
                subscriber = self.subscribers[body.reader]
                assert subscriber.party.session == session
                assert body.source in self.shell_rings
                assert body.source not in subscriber.told
                kept = subscriber.draining.pop(body.source, body.slot)
                assert kept == body.slot < SLOTS
                taken = [*subscriber.told.values(), *subscriber.draining.values()]
                assert body.slot not in taken
                subscriber.told[body.source] = body.slot
                publisher = self.publishers[body.source]
                if publisher.told.get(body.reader) == (subscriber.attachment, body.slot):
                    assert publisher.starts[body.reader] is body.start
                publisher.starts[body.reader] = body.start
                assert (body.origin, body.channel) == (publisher.origin, publisher.channel)
                assert body.session == publisher.party.session
            case e.SourceGone():
                subscriber = self.subscribers[body.reader]
                assert subscriber.party.session == session
                subscriber.draining[body.source] = subscriber.told.pop(body.source)
            case e.ReaderAdded():
                publisher = self.publishers[body.source]
                assert publisher.party.session == session
                assert body.reader in self.shell_pages
                assert body.reader not in publisher.told
                subscriber = self.subscribers[body.reader]
                assert body.session == subscriber.party.session
                assert publisher.starts.setdefault(body.reader, body.start) is body.start
                publisher.told[body.reader] = subscriber.attachment, body.slot
            case e.ReaderGone():
                publisher = self.publishers[body.source]
                assert publisher.party.session == session
                if body.is_parted or body.reader in publisher.told:
                    del publisher.told[body.reader]
                else:
                    publisher.outlived.remove(body.reader)
                if body.is_parted:
                    publisher.outlived.add(body.reader)
            case e.SourceDetached():
                subscriber = self.subscribers[body.reader]
                assert subscriber.party.session == session
                subscriber.draining[body.source] = subscriber.told.pop(body.source)
                self.publishers[body.source].parted.add(subscriber.attachment)
            case e.SubscriptionEnded():
                assert self.subscribers.pop(body.reader).party.session == session
                self.ids_ended.append(body.reader)
            case e.PublicationEnded():
                assert self.publishers.pop(body.source).party.session == session
                self.ids_ended.append(body.source)

    # ---- choosing ------------------------------------------------------------------------------------------

    def party(self, choice: int) -> Party:
        return self.parties[choice % len(self.parties)]

    def id_error(self, identifier: int, *, is_resumed: bool) -> type[TowpathError] | None:
        """Foretell whether an id may be used."""
        if not is_resumed:
            return None
        if identifier in self.publishers or identifier in self.subscribers:
            return InvalidArgument
        starts = [int(party.session) + 1 for party in self.parties]
        owned = any(start <= identifier < start + 256 for start in starts)
        return PermissionDenied if owned else None

    def has_parties(self) -> bool:
        return bool(self.parties)

    # ---- sessions ------------------------------------------------------------------------------------------

    @rule(principal=st.sampled_from(PRINCIPALS), is_gateway=st.booleans())
    def open_session(self, principal: str, is_gateway: bool) -> None:
        gateway = "bridge" if is_gateway else ""
        command = c.OpenSession(ConnectionId(1), principal, principal == "uid:0", 1, "", gateway)
        (effect,) = self.apply(command)
        if isinstance(effect, e.SessionRefused):
            of_principal = sum(party.principal == principal for party in self.parties)
            expected = LimitExceeded if len(self.parties) == LIMITS.sessions_max else QuotaExceeded
            assert isinstance(effect.error, expected)
            assert (
                len(self.parties) == LIMITS.sessions_max or of_principal == LIMITS.sessions_per_principal_max
            )
            return
        assert isinstance(effect, e.SessionOpened)
        given = {int(effect.session), *range(effect.first_id, effect.first_id + effect.id_count)}
        assert len(given) == 257 and not given & self.ids_given
        self.ids_given |= given
        ids = list(range(effect.first_id, effect.first_id + effect.id_count))
        self.parties.append(Party(effect.session, principal, is_gateway, ids))

    @precondition(has_parties)
    @rule(choice=pick, is_meant=seldom)
    def close_session(self, choice: int, is_meant: bool = True) -> None:
        if not is_meant:
            return
        party = self.party(choice)
        self.parties.remove(party)
        for mine in (self.publishers, self.subscribers):
            for identifier in [each for each, record in mine.items() if record.party is party]:
                del mine[identifier]
                self.ids_ended.append(identifier)
        # A notice to the session that closed, or about what was its, would fail to find its record.
        effects = self.apply(c.CloseSession(party.session))
        assert all(
            isinstance(effect, e.BumpGeneration | e.DropSource | e.DropReader | e.Notice)
            for effect in effects
        )

    @precondition(has_parties)
    @rule(choice=pick, readers_first=st.booleans(), is_meant=seldom)
    def reconnect(self, choice: int, readers_first: bool, is_meant: bool) -> None:
        """A connection breaks; its client comes back and takes up again what it had, as clients do."""
        if not is_meant:
            return
        party = self.party(choice)
        sources, readers = self.belongings(party)
        self.close_session(choice)
        self.open_session(party.principal, party.is_gateway)
        self.come_back(self.parties[-1], sources, readers, readers_first=readers_first)

    @rule(
        through_snapshot=st.booleans(),
        order=st.permutations(range(6)),
        readers_first=st.booleans(),
        is_meant=seldom,
    )
    def restart(self, through_snapshot: bool, order: list[int], readers_first: bool, is_meant: bool) -> None:
        """The core starts again; some of the clients come back, in any order."""
        if not is_meant:
            return
        before = self.machine.durable_state()
        ended = [*self.publishers, *self.subscribers]
        parties = [(party, *self.belongings(party)) for party in self.parties]
        if through_snapshot:
            snapshot = self.machine.snapshot()
            self.machine = Machine(LIMITS)
            self.machine.restore(snapshot)
            self.ids_ended.extend(ended)
        else:
            while self.parties:
                self.close_session(0)
        self.run()
        after = self.machine.durable_state()
        assert (after.channels, after.bindings) == (before.channels, before.bindings)
        assert after.incarnation == before.incarnation + 1
        for party, sources, readers in [parties[index] for index in order if index < len(parties)][:4]:
            self.open_session(party.principal, party.is_gateway)
            self.come_back(self.parties[-1], sources, readers, readers_first=readers_first)

    def belongings(self, party: Party) -> tuple[dict[int, Publisher], dict[int, Subscriber]]:
        """What a party publishes and subscribes to, as it knows it."""
        return (
            {each: record for each, record in self.publishers.items() if record.party is party},
            {each: record for each, record in self.subscribers.items() if record.party is party},
        )

    def come_back(
        self,
        party: Party,
        sources: dict[int, Publisher],
        readers: dict[int, Subscriber],
        *,
        readers_first: bool,
    ) -> None:
        for turn in (readers_first, not readers_first):
            if turn:
                for identifier, reader in readers.items():
                    held = {**reader.told, **reader.draining}
                    self.try_reader(
                        party, reader.channel, identifier, reader.exclude_origin, held, is_resumed=True
                    )
            else:
                for identifier, source in sources.items():
                    origin = "" if source.origin.startswith("session") else source.origin
                    self.try_source(
                        party, source.channel, identifier, origin, is_resumed=True, is_right_size=True
                    )

    # ---- channels and bindings -----------------------------------------------------------------------------

    @precondition(has_parties)
    @rule(choice=pick, name=st.sampled_from(NAMES), ring_bytes=st.sampled_from(SIZES), replace=st.booleans())
    def declare(self, choice: int, name: str, ring_bytes: int, replace: bool) -> None:
        party = self.party(choice)
        options = StatedOptions(ring_bytes=ring_bytes, history=HISTORIES[name], stall_ms_max=STALLS[name])
        command = c.DeclareChannel(self.caller(party), name, options, replace)
        channel = self.channels.get(name)
        error: type[TowpathError] | None = None
        if replace and party.principal != "uid:0":
            error = PermissionDenied
        elif channel is None:
            owned = sum(each.owner == party.principal for each in self.channels.values())
            if len(self.channels) == LIMITS.channels_max:
                error = LimitExceeded
            elif owned == LIMITS.channels_per_principal_max:
                error = QuotaExceeded
        elif channel.ring_bytes != ring_bytes and (not replace or self.is_used(name)):
            error = ChannelConflict
        if not self.expect(party, self.apply(command), error):
            return
        if channel is None:
            self.channels[name] = Channel(party.principal, ring_bytes)
        channel = self.channels[name]
        channel.ring_bytes = ring_bytes

    def is_used(self, name: str) -> bool:
        """Whether somebody is there; without a binding, the bridge's ends are those of one that is gone."""
        is_bound = any(bound == name for bound, _ in self.bindings.values())
        publishers = [each for each in self.publishers.values() if each.channel == name]
        subscribers = [each for each in self.subscribers.values() if each.channel == name]
        return any(is_bound or not each.party.is_gateway for each in publishers) or any(
            is_bound or not (each.party.is_gateway and each.exclude_origin) for each in subscribers
        )

    @precondition(has_parties)
    @rule(choice=pick, name=st.sampled_from(NAMES), force=seldom)
    def undeclare(self, choice: int, name: str, force: bool) -> None:
        party = self.party(choice)
        channel = self.channels.get(name)
        is_bound = any(bound == name for bound, _ in self.bindings.values())
        error: type[TowpathError] | None = None
        if channel is None:
            error = ChannelNotFound
        elif party.principal not in (channel.owner, "uid:0"):
            error = PermissionDenied
        elif not force and (is_bound or self.is_used(name)):
            error = ChannelInUse
        effects = self.apply(c.UndeclareChannel(self.caller(party), name, force))
        if self.expect(party, effects, error):
            del self.channels[name]
            self.bindings = {each: bound for each, bound in self.bindings.items() if bound[0] != name}
            assert not self.is_used(name)
            assert sum(isinstance(effect, e.BumpGeneration) for effect in effects) == 1

    @precondition(has_parties)
    @rule(choice=pick, name=st.sampled_from(NAMES), url=st.sampled_from(PLACES))
    def bind(self, choice: int, name: str, url: str) -> None:
        party = self.party(choice)
        error: type[TowpathError] | None = None
        if party.principal != "uid:0":
            error = PermissionDenied
        elif name not in self.channels:
            error = ChannelNotFound
        elif any(place == url and bound != name for bound, place in self.bindings.values()):
            error = BindingConflict
        elif (name, url) not in self.bindings.values() and len(self.bindings) == LIMITS.bindings_max:
            error = LimitExceeded
        effects = self.apply(c.CreateBinding(self.caller(party), name, url, c.Direction.IN))
        if self.expect(party, effects, error):
            answer = effects[-1]
            assert isinstance(answer, e.Reply) and isinstance(answer.body, e.BindingCreated)
            assert answer.body.created is ((name, url) not in self.bindings.values())
            if answer.body.created:
                self.bindings_made += 1
                assert answer.body.binding.id == self.bindings_made
                self.bindings[self.bindings_made] = name, url

    @precondition(has_parties)
    @rule(choice=pick, binding=st.integers(1, 12))
    def unbind(self, choice: int, binding: int) -> None:
        party = self.party(choice)
        error: type[TowpathError] | None = None
        if party.principal != "uid:0":
            error = PermissionDenied
        elif binding not in self.bindings:
            error = BindingNotFound
        if self.expect(party, self.apply(c.DeleteBinding(self.caller(party), BindingId(binding))), error):
            del self.bindings[binding]

    # ---- publishers and subscribers ------------------------------------------------------------------------

    @precondition(has_parties)
    @rule(one=pick, other=pick, name=st.sampled_from(("a", "b")), pattern=st.sampled_from(("", "*", ">")))
    def meet(self, one: int, other: int, name: str, pattern: str) -> None:
        """One publishes where another subscribes: without this they would seldom find each other."""
        reader, source = self.party(one), self.party(other)
        self.try_reader(reader, pattern or name, reader.unused[0], "", {}, is_resumed=False)
        self.try_source(source, name, source.unused[0], "", is_resumed=False, is_right_size=True)

    @precondition(has_parties)
    @rule(
        choice=pick,
        name=st.sampled_from(NAMES),
        origin=st.sampled_from(ORIGINS),
        is_right_size=st.sampled_from([True] * 7 + [False]),
        resume=st.none() | pick,
    )
    def attach_source(
        self, choice: int, name: str, origin: str, is_right_size: bool, resume: int | None
    ) -> None:
        party = self.party(choice)
        is_resumed = resume is not None and bool(self.ids_ended)
        identifier = self.ids_ended[(resume or 0) % len(self.ids_ended)] if is_resumed else party.unused[0]
        self.try_source(party, name, identifier, origin, is_resumed=is_resumed, is_right_size=is_right_size)

    def try_source(
        self, party: Party, name: str, identifier: int, origin: str, *, is_resumed: bool, is_right_size: bool
    ) -> None:
        """Attach a source, and check the outcome."""
        error = self.id_error(identifier, is_resumed=is_resumed)
        channel = self.channels.get(name)
        if origin and not party.is_gateway:
            error = PermissionDenied
        elif error is None and channel is None:
            error = ChannelNotFound
        elif error is None and not is_right_size:
            error = InvalidArgument
        elif error is None and self.count(self.publishers, channel=name) == LIMITS.publishers_per_channel_max:
            error = LimitExceeded
        elif (
            error is None
            and self.count(self.publishers, principal=party.principal) == LIMITS.sources_per_principal_max
        ):
            error = QuotaExceeded
        ring_bytes = (channel.ring_bytes if channel else SIZES[0]) << (not is_right_size)
        command = c.AttachSource(
            self.caller(party), name, SourceId(identifier), ring_bytes, is_resumed, origin
        )
        publisher = Publisher(party, name, origin or f"session:{party.session}")
        if error is None:
            self.shell_rings.add(identifier)
            self.publishers[identifier] = publisher
        full = [
            reader
            for reader, each in self.subscribers.items()
            if each.follows(name)
            and each.exclude_origin != publisher.origin
            and len(each.told) + len(each.draining) == SLOTS
            and identifier not in each.draining
        ]
        effects = self.apply(command)
        if self.expect(party, effects, error):
            if not is_resumed:
                party.unused.pop(0)
            answer = effects[-1]
            assert isinstance(answer, e.Reply) and isinstance(answer.body, e.SourceAttached)
            publisher.cell = answer.body.generation_index
            publisher.seen_generation = answer.body.generation
            assert not set(full) & set(self.subscribers)
            start = e.StartAt.TAIL if is_resumed else e.StartAt.START
            assert set(publisher.starts.values()) <= {start}
            # It was told of everybody: nothing to fetch.
            assert set(publisher.told) == {reader for reader, _ in self.readers_of(identifier)}

    @precondition(has_parties)
    @rule(
        choice=pick,
        name=st.sampled_from(PATTERNS),
        exclude_origin=st.sampled_from(ORIGINS),
        resume=st.none() | pick,
        held=st.dictionaries(pick, st.integers(-1, SLOTS), max_size=3),
    )
    def attach_reader(
        self, choice: int, name: str, exclude_origin: str, resume: int | None, held: dict[int, int]
    ) -> None:
        party = self.party(choice)
        is_resumed = resume is not None and bool(self.ids_ended)
        identifier = self.ids_ended[(resume or 0) % len(self.ids_ended)] if is_resumed else party.unused[0]
        known = sorted(set(self.ids_ended) | set(self.publishers))
        holding = {known[each % len(known)]: slot for each, slot in held.items()} if is_resumed else {}
        self.try_reader(party, name, identifier, exclude_origin, holding, is_resumed=is_resumed)

    def try_reader(
        self,
        party: Party,
        name: str,
        identifier: int,
        exclude_origin: str,
        holding: dict[int, int],
        *,
        is_resumed: bool,
    ) -> None:
        """Attach a reader, and check the outcome."""
        error = self.id_error(identifier, is_resumed=is_resumed)
        wanted = {
            source
            for source, each in self.publishers.items()
            if name in (each.channel, "*", ">") and (not exclude_origin or each.origin != exclude_origin)
        }
        is_pattern = name not in HISTORIES
        if error is None and not is_pattern and name not in self.channels:
            error = ChannelNotFound
        elif error is None and (
            len(set(holding.values())) < len(holding)
            or any(not 0 <= slot < SLOTS for slot in holding.values())
        ):
            error = InvalidArgument
        elif error is None:
            error = self.room_error(party, name, len(wanted | set(holding)))
        self.attachments += 1
        if error is None:
            self.shell_pages.add(identifier)
            self.subscribers[identifier] = Subscriber(
                party, name, exclude_origin, self.attachments, {}, dict(holding)
            )
        held_slots = {SourceId(source): slot for source, slot in holding.items()}
        command = c.AttachReader(
            self.caller(party),
            name,
            ReaderId(identifier),
            SLOTS,
            is_resumed,
            exclude_origin,
            held_slots,
            False,
        )
        effects = self.apply(command)
        if self.expect(party, effects, error):
            if not is_resumed:
                party.unused.pop(0)
            assert wanted <= self.subscribers[identifier].told.keys()
            bumps = sum(isinstance(effect, e.BumpGeneration) for effect in effects)
            assert all(isinstance(effect, e.BumpGeneration) for effect in effects[:bumps])
            assert is_pattern or bumps == 1
            for source in wanted:
                publisher = self.publishers[source]
                has_history = not is_resumed and HISTORIES[publisher.channel] > 0
                expected = e.StartAt.HISTORY if has_history else e.StartAt.TAIL
                assert publisher.starts[identifier] is expected

    def room_error(self, party: Party, name: str, slots_needed: int) -> type[TowpathError] | None:
        """Foretell whether there is room for one more subscriber."""
        if self.count(self.subscribers, principal=party.principal) == LIMITS.readers_per_principal_max:
            return QuotaExceeded
        if name in HISTORIES:
            is_full = self.count(self.subscribers, channel=name) == LIMITS.subscribers_per_channel_max
        else:
            patterns = [each for each in self.subscribers.values() if each.channel not in HISTORIES]
            of_principal = sum(each.party.principal == party.principal for each in patterns)
            if of_principal == LIMITS.patterns_per_principal_max:
                return QuotaExceeded
            is_full = len(patterns) == LIMITS.patterns_max
        return LimitExceeded if is_full or slots_needed > SLOTS else None

    def count(
        self, records: dict[int, Publisher] | dict[int, Subscriber], *, channel: str = "", principal: str = ""
    ) -> int:
        return sum(
            (not channel or each.channel == channel) and (not principal or each.party.principal == principal)
            for each in records.values()
        )

    @precondition(lambda self: self.publishers)
    @rule(choice=pick)
    def detach_source(self, choice: int) -> None:
        identifier = sorted(self.publishers)[choice % len(self.publishers)]
        party = self.publishers.pop(identifier).party
        self.ids_ended.append(identifier)
        self.expect(party, self.apply(c.DetachSource(self.caller(party), SourceId(identifier))), None)

    @precondition(lambda self: self.subscribers)
    @rule(choice=pick)
    def detach_reader(self, choice: int) -> None:
        identifier = sorted(self.subscribers)[choice % len(self.subscribers)]
        party = self.subscribers.pop(identifier).party
        self.ids_ended.append(identifier)
        effects = self.apply(c.DetachReader(self.caller(party), ReaderId(identifier)))
        self.expect(party, effects, None)

    @precondition(lambda self: self.publishers)
    @rule(choice=pick, of=pick)
    def detach_stalled(self, choice: int, of: int) -> None:
        source = sorted(self.publishers)[choice % len(self.publishers)]
        publisher = self.publishers[source]
        readers = [12345, *sorted(dict(self.readers_of(source)) or self.subscribers)]
        reader = readers[of % len(readers)]
        error: type[TowpathError] | None = None
        if STALLS[publisher.channel] == 0:
            error = PermissionDenied
        elif reader not in dict(self.readers_of(source)):
            error = SubscriptionNotFound
        command = c.DetachStalled(self.caller(publisher.party), SourceId(source), ReaderId(reader))
        if self.expect(publisher.party, self.apply(command), error):
            assert reader not in publisher.told
            assert source in self.subscribers[reader].draining

    @precondition(lambda self: self.publishers)
    @rule(choice=pick)
    def fetch_readers(self, choice: int) -> None:
        identifier = sorted(self.publishers)[choice % len(self.publishers)]
        publisher = self.publishers[identifier]
        effects = self.apply(c.FetchReaders(self.caller(publisher.party), SourceId(identifier)))
        self.expect(publisher.party, effects, None)
        answer = effects[-1]
        assert isinstance(answer, e.Reply) and isinstance(answer.body, e.ReadersFetched)
        publisher.seen_generation = answer.body.generation
        assert publisher.told == {
            reader: (each.attachment, each.told[identifier]) for reader, each in self.readers_of(identifier)
        }

    @precondition(lambda self: self.subscribers)
    @rule(choice=pick, of=pick)
    def release_slot(self, choice: int, of: int) -> None:
        identifier = sorted(self.subscribers)[choice % len(self.subscribers)]
        subscriber = self.subscribers[identifier]
        sources = sorted({*subscriber.told, *subscriber.draining, 12345})
        source = sources[of % len(sources)]
        command = c.ReleaseSlot(self.caller(subscriber.party), ReaderId(identifier), SourceId(source))
        error = InvalidArgument if source in subscriber.told else None
        if self.expect(subscriber.party, self.apply(command), error):
            subscriber.draining.pop(source, None)

    # ---- what must be so -----------------------------------------------------------------------------------

    def readers_of(self, source: int) -> list[tuple[int, Subscriber]]:
        """Who subscribes to what a source publishes."""
        publisher = self.publishers[source]
        return [
            (reader, each)
            for reader, each in self.subscribers.items()
            if each.follows(publisher.channel)
            and (not each.exclude_origin or each.exclude_origin != publisher.origin)
            and each.attachment not in publisher.parted
        ]

    @invariant()
    def subscribers_know_their_publishers(self) -> None:
        pairs = {(reader, source) for source in self.publishers for reader, _ in self.readers_of(source)}
        told = {(reader, source) for reader, each in self.subscribers.items() for source in each.told}
        assert told == pairs
        for each in self.subscribers.values():
            slots = [*each.told.values(), *each.draining.values()]
            assert len(set(slots)) == len(slots) <= SLOTS

    @invariant()
    def publishers_that_do_not_know_their_subscribers_will_see_it(self) -> None:
        for source, publisher in self.publishers.items():
            so = {reader: (each.attachment, each.told[source]) for reader, each in self.readers_of(source)}
            if publisher.told != so:
                assert publisher.seen_generation < self.table.get(publisher.cell, 0)

    @invariant()
    def the_shell_holds_what_is_live(self) -> None:
        assert self.shell_rings == set(self.publishers)
        assert self.shell_pages == set(self.subscribers)

    @invariant()
    def the_machine_agrees(self) -> None:
        self.machine.assert_consistent()
        statistics = self.machine.statistics()
        assert statistics.sessions == len(self.parties)
        assert (statistics.sources, statistics.readers) == (len(self.publishers), len(self.subscribers))
        state = self.machine.durable_state()
        assert {channel.name: (channel.owner, channel.options.ring_bytes) for channel in state.channels} == {
            name: (channel.owner, channel.ring_bytes) for name, channel in self.channels.items()
        }
        assert {int(each.id): (each.channel, each.url) for each in state.bindings} == self.bindings

    def teardown(self) -> None:
        """When every session is closed, nothing of any is left."""
        if not hasattr(self, "machine"):
            return
        while self.parties:
            self.close_session(0)
        statistics = self.machine.statistics()
        assert (statistics.sessions, statistics.sources, statistics.readers) == (0, 0, 0)
        assert not self.shell_rings and not self.shell_pages
        sessions, topics = self.machine._sessions, self.machine._topics
        assert not sessions._blocks and not sessions._tally._counts
        assert not topics.admission._sources._counts and not topics.admission._readers._counts
        assert all(not topic.sources and not topic.readers for topic in topics.topics.values())


Comparison.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestMachine = Comparison.TestCase
