"""Peers with a server of their own: NATS core and Redis publish/subscribe. Neither has back-pressure."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Final

from tests.bench.load import Load
from tests.bench.mechanisms.link import Blocking, Looping, Receive, ReceiveAsync, Send, SendAsync
from tests.bench.site import Site, program

NATS_FLUSHER_BYTES: Final = 8 << 20


class Nats(Looping):
    """nats-server with nats-py, core subjects."""

    name = "nats-py"
    needs = ("nats_port",)
    family = "peers"
    module = "nats"
    has_credit = True

    @classmethod
    def obstacle(cls, site: Site, load: Load) -> str:
        return "" if program("nats-server") else "no nats-server"

    @contextlib.asynccontextmanager
    async def writer(self) -> AsyncIterator[SendAsync]:
        import nats

        client = await nats.connect(
            f"nats://127.0.0.1:{self.site.nats_port}", pending_size=NATS_FLUSHER_BYTES
        )
        subject = self.word

        async def send(payload: bytes) -> None:
            await client.publish(subject, payload)

        yield send
        await client.close()

    @contextlib.asynccontextmanager
    async def reader(self) -> AsyncIterator[ReceiveAsync]:
        import nats

        client = await nats.connect(f"nats://127.0.0.1:{self.site.nats_port}")
        subscription = await client.subscribe(self.word)
        await client.flush()
        messages = subscription.messages

        async def receive() -> bytes:
            payload: bytes = (await messages.__anext__()).data
            return payload

        yield receive
        await client.close()


class Redis(Blocking):
    """redis-server with redis-py, ``PUBLISH`` and ``SUBSCRIBE``."""

    name = "redis pub/sub"
    needs = ("redis_port",)
    family = "peers"
    module = "redis"
    has_credit = True

    @classmethod
    def obstacle(cls, site: Site, load: Load) -> str:
        return "" if program("redis-server") else "no redis-server"

    @contextlib.contextmanager
    def writer(self) -> Iterator[Send]:
        import redis

        with redis.Redis(port=self.site.redis_port) as client:
            yield lambda payload: client.publish(self.word, payload)

    @contextlib.contextmanager
    def reader(self, index: int) -> Iterator[Receive]:
        import redis

        with redis.Redis(port=self.site.redis_port) as client, client.pubsub() as channel:
            channel.subscribe(self.word)
            messages = channel.listen()
            next(messages)  # that it is subscribed
            yield lambda: next(messages)["data"]


MECHANISMS: Final = (Nats, Redis)
