"""What every gateway does the same way: settings, the connection to the daemon, stopping, reporting.

Theory of operation
    A gateway's ``__main__`` is one call: ``run_gateway("zeromq", ZeroMQSettings, main)``. It reads the
    settings (the supervisor's JSON where there is one, else environment and flags), connects, and awaits
    ``main(context)``, which sets up its listeners, says ``await context.listening(endpoints)``, and returns
    once ``context.stopping`` is set and it has drained. ``context.count(...)`` counts; the counts reach the
    daemon at most once a second and only while they change: an idle gateway has no timer.

    Started by the supervisor (``TOWPATH_GATEWAY_FD``), the client library connects through the inherited
    socket, and the gateway may report and speak for remote principals. Run by hand it is an ordinary client
    of the daemon at ``--socket``: it logs instead of reporting, and acts with its own uid. What a restarted
    core has forgotten (endpoints, counts) it is told again.

Invariants
    Exit status: 0 after a stop; 78 for a configuration that can never work (not started again); else that of
    the error. The process ends within ``STOP_SECONDS`` of SIGTERM or SIGINT, whatever ``main`` does: a timer
    of the kernel's sees to that.

Not here: anything that a particular gateway speaks. Imports of Towpath: the client library (late, so that a
gateway's pure ``settings.py`` can be checked without it), and the daemon's two leaves ``log`` and ``tables``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar

from towpath.errors import ConnectionLost, InvalidConfiguration, TowpathError, Unavailable
from towpath_broker.log import log
from towpath_broker.tables import add_flags, environment_table, flags_table, parse_table, setting, to_table

if TYPE_CHECKING:
    from towpath.aio import AsyncClient
    from towpath.aio.kinds import AsyncKinds

__all__ = ["GatewayContext", "log", "parse_table", "run_gateway", "setting", "to_table"]

S = TypeVar("S")

SETTINGS_ENVIRONMENT: Final = "TOWPATH_GATEWAY_SETTINGS"
CONTROL_ENVIRONMENT: Final = "TOWPATH_GATEWAY_FD"
STOP_SECONDS: Final = 5.0
"""From SIGTERM to the end of the process."""
DRAIN_SECONDS: Final = 4.0
"""How much of it ``main`` has before it is cancelled."""
REPORT_INTERVAL_S: Final = 1.0
CONNECT_TIMEOUT_S: Final = 10.0
"""By hand. Under the supervisor a gateway waits for the core as long as it takes."""


class GatewayContext(Generic[S]):
    """What a gateway's ``main`` works with.

    Attributes:
        name: ``zeromq``.
        settings: as parsed and checked.
        client: connected; reconnects by itself.
        stopping: set when the process shall drain and end.
        counters: named counts since the start; change them through :meth:`count`.
        is_child: started by the supervisor, so that it may report and speak for others.
    """

    def __init__(self, name: str, settings: S, client: AsyncClient, *, is_child: bool) -> None:
        self.name = name
        self.settings = settings
        self.client = client
        self.stopping = asyncio.Event()
        self.counters: dict[str, int] = {}
        self.is_child = is_child
        self._endpoints: dict[str, str] | None = None
        self._detail = ""
        self._changed = asyncio.Event()

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter; the daemon hears of it within about a second."""
        self.counters[name] = self.counters.get(name, 0) + amount
        self._changed.set()

    async def listening(self, endpoints: Mapping[str, str], detail: str = "") -> None:
        """Say where the gateway listens, which makes it RUNNING. May be called again when that changes.

        Args:
            endpoints: by name, with the ports as bound: ``{"sub": "tcp://127.0.0.1:5556"}``.
            detail: one line for people.
        """
        self._endpoints = dict(endpoints)
        self._detail = detail
        where = ",".join(f"{key}={address}" for key, address in self._endpoints.items())
        log("gateway.listening", gateway=self.name, endpoints=where)
        if self.is_child:
            self._tell_supervisor(detail)
            await self._report()

    def acting_for(self, principal: str) -> AsyncKinds:
        """Return what can be asked in frames, judged as the principal's; run by hand: as our own
        uid's."""
        return self.client.acting_for(principal if self.is_child else "")

    def _tell_supervisor(self, detail: str) -> None:
        """Say on the control socket where we listen: the supervisor waits for it before it calls the daemon
        ready."""
        control = socket.socket(fileno=os.dup(int(os.environ[CONTROL_ENVIRONMENT])))
        with control:
            control.send(
                json.dumps({"type": "listening", "endpoints": self._endpoints, "detail": detail}).encode()
            )

    async def _report(self) -> None:
        """Tell the daemon endpoints and counts. A broken connection is no error: its successor is told
        everything again."""
        if self._endpoints is None:
            return
        try:
            await self.client.report_gateway(self._endpoints, dict(self.counters), self._detail)
        except (ConnectionLost, Unavailable):
            log("gateway.report_postponed", level="debug", gateway=self.name)

    async def _report_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._report()
            await asyncio.sleep(REPORT_INTERVAL_S)

    async def _report_after_reconnect(self) -> None:
        async for event in self.client.watch():
            if event.kind == "reset":
                log("gateway.reconnected", gateway=self.name)
                await self._report()


