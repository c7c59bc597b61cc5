"""Towpath between programs of the host: the public client, one call per message, batched, and on asyncio."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, ClassVar, Final

from tests.bench.load import Load, Pattern, Role
from tests.bench.mechanisms.link import Blocking, Looping, Receive, ReceiveAsync, Send, SendAsync

if TYPE_CHECKING:
    import towpath
    import towpath.aio

RING_BYTES: Final = 1 << 20
MESSAGES_IN_RING: Final = 8
BATCH: Final = 256

_payload = attrgetter("payload")


def ring_bytes(load: Load) -> int:
    """The default, or for large messages the power of two that holds some of them and their headers."""
    return max(RING_BYTES, MESSAGES_IN_RING * load.size_bytes)


class Towpath(Blocking):
    """One publish call for each message; the receiver iterates over its subscription."""

    name = "towpath"
    needs = ("socket",)
    family = "towpath"
    module = "towpath._ring"

    def declare(self, client: towpath.Client) -> None:
        """Declare the channel, from whichever end comes first."""
        client.declare(self.word, ring_bytes=ring_bytes(self.load))

    @contextlib.contextmanager
    def writer(self) -> Iterator[Send]:
        import towpath

        with towpath.connect(self.site.socket) as client:
            self.declare(client)
            with client.publisher(self.word) as publisher:
                yield publisher.publish
                publisher.wait_drained(5)
            client.undeclare(self.word)

    @contextlib.contextmanager
    def subscription(self) -> Iterator[towpath.Subscription]:
        """Open the receiving end."""
        import towpath

        with towpath.connect(self.site.socket) as client:
            self.declare(client)
            with client.subscribe(self.word) as subscription:
                yield subscription

    @contextlib.contextmanager
    def reader(self, index: int) -> Iterator[Receive]:
        with self.subscription() as subscription:
            receive = subscription.receive
            yield lambda: receive().payload

    def receive(self, role: Role, index: int) -> None:
        with self.subscription() as subscription:
            role.wait_go()
            role.consume(map(_payload, subscription).__next__)
            role.wait_finish()


class TowpathCalls(Towpath):
    """As ``towpath``, but the receiver calls ``receive`` for each message."""

    name = "towpath, receive()"
    patterns: ClassVar[tuple[Pattern, ...]] = ("one-way",)

    def receive(self, role: Role, index: int) -> None:
        Blocking.receive(self, role, index)


class TowpathBatched(Towpath):
    """``publish_many`` and ``receive_many``."""

    name = "towpath, batched"
    patterns: ClassVar[tuple[Pattern, ...]] = ("one-way", "fan-out")

    @contextlib.contextmanager
    def publisher(self) -> Iterator[towpath.Publisher]:
        """Open the sending end."""
        import towpath

        with towpath.connect(self.site.socket) as client:
            self.declare(client)
            with client.publisher(self.word) as publisher:
                yield publisher
                publisher.wait_drained(5)
            client.undeclare(self.word)

    def send(self, role: Role) -> None:
        with self.publisher() as publisher:
            role.wait_go()
            for payloads in role.rounds(has_credit=False):
                publisher.publish_many(payloads)
            publisher.publish(self.end)
            role.wait_finish()

    def receive(self, role: Role, index: int) -> None:
        with self.subscription() as subscription:
            role.wait_go()
            batch = subscription.receive_many(BATCH)
            while batch[-1].payload:
                role.tally.add(batch)
                batch = subscription.receive_many(BATCH)
            role.tally.add(batch[:-1])
            role.report_received()
            role.wait_finish()


class TowpathAsyncio(Looping):
    """Both ends on an event loop: ``await publish``, ``async for``."""

    name = "towpath, asyncio"
    needs = ("socket",)
    family = "towpath"
    module = "towpath._ring"

    @contextlib.asynccontextmanager
    async def writer(self) -> AsyncIterator[SendAsync]:
        import towpath.aio

        async with await towpath.aio.connect(self.site.socket) as client:
            await client.declare(self.word, ring_bytes=ring_bytes(self.load))
            async with await client.publisher(self.word) as publisher:
                yield publisher.publish
                await publisher.wait_drained(5)
            await client.undeclare(self.word)

    @contextlib.asynccontextmanager
    async def subscription(self) -> AsyncIterator[towpath.aio.AsyncSubscription]:
        """Open the receiving end."""
        import towpath.aio

        async with await towpath.aio.connect(self.site.socket) as client:
            await client.declare(self.word, ring_bytes=ring_bytes(self.load))
            async with await client.subscribe(self.word) as subscription:
                yield subscription

    @contextlib.asynccontextmanager
    async def reader(self) -> AsyncIterator[ReceiveAsync]:
        async with self.subscription() as subscription:
            receive = subscription.receive

            async def receive_payload() -> bytes:
                return (await receive()).payload

            yield receive_payload

    async def _receive(self, role: Role) -> None:
        async with self.subscription() as subscription:
            await role.wait_go_async()
            held: list[towpath.Message] = []
            async for message in subscription:
                if not message.payload:
                    break
                held.append(message)
                if len(held) == self.load.tally_length:
                    role.tally.add(held)
                    held.clear()
            role.tally.add(held)
            role.report_received()
            await role.wait_finish_async()


class TowpathAsyncioBatched(TowpathAsyncio):
    """Both ends on an event loop, in batches."""

    name = "towpath, asyncio batched"
    patterns: ClassVar[tuple[Pattern, ...]] = ("one-way",)

    async def _send(self, role: Role) -> None:
        import towpath.aio

        async with await towpath.aio.connect(self.site.socket) as client:
            await client.declare(self.word, ring_bytes=ring_bytes(self.load))
            async with await client.publisher(self.word) as publisher:
                await role.wait_go_async()
                began_ns = time.monotonic_ns()
                while payloads := await role.next_round(began_ns, has_credit=False):
                    await publisher.publish_many(payloads)
                await publisher.publish(self.end)
                await role.wait_finish_async()
            await client.undeclare(self.word)

    async def _receive(self, role: Role) -> None:
        async with self.subscription() as subscription:
            await role.wait_go_async()
            batch = await subscription.receive_many(BATCH)
            while batch[-1].payload:
                role.tally.add(batch)
                batch = await subscription.receive_many(BATCH)
            role.tally.add(batch[:-1])
            role.report_received()
            await role.wait_finish_async()


MECHANISMS: Final = (Towpath, TowpathCalls, TowpathBatched, TowpathAsyncio, TowpathAsyncioBatched)
