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
from collections.abc import Sequence
from typing import Final

from towpath.bindings import FifoOptions, check_options, parse_command, parse_options, parse_url
from towpath.errors import BindingFailed, Code, ConnectionLost, TowpathError, Unavailable
from towpath.model import BindingInfo
from towpath_broker.gateways.bridge.adapters.fifo import FifoAdapter
from towpath_broker.gateways.bridge.adapters.pipe import PipeAdapter
from towpath_broker.gateways.bridge.backoff import Backoff, format_delay
from towpath_broker.gateways.bridge.inotify import PathWatcher
from towpath_broker.gateways.bridge.keeping import BindingKeeping
from towpath_broker.gateways.bridge.ports import Adapter, Carrier, Client, Publisher, Subscription
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.stop import Stop
from towpath_broker.log import Level, log

RETRY_DELAY_MS: Final = 1_000
_DEFINITION: Final = frozenset({Code.INVALID_ARGUMENT, Code.NOT_SUPPORTED, Code.BINDING_FAILED})
"""Errors that, unless they say that they may pass, come from the binding's definition."""


class ChannelCarrier:
    """A channel through the client library.

    Args:
        publisher: None for direction ``out``.
        subscription: None for direction ``in``.
    """

    def __init__(self, publisher: Publisher | None, subscription: Subscription | None) -> None:
        self._publisher = publisher
        self._subscription = subscription

    @classmethod
    async def open(cls, client: Client, info: BindingInfo) -> ChannelCarrier:
        """Open what the direction needs. The binding is the messages' origin, and does not get back what it
        brought.

        Raises:
            TowpathError: the channel is gone, or the daemon refuses.
        """
        origin = f"binding:{info.id}"
        publisher = None if info.direction == "out" else await client.publisher(info.channel, origin=origin)
        try:
            subscription = (
                None
                if info.direction == "in"
                else await client.subscribe(info.channel, exclude_origin=origin)
            )
        except BaseException:
            if publisher is not None:
                await publisher.close()
            raise
        return cls(publisher, subscription)

    @property
    def message_bytes_max(self) -> int:
        """As :attr:`Carrier.message_bytes_max`."""
        assert self._publisher is not None
        return self._publisher.message_bytes_max

    @property
    def published_count(self) -> int | None:
        """As :attr:`Carrier.published_count`."""
        # Only a publisher with a ring of its own, not wrapped for tracing, knows.
        count: int | None = getattr(self._publisher, "last_seq", None)
        return count

    async def publish_many(self, payloads: Sequence[bytes]) -> None:
        """As :meth:`Carrier.publish_many`."""
        assert self._publisher is not None
        await self._publisher.publish_many(payloads)

    async def receive_many(self, count_max: int, bytes_max: int) -> Sequence[bytes]:
        """As :meth:`Carrier.receive_many`."""
        assert self._subscription is not None
        messages = await self._subscription.receive_many(count_max, bytes_max=bytes_max)
        return [message.payload for message in messages]

    async def close(self) -> None:
        """Leave the channel. A connection that is gone has left it already."""
        for end in (self._subscription, self._publisher):
            if end is not None:
                try:
                    await end.close()
                except (ConnectionLost, Unavailable):
                    log("bridge.close_skipped", level="debug")


def make_adapter(
    info: BindingInfo, carrier: Carrier, tally: Tally, watcher: PathWatcher, keeping: BindingKeeping
) -> Adapter:
    """Make the adapter that a binding's URL names.

    Raises:
        InvalidArgument, NotSupported, BindingFailed: the definition is not one that this version can carry
            out.
    """
    scheme, place = parse_url(info.url)
    check_options(scheme, info.direction, info.options)
    options = parse_options(scheme, info.options)
    if isinstance(options, FifoOptions):
        return FifoAdapter(place, info.direction, options, carrier, tally, watcher, keeping)
    argv = parse_command(place)
    return PipeAdapter(argv, info.direction, options, carrier, tally, channel=info.channel)


class BindingRunner:
    """Runs one binding until it is stopped.

    Args:
        info: its definition.
        client: the daemon.
        tally: its account.
        watcher: the bridge's.
        keeping: what of it outlives the bridge.
        retry_delay_ms: before the first new attempt.
    """

    def __init__(
        self,
        info: BindingInfo,
        client: Client,
        tally: Tally,
        watcher: PathWatcher,
        keeping: BindingKeeping,
        *,
        retry_delay_ms: int = RETRY_DELAY_MS,
    ) -> None:
        self.info = info
        self._client = client
        self._tally = tally
        self._watcher = watcher
        self._keeping = keeping
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
            carrier = await ChannelCarrier.open(self._client, self.info)
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
