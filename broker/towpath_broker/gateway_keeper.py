"""Keeps one gateway process running.

Theory of operation
    ::

        starting --says that it listens--> running
           ^  |                               |
           |  +- ends, or cannot be started --+----> backing_off --pause over--> starting
           |                                  +----> failed (exit 78: it can never work as configured)
           +------ reconfigured, retried -----------------+

    The gateway's control socket (host/packets.py) carries packets to us: ``connect`` with one descriptor, a
    connection that the core shall serve as this gateway's, and ``listening`` with its endpoints; from a
    gateway that has a store (host/store.py) also ``store`` and ``unstore``. To it go, where it has a store,
    ``stored`` and ``stored_end``, first of all. So only processes that the daemon started can be gateways,
    and the supervisor knows what runs without being a client.

Invariants
    At most one process at a time. When :meth:`GatewayKeeper.run` has returned there is none.

Not here: which gateways there are, and what the core makes of their connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from towpath.errors import ProtocolViolation

from .host.children import Backoff, Child, describe_exit
from .host.packets import Outbox, Packet, close_all, control_pair, receive_packet
from .host.store import Store
from .log import log

STOP_SECONDS: Final = 5.0
"""From SIGTERM to SIGKILL."""
PACKETS_PER_WAKEUP: Final = 64

GATEWAY_PACKAGES: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "zeromq": (("zmq",), "towpath[zmq]"),
    "grpc": (("grpc", "grpc_health", "grpc_reflection"), "towpath[grpc]"),
}
"""What each gateway needs beyond the client library, and the extra that brings it."""

State = Literal["starting", "running", "backing_off", "failed"]


def missing_package(gateway: str) -> str:
    """Return what is missing for a gateway, with what to do about it; empty for nothing."""
    modules, extra = GATEWAY_PACKAGES.get(gateway, ((), ""))
    importlib.invalidate_caches()
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"{', '.join(missing)} not installed; try: pip install '{extra}'" if missing else ""


class GatewayKeeper:
    """One gateway: its state and its process.

    Attributes:
        table: its settings, complete.
        endpoints: by name, once it listens.
        detail: one line for people.
        settled: set once the gateway runs, or has failed to for the first time, with the table it has.
    """

    def __init__(
        self,
        name: str,
        table: Mapping[str, Any],
        *,
        module: str = "",
        missing: str = "",
        socket_address: str,
        on_change: Callable[[], None],
        on_connection: Callable[[str, int, int], None],
        store: Store | None = None,
        is_restart_possible: bool = False,
    ) -> None:
        """
        Args:
            module: what to run; empty for the gateway of that name.
            missing: what must be installed before it can run; empty for nothing.
            socket_address: of the door, for the commands that the gateway runs.
            on_change: called when anything that the status shows has changed.
            on_connection: takes over a descriptor: name, pid, descriptor.
            store: what outlives it, for a gateway that uses that.
            is_restart_possible: what is stored outlives us too.
        """
        self.name = name
        self.table = table
        self.state: State = "starting"
        self.pid = 0
        self.restarts = 0
        self.endpoints: dict[str, str] = {}
        self.detail = ""
        self.settled = asyncio.Event()
        self._module = module or f"towpath_broker.gateways.{name}"
        self._missing = missing
        self._socket_address = socket_address
        self._on_change = on_change
        self._on_connection = on_connection
        self._store = store
        self._is_restart_possible = is_restart_possible
        self._outbox: Outbox | None = None
        self._child: Child | None = None
        self._trouble = ""  # why the process could not be started, the last time
        self._is_stopping = False
        self._is_retried = False
        self._woken = asyncio.Event()
        self._backoff = Backoff()

    def view(self) -> Packet:
        """Return what the core is told."""
        return {
            "name": self.name,
            "state": self.state,
            "pid": self.pid,
            "restarts": self.restarts,
            "detail": self.detail,
            "endpoints": self.endpoints,
        }

    async def run(self) -> None:
        """Keep the process running until :meth:`stop`."""
        while not self._is_stopping:
            self._woken.clear()
            self._is_retried = False
            if self._missing:
                self._change("failed", self._missing)
                log("gateway.unavailable", level="warning", gateway=self.name, detail=self._missing)
                await self._woken.wait()
                continue
            code = await self._run_once()
            if self._is_stopping:
                break
            if self._is_retried:
                self._backoff = Backoff()
            elif code == os.EX_CONFIG:
                self._change("failed", "it cannot run as configured; its log says why")
                log("gateway.failed_for_good", level="error", gateway=self.name)
                await self._woken.wait()
            else:
                delay_s = self._backoff.next_delay_s()
                how = self._trouble or describe_exit(code)
                self._change("backing_off", f"{how}, again in {delay_s:g} s")
                log("gateway.exited", level="warning", gateway=self.name, status=how, delay_s=delay_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._woken.wait()
            self.restarts += 1

    async def _run_once(self) -> int:
        """Run the process once; return its exit status."""
        loop = asyncio.get_running_loop()
        try:
            control = self._start()
        except OSError as error:
            # The host has no descriptor or process left: as bad as one that ends at once, and may pass.
            self._trouble = f"could not be started: {error.strerror}"
            return os.EX_OSERR
        self._trouble = ""
        assert self._child is not None
        try:
            self.pid = self._child.pid
            self._change("starting", "")
            log("gateway.started", gateway=self.name, pid=self.pid)
            if self._store is not None:
                self._outbox = Outbox(control)
                if not self._store.hand_out(self._outbox):
                    log("gateway.store_not_sent", level="error", gateway=self.name)
            loop.add_reader(control, self._receive, control)
            return await self._child.wait()
        finally:
            self._child.signal(signal.SIGKILL)
            loop.remove_reader(control)
            while self._receive(control):
                pass  # what it had stored before its end is for its successor
            if self._outbox is not None:
                self._outbox.close()
                self._outbox = None
            control.close()
            self._child = None
            self.pid = 0
            self.endpoints = {}

    def _start(self) -> socket.socket:
        """Start the process; return our end of its control socket.

        Raises:
            OSError: the host refuses; nothing was started.
        """
        control, theirs = control_pair()
        environment = {
            "TOWPATH_GATEWAY_FD": str(theirs.fileno()),
            "TOWPATH_GATEWAY_SETTINGS": json.dumps(self.table),
            "TOWPATH_SOCKET": self._socket_address,
        }
        if self._store is not None:
            environment["TOWPATH_GATEWAY_KEEPS"] = "restart" if self._is_restart_possible else "crash"
        try:
            with theirs:
                # SIGTERM, because it holds what is others': FIFOs and running commands. It bounds its own
                # drain.
                self._child = Child(
                    self._module,
                    environment=environment,
                    descriptors=[theirs.fileno()],
                    death_signal=signal.SIGTERM,
                )
        except OSError:
            control.close()
            raise
        return control

    def _receive(self, control: socket.socket) -> bool:
        """Take some packets; return whether there may be more."""
        for _ in range(PACKETS_PER_WAKEUP):
            try:
                received = receive_packet(control)
            except BlockingIOError:
                return False
            except ProtocolViolation as error:
                log("gateway.violation", level="error", gateway=self.name, message=error.message)
                continue
            if received is None:
                asyncio.get_running_loop().remove_reader(control)
                return False
            self._handle(*received)
        return True

    def _handle(self, packet: Packet, descriptors: list[int]) -> None:
        if packet["type"] == "connect" and len(descriptors) == 1 and _is_stream(descriptors[0]):
            self._on_connection(self.name, self.pid, descriptors[0])
            return
        if packet["type"] == "store" and self._store is not None:
            if why := self._store.put(packet, descriptors):
                log("gateway.not_stored", level="warning", gateway=self.name, message=why)
            return
        close_all(descriptors)
        if packet["type"] == "unstore" and self._store is not None:
            self._store.remove(packet.get("name"))
            return
        endpoints = packet.get("endpoints")
        if packet["type"] == "listening" and isinstance(endpoints, dict):
            self.endpoints = {str(name): str(address) for name, address in endpoints.items()}
            self._backoff.works()
            self._change("running", str(packet.get("detail", "")))
        else:
            log(
                "gateway.violation",
                level="error",
                gateway=self.name,
                message=f"unexpected packet {packet['type']!r}",
            )

    def _change(self, state: State, detail: str) -> None:
        self.state = state
        self.detail = detail
        if state != "starting":
            self.settled.set()
        self._on_change()

    async def stop(self) -> None:
        """End the process and :meth:`run`: SIGTERM, and SIGKILL ``STOP_SECONDS`` later."""
        self._is_stopping = True
        await self._end_process()

    async def retry(self, table: Mapping[str, Any], missing: str) -> None:
        """Start it again at once, with these settings."""
        self.table = table
        self._missing = missing
        self._is_retried = True
        self.settled.clear()
        await self._end_process()

    async def _end_process(self) -> None:
        self._woken.set()
        if self._child is not None and not await self._child.stop(STOP_SECONDS):
            log("gateway.killed", level="warning", gateway=self.name, seconds=STOP_SECONDS)

    def kill(self) -> None:
        """End the process at once."""
        if self._child is not None:
            self._child.signal(signal.SIGKILL)


def _is_stream(descriptor: int) -> bool:
    """Whether a descriptor is what a gateway may hand over: a UNIX stream socket."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            return connection.family == socket.AF_UNIX and connection.type == socket.SOCK_STREAM
    except OSError:
        return False
