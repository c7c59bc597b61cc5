"""Subscribes, holds what comes, and says what it looks like now, each time it is asked by a line."""

from __future__ import annotations

import sys
import zlib

import towpath


def main(url: str, name: str, count: int) -> None:
    with towpath.connect(url) as client, client.subscribe(name) as subscription:
        print("ready", flush=True)
        held = [subscription.receive(timeout=60) for _ in range(count)]
        assert all(isinstance(message.payload, memoryview) for message in held)
        while True:
            print(" ".join(str(zlib.crc32(message.payload)) for message in held), flush=True)
            if not sys.stdin.readline():
                return


main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
