"""Keeps the core running: starts it, starts it again, hears whether it is alive, and ends it.

Theory of operation
    When the core dies it is started again with the same listening socket, so that whoever connects meanwhile
    waits in its backlog. The pause before doubles (host/children.py). A core that was never ready
    ``STARTS_MAX`` times in a row is given up, and with it the daemon, with ``EX_SOFTWARE`` (70): whoever
    runs the daemon (systemd: Restart=, StartLimitBurst=) decides about the rest. One that was ready is
    always started again.

    Control socket, packets of host/packets.py. To the core: ``gateways`` (how they fare; only the newest
    counts), ``gateway_connection`` with a descriptor (serve this as that gateway's session), ``listen`` with
    another listening socket, ``reload`` with the settings in a file, ``warning`` (for the status),
    ``stop_accepting``, ``drain`` (finish, commit, close, exit; with ``keep`` leave everything as a successor
    can take it over), and before all of them ``stored`` and ``stored_end``: what an earlier core had kept
    here (host/store.py). From it: ``ready``, ``reloaded``, ``status``, ``warning``, ``store`` and
    ``unstore``, and ``beat``.

    Watchdog: where there is one, the core's engine beats, ``BEATS`` times in the watchdog's span, from its
    own loop (engine.Engine.pulse). Each beat is passed on to systemd, and nothing else is: the supervisor
    does not speak for a core that is silent. A core that is silent for half the span is killed and started
    again, which disturbs nobody else; should that not help, or the supervisor be stuck itself, systemd ends
    them all.

Invariants
    One core at a time. When :meth:`CoreKeeper.run` has returned there is none.

Not here: the order in which the daemon ends (supervisor.py), what is kept (host/store.py).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from towpath.errors import ProtocolViolation

from .host.children import Backoff, Child, describe_exit, settings_file
from .host.packets import Outbox, Packet, close_all, control_pair, receive_packet
from .host.store import Store
from .host.systemd import Notifier
from .host.waiting import within
from .log import log
from .settings import Settings

CORE_MODULE: Final = "towpath_broker.daemon"
STARTS_MAX: Final = 8
"""Starts in a row that never came to be ready; with the pauses between them about 15 s."""
HELD_CONNECTIONS_MAX: Final = 16
"""Connections of gateways kept while the core is down; older ones are closed, and their gateways try
again."""
BEATS: Final = 6
"""In the watchdog's span."""
STATUS_CHARS_MAX: Final = 500


