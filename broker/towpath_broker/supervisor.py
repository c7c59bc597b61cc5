"""``towpath serve``: the small parent that holds the socket and keeps the core and the gateways running.

Theory of operation
    The supervisor binds the door's socket (or takes systemd's), starts the core with it, and starts each
    gateway. It does so little that it has nothing to crash on: it serves nobody, reads no message, and
    imports neither protobuf nor a network library. When the core dies it is started again with the same
    listening socket, so that whoever connects meanwhile waits in its backlog.

    Control socket to the core, packets of host/packets.py. To it: ``gateways`` (how they fare; only the
    newest counts), ``gateway_connection`` with a descriptor (serve this as that gateway's session),
    ``reload`` with settings, ``warning`` (for the status), ``stop_accepting``, ``drain`` (finish, commit,
    close, exit), and before all of them ``stored`` and ``stored_end``: what an earlier core had kept here.
    From it: ``ready``, ``reloaded``, ``status``, ``warning``, and ``store`` and ``unstore`` (host/store.py).

Life
    Start: directories, locks, socket; then core and gateways at once; READY when the core is ready and each
    gateway runs or has failed to.

    Stop, on SIGTERM or SIGINT: (1) the socket goes, and the core accepts nobody any more; (2) the gateways
    end, and still have the core to deliver to; (3) the core drains: it commits and closes; exit 0. A second
    SIGINT ends everything at once.

    Reload, on SIGHUP: the configuration is read again. A bad one changes nothing and is told. A good one
    goes to the core, and gateways whose table changed are started again.

Invariants
    One core at a time, under the lock of the state directory, which the core inherits. No child outlives the
    supervisor (host/children.py). A core or gateway that exits with 78 (a configuration that can never work)
    is not started again; the core's ends the daemon.

Not here: everything that the daemon is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import resource
import signal
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from towpath._version import __version__
from towpath.errors import InvalidConfiguration, ProtocolViolation, TowpathError

from .console import has_terminal, summary
from .gateway_keeper import GatewayKeeper, missing_package
from .host import directories
from .host.children import Backoff, Child, describe_exit
from .host.packets import Outbox, Packet, close_all, control_pair, receive_packet
from .host.store import Store
from .host.systemd import Notifier, activated_socket
from .log import log, set_level
from .settings import Settings, with_directories

CORE_MODULE: Final = "towpath_broker.daemon"
CORE_STOP_S: Final = 5.0
"""What the core has, after the gateways are gone, to commit and close."""
GATEWAYS_READY_S: Final = 10.0
"""How long a gateway that neither runs nor fails holds up READY."""
RELOAD_S: Final = 10.0
"""How long the core may take over new settings before the reload is called done without it."""
HELD_CONNECTIONS_MAX: Final = 16
"""Connections of gateways kept while the core is down; older ones are closed, and their gateways try
again."""
DESCRIPTORS_WANTED: Final = 65_536
"""Soft limit of open files for the daemon's processes, as far as the hard limit allows; a session of the core
takes several."""
STATUS_CHARS_MAX: Final = 500
INTERRUPTED: Final = 130
"""Exit status after a second SIGINT, as a shell gives it."""
_FIXED_SETTINGS: Final = ("runtime_dir", "state_dir", "socket_mode", "socket_group")


def check_packages(settings: Settings) -> None:
    """Refuse to run without the C extension, or without a gateway that was asked for by name.

    Raises:
        InvalidConfiguration: says what is missing, and what to install.
    """
    if importlib.util.find_spec("towpath._ring") is None:
        raise InvalidConfiguration(
            "the daemon needs the C extension towpath._ring, which was not built with this installation",
            hint="install gcc and Python's headers (apt install gcc python3-dev), then install towpath again",
        )
    for name in settings.stated_gateways:
        if name in settings.gateways and (missing := missing_package(name)):
            raise InvalidConfiguration(f"[{name}]: the gateway cannot run: {missing}", hint="")


class Supervisor:
    """One run of the daemon.

    Args:
        settings: with the directories that are really used.
        load: reads the configuration again, for SIGHUP.
        listener: the door's socket.
        socket_path: to be removed at the end; None when the socket is systemd's.
        state_lock: the lock's descriptor, which the core inherits.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        load: Callable[[], Settings],
        notifier: Notifier,
        listener: socket.socket,
        socket_path: Path | None,
        state_lock: int,
    ) -> None:
        self._settings = settings
        self._load = load
        self._notifier = notifier
        self._listener = listener
        self._address = str(listener.getsockname())
        self._socket_path = socket_path
        self._state_lock = state_lock
        self._core: Child | None = None
        self._outbox: Outbox | None = None
        self._held: deque[tuple[Packet, int]] = deque()
        self._store = Store()
        self._keepers: dict[str, GatewayKeeper] = {}
        self._tasks: asyncio.TaskGroup
        self._status = ""
        self._is_ready = False
        self._has_terminal = has_terminal()
        self._status_at_exit = os.EX_OK
        self._core_ready = asyncio.Event()
        self._core_reloaded = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._reload_asked = asyncio.Event()

    # ---- life ----

    async def run(self) -> int:
        """Run the daemon until it is told to stop; return its exit status."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop_asked.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        log(
            "daemon.starting",
            version=__version__,
            pid=os.getpid(),
            socket=self._address,
            config=self._settings.config_file,
        )
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._tasks.create_task(self._keep_core())
                for name in self._settings.gateways:
                    self._add_gateway(name)
                reloads = self._tasks.create_task(self._serve_reloads())
                starting = self._tasks.create_task(self._announce_ready())
                await self._stop_asked.wait()
                reloads.cancel()
                starting.cancel()
                await self._shut_down()
        finally:
            self._kill_children()
            self._close_listener()
            self._store.close()
            while self._held:
                os.close(self._held.popleft()[1])
        log("daemon.stopped", status=self._status_at_exit)
        return self._status_at_exit

    def _interrupt(self) -> None:
        if self._stop_asked.is_set():
            log("daemon.interrupted", level="warning")
            self._kill_children()
            self._status_at_exit = INTERRUPTED
        self._stop_asked.set()

    def _hang_up(self) -> None:
        """Reload; but where the terminal is what hung up, its person expects the daemon to end with it."""
        lost_terminal = self._has_terminal and not has_terminal()
        (self._stop_asked if lost_terminal else self._reload_asked).set()

    def _kill_children(self) -> None:
        for keeper in self._keepers.values():
            keeper.kill()
        if self._core is not None:
            self._core.signal(signal.SIGKILL)

    def _close_listener(self) -> None:
        self._listener.close()
        if self._socket_path is not None:
            with contextlib.suppress(TowpathError):
                directories.remove_socket(self._socket_path)
            self._socket_path = None

    async def _announce_ready(self) -> None:
        await self._core_ready.wait()
        await self._wait_gateways_settled()
        self._is_ready = True
        self._notifier.ready(self._status_line())
        log("daemon.ready", socket=self._address)
        if sys.stdout.isatty():
            with contextlib.suppress(OSError):
                print(summary(self._address, self._keepers.values()), flush=True)

    async def _wait_gateways_settled(self) -> None:
        waits = [keeper.settled.wait() for keeper in self._keepers.values()]
        await _within(GATEWAYS_READY_S, asyncio.gather(*waits))

    async def _shut_down(self) -> None:
        """End everything in order; see Life in the module's docstring."""
        self._notifier.stopping()
        log("daemon.stopping")
        if self._outbox is not None:
            self._outbox.send({"type": "stop_accepting"})
        self._close_listener()
        await asyncio.gather(*(keeper.stop() for keeper in self._keepers.values()))
        log("daemon.gateways_stopped")
        if self._core is None:
            return
        if self._outbox is not None:
            self._outbox.send({"type": "drain"})
        core = self._core
        if not await _within(CORE_STOP_S, core.wait()):
            log("core.killed", level="error", seconds=CORE_STOP_S)
            core.signal(signal.SIGKILL)
        code = await core.wait()
        log("core.stopped", level="error" if code else "info", status=describe_exit(code))
        if code and not self._status_at_exit:
            self._status_at_exit = os.EX_SOFTWARE

    # ---- the core ----

    async def _keep_core(self) -> None:
        backoff = Backoff()
        while True:
            try:
                code, lifetime_s = await self._run_core()
                how = describe_exit(code)
            except OSError as error:
                # The host has no descriptor or process left, which may pass.
                code, lifetime_s, how = os.EX_OSERR, 0.0, f"could not be started: {error.strerror}"
            if self._stop_asked.is_set():
                return
            if code == os.EX_CONFIG:
                log("core.failed_for_good", level="error", status=describe_exit(code))
                self._status_at_exit = code
                self._stop_asked.set()
                return
            delay_s = backoff.delay_after(lifetime_s)
            log("core.exited", level="error", status=how, delay_s=delay_s)
            self._tell_systemd(f"The core {how}; starting it again")
            if await _within(delay_s, self._stop_asked.wait()):
                return

    async def _run_core(self) -> tuple[int, float]:
        """Run the core once; return its exit status and how long it lived."""
        loop = asyncio.get_running_loop()
        control, theirs = control_pair()
        self._core_ready.clear()
        try:
            with theirs:
                # SIGKILL, because nothing that the core holds outlives it, and a new one must not wait for
                # the lock.
                self._core = Child(
                    CORE_MODULE,
                    environment={
                        "TOWPATH_CORE_LISTEN_FD": str(self._listener.fileno()),
                        "TOWPATH_CORE_CONTROL_FD": str(theirs.fileno()),
                        "TOWPATH_CORE_SETTINGS": self._settings.to_json(),
                    },
                    descriptors=[self._listener.fileno(), theirs.fileno(), self._state_lock],
                    death_signal=signal.SIGKILL,
                )
            log("core.started", pid=self._core.pid)
            self._outbox = Outbox(control)
            if not self._store.hand_out(self._outbox):
                log("core.store_not_sent", level="error", descriptors=len(self._store))
            self._tell_gateways()
            while self._held:
                packet, descriptor = self._held.popleft()
                self._outbox.send(packet, [descriptor])
            loop.add_reader(control, self._receive, control)
            code = await self._core.wait()
            return code, self._core.lifetime_s
        finally:
            if self._core is not None:
                self._core.signal(signal.SIGKILL)
            loop.remove_reader(control)
            while self._receive(control):
                pass  # what it sent before its end counts: the next core finds what this one stored
            if self._outbox is not None:
                self._outbox.close()
            control.close()
            self._outbox = self._core = None
            self._core_reloaded.set()

    def _receive(self, control: socket.socket) -> bool:
        """Take one packet of the core; return whether there may be more."""
        try:
            received = receive_packet(control)
        except BlockingIOError:
            return False
        except ProtocolViolation as error:
            log("core.violation", level="error", message=error.message)
            return True
        if received is None:
            asyncio.get_running_loop().remove_reader(control)
            return False
        packet, descriptors = received
        if packet["type"] == "store":
            if why := self._store.put(packet, descriptors):
                log("core.not_stored", level="warning", message=why)
            return True
        close_all(descriptors)
        self._carry_out(packet)
        return True

    def _carry_out(self, packet: Packet) -> None:
        match packet["type"]:
            case "unstore":
                self._store.remove(packet.get("name"))
            case "ready":
                log("core.ready", pid=self._core.pid if self._core else 0)
                self._core_ready.set()
                if self._is_ready:
                    self._tell_systemd("")
            case "reloaded":
                for warning in packet.get("warnings", []):
                    log("core.warning", level="warning", message=str(warning))
                self._core_reloaded.set()
            case "status":
                self._status = str(packet.get("text", ""))[:STATUS_CHARS_MAX]
                self._tell_systemd("")
            case "warning":
                log("core.warning", level="warning", message=str(packet.get("text", "")))
            case unknown:
                log("core.unknown_packet", level="error", type=unknown)

    # ---- gateways ----

    def _add_gateway(self, name: str) -> None:
        keeper = GatewayKeeper(
            name,
            self._settings.gateways[name],
            missing=missing_package(name),
            socket_address=self._address,
            on_change=self._tell_gateways,
            on_connection=self._relay,
        )
        self._keepers[name] = keeper
        self._tasks.create_task(keeper.run())

    def _tell_gateways(self) -> None:
        if self._outbox is not None:
            views = [keeper.view() for keeper in self._keepers.values()]
            self._outbox.send({"type": "gateways", "gateways": views}, topic="gateways")
        if self._is_ready:
            self._tell_systemd("")

    def _relay(self, gateway: str, pid: int, descriptor: int) -> None:
        """Hand a gateway's connection to the core, or keep it until there is one."""
        packet = {"type": "gateway_connection", "gateway": gateway, "pid": pid}
        if self._outbox is not None:
            self._outbox.send(packet, [descriptor])
            return
        self._held.append((packet, descriptor))
        if len(self._held) > HELD_CONNECTIONS_MAX:
            os.close(self._held.popleft()[1])

    # ---- reload ----

    async def _serve_reloads(self) -> None:
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            await self._reload()

    async def _reload(self) -> None:
        """Read the configuration again; a bad one changes nothing."""
        self._notifier.reloading()
        try:
            loaded = self._load()
            check_packages(loaded)
        except TowpathError as error:
            self._warn(f"the configuration was not reloaded: {error.message}")
            self._notifier.ready(f"Configuration not reloaded: {error.message}"[:STATUS_CHARS_MAX])
            log("config.refused", level="error", code=error.code.name, message=error.message, hint=error.hint)
            return
        fixed = {name: getattr(self._settings.daemon, name) for name in _FIXED_SETTINGS}
        late = [name for name, value in fixed.items() if getattr(loaded.daemon, name) != value]
        self._settings = replace(loaded, daemon=replace(loaded.daemon, **fixed))
        set_level(self._settings.daemon.log_level)
        log("config.read", config=self._settings.config_file)
        self._core_reloaded.clear()
        if self._outbox is None or not self._outbox.send(
            {"type": "reload", "settings": self._settings.to_table()}
        ):
            # The core that is started next gets the new settings anyway.
            self._core_reloaded.set()
        await self._apply_to_gateways()
        await _within(RELOAD_S, self._core_reloaded.wait())
        for name in late:
            log("config.needs_restart", level="warning", setting=f"daemon.{name}")
            self._warn(f"daemon.{name} was changed; it takes effect when the daemon is restarted")
        await self._wait_gateways_settled()
        log("daemon.reloaded")
        self._notifier.ready(self._status_line())

    async def _apply_to_gateways(self) -> None:
        wanted = self._settings.gateways
        gone = [name for name in self._keepers if name not in wanted]
        await asyncio.gather(*(self._keepers[name].stop() for name in gone))
        for name in gone:
            del self._keepers[name]
        for name, table in wanted.items():
            keeper = self._keepers.get(name)
            if keeper is None:
                self._add_gateway(name)
            elif keeper.table != table or keeper.state == "failed":
                await keeper.retry(table, missing_package(name))
        self._tell_gateways()

    # ---- telling people ----

    def _warn(self, text: str) -> None:
        if self._outbox is not None:
            self._outbox.send({"type": "warning", "text": text})

    def _status_line(self) -> str:
        troubled = [
            f"{keeper.name} {keeper.state.replace('_', ' ')}"
            for keeper in self._keepers.values()
            if keeper.state != "running"
        ]
        return "; ".join(part for part in (self._status, *troubled) if part)

    def _tell_systemd(self, text: str) -> None:
        self._notifier.status(text or self._status_line())


