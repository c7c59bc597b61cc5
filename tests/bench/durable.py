"""Records that are kept, side by side: a bare file, a durable topic, Redis and JetStream.

Theory of operation
    Each appends records of ``RECORD_BYTES`` and has them on disk before it goes on: one at a time, or as many
    at a time as it takes. They take turns, in slices, since a disk that others use is another disk a second
    later; a figure is the median of the slices', a ratio that of the ratios within each turn. What the store
    does now and then (bringing its log into its file, after some 1,000 single records or 16 MiB) is in some
    slices of single records, and in most of the others.

    Where other programs want the cores, whoever was woken by the disk waits for one of them, for some
    milliseconds: then all of these are alike. ``chrt -r 1`` before the command takes that out.

Not here: servers (``stored_peers``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.bench.site import Site
from tests.bench.stored_peers import (
    ANSWER_S,
    BATCH,
    RECORD_BYTES,
    has_jetstream,
    has_redis,
    jetstream,
    jetstream_stream,
    synchronous_redis,
)

SINGLES: Final = 256
"""Records of a slice, one at a time."""
BATCHED: Final = 10_000
SLOW_BATCHED: Final = 400
"""Records of a slice, as many at a time as it takes; of JetStream."""
SLICES_MIN: Final = 3

Rates = Mapping[str, Sequence[float]]
"""Records a second, by who appended them: one figure for each slice."""


@dataclass(frozen=True)
class Appender:
    """Who appends.

    Attributes:
        one: appends so many records, one at a time.
        many: appends so many.
        batched: how many of them are a slice.
    """

    one: Callable[[int], object]
    many: Callable[[int], object]
    batched: int = BATCHED


def rates(site: Site, channel: str, scale: float) -> tuple[Rates, Rates]:
    """Records a second, one at a time, and as many as it takes; of those who are here: raw, Towpath, Redis,
    JetStream."""
    with contextlib.ExitStack() as stack:
        appenders = {
            "raw": stack.enter_context(_raw(f"{site.directory}/{channel}")),
            "Towpath": stack.enter_context(_towpath(site.daemon.socket, channel)),
        }
        if has_redis():
            appenders["Redis"] = stack.enter_context(_redis(stack.enter_context(synchronous_redis(site))))
        if has_jetstream():
            port = stack.enter_context(jetstream(site))
            appenders["JetStream"] = stack.enter_context(_jetstream(port, channel))
        size = min(scale, 1.0)
        singles, slices = int(SINGLES * size), max(SLICES_MIN, int(scale))
        for appender in appenders.values():  # the first are of another kind: files grow, caches are empty
            appender.one(singles)
        ones = {name: (each.one, singles) for name, each in appenders.items()}
        manys = {name: (each.many, max(int(each.batched * size), BATCH)) for name, each in appenders.items()}
        return _taking_turns(slices, ones), _taking_turns(slices, manys)


def _taking_turns(slices: int, works: Mapping[str, tuple[Callable[[int], object], int]]) -> Rates:
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(slices):
        for name, (work, count) in works.items():
            began = time.perf_counter()
            work(count)
            found[name].append(count / (time.perf_counter() - began))
    return found


@contextlib.contextmanager
def _raw(path: str) -> Iterator[Appender]:
    """A file, and an fdatasync for each record, or for ``BATCH`` of them."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def append(count: int, batch: int) -> None:
        data = bytes(RECORD_BYTES * batch)
        for _ in range(count // batch):
            os.write(descriptor, data)
            os.fdatasync(descriptor)

    try:
        yield Appender(lambda count: append(count, 1), lambda count: append(count, BATCH))
    finally:
        os.close(descriptor)
        os.unlink(path)


@contextlib.contextmanager
def _towpath(socket: str, channel: str) -> Iterator[Appender]:
    """A durable topic."""
    import towpath

    with towpath.connect(socket) as client:
        client.declare(channel, durable=True, ring_bytes=4 << 20)
        publisher = client.publisher(channel)
        record = bytes(RECORD_BYTES)

        def one(count: int) -> None:
            for _ in range(count):
                publisher.publish(record)
                publisher.flush(ANSWER_S)

        def many(count: int) -> None:
            for _ in range(count // BATCH):
                publisher.publish_many([record] * BATCH)
            publisher.flush(ANSWER_S)

        yield Appender(one, many)
        publisher.close()
        client.undeclare(channel, force=True)


@contextlib.contextmanager
def _redis(port: int) -> Iterator[Appender]:
    """A stream of Redis; pipelines of ``BATCH``."""
    import redis

    with redis.Redis(port=port) as client:
        record = {b"p": bytes(RECORD_BYTES)}

        def one(count: int) -> None:
            for _ in range(count):
                client.xadd("records", record)

        def many(count: int) -> None:
            for _ in range(count // BATCH):
                pipeline = client.pipeline(transaction=False)
                for _ in range(BATCH):
                    pipeline.xadd("records", record)
                pipeline.execute()

        yield Appender(one, many)


@contextlib.contextmanager
def _jetstream(port: int, subject: str) -> Iterator[Appender]:
    """A stream of JetStream's."""
    with asyncio.Runner() as runner:
        opened = jetstream_stream(port, subject, is_durable=True, is_queue=False)
        context = runner.run(_entered(opened))
        record = bytes(RECORD_BYTES)

        async def one(count: int) -> None:
            for _ in range(count):
                await context.publish(subject, record)

        async def many(count: int) -> None:
            for _ in range(count):
                await context.publish_async(subject, record)
            await context.publish_async_completed()

        yield Appender(lambda n: runner.run(one(n)), lambda n: runner.run(many(n)), SLOW_BATCHED)
        runner.run(_left(opened))


def _entered(manager: contextlib.AbstractAsyncContextManager[Any]) -> Coroutine[Any, Any, Any]:
    return manager.__aenter__()


def _left(manager: contextlib.AbstractAsyncContextManager[Any]) -> Coroutine[Any, Any, Any]:
    return manager.__aexit__(None, None, None)
