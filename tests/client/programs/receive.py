"""receive.py sync|aio SOCKET CHANNEL COUNT: checks number, seq and checksum of each message of each
source.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import zlib
from collections import Counter

import towpath
import towpath.aio

kind, socket, channel = sys.argv[1:4]
count = int(sys.argv[4])
seen: Counter[int] = Counter()


def check(messages: list[towpath.Message]) -> None:
    assert messages, f"only {seen.total()} messages came"
    for message in messages:
        checksum, number = struct.unpack_from("<IQ", message.payload)
        assert zlib.crc32(message.payload[4:]) == checksum
        assert number == seen[message.source] == message.seq - 1
        seen[message.source] += 1


async def receive_aio() -> None:
    async with await towpath.aio.connect(socket) as client, await client.subscribe(channel) as subscription:
        print("ready", flush=True)
        while seen.total() < count:
            check(await subscription.receive_many(timeout=60))


def receive_sync() -> None:
    with towpath.connect(socket) as client, client.subscribe(channel) as subscription:
        print("ready", flush=True)
        while seen.total() < count:
            check(subscription.receive_many(timeout=60))


if kind == "sync":
    receive_sync()
else:
    asyncio.run(receive_aio())
print(f"{seen.total()} messages of {len(seen)} sources")
