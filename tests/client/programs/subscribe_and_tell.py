"""Subscribes, and tells what comes: errors by their names, and messages that are not whole; ends at "end"."""

from __future__ import annotations

import asyncio
import sys

import towpath
import towpath.aio
from towpath.errors import TowpathError


def tell(message: towpath.Message) -> bool:
    """Return whether it was the last."""
    payload = message.payload
    if payload != payload[:1] * len(payload) and payload != b"end":
        print("torn", flush=True)
    return payload == b"end"


def sync(socket: str, channel: str) -> None:
    with towpath.connect(socket) as client, client.subscribe(channel) as subscription:
        print("subscribed", flush=True)
        is_last = False
        while not is_last:
            try:
                is_last = tell(subscription.receive())
            except TowpathError as error:
                print(type(error).__name__, flush=True)


async def aio(socket: str, channel: str) -> None:
    async with await towpath.aio.connect(socket) as client, await client.subscribe(channel) as subscription:
        print("subscribed", flush=True)
        is_last = False
        while not is_last:
            try:
                is_last = tell(await subscription.receive())
            except TowpathError as error:
                print(type(error).__name__, flush=True)


if __name__ == "__main__":
    kind, *where = sys.argv[1:]
    if kind == "sync":
        sync(*where)
    else:
        asyncio.run(aio(*where))
    print("end")
