"""Receives a channel over shared memory, with Towpath's library. Usage: receive_memory.py SOCKET CHANNEL
COUNT numbered|lines
"""

from __future__ import annotations

import sys

from tally import Tally, say

import towpath


def main() -> None:
    socket, channel, count, what = sys.argv[1:]
    tally = Tally(int(count), numbered=what == "numbered")
    with towpath.connect(socket) as client, client.subscribe(channel) as subscription:
        say("ready")
        while not tally.is_complete:
            for message in subscription.receive_many(tally.missing, timeout=30):
                tally.add(message.payload, message.source, message.seq, message.time_ns)
    tally.report()


if __name__ == "__main__":
    main()
