"""Publishes lines from standard input over gRPC, batch by batch. Usage: count.py ... | send_grpc.py
ADDRESS CHANNEL
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import grpc

from towpath.v1 import channels_pb2, channels_pb2_grpc


def requests(channel: str) -> Iterator[channels_pb2.PublishStreamRequest]:
    while data := os.read(0, 1 << 16):
        while not data.endswith(b"\n"):
            data += os.read(0, 1 << 16)
        yield channels_pb2.PublishStreamRequest(channel=channel, payloads=data.splitlines())


def main() -> None:
    address, channel = sys.argv[1:]
    with grpc.insecure_channel(address) as connection:
        for _ in channels_pb2_grpc.ChannelsStub(connection).PublishStream(requests(channel), timeout=90):
            pass


if __name__ == "__main__":
    main()
