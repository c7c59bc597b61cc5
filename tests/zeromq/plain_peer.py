"""A program of somebody else's: ZeroMQ and nothing of Towpath. Run with `python -I`; the test reads what it
prints.

    sub ENDPOINT PREFIX COUNT    print `ready` once its subscription is read; then COUNT lines: channel, seq,
                                 payload, headers
    count ENDPOINT CHANNEL       print `ready`; then, each time the payload `end` comes, how many came and how
                                 many are missing
    push ENDPOINT CHANNEL COUNT  push 0, 1, 2 ...; every tenth with headers
"""

from __future__ import annotations

import os
import struct
import sys

import zmq

HEADERS = b"\x0a\x0atext/plain"  # towpath.v1.Headers with content_type = "text/plain", written by hand


CONTEXT: zmq.Context[zmq.Socket[bytes]] = zmq.Context()


def subscriber(endpoint: str, prefix: str) -> zmq.Socket[bytes]:
    """Connect, subscribe, and wait until the gateway reads what matches."""
    socket = CONTEXT.socket(zmq.SUB)
    socket.connect(endpoint)
    socket.subscribe(prefix)
    ready = f"_towpath.ready.{os.getpid()}"
    socket.subscribe(ready)
    while socket.recv_multipart()[0] != ready.encode():
        pass
    print("ready", flush=True)
    return socket


def sub(endpoint: str, prefix: str, count: int) -> None:
    socket = subscriber(endpoint, prefix)
    for _ in range(count):
        channel, payload, meta = socket.recv_multipart()
        _source, seq, _time_ns = struct.unpack_from("<QQQ", meta)
        print(channel.decode(), seq, payload.decode(), meta[24:].hex() or "-")


def count(endpoint: str, channel: str) -> None:
    socket = subscriber(endpoint, channel)
    received = missing = last_seq = 0
    while True:
        _, payload, meta = socket.recv_multipart()
        (seq,) = struct.unpack_from("<Q", meta, 8)
        missing += seq - last_seq - 1
        last_seq = seq
        received += 1
        if payload == b"end":
            print(received, missing, flush=True)


def push(endpoint: str, channel: str, count: int) -> None:
    socket = CONTEXT.socket(zmq.PUSH)
    socket.connect(endpoint)
    for number in range(count):
        parts = [channel.encode(), b"%d" % number]
        socket.send_multipart([*parts, HEADERS] if number % 10 == 0 else parts)


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    match verb:
        case "sub":
            sub(arguments[0], arguments[1], int(arguments[2]))
        case "count":
            count(arguments[0], arguments[1])
        case "push":
            push(arguments[0], arguments[1], int(arguments[2]))
    assert not [name for name in sys.modules if name.startswith("towpath")]
