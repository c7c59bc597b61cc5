"""load.py publish CHANNEL NAME | load.py subscribe CHANNEL PUBLISHERS: traffic that is counted.

A publisher publishes ``NAME:0``, ``NAME:1``, ... until SIGTERM, then ``NAME:end``, and prints how many there
were. A subscriber says ``subscribed``, and when it has heard the end of each publisher, for each what it got,
as JSON.
"""

from __future__ import annotations

import itertools
import json
import signal
import sys

import towpath

BATCH = 20


def publish(client: towpath.Client, channel: str, name: str) -> None:
    is_over = False

    def end(*_: object) -> None:
        nonlocal is_over
        is_over = True

    signal.signal(signal.SIGTERM, end)
    with client.publisher(channel) as publisher:
        for first in itertools.count(0, BATCH):
            if is_over:
                publisher.publish_many([f"{name}:end".encode()])
                publisher.wait_drained(30)
                print(first)
                return
            publisher.publish_many([f"{name}:{first + n}".encode() for n in range(BATCH)])


def subscribe(client: towpath.Client, channel: str, publishers: int) -> None:
    got: dict[str, list[int]] = {}
    ended: set[str] = set()
    with client.subscribe(channel) as subscription:
        print("subscribed", flush=True)
        while len(ended) < publishers:
            for message in subscription.receive_many(timeout=60):
                name, _, number = message.payload.decode().partition(":")
                if number == "end":
                    ended.add(name)
                else:
                    got.setdefault(name, []).append(int(number))
    print(json.dumps({name: [len(n), n == list(range(len(n)))] for name, n in got.items()}))


with towpath.connect() as client:
    if sys.argv[1] == "publish":
        publish(client, sys.argv[2], sys.argv[3])
    else:
        subscribe(client, sys.argv[2], int(sys.argv[3]))