async def _within(seconds: float, work: Awaitable[object]) -> bool:
    """Await something for at most so long; return whether it was done in time."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return False
    return True


def serve(load: Callable[[], Settings], environment: Mapping[str, str]) -> int:
    """Run the daemon in the foreground.

    Args:
        load: reads and checks the configuration; called again on SIGHUP.
        environment: the process's.

    Returns:
        The exit status.

    Raises:
        TowpathError: it cannot start; nothing was left behind but directories.
    """
    uid = os.geteuid()

    def load_with_directories() -> Settings:
        settings = load()
        return with_directories(
            settings,
            runtime_dir=str(directories.find_runtime_dir(settings.daemon.runtime_dir, environment, uid)),
            state_dir=str(directories.find_state_dir(settings.daemon.state_dir, environment, uid)),
        )

    settings = load_with_directories()
    check_packages(settings)
    set_level(settings.daemon.log_level)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, DESCRIPTORS_WANTED)), hard))
    notifier = Notifier(environment)
    runtime_dir, state_dir = Path(settings.daemon.runtime_dir), Path(settings.daemon.state_dir)
    mode = int(settings.daemon.socket_mode, 8)
    directories.prepare_directory(runtime_dir, mode=0o711 if mode & 0o077 else 0o700)
    directories.prepare_directory(state_dir)
    locks = [directories.lock_directory(runtime_dir)]
    try:
        locks.append(directories.lock_directory(state_dir) if state_dir != runtime_dir else os.dup(locks[0]))
        listener = activated_socket(environment)
        socket_path = None
        if listener is None:
            socket_path = runtime_dir / directories.SOCKET_NAME
            listener = directories.listen_at(socket_path, mode=mode, group=settings.daemon.socket_group)
        supervisor = Supervisor(
            settings,
            load=load_with_directories,
            notifier=notifier,
            listener=listener,
            socket_path=socket_path,
            state_lock=locks[1],
        )
        return asyncio.run(supervisor.run())
    finally:
        close_all(locks)
