"""publish.py sync|aio SOCKET CHANNEL COUNT SIZE: publishes numbered messages that carry a checksum, and
waits until they are taken.
"""

from __future__ import annotations

import asyncio
import random
import struct
import sys
import zlib

import towpath
import towpath.aio

kind, socket, channel = sys.argv[1:4]
count, size = int(sys.argv[4]), int(sys.argv[5])
rng = random.Random(size)


def payload(number: int) -> bytes:
    body = struct.pack("<Q", number) + rng.randbytes(rng.randint(0, size))
    return struct.pack("<I", zlib.crc32(body)) + body


def batches() -> list[list[bytes]]:
    numbers = iter(range(count))
    result = []
    while batch := [payload(number) for _, number in zip(range(rng.randint(1, 200)), numbers, strict=False)]:
        result.append(batch)
    return result


async def publish_aio() -> None:
    async with await towpath.aio.connect(socket) as client, await client.publisher(channel) as publisher:
        for batch in batches():
            if len(batch) % 2:
                await publisher.publish_many(batch)
            else:
                for each in batch:
                    await publisher.publish(each)
        assert await publisher.wait_drained(60)


def publish_sync() -> None:
    with towpath.connect(socket) as client, client.publisher(channel) as publisher:
        for batch in batches():
            if len(batch) % 2:
                publisher.publish_many(batch)
            else:
                for each in batch:
                    publisher.publish(each)
        assert publisher.wait_drained(60)


if kind == "sync":
    publish_sync()
else:
    asyncio.run(publish_aio())
