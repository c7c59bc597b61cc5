"""A remote program, run by the tests as a process of its own: ``python peer.py MODE ENDPOINT CHANNEL COUNT``.

Modes
    publish      sends COUNT numbered messages through PublishStream in batches of 100, checks every answer,
    says ``done`` subscribe    says ``subscribed``, then checks that COUNT numbered messages arrive in order,
    says ``done`` stall        says ``subscribed``, reads nothing until a line comes on stdin, then is as
    ``subscribe``

It knows gRPC and the contract, and nothing of the client library. Any deviation is an exception and a
non-zero exit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import grpc

from towpath.v1 import channels_pb2, channels_pb2_grpc

BATCH = 100


def say(word: str) -> None:
    print(word, flush=True)


def payload(number: int) -> bytes:
    return b"message %d" % number


def publish(stub: channels_pb2_grpc.ChannelsStub, channel: str, count: int) -> None:
    def requests() -> Iterator[channels_pb2.PublishStreamRequest]:
        for start in range(0, count, BATCH):
            numbers = range(start, min(start + BATCH, count))
            yield channels_pb2.PublishStreamRequest(
                channel="" if start else channel, payloads=[payload(number) for number in numbers]
            )

    next_seq, sources = 1, set()
    for answer in stub.PublishStream(requests()):
        assert answer.channel == channel
        assert answer.first_seq == next_seq, f"{answer.first_seq} instead of {next_seq}"
        next_seq += answer.count
        sources.add(answer.source)
    assert next_seq == count + 1
    assert len(sources) == 1


def subscribe(stub: channels_pb2_grpc.ChannelsStub, channel: str, count: int, *, until_told: bool) -> None:
    call = stub.Subscribe(iter([channels_pb2.SubscribeRequest(channel=channel)]))
    assert next(call).subscribed.channel == channel
    say("subscribed")
    if until_told:
        sys.stdin.readline()
    number = 0
    while number < count:
        batch = next(call).batch
        assert batch.first_seq == number + 1, f"{batch.first_seq} instead of {number + 1}"
        assert len(batch.publish_times_ns) == len(batch.payloads)
        for each in batch.payloads:
            # Longer payloads have something after the number.
            assert each.startswith(payload(number)), f"{each[:40]!r} instead of number {number}"
            number += 1
    call.cancel()


def main() -> None:
    mode, endpoint, channel, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    with grpc.insecure_channel(endpoint) as connection:
        stub = channels_pb2_grpc.ChannelsStub(connection)
        if mode == "publish":
            publish(stub, channel, count)
        else:
            subscribe(stub, channel, count, until_told=mode == "stall")
    say("done")


if __name__ == "__main__":
    main()
