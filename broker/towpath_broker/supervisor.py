"""``towpath serve``: the small parent that holds the socket and keeps the core and the gateways running.

Theory of operation
    The supervisor binds the door's socket (or takes systemd's), starts the core with it, and starts each
    gateway. It does so little that it has nothing to crash on: it serves nobody, reads no message, and
    imports neither protobuf nor a network library. When the core dies it is started again with the same
    listening socket, so that whoever connects meanwhile waits in its backlog.

    The core is core_keeper.py's, with the packets that go to it and come from it; a gateway is
    gateway_keeper.py's.

Life
    Start: directories, locks, socket; then core and gateways at once; READY when the core is ready and each
    gateway runs or has failed to.

    Stop, on SIGTERM or SIGINT: (1) the socket goes, and the core accepts nobody any more; (2) the gateways
    end, and still have the core to deliver to; (3) the core drains: it commits and closes; exit 0. A second
    SIGINT ends everything at once. Under systemd, which keeps what must outlive us (host/store.py) and does
    not say whether this is a restart, nothing is taken apart: the core commits and leaves, the FIFOs stay.

    Reload, on SIGHUP: the configuration is read again. A bad one changes nothing and is told. A good one
    goes to the core, and gateways whose table changed are started again.

    A socket that somebody has deleted is made again, and the core listens there from then on; one that has
    something else in its place is told of in log and status, because nobody can be reached there.

Invariants
    One core at a time, under the lock of the state directory, which the core inherits. No child outlives the
    supervisor (host/children.py). A core or gateway that exits with 78 (a configuration that can never work)
    is not started again; the core's ends the daemon, and so does a core that is never ready (with 70).

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
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from towpath._version import __version__
from towpath.errors import InvalidConfiguration, LimitExceeded, TowpathError

from .console import has_terminal, summary
from .core_keeper import STATUS_CHARS_MAX, CoreKeeper
from .gateway_keeper import GatewayKeeper, missing_package
from .host import directories
from .host.children import describe_exit
from .host.packets import close_all
from .host.place import PlaceWatch
from .host.store import Store
from .host.systemd import Notifier, handed_over
from .host.waiting import within
from .log import log, set_level
from .settings import Settings, with_directories

CORE_STOP_S: Final = 5.0
"""What the core has, after the gateways are gone, to commit and close."""
GATEWAYS_READY_S: Final = 10.0
"""How long a gateway that neither runs nor fails holds up READY."""
RELOAD_S: Final = 10.0
"""How long the core may take over new settings before the reload is called done without it."""
DESCRIPTORS_WANTED: Final = 65_536
"""Soft limit of open files for the daemon's processes, as far as the hard limit allows; a session of the core
takes several."""
DESCRIPTORS_NEEDED: Final = 64
"""Fewer, and it does not start: it would only fail later, at whatever needs the next one."""
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
        kept: what systemd kept of an earlier run, by name.
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
        kept: Mapping[str, int] | None = None,
    ) -> None:
        self._settings = settings
        self._load = load
        self._notifier = notifier
        self._listener = listener
        self._address = str(listener.getsockname())
        self._socket_path = socket_path
        self._place: PlaceWatch | None = None
        self._stores = {owner: Store(owner, notifier, kept) for owner in ("core", "bridge")}
        self._core = CoreKeeper(
            lambda: self._settings,
            listener=listener,
            state_lock=state_lock,
            store=self._stores["core"],
            notifier=notifier,
            on_change=self._core_changed,
            on_start=self._tell_gateways,
        )
        self._keepers: dict[str, GatewayKeeper] = {}
        self._tasks: asyncio.TaskGroup
        self._is_ready = False
        self._has_terminal = has_terminal()
        self._status_at_exit = os.EX_OK
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
            self._watch_socket()
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
            self._core.close()
            for store in self._stores.values():
                store.close()
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
        self._core.kill()

    def _watch_socket(self) -> None:
        if self._socket_path is not None:
            try:
                self._place = PlaceWatch(self._socket_path, self._socket_gone)
            except OSError as error:
                log("daemon.socket_not_watched", level="warning", reason=error.strerror)

    def _socket_gone(self) -> None:
        """Somebody has deleted the socket, moved it, or put something else in its place."""
        assert self._socket_path is not None
        self._place = None
        try:
            if os.path.lexists(self._socket_path):
                raise InvalidConfiguration("something else is in its place", hint="")
            self._listener = listen_as_configured(self._socket_path, self._settings)
        except (TowpathError, OSError) as error:
            log("daemon.socket_gone", level="error", socket=self._address, message=str(error))
            self._warn(f"the socket {self._address} was removed, nobody can connect any more: {error}")
            return
        log("daemon.socket_made_again", level="warning", socket=self._address)
        self._core.listen(self._listener)
        self._watch_socket()

    def _close_listener(self) -> None:
        if self._place is not None:
            self._place.close()
            self._place = None
        self._listener.close()
        if self._socket_path is not None:
            with contextlib.suppress(TowpathError):
                directories.remove_socket(self._socket_path)
            self._socket_path = None

    async def _announce_ready(self) -> None:
        await self._core.ready.wait()
        await self._wait_gateways_settled()
        self._is_ready = True
        self._notifier.ready(self._status_line())
        log("daemon.ready", socket=self._address)
        if sys.stdout.isatty():
            with contextlib.suppress(OSError):
                print(summary(self._address, self._keepers.values()), flush=True)

    async def _wait_gateways_settled(self) -> None:
        waits = [keeper.settled.wait() for keeper in self._keepers.values()]
        await within(GATEWAYS_READY_S, asyncio.gather(*waits))

    async def _shut_down(self) -> None:
        """End everything in order; see Life in the module's docstring."""
        self._notifier.stopping()
        log("daemon.stopping")
        self._core.send({"type": "stop_accepting"})
        self._close_listener()
        await asyncio.gather(*(keeper.stop() for keeper in self._keepers.values()))
        log("daemon.gateways_stopped")
        code = await self._core.drain(CORE_STOP_S, keep=self._notifier.keeps)
        if code is None:
            return
        log("core.stopped", level="error" if code else "info", status=describe_exit(code))
        if code and not self._status_at_exit:
            self._status_at_exit = os.EX_SOFTWARE

    async def _keep_core(self) -> None:
        self._status_at_exit = await self._core.run(self._stop_asked) or self._status_at_exit
        self._stop_asked.set()

    def _core_changed(self, text: str) -> None:
        if text or self._is_ready:
            self._tell_systemd(text)

    # ---- gateways ----

    def _add_gateway(self, name: str) -> None:
        keeper = GatewayKeeper(
            name,
            self._settings.gateways[name],
            missing=missing_package(name),
            socket_address=self._address,
            on_change=self._tell_gateways,
            on_connection=self._core.relay,
            store=self._stores.get(name),
            is_restart_possible=self._notifier.keeps,
        )
        self._keepers[name] = keeper
        self._tasks.create_task(keeper.run())

    def _tell_gateways(self) -> None:
        views = [keeper.view() for keeper in self._keepers.values()]
        self._core.send({"type": "gateways", "gateways": views}, topic="gateways")
        if self._is_ready:
            self._tell_systemd("")

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
        self._core.reload(self._settings)
        await self._apply_to_gateways()
        await within(RELOAD_S, self._core.reloaded.wait())
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
        self._core.send({"type": "warning", "text": text})

    def _status_line(self) -> str:
        troubled = [
            f"{keeper.name} {keeper.state.replace('_', ' ')}"
            for keeper in self._keepers.values()
            if keeper.state != "running"
        ]
        return "; ".join(part for part in (self._core.status, *troubled) if part)

    def _tell_systemd(self, text: str) -> None:
        self._notifier.status(text or self._status_line())


