"""publish_and_hang.py SOCKET CHANNEL COUNT: publishes, says so, and waits to be killed."""

from __future__ import annotations

import signal
import sys

import towpath

client = towpath.connect(sys.argv[1])
client.publisher(sys.argv[2]).publish_many([b"x"] * int(sys.argv[3]))
print("published", flush=True)
signal.pause()
