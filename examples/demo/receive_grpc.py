"""Receives a channel from a gRPC stream. Usage: receive_grpc.py ADDRESS CHANNEL COUNT numbered|lines"""

from __future__ import annotations

import sys

import grpc
from tally import Tally, say

from towpath.v1 import channels_pb2, channels_pb2_grpc


def main() -> None:
    address, channel, count, what = sys.argv[1:]
    tally = Tally(int(count), numbered=what == "numbered")
    with grpc.insecure_channel(address) as connection:
        request = channels_pb2.SubscribeRequest(channel=channel)
        responses = channels_pb2_grpc.ChannelsStub(connection).Subscribe(iter([request]), timeout=90)
        for response in responses:
            if response.HasField("subscribed"):
                say("ready")
            batch = response.batch
            for index, payload in enumerate(batch.payloads[: tally.missing]):
                tally.add(payload, batch.source, batch.first_seq + index, batch.publish_times_ns[index])
            if tally.is_complete:
                break
    tally.report()


if __name__ == "__main__":
    main()
