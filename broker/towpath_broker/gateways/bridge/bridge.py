"""The registry's bindings, brought to life.

Theory of operation
    The daemon tells which bindings there are, and each becomes a runner. After a reconnect it tells all of
    them again, between ``reset`` and ``current``: runners go on meanwhile, and those whose binding was not
    told again are stopped. A place has one runner at a time: a binding made anew at the same URL waits until
    its predecessor has put its things away.

    At the stop every binding is asked to end, all at once: nothing new is taken in, what was taken in is
    handed on, what was made is removed (or, where a restart is possible, left to the successor:
    ``keeping``). What has not ended after ``DRAIN_S`` is cancelled: commands get SIGKILL, and what could not
    be handed on is counted and logged.

Invariants
    A runner per binding that the daemon has told of, and no other.
    Definitions never change under an id: a changed binding is a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final

from towpath.model import BindingInfo
from towpath_broker.gateways.bridge.inotify import PathWatcher
from towpath_broker.gateways.bridge.joining.joins import KEEPING_ID
from towpath_broker.gateways.bridge.keeping import BindingKeeping, Keeping
from towpath_broker.gateways.bridge.ports import Client
from towpath_broker.gateways.bridge.report import REPORT_INTERVAL_S, Reporter
from towpath_broker.gateways.bridge.runner import RETRY_DELAY_MS, BindingRunner
from towpath_broker.gateways.bridge.stop import Stop
from towpath_broker.gateways.bridge.tasks import cancel, raise_first_error
from towpath_broker.gateways.bridge.threads import Threads
from towpath_broker.log import log

DRAIN_S: Final = 3.0
"""For all bindings together, at the stop. Less than what the process itself has."""

HAND_OVER_S: Final = 0.5
"""What a binding has, that can leave everything to a successor, to come to an end by itself."""

LAST_REPORT_S: Final = 0.5
"""For the last report, when the daemon may be gone already."""


@dataclass(frozen=True, slots=True)
class _Running:
    info: BindingInfo
    stop: Stop
    keeping: BindingKeeping
    task: asyncio.Task[None]


class Bridge:
    """Keeps a runner for each binding.

    Args:
        client: the daemon; reconnects by itself.
        keeping: what outlives the bridge; stays the caller's.
        report_interval_s: how often counters are told, at most.
        retry_delay_ms: before a failed binding's first new attempt.
        drain_s: how long the stop may take.
    """

    def __init__(
        self,
        client: Client,
        keeping: Keeping,
        *,
        report_interval_s: float = REPORT_INTERVAL_S,
        retry_delay_ms: int = RETRY_DELAY_MS,
        drain_s: float = DRAIN_S,
    ) -> None:
        self._client = client
        self._keeping = keeping
        self._reporter = Reporter(client, interval_s=report_interval_s)
        self._threads = Threads()
        self._retry_delay_ms = retry_delay_ms
        self._drain_s = drain_s
        self._running: dict[int, _Running] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}  # by URL
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_failed = asyncio.Event()
        self._is_current = False  # told of every binding that there was when this began

    async def run(self, stopping: asyncio.Event) -> None:
        """Carry until ``stopping`` is set; then drain.

        Raises:
            TowpathError: the registry can no longer be watched.
        """
        watcher = PathWatcher()
        watching = asyncio.create_task(self._watch(watcher))
        reporting = asyncio.create_task(self._reporter.run())
        asked = asyncio.create_task(stopping.wait())
        failed = asyncio.create_task(self._has_failed.wait())
        try:
            await asyncio.wait({watching, reporting, asked, failed}, return_when=asyncio.FIRST_COMPLETED)
            await cancel(watching)
            await self._drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_REPORT_S):
                    await self._reporter.flush()
        finally:
            ended = [watching, reporting, *self._tasks]
            await cancel(asked, failed, *ended)
            watcher.close()
        raise_first_error(*ended)

    async def _watch(self, watcher: PathWatcher) -> None:
        told: set[int] | None = None  # the ids told since a reset; None when the state is current
        async for event in self._client.watch():
            if event.kind == "reset":
                log("bridge.reconnected")
                told = set()
            elif event.kind == "binding_created" and event.binding is not None:
                if told is not None:
                    told.add(event.binding.id)
                self._start(event.binding, watcher)
            elif event.kind == "binding_deleted" and event.binding is not None:
                self._stop(event.binding.id)
            elif event.kind == "current" and told is not None:
                for binding in [binding for binding in self._running if binding not in told]:
                    self._stop(binding)
                told = None
                self._reporter.tell_all()
            if event.kind == "current":
                self._is_current = True
                self._keeping.forget_others({KEEPING_ID, *self._running})

    def _start(self, info: BindingInfo, watcher: PathWatcher) -> None:
        if info.id in self._running:
            return  # told again after a reset
        tally = self._reporter.open(info.id)
        keeping = self._keeping.of(info.id)
        keeping.is_new = self._is_current
        runner = BindingRunner(
            info,
            self._client,
            tally,
            watcher,
            keeping,
            self._threads,
            retry_delay_ms=self._retry_delay_ms,
        )
        stop = Stop()
        task = asyncio.create_task(self._run(runner, stop, self._ending.get(info.url)))
        self._running[info.id] = _Running(info, stop, keeping, task)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _stop(self, binding: int) -> None:
        running = self._running.pop(binding, None)
        if running is None:
            return
        self._reporter.close(binding)
        running.keeping.is_over = True
        running.stop.set()
        # What an attempt left that failed before this was told: there is no successor.
        running.task.add_done_callback(lambda _: self._keeping.forget_of(binding))
        self._ending[running.info.url] = running.task

    async def _run(self, runner: BindingRunner, stop: Stop, predecessor: asyncio.Task[None] | None) -> None:
        if predecessor is not None:
            await asyncio.wait((predecessor,))
        await runner.run(stop)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        for url in [url for url, ending in self._ending.items() if ending is task]:
            del self._ending[url]
        if task.cancelled() or task.exception() is None:
            self._tasks.discard(task)
        else:
            self._has_failed.set()  # a bug: the process ends, and is started again

    async def _drain(self) -> None:
        for running in self._running.values():
            running.stop.set()
        everyone = self._running.values()
        handing_over = {each.task for each in everyone if each.keeping.hands_over and each.keeping.is_used}
        if handing_over:
            # What cannot be carried at once is not lost if it is not carried at all.
            _, late = await asyncio.wait(handing_over, timeout=HAND_OVER_S)
            await cancel(*late)
        tasks = set(self._tasks)
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=self._drain_s)
        if late:
            log("bridge.drain_timeout", level="warning", bindings=len(late), seconds=self._drain_s)
            await cancel(*late)
