"""The core process: puts the parts together. ``python -m towpath_broker.daemon``, started by the supervisor.

Theory of operation
    The supervisor hands over the listening socket, a control socket, the settings, and what an earlier core
    had stored with it (host/store.py). From then on:
    recover the machine from the journal, bring the registry to what the configuration says, open the door,
    say ``ready``. Commands flow from the door through the engine to the machine; effects flow back to the
    door. The loss of the control socket means that the supervisor is gone, and ends the process at once.

    Order at the end (``drain``): stop accepting; close the connections, so that the core learns of the end
    of each session; let the engine finish what it has, commit, and take a snapshot, and the data plane's
    engine finish and commit; close the journal and the store. With ``keep``, when a successor will go on with
    what is stored, no session is ended and no ring closed: to everybody else it is as if the core had been
    killed, but nothing is half-done in the journal.

    While the engine comes round the supervisor is told so (``beat``), if it wants to know.

Invariants
    Only this module knows the concrete classes.
    A failure of the journal ends the process with a non-zero status: the supervisor starts a new one,
    which recovers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

from towpath import _ring
from towpath._version import __version__
from towpath.errors import ProtocolViolation, TowpathError, Unavailable
from towpath.model import ChannelContents

from . import configuration
from .attention import Attention, WatchfulSelector
from .core import effects
from .core.commands import ChannelOptions, Kind
from .core.ids import first_id
from .core.limits import CELLS_MAX
from .core.locks.fencing import check_fence
from .core.locks.machine import LockMachine
from .core.locks.permissions import Permissions
from .core.machine import Machine
from .data_engine import DataEngine
from .engine import Engine
from .host.children import read_settings_file
from .host.packets import Outbox, close_all, receive_packet
from .host.reserve import Reserve
from .journal.logged import LoggedJournal
from .journal.sqlite import SqliteJournal
from .local import translate
from .local.credentials import Admins
from .local.door import Door
from .local.lock_pages import PREFIX as LOCK_PAGES
from .local.tokens import ResumeTokens, read_key
from .lock_engine import LockEngine
from .log import log, set_level
from .ports import WallClock
from .rings.durable_channel import Logs
from .rings.kept import Keeper
from .settings import Settings
from .status import StatusBoard
from .store.database import STORE_NAME
from .store.sqlite import SqliteStore

JOURNAL_NAME: Final = "journal.sqlite"
LOCKS_NAME: Final = "locks.sqlite"
KEY_NAME: Final = "resume.key"
STATUS_INTERVAL_S: Final = 1.0
"""The line for ``systemctl status`` is told at most this often, and only while it changes."""


class Daemon:
    """The core process's parts, and what the supervisor tells it."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        control: socket.socket,
        beat_s: float,
        attention: Attention,
    ) -> None:
        self._beat_s = beat_s
        self._attention = attention
        self._must_keep = False
        self._settings = settings
        self._listener = listener
        self._control = control
        self._outbox = Outbox(control)
        self._draining = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._status_due: asyncio.TimerHandle | None = None
        self._status_text = ""
        state_dir = Path(settings.daemon.state_dir)
        self._reserve = Reserve(state_dir)
        self._reserve.release()
        self._journal = SqliteJournal(state_dir / JOURNAL_NAME)
        self._kept = SqliteStore(state_dir / STORE_NAME)
        self._locks_journal = LoggedJournal(state_dir / LOCKS_NAME)
        self._lock_machine = LockMachine()
        self._locks = LockEngine(
            self._lock_machine,
            self._locks_journal,
            WallClock(),
            lambda effect: self._door.locks.emit(effect),
            settings.lock_limits,
            attention.is_single,
        )
        self._data: DataEngine  # made when the incarnation is known, before the door opens
        self._machine = Machine(settings.limits, ChannelOptions(ring_bytes=settings.daemon.ring_bytes))
        self._engine = Engine(self._machine, self._journal, WallClock(), self._emit, self._messages_of)
        self._board = StatusBoard(
            socket=str(listener.getsockname()),
            started_at_ns=time.time_ns(),
            incarnation=0,
            counters=self._counters,
            traffic=lambda: self._door.descriptors.traffic,
            contents_of=self._contents_of,
        )
        self._door = Door(
            submit=self._engine.submit,
            submit_data=lambda command: self._data.submit(command),
            locks=self._locks,
            has_data=lambda name: self._data.has(name),
            contents_of=self._contents_of,
            table=_ring.GenerationTable(CELLS_MAX),
            keeper=Keeper(self._store, lambda name: self._outbox.send({"type": "unstore", "name": name})),
            admins=Admins(settings.daemon.admin_group),
            status_frame=self._board.frame,
            gateway_report=self._board.set_report,
            warn=self._warn,
            tokens=ResumeTokens(read_key(state_dir / KEY_NAME)),
            software=f"towpath/{__version__}",
        )
        self._door.locks.permissions = Permissions(settings.lock_permissions)
        attention.look_before_sleep(self._door.locks.lanes.look)

    async def run(self) -> bool:
        """Serve until the supervisor says ``drain``.

        Returns:
            Whether the process must end without another step, because a successor takes over what it has.

        Raises:
            InvalidConfiguration: the journal cannot be used, or the settings allow no channel at all.
            OSError, sqlite3.Error: the journal failed.
        """
        loop = asyncio.get_running_loop()
        stored = await self._take_stored()
        lock_pages = {name: stored.pop(name) for name in list(stored) if name.startswith(LOCK_PAGES)}
        await self._engine.recover()
        self._board.incarnation = self._machine.incarnation
        data = await self._begin_data_plane()
        await self._locks.recover()
        locks = asyncio.create_task(self._locks.run(), name="lock engine")
        locks.add_done_callback(lambda _: self._draining.set())
        self._door.locks.recovered(self._lock_machine, lock_pages)
        engine = asyncio.create_task(self._engine.run(), name="engine")
        engine.add_done_callback(lambda _: self._draining.set())
        await self._configure()
        await self._engine.execute(self._door.mediator.find(stored, self._data.has))
        self._door.mediator.go_on()
        loop.add_reader(self._control, self._told)
        self._reserve.keep()
        self._door.listen(self._listener)
        self._outbox.send({"type": "ready"})
        if self._beat_s:
            self._add_task(self._beat())
        statistics = self._machine.statistics()
        log(
            "core.listening",
            incarnation=statistics.incarnation,
            channels=statistics.channels,
            bindings=statistics.bindings,
        )
        await self._draining.wait()
        self._door.stop_listening()
        self._door.locks.stop()  # who comes back finds its locks
        if not self._must_keep:
            await self._door.close()
        self._engine.stop()
        await engine
        self._data.stop()
        await data
        self._locks.stop()
        await locks
        if not self._must_keep:
            self._door.mediator.close()
        loop.remove_reader(self._control)
        self._journal.close()
        self._locks_journal.close()
        self._kept.close()
        return self._must_keep

    async def _begin_data_plane(self) -> asyncio.Task[None]:
        self._data = DataEngine(
            limits=self._settings.limits,
            store=self._kept,
            clock=WallClock(),
            emit=self._door.emit_data,
            kind_of=self._machine.kind_of,
            first_consumer=first_id(self._machine.incarnation),
            check_fence=self._check_fence,
            attention=self._attention,
        )
        await self._data.recover(self._machine.data_channels())
        self._door.mediator.logs = Logs(
            submit=self._data.submit,
            next_seq=self._data.next_seq,
            taken=self._data.taken,
            read=self._kept.read_parcels,
            look=self._attention.look,
        )
        task = asyncio.create_task(self._data.run(), name="data engine")
        task.add_done_callback(lambda _: self._draining.set())
        return task

    def _check_fence(self, lock: str, token: int) -> None:
        if not self._door.locks.pages.is_held(lock, token):
            check_fence(self._lock_machine.table, lock, token)

    async def _beat(self) -> None:
        with contextlib.suppress(Unavailable):  # the engine has ended, as this process is about to
            while True:
                await self._engine.pulse()
                self._outbox.send({"type": "beat"}, topic="beat")
                await asyncio.sleep(self._beat_s)

    async def _configure(self) -> None:
        for command in configuration.commands_for(self._settings, self._machine.durable_state()):
            await self._engine.execute(command)

    # ---- effects and counts ----

    def _emit(self, effect: effects.Effect) -> None:
        match effect:
            case effects.ChannelOpened():
                self._data.open_channel(effect)
            case effects.ChannelClosed():
                self._data.close_channel(effect)
                self._door.forget_channel(effect.name)
            case _:
                self._door.emit(effect)
        if self._status_due is None and isinstance(effect, effects.Reply | effects.SessionOpened):
            self._status_due = asyncio.get_running_loop().call_later(STATUS_INTERVAL_S, self._tell_status)

    def _tell_status(self) -> None:
        self._status_due = None
        statistics = self._machine.statistics()
        text = (
            f"{statistics.channels} channels, {statistics.bindings} bindings, {statistics.sessions} sessions"
        )
        if text != self._status_text:
            self._status_text = text
            self._outbox.send({"type": "status", "text": text}, topic="status")

    def _store(self, name: str, descriptor: int) -> bool:
        return self._outbox.send({"type": "store", "name": name}, [descriptor])

    def _warn(self, message: str) -> None:
        self._board.warn(message)
        self._outbox.send({"type": "warning", "text": message})

    def _contents_of(self, channel: str) -> ChannelContents | None:
        """What a channel of the data plane holds."""
        return translate.contents_model(self._data.channel_statistics(channel))

    def _messages_of(self, channel: str) -> int:
        """How many messages are lost when a channel is removed; a state has a value, and no messages."""
        statistics = self._data.channel_statistics(channel)
        is_state = self._machine.kind_of(channel) is Kind.STATE
        return 0 if statistics is None or is_state else statistics.messages

    def _counters(self) -> Mapping[str, int]:
        machine, engine = self._machine.statistics(), self._engine.statistics()
        rings, pages, doorbells = self._door.descriptors.counts()
        own_sources, waiting_bytes = self._door.mediator.counts()
        return {
            **self._door.counters,
            "commands": engine.commands,
            "journal_records": engine.records,
            "journal_commits": engine.appends,
            "snapshots": engine.snapshots,
            **self._data_counters(),
            **self._lock_counters(),
            "sources": machine.sources,
            "readers": machine.readers,
            "rings_held": rings,
            "control_pages_held": pages,
            "doorbells_held": doorbells,
            "own_sources": own_sources,
            "publish_bytes_waiting": waiting_bytes,
        }

    def _data_counters(self) -> Mapping[str, int]:
        data = self._data.statistics()
        both = (data.memory, data.durable)
        counted: Counter[str] = Counter()
        for machine in both:
            counted.update(machine.counters)
        return {
            "data_commands": sum(machine.commands for machine in both),
            "data_rounds": data.rounds,
            "store_commits": data.commits,
            "store_rows": data.rows,
            "store_full": data.store_full,
            "messages_held": sum(machine.messages for machine in both),
            "message_bytes_held": sum(machine.content_bytes for machine in both),
            "value_bytes_held": sum(machine.value_bytes for machine in both),
            "deliveries_expired": counted["expired"],
            "dead_letters": counted["dead_letters"],
            "dead_letters_lost": counted["dead_letters_lost"],
            "messages_dropped": counted["dropped"],
        }

    def _lock_counters(self) -> Mapping[str, int]:
        machine, engine = self._lock_machine.statistics(), self._locks.statistics()
        return {
            "lock_sessions": machine.sessions,
            "locks": machine.locks,
            "lock_waits": machine.waits,
            "lock_barriers": machine.barriers,
            "lock_spaces": machine.spaces,
            "lock_value_bytes": machine.guarded_bytes,
            "lock_deadlocks": machine.deadlocks,
            "lock_commands": engine.commands,
            "lock_records": engine.records,
        }

    # ---- the supervisor ----

    async def _take_stored(self) -> dict[str, int]:
        """Receive what an earlier core had the supervisor keep: it comes before anything else.

        Returns:
            Descriptors by name, the caller's to close.

        Raises:
            Unavailable: the supervisor is gone.
        """
        stored: dict[str, int] = {}
        while True:
            try:
                received = receive_packet(self._control)
            except BlockingIOError:
                await _wait_readable(self._control)
                continue
            if received is None:
                raise Unavailable("the supervisor is gone")
            packet, descriptors = received
            names = packet.get("names", [])
            if packet["type"] == "stored" and len(names) == len(descriptors):
                stored.update(zip(names, descriptors, strict=True))
                continue
            close_all(descriptors)
            if packet["type"] == "stored_end":
                return stored
            log("core.bad_packet", level="error", message=f"{packet['type']} came before what was stored")

    def _told(self) -> None:
        try:
            received = receive_packet(self._control)
        except BlockingIOError:
            return
        if received is None:
            log("core.supervisor_gone", level="error")
            # At once, as the kernel's own signal is about to: to take apart what others use, when they can no
            # longer be told, would part publishers from subscribers that the next core finds together.
            os._exit(os.EX_UNAVAILABLE)
        packet, descriptors = received
        try:
            self._carry_out(packet, descriptors)
        except ProtocolViolation as error:
            log("core.bad_packet", level="error", message=error.message)
        finally:
            close_all(descriptors)

    def _carry_out(self, packet: Mapping[str, Any], descriptors: list[int]) -> None:
        match packet["type"]:
            case "gateway_connection" if len(descriptors) == 1:
                sock = socket.socket(fileno=descriptors.pop())
                self._door.adopt(sock, str(packet["gateway"]), int(packet["pid"]))
            case "gateways":
                self._board.set_gateways(packet["gateways"])
            case "listen" if len(descriptors) == 1:
                self._door.stop_listening()
                self._listener.close()
                self._listener = socket.socket(fileno=descriptors.pop())
                self._door.listen(self._listener)
            case "reload" if len(descriptors) == 1:
                self._add_task(self._reload(Settings.from_json(read_settings_file(descriptors[0]))))
            case "warning":
                self._board.warn(str(packet.get("text", "")))
            case "stop_accepting":
                self._door.stop_listening()
            case "drain":
                self._must_keep = packet.get("keep") is True
                self._draining.set()
            case unknown:
                raise ProtocolViolation(f"a packet of type {unknown!r} from the supervisor")

    def _add_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload(self, settings: Settings) -> None:
        """Take new settings; the supervisor has checked them. Limits hold from the next start on."""
        self._settings = settings
        self._door.locks.permissions = Permissions(settings.lock_permissions)
        set_level(self._settings.daemon.log_level)
        self._board.forget_warnings()
        await self._configure()
        self._outbox.send({"type": "reloaded", "warnings": []})


