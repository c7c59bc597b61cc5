"""Receives a channel from a plain ZeroMQ SUB socket: no Towpath code. Usage: receive_zeromq.py ADDRESS
CHANNEL COUNT numbered|lines
"""

from __future__ import annotations

import struct
import sys

import zmq
from tally import Tally, say


def main() -> None:
    address, channel, count, what = sys.argv[1:]
    tally = Tally(int(count), numbered=what == "numbered")
    socket = zmq.Context().socket(zmq.SUB)
    socket.rcvtimeo = 30_000
    socket.subscribe(channel)
    socket.connect(address)
    say("ready")
    while not tally.is_complete:
        name, payload, meta = socket.recv_multipart()
        if name.decode() == channel:  # ZeroMQ matches prefixes
            source, seq, time_ns = struct.unpack_from("<QQQ", meta)
            tally.add(payload, source, seq, time_ns)
    tally.report()
    socket.close(linger=0)


if __name__ == "__main__":
    main()
