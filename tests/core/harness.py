"""A machine to talk to, for the tests of the core: sessions with calls and ids of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from towpath.errors import TowpathError
from towpath_broker.core import commands as c
from towpath_broker.core import effects as e
from towpath_broker.core.commands import Caller, ChannelOptions, Command
from towpath_broker.core.effects import Effect
from towpath_broker.core.ids import BindingId, CallId, ConnectionId, ReaderId, SessionId, SourceId
from towpath_broker.core.limits import Limits
from towpath_broker.core.machine import Machine

RING_BYTES = ChannelOptions().ring_bytes
Body = TypeVar("Body")


class Core:
    """A machine that has started, and a clock that ticks with each command."""

    def __init__(self, limits: Limits | None = None, defaults: ChannelOptions | None = None) -> None:
        self.machine = Machine(limits, defaults)
        self.now_ns = 1_000
        self.connections = 0
        self.apply(self.machine.start_command())

    def apply(self, command: Command) -> list[Effect]:
        self.now_ns += 1
        return self.machine.apply(command, self.now_ns)

    def open(self, principal: str = "uid:1", *, is_admin: bool = False, gateway: str = "") -> Client:
        self.connections += 1
        command = c.OpenSession(ConnectionId(self.connections), principal, is_admin, 4711, "test", gateway)
        (opened,) = self.apply(command)
        assert isinstance(opened, e.SessionOpened), opened
        return Client(self, opened, is_admin=is_admin)

    def admin(self) -> Client:
        return self.open("uid:0", is_admin=True)

    def bridge(self) -> Client:
        return self.open("uid:0", is_admin=True, gateway="bridge")


class Client:
    """One session; keeps the notices that calls of its own brought."""

    def __init__(self, core: Core, opened: e.SessionOpened, *, is_admin: bool) -> None:
        self.core = core
        self.opened = opened
        self.session = opened.session
        self.principal = opened.principal
        self.is_admin = is_admin
        self.calls = 0
        self.used = 0

    def caller(self) -> Caller:
        self.calls += 1
        return Caller(self.principal, self.is_admin, self.session, CallId(self.calls))

    def next_id(self) -> int:
        self.used += 1
        assert self.used <= self.opened.id_count
        return self.opened.first_id + self.used - 1

    def close(self) -> list[Effect]:
        return self.core.apply(c.CloseSession(self.session))

    # Each returns all effects of the command.

    def declare(self, name: str, **options: Any) -> list[Effect]:
        replace, held = options.pop("replace", False), options.pop("messages_held", 0)
        stated = c.StatedOptions(**options)
        return self.core.apply(c.DeclareChannel(self.caller(), name, stated, replace, held))

    def undeclare(self, name: str, *, force: bool = False, messages_held: int = 0) -> list[Effect]:
        return self.core.apply(c.UndeclareChannel(self.caller(), name, force, messages_held))

    def bind(
        self,
        channel: str,
        url: str,
        direction: c.Direction = c.Direction.IN,
        options: Mapping[str, str] | None = None,
    ) -> list[Effect]:
        return self.core.apply(c.CreateBinding(self.caller(), channel, url, direction, options or {}))

    def unbind(self, binding: int = 0, channel: str = "", url: str = "") -> list[Effect]:
        return self.core.apply(c.DeleteBinding(self.caller(), BindingId(binding), channel, url))

    def get_binding(self, binding: int, *, wait: bool = False) -> list[Effect]:
        return self.core.apply(c.GetBinding(self.caller(), BindingId(binding), wait))

    def report(self, reports: Mapping[int, c.BindingReport]) -> list[Effect]:
        given = {BindingId(binding): report for binding, report in reports.items()}
        return self.core.apply(c.ReportBindings(self.caller(), given))

    def watch(self, after_revision: int | None = None) -> list[Effect]:
        return self.core.apply(c.Watch(self.caller(), after_revision))

    def publish(
        self,
        channel: str,
        source: int | None = None,
        *,
        ring_bytes: int = RING_BYTES,
        resumed: bool = False,
        origin: str = "",
    ) -> tuple[int, list[Effect]]:
        """Attach a source; return its id too."""
        source = self.next_id() if source is None else source
        command = c.AttachSource(self.caller(), channel, SourceId(source), ring_bytes, resumed, origin)
        return source, self.core.apply(command)

    def subscribe(
        self,
        channel: str,
        reader: int | None = None,
        *,
        slots: int = 8,
        resumed: bool = False,
        exclude_origin: str = "",
        held: Mapping[int, int] | None = None,
        wants_doorbell: bool = False,
        place: str = "",
        takes_over: bool = False,
    ) -> tuple[int, list[Effect]]:
        """Attach a reader; return its id too."""
        reader = self.next_id() if reader is None else reader
        holding = {SourceId(source): slot for source, slot in (held or {}).items()}
        command = c.AttachReader(
            self.caller(),
            channel,
            ReaderId(reader),
            slots,
            resumed,
            exclude_origin,
            holding,
            wants_doorbell,
            place=place,
            takes_over=takes_over,
        )
        return reader, self.core.apply(command)

    def unpublish(self, source: int) -> list[Effect]:
        return self.core.apply(c.DetachSource(self.caller(), SourceId(source)))

    def unsubscribe(self, reader: int) -> list[Effect]:
        return self.core.apply(c.DetachReader(self.caller(), ReaderId(reader)))

    def fetch(self, source: int) -> list[Effect]:
        return self.core.apply(c.FetchReaders(self.caller(), SourceId(source)))

    def detach_stalled(self, source: int, reader: int) -> list[Effect]:
        return self.core.apply(c.DetachStalled(self.caller(), SourceId(source), ReaderId(reader)))

    def release(self, reader: int, source: int) -> list[Effect]:
        return self.core.apply(c.ReleaseSlot(self.caller(), ReaderId(reader), SourceId(source)))


def reply(effects: list[Effect], body: type[Body]) -> Body:
    """Return the body of the one reply, which is the last effect and is of this type."""
    assert effects and isinstance(effects[-1], e.Reply), effects
    assert [type(effect) for effect in effects].count(e.Reply) == 1
    found = effects[-1].body
    assert isinstance(found, body), found
    return found


def refusal(effects: list[Effect], error: type[TowpathError], text: str = "") -> TowpathError:
    """Return the error with which a command was refused, and nothing else done."""
    (effect,) = effects
    assert isinstance(effect, e.Refuse), effect
    assert type(effect.error) is error, effect.error
    assert text in str(effect.error), (text, str(effect.error))
    return effect.error


def notices(effects: list[Effect], session: SessionId) -> list[e.NoticeBody]:
    """Return what a session is told."""
    return [effect.body for effect in effects if isinstance(effect, e.Notice) and effect.session == session]


def fingerprint(machine: Machine) -> object:
    """Return all of a machine that a refusal must leave as it was."""
    topics, sessions, reports = machine._topics, machine._sessions, machine._reports
    return (
        machine.durable_state().channels,
        machine.durable_state().bindings,
        machine.durable_state().next_binding,
        machine._watches.revision,
        list(topics._generations),
        list(topics._free_cells),
        {
            topic.name: (
                topic.cell,
                topic.patterns,
                list(topic.readers),
                {
                    source.id: (
                        list(source.paired),
                        {r: id(record) for r, record in source.known.items()},
                        dict(source.starts),
                    )
                    for source in topic.sources.values()
                },
            )
            for topic in topics.topics.values()
        },
        {reader.id: (reader.name, reader.free, dict(reader.slots)) for reader in topics.readers.values()},
        list(topics._patterns),
        {
            session.id: (
                [(block.first, block.count, block.unused) for block in session.blocks],
                list(session.sources),
                list(session.readers),
                list(session.watches),
                dict(session.waits),
            )
            for session in sessions._by_id.values()
        },
        sessions._next,
        dict(reports._reports),
        dict(reports._reporters),
        list(machine._watches._watches),
    )
