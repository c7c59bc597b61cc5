"""Publishes lines from standard input by a plain ZeroMQ PUSH socket: no Towpath code. Usage: count.py ...
| send_zeromq.py ADDRESS CHANNEL
"""

from __future__ import annotations

import sys

import zmq


def main() -> None:
    address, channel = sys.argv[1:]
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.connect(address)
    for line in sys.stdin.buffer:
        socket.send_multipart([channel.encode(), line.rstrip(b"\n")])
    socket.close(linger=30_000)
    context.term()  # returns when all is sent


if __name__ == "__main__":
    main()
