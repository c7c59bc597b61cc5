"""at_the_limit.py KIND SOCKET CHANNEL: what a program gets that may not open one more file, and later may."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from typing import Any

import towpath
from tests.support.blocking import BlockingClient

kind, socket, name = sys.argv[1:]
connect: Any = towpath.connect if kind == "sync" else BlockingClient
client = connect(socket)
client.declare(name, ring_bytes=4096)
other = client.publisher(name)  # whatever is opened when first used is open now
subscription = client.subscribe(name)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)


def outcome(use: Callable[[], object]) -> str:
    try:
        use()
    except Exception as error:
        assert isinstance(error, towpath.TowpathError), repr(error)
        assert error.hint
        return type(error).__name__
    return "nothing"


free = os.dup(0)
os.close(free)
resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
print("publisher:", outcome(lambda: client.publisher(name)))
print("subscribe:", outcome(lambda: client.subscribe(name)))
print("connect:", outcome(lambda: connect(socket)))
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
client.publisher(name).publish(b"x")
assert subscription.receive(timeout=60).payload == b"x"
client.close()
