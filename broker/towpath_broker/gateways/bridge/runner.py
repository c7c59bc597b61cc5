"""One binding's life: open the channel, run the adapter, and again after a failure that may pass.

Theory of operation
    ::

        pending -> running <-> waiting          the adapter's word
           |         |  ^
           v         v  |
        failed    retrying     after a retryable error; the pause doubles from 1 s to 30 s
                     |
                     v
                  stopped      the adapter's word: a policy says to leave it so

    An error of the definition (no FIFO at the path, no such command, options out of range) is ``failed``:
    trying again would change nothing, a new definition will. Everything else that can be expected is tried
    again. Anything else is a bug: it ends the process, which is restarted.

Invariants
    Whatever way it ends, the publisher and the subscription are closed and the adapter's things are put away.
"""

from __future__ import annotations

import asyncio
from typing import Final

from towpath.errors import BindingFailed, Code, TowpathError
from towpath.model import BindingInfo
from towpath_broker.gateways.bridge.backoff import Backoff, format_delay
from towpath_broker.gateways.bridge.carrier import ChannelCarrier
from towpath_broker.gateways.bridge.inotify import PathWatcher
from towpath_broker.gateways.bridge.keeping import BindingKeeping
from towpath_broker.gateways.bridge.making import make_adapter
from towpath_broker.gateways.bridge.ports import Client
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.stop import Stop
from towpath_broker.gateways.bridge.threads import Threads
from towpath_broker.log import Level, log

RETRY_DELAY_MS: Final = 1_000
_DEFINITION: Final = frozenset({Code.INVALID_ARGUMENT, Code.NOT_SUPPORTED, Code.BINDING_FAILED})
"""Errors that, unless they say that they may pass, come from the binding's definition."""


class BindingRunner:
    """Runs one binding until it is stopped.

    Args:
        info: its definition.
        client: the daemon.
        tally: its account.
        watcher: the bridge's.
        keeping: what of it outlives the bridge.
        threads: the bridge's.
        retry_delay_ms: before the first new attempt.
    """

    def __init__(
        self,
        info: BindingInfo,
        client: Client,
        tally: Tally,
        watcher: PathWatcher,
        keeping: BindingKeeping,
        threads: Threads,
        *,
        retry_delay_ms: int = RETRY_DELAY_MS,
    ) -> None:
        self.info = info
        self._client = client
        self._tally = tally
        self._watcher = watcher
        self._keeping = keeping
        self._threads = threads
        self._backoff = Backoff(retry_delay_ms)

    async def run(self, stop: Stop) -> None:
        """Run until stopped, or until the binding has come to an end of its own."""
        info = self.info
        self._log("bridge.binding_started", url=info.url, direction=info.direction)
        try:
            await self._run_again_and_again(stop)
        finally:
            self._log("bridge.binding_stopped", refused=self._tally.refused)

    async def _run_again_and_again(self, stop: Stop) -> None:
        loop = asyncio.get_running_loop()
        while not stop.is_set:
            began_s = loop.time()
            try:
                await self._attempt(stop)
                break
            except TowpathError as error:
                if stop.is_set:
                    self._log("bridge.stopped_with_error", level="warning", message=error.message)
                elif error.code in _DEFINITION and not error.retryable:
                    self._log("bridge.binding_failed", level="error", message=error.message)
                    self._tally.set_state("failed", error.message, error)
                    break
                else:
                    delay_ms = self._backoff.next_delay_ms(loop.time() - began_s)
                    await self._retry_later(stop, error, delay_ms)

    def _log(self, event: str, *, level: Level = "info", **fields: object) -> None:
        log(event, level=level, binding=self.info.id, channel=self.info.channel, **fields)

    async def _attempt(self, stop: Stop) -> None:
        try:
            carrier = await ChannelCarrier.open(
                self._client, self.info, self._keeping, self._threads, self._on_undeclared
            )
            try:
                adapter = make_adapter(self.info, carrier, self._tally, self._watcher, self._keeping)
                await adapter.run(stop)
            finally:
                await carrier.close()
        except OSError as error:
            # Too many open files, say: this binding waits, and the others go on.
            if isinstance(error, TowpathError):
                raise
            raise BindingFailed(f"the host refused: {error}", retryable=True) from error

    def _on_undeclared(self) -> None:
        # The binding has gone with its channel, though that may be told a moment later: the adapter, which
        # ends now, puts things away for good.
        self._keeping.is_over = True

    async def _retry_later(self, stop: Stop, error: TowpathError, delay_ms: int) -> None:
        again = f"again in {format_delay(delay_ms)}"
        self._log(
            "bridge.binding_retrying",
            level="warning",
            code=error.code.name,
            message=error.message,
            delay_ms=delay_ms,
        )
        self._tally.set_state("retrying", f"{error.message}, {again}", error)
        if await stop.sleep(delay_ms / 1000):
            self._tally.count_restart()