class CoreKeeper:
    """The core, and what is between it and the supervisor.

    Attributes:
        ready: set while the core is ready.
        reloaded: set when it has taken over the newest settings, or will with its next start.
        status: its line for ``systemctl status``.

    Args:
        settings: what a core is started with.
        listener: the door's socket.
        state_lock: the lock's descriptor, which the core inherits.
        store: what outlives it.
        notifier: hears that it is alive.
        on_change: called when ``status`` has changed, or the core has come or gone; with a line for people,
            or an empty one.
        on_start: called when a core was started, before it is ready.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        *,
        listener: socket.socket,
        state_lock: int,
        store: Store,
        notifier: Notifier,
        on_change: Callable[[str], None],
        on_start: Callable[[], None],
    ) -> None:
        self.ready = asyncio.Event()
        self.reloaded = asyncio.Event()
        self.status = ""
        self._settings = settings
        self._listener = listener
        self._state_lock = state_lock
        self._store = store
        self._notifier = notifier
        self._on_change = on_change
        self._on_start = on_start
        self._child: Child | None = None
        self._outbox: Outbox | None = None
        self._held: deque[tuple[Packet, int]] = deque()
        self._silence: asyncio.TimerHandle | None = None
        self._backoff = Backoff()

    async def run(self, stopping: asyncio.Event) -> int:
        """Keep a core running until ``stopping`` is set and the last one has ended.

        Returns:
            What the daemon is to exit with when the core is the reason for its end, else 0.
        """
        vain_starts = 0
        while True:
            try:
                code = await self._run_once()
                how = describe_exit(code)
            except OSError as error:
                # The host has no descriptor or process left, which may pass.
                code, how = os.EX_OSERR, f"could not be started: {error.strerror}"
            if stopping.is_set():
                return os.EX_OK
            if code == os.EX_CONFIG:
                log("core.failed_for_good", level="error", status=how)
                return code
            vain_starts = 0 if self.ready.is_set() else vain_starts + 1
            self.ready.clear()
            if vain_starts >= STARTS_MAX:
                log("core.given_up", level="error", status=how, starts=vain_starts, exit=os.EX_SOFTWARE)
                self._on_change(f"The core {how}, {vain_starts} times in a row before it was ready; given up")
                return os.EX_SOFTWARE
            delay_s = self._backoff.next_delay_s()
            log("core.exited", level="error", status=how, delay_s=delay_s)
            self._on_change(f"The core {how}; starting it again")
            if await within(delay_s, stopping.wait()):
                return os.EX_OK

    async def _run_once(self) -> int:
        """Run the core once; return its exit status."""
        loop = asyncio.get_running_loop()
        control, theirs = control_pair()
        self.ready.clear()
        try:
            with theirs:
                self._start(theirs)
            assert self._child is not None
            self._outbox = Outbox(control)
            if not self._store.hand_out(self._outbox):
                log("core.store_not_sent", level="error", descriptors=len(self._store))
            self._on_start()
            while self._held:
                packet, descriptor = self._held.popleft()
                self._outbox.send(packet, [descriptor])
            loop.add_reader(control, self._receive, control)
            return await self._child.wait()
        finally:
            self.kill()
            loop.remove_reader(control)
            while self._receive(control):
                pass  # what it sent before its end counts: the next core finds what this one stored
            if self._silence is not None:
                self._silence.cancel()
            if self._outbox is not None:
                self._outbox.close()
            control.close()
            self._outbox = self._child = None
            self.reloaded.set()

    def _start(self, control: socket.socket) -> None:
        """Start the process.

        Raises:
            OSError: the host refuses; nothing was started.
        """
        settings = settings_file(self._settings().to_json())
        try:
            # SIGKILL, because nothing that the core holds outlives it, and a new one must not wait for the
            # lock.
            self._child = Child(
                CORE_MODULE,
                environment={
                    "TOWPATH_CORE_LISTEN_FD": str(self._listener.fileno()),
                    "TOWPATH_CORE_CONTROL_FD": str(control.fileno()),
                    "TOWPATH_CORE_SETTINGS_FD": str(settings),
                    "TOWPATH_CORE_BEAT_S": str(self._notifier.watchdog_s / BEATS),
                },
                descriptors=[self._listener.fileno(), control.fileno(), settings, self._state_lock],
                death_signal=signal.SIGKILL,
            )
        finally:
            os.close(settings)
        log("core.started", pid=self._child.pid)

    # ---- from the core -------------------------------------------------------------------------------------

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
            case "beat":
                self._beat()
            case "ready":
                log("core.ready", pid=self._child.pid if self._child else 0)
                self.ready.set()
                self._backoff.works()
                self._on_change("")
            case "reloaded":
                for warning in packet.get("warnings", []):
                    log("core.warning", level="warning", message=str(warning))
                self.reloaded.set()
            case "status":
                self.status = str(packet.get("text", ""))[:STATUS_CHARS_MAX]
                self._on_change("")
            case "warning":
                log("core.warning", level="warning", message=str(packet.get("text", "")))
            case unknown:
                log("core.unknown_packet", level="error", type=unknown)

    def _beat(self) -> None:
        """The engine is alive: tell systemd, and be surprised when that was the last time."""
        self._notifier.alive()
        if self._silence is not None:
            self._silence.cancel()
        if self._notifier.watchdog_s:
            loop = asyncio.get_running_loop()
            self._silence = loop.call_later(self._notifier.watchdog_s / 2, self._end_silent)

    def _end_silent(self) -> None:
        if self._child is not None:
            log("core.wedged", level="error", pid=self._child.pid, seconds=self._notifier.watchdog_s / 2)
            self.kill()

    # ---- to the core ---------------------------------------------------------------------------------------

    def send(self, packet: Packet, *, topic: str = "") -> bool:
        """Tell the core something; False when there is none, or it does not listen."""
        return self._outbox is not None and self._outbox.send(packet, topic=topic)

    def listen(self, listener: socket.socket) -> None:
        """Have this core and its successors accept connections here instead."""
        self._listener.close()
        self._listener = listener
        if self._outbox is not None:
            self._outbox.send({"type": "listen"}, [os.dup(listener.fileno())])

    def relay(self, gateway: str, pid: int, descriptor: int) -> None:
        """Hand a gateway's connection to the core, or keep it until there is one."""
        packet = {"type": "gateway_connection", "gateway": gateway, "pid": pid}
        if self._outbox is not None:
            self._outbox.send(packet, [descriptor])
            return
        self._held.append((packet, descriptor))
        if len(self._held) > HELD_CONNECTIONS_MAX:
            os.close(self._held.popleft()[1])

    def reload(self, settings: Settings) -> None:
        """Have the core take over new settings; ``reloaded`` is set when it has."""
        self.reloaded.clear()
        file = settings_file(settings.to_json())
        # The core that is started next gets the new settings anyway.
        if self._outbox is None:
            os.close(file)
            self.reloaded.set()
        elif not self._outbox.send({"type": "reload"}, [file]):
            self.reloaded.set()

    async def drain(self, seconds: float, *, keep: bool) -> int | None:
        """Have the core commit and end; kill it when it takes longer.

        Args:
            seconds: at most so long.
            keep: a successor will go on from what is stored: leave it as it is.

        Returns:
            Its exit status; None when there is no core.
        """
        child = self._child
        if child is None:
            return None
        self.send({"type": "drain", "keep": keep})
        if not await within(seconds, child.wait()):
            log("core.killed", level="error", seconds=seconds)
            child.signal(signal.SIGKILL)
        return await child.wait()

    def kill(self) -> None:
        """End the core at once."""
        if self._child is not None:
            self._child.signal(signal.SIGKILL)

    def close(self) -> None:
        """Close what is held for a core that will not come."""
        while self._held:
            os.close(self._held.popleft()[1])
