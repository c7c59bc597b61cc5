"""subscribe_and_hang.py SOCKET CHANNEL: subscribes, says so, and never reads."""

from __future__ import annotations

import signal
import sys

import towpath

client = towpath.connect(sys.argv[1])
subscription = client.subscribe(sys.argv[2])
print("subscribed", flush=True)
signal.pause()
