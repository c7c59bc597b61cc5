"""What others do that keep messages, for the benches of the kinds: Redis and NATS JetStream.

Theory of operation
    Queues: a process publishes in batches, another takes batches and acknowledges each message. In Redis a
    stream with a consumer group, in JetStream a stream with work-queue retention and a pull consumer. What is
    durable is acknowledged when it is on disk: Redis with ``appendfsync always``, JetStream with
    ``sync_interval: always`` and a stream of files.

Not here: Towpath's side, and the ratios (``kinds``, ``durable``).
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import AsyncIterator, Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench.cases import is_there
from tests.bench.site import Site, accepts, free_port, program, wait_for

if TYPE_CHECKING:
    from nats.js import JetStreamContext

BATCH: Final = 500
QUEUE_BYTES: Final = 100
RECORD_BYTES: Final = 1 << 10
ANSWER_S: Final = 60
"""How long a peer may take for an answer."""
_FORK: Final = multiprocessing.get_context("fork")


@contextlib.contextmanager
def beside(work: Callable[[], None]) -> Iterator[BaseProcess]:
    """Another process, while something is measured."""
    process = _FORK.Process(target=work, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


# ---- Redis -------------------------------------------------------------------------------------------------


def has_redis() -> bool:
    """Whether it can be measured here."""
    return bool(program("redis-server")) and is_there("redis")


def redis_queue_rate(port: int, name: str, count: int) -> float:
    """Messages a second through a stream with a group: ``XADD`` in pipelines, ``XREADGROUP``, ``XACK``."""
    import redis

    with redis.Redis(port=port) as client:
        client.xgroup_create(name, "group", id="0", mkstream=True)

        def publish() -> None:
            with redis.Redis(port=port) as publishing:
                for _ in range(count // BATCH):
                    pipeline = publishing.pipeline(transaction=False)
                    for _ in range(BATCH):
                        pipeline.xadd(name, {b"p": bytes(QUEUE_BYTES)})
                    pipeline.execute()
                time.sleep(3600)

        with beside(publish):
            taken = 0
            began = time.perf_counter()
            while taken < count:
                found = client.xreadgroup("group", "one", {name: ">"}, count=BATCH, block=30_000)
                ids = [each[0] for each in found[0][1]]
                client.xack(name, "group", *ids)
                taken += len(ids)
                if taken == len(ids):
                    began, first = time.perf_counter(), taken
            rate = (count - first) / (time.perf_counter() - began)
        client.delete(name)
    return rate


@contextlib.contextmanager
def synchronous_redis(site: Site) -> Iterator[int]:
    """The port of a redis-server that answers when it is on disk."""
    port = free_port()
    server = program("redis-server")
    assert server
    directory = str(site.directory)
    process = site.run(
        *(server, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", directory),
        *("--appendonly", "yes", "--appendfsync", "always"),
    )
    wait_for(lambda: accepts(port), "redis-server")
    try:
        yield port
    finally:
        process.kill()
        process.wait()


# ---- JetStream ---------------------------------------------------------------------------------------------


def has_jetstream() -> bool:
    """Whether it can be measured here."""
    return bool(program("nats-server")) and is_there("nats")


@contextlib.contextmanager
def jetstream(site: Site) -> Iterator[int]:
    """The port of a nats-server with JetStream that answers when it is on disk, if the stream is of files."""
    port = free_port()
    server = program("nats-server")
    assert server
    directory = Path(site.directory) / f"jetstream-{port}"
    directory.mkdir()
    config = directory / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{directory}", sync_interval: always }}\n'
    )
    process = site.run(server, "-c", str(config))
    wait_for(lambda: accepts(port), "nats-server")
    try:
        yield port
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def jetstream_stream(
    port: int, name: str, *, is_durable: bool, is_queue: bool
) -> AsyncIterator[JetStreamContext]:
    """A stream, which is made if it is not there."""
    import nats
    from nats.js.api import RetentionPolicy, StorageType

    client = await nats.connect(f"nats://127.0.0.1:{port}")
    context = client.jetstream(timeout=ANSWER_S)
    await context.add_stream(
        name=name.replace(".", "-"),
        subjects=[name],
        storage=StorageType.FILE if is_durable else StorageType.MEMORY,
        retention=RetentionPolicy.WORK_QUEUE if is_queue else RetentionPolicy.LIMITS,
    )
    try:
        yield context
    finally:
        await client.close()


def jetstream_queue_rate(port: int, name: str, count: int, *, is_durable: bool) -> float:
    """Messages a second through a work queue."""

    def publish() -> None:
        async def run() -> None:
            async with jetstream_stream(port, name, is_durable=is_durable, is_queue=True) as context:
                for _ in range(count // BATCH):
                    for _ in range(BATCH):
                        await context.publish_async(name, bytes(QUEUE_BYTES))
                    await context.publish_async_completed()
                await asyncio.sleep(3600)  # until it is killed

        asyncio.run(run())

    async def consume() -> float:
        async with jetstream_stream(port, name, is_durable=is_durable, is_queue=True) as context:
            subscription = await context.pull_subscribe(name, "worker")
            taken = first = 0
            began = time.perf_counter()
            while taken < count:
                messages = await subscription.fetch(BATCH, timeout=ANSWER_S)
                for message in messages:
                    await message.ack()
                taken += len(messages)
                if not first:
                    began, first = time.perf_counter(), taken
            return (count - first) / (time.perf_counter() - began)

    with beside(publish):
        return asyncio.run(consume())