def run_gateway(
    name: str, settings_class: type[S], main: Callable[[GatewayContext[S]], Awaitable[None]]
) -> NoReturn:
    """Run a gateway process from its start to its exit.

    Args:
        name: the gateway's name, also that of its table.
        settings_class: a frozen dataclass of :func:`setting` fields.
        main: listens, serves, and returns after ``context.stopping`` was set and what it had taken in is
            delivered.
    """
    try:
        settings, url = _read_settings(name, settings_class)
        asyncio.run(_run(name, settings, url, main))
    except TowpathError as error:
        log(
            "gateway.failed",
            level="error",
            gateway=name,
            code=error.code.name,
            message=error.message,
            hint=error.hint,
        )
        sys.exit(error.row.exit_code)
    log("gateway.stopped", gateway=name)
    sys.exit(0)


def _read_settings(name: str, settings_class: type[S]) -> tuple[S, str | None]:
    """Return the settings and the daemon's address; None finds it the usual way."""
    parser = argparse.ArgumentParser(
        prog=f"python -m towpath_broker.gateways.{name}", description=f"Towpath's {name} gateway."
    )
    parser.add_argument(
        "--socket", metavar="PATH", help="the daemon's socket (default: found as by every client)"
    )
    add_flags(parser, settings_class)
    arguments = parser.parse_args()
    if SETTINGS_ENVIRONMENT in os.environ:
        try:
            table = json.loads(os.environ[SETTINGS_ENVIRONMENT])
        except ValueError as error:
            raise InvalidConfiguration(f"{SETTINGS_ENVIRONMENT} is not JSON: {error}") from None
    else:
        table = environment_table(settings_class, name, os.environ)
    table = {**table, **flags_table(settings_class, arguments)} if isinstance(table, dict) else table
    return parse_table(settings_class, table, where=f"[{name}]"), arguments.socket


async def _run(
    name: str, settings: S, url: str | None, main: Callable[[GatewayContext[S]], Awaitable[None]]
) -> None:
    import towpath.aio

    is_child = CONTROL_ENVIRONMENT in os.environ
    stopping = asyncio.Event()
    _stop_on_signals(stopping)
    connecting = towpath.aio.connect(
        url, timeout=None if is_child else CONNECT_TIMEOUT_S, name=f"gateway-{name}"
    )
    client = await _unless_stopped(connecting, stopping)
    if client is None:
        return
    async with client:
        context = GatewayContext(name, settings, client, is_child=is_child)
        context.stopping = stopping
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(context._report_changes())] if is_child else []
                if is_child:
                    helpers.append(group.create_task(context._report_after_reconnect()))
                serving = group.create_task(_serve(context, main))
                serving.add_done_callback(lambda _: [helper.cancel() for helper in helpers])
        except BaseExceptionGroup as failures:
            # One cause is the usual case, and says more by itself than in a group.
            if len(failures.exceptions) == 1:
                raise failures.exceptions[0] from None
            raise


async def _serve(context: GatewayContext[S], main: Callable[[GatewayContext[S]], Awaitable[None]]) -> None:
    """Run ``main`` until it returns, at most ``DRAIN_SECONDS`` longer than it should."""
    task = asyncio.ensure_future(main(context))
    stopped = asyncio.ensure_future(context.stopping.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        done, _ = await asyncio.wait((task,), timeout=DRAIN_SECONDS)
        if not done:
            log("gateway.drain_timeout", level="warning", gateway=context.name, seconds=DRAIN_SECONDS)
    finally:
        stopped.cancel()
        task.cancel()
        await asyncio.wait((task,))
    if not task.cancelled():
        task.result()


async def _unless_stopped(work: Coroutine[Any, Any, S], stopping: asyncio.Event) -> S | None:
    """Await the work; give it up, with None, when the process is told to stop first."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stopping.wait())
    await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
    return None if task.cancelled() else task.result()


def _stop_on_signals(stopping: asyncio.Event) -> None:
    """Set ``stopping`` on SIGTERM and SIGINT, and have the kernel end the process if it does not end by
    itself."""
    loop = asyncio.get_running_loop()

    def stop(signum: int, frame: object) -> None:
        # A Python handler, not loop.add_signal_handler: it runs even when the loop itself is stuck in a
        # callback.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, STOP_SECONDS)
        # A signal may come once more, when the loop has ended and the process is about to.
        if not loop.is_closed():
            loop.call_soon_threadsafe(stopping.set)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
