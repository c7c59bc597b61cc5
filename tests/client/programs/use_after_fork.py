"""use_after_fork.py SOCKET CHANNEL: says what a forked child gets that uses its parent's handles."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import towpath

client = towpath.connect(sys.argv[1])
client.declare(sys.argv[2])
publisher = client.publisher(sys.argv[2])
subscription = client.subscribe(sys.argv[2])


def outcome(use: Callable[[], object]) -> str:
    try:
        use()
    except Exception as error:
        return type(error).__name__
    return "nothing"


child = os.fork()
if child == 0:
    print("call:", outcome(client.status))
    print("publish:", outcome(lambda: publisher.publish(b"x")))
    print("receive:", outcome(lambda: subscription.receive(timeout=1)))
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
publisher.publish(b"x")
assert subscription.receive(timeout=10).payload == b"x"
client.status()
print("parent: ok")
client.close()