async def _wait_readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)


def main() -> int:
    """Run the core process; returns its exit status."""
    try:
        descriptor = int(os.environ["TOWPATH_CORE_SETTINGS_FD"])
        settings = Settings.from_json(read_settings_file(descriptor))
        os.close(descriptor)
        listener = socket.socket(fileno=int(os.environ["TOWPATH_CORE_LISTEN_FD"]))
        control = socket.socket(fileno=int(os.environ["TOWPATH_CORE_CONTROL_FD"]))
        control.setblocking(False)
        beat_s = float(os.environ["TOWPATH_CORE_BEAT_S"])
        selector = WatchfulSelector()
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            runner.run(_run(settings, listener, control, beat_s, Attention(selector)))
    except KeyError as error:
        print(f"towpath: {error.args[0]} is not set; start the daemon with: towpath serve", file=sys.stderr)
        return os.EX_USAGE
    except TowpathError as error:
        log("core.failed", level="error", code=error.code.name, message=error.message, hint=error.hint)
        return error.row.exit_code
    return os.EX_OK


async def _run(
    settings: Settings,
    listener: socket.socket,
    control: socket.socket,
    beat_s: float,
    attention: Attention,
) -> None:
    if await Daemon(settings, listener, control, beat_s, attention).run():
        # Rings and pages are not closed: those who read them would take that for their end.
        os._exit(os.EX_OK)


if __name__ == "__main__":
    sys.exit(main())