def listen_as_configured(path: Path, settings: Settings) -> socket.socket:
    """Bind the door's socket.

    Raises:
        InvalidConfiguration, PermissionDenied: it cannot be.
    """
    mode = int(settings.daemon.socket_mode, 8)
    return directories.listen_at(path, mode=mode, group=settings.daemon.socket_group)


def check_descriptors() -> None:
    """Let this process and its children have as many descriptors as the daemon wants and the host allows.

    Raises:
        LimitExceeded: those are too few to run at all.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = max(soft, min(hard, DESCRIPTORS_WANTED))
    if allowed < DESCRIPTORS_NEEDED:
        raise LimitExceeded(
            f"a process may have {allowed} open files here; the daemon needs {DESCRIPTORS_NEEDED} at least",
            hint="raise ulimit -n, or LimitNOFILE= of its unit",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


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
    check_descriptors()
    notifier = Notifier(environment)
    runtime_dir, state_dir = Path(settings.daemon.runtime_dir), Path(settings.daemon.state_dir)
    mode = int(settings.daemon.socket_mode, 8)
    directories.prepare_directory(runtime_dir, mode=0o711 if mode & 0o077 else 0o700)
    directories.prepare_directory(state_dir)
    locks = [directories.lock_directory(runtime_dir)]
    try:
        locks.append(directories.lock_directory(state_dir) if state_dir != runtime_dir else os.dup(locks[0]))
        listener, kept = handed_over(environment)
        socket_path = None
        if listener is None:
            socket_path = runtime_dir / directories.SOCKET_NAME
            listener = listen_as_configured(socket_path, settings)
        supervisor = Supervisor(
            settings,
            load=load_with_directories,
            notifier=notifier,
            listener=listener,
            socket_path=socket_path,
            state_lock=locks[1],
            kept=kept,
        )
        return asyncio.run(supervisor.run())
    finally:
        close_all(locks)
