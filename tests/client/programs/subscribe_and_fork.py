"""subscribe_and_fork.py SOCKET CHANNEL: subscribes, then forks a child that keeps every descriptor, and
prints its pid.
"""

from __future__ import annotations

import os
import signal
import sys

import towpath

client = towpath.connect(sys.argv[1])
subscription = client.subscribe(sys.argv[2])
child = os.fork()
if child:
    print(child, flush=True)
signal.pause()
