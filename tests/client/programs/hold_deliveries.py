"""hold_deliveries.py URL QUEUE COUNT: takes so many deliveries, says so, and settles none."""

from __future__ import annotations

import sys
import threading

import towpath

url, queue, count = sys.argv[1:]
with towpath.connect(url) as client, client.consume(queue) as consumer:
    held = 0
    while held < int(count):
        held += len(consumer.receive_many())
    print("holds", held, flush=True)
    threading.Event().wait()
