"""leave.py HOW URL CHANNEL: uses a remote client in some way and leaves, and says what it saw.

HOW is one of: ``unclosed`` and ``unclosed-aio`` end without closing anything; ``fork`` uses the parent's
handles in a child; ``interrupted`` waits for a message until it gets SIGINT; ``loops`` runs clients on three
event loops; ``sequence`` has one client after the other, and keeps what came from them.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading

import towpath
import towpath.aio

how, url, channel = sys.argv[1:]


def unclosed() -> None:
    client = towpath.connect(url)
    subscription, publisher = client.subscribe(channel), client.publisher(channel)
    client.watch()
    publisher.publish(b"x")
    print(subscription.receive(timeout=60).payload.decode())


async def unclosed_aio() -> None:
    client = await towpath.aio.connect(url)
    subscription, publisher = await client.subscribe(channel), await client.publisher(channel)
    await publisher.publish(b"x")
    print((await subscription.receive(timeout=60)).payload.decode())


def fork() -> None:
    client = towpath.connect(url)
    subscription, publisher = client.subscribe(channel), client.publisher(channel)
    child = os.fork()
    if child == 0:
        for use in (
            client.channels,
            lambda: publisher.publish(b"x"),
            lambda: subscription.receive(timeout=1),
        ):
            try:
                use()
            except towpath.TowpathError as error:
                print(type(error).__name__, flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with status {status}"
    publisher.publish(b"x")
    print(subscription.receive(timeout=60).payload.decode())
    client.close()


def interrupted() -> None:
    with towpath.connect(url) as client, client.subscribe(channel) as subscription:
        try:
            print("waiting", flush=True)
            subscription.receive()
        except KeyboardInterrupt:
            print("interrupted")


def loops() -> None:
    async def use() -> None:
        async with await towpath.aio.connect(url) as client, await client.subscribe(channel) as subscription:
            async with await client.publisher(channel) as publisher:
                for _ in range(200):
                    await publisher.publish(b"x")
            for _ in range(200):
                await subscription.receive(timeout=60)

    threads = [threading.Thread(target=lambda: asyncio.run(use())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("done")


def sequence() -> None:
    kept: list[object] = []
    for _ in range(8):
        with towpath.connect(url) as client:
            subscription, watch = client.subscribe(channel), client.watch()
            client.channel(channel).publish(b"x")
            subscription.receive(timeout=60)
            watch.receive(timeout=60)
            try:
                client.channel_info("not.there")
            except towpath.TowpathError as error:
                kept += [subscription, watch, error]
    print("done")


if how == "unclosed-aio":
    asyncio.run(unclosed_aio())
else:
    ways = {
        "unclosed": unclosed,
        "fork": fork,
        "interrupted": interrupted,
        "loops": loops,
        "sequence": sequence,
    }
    ways[how]()
