"""as_nobody.py SOCKET: gives up root, then does what another user could, and prints what came of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import towpath
import towpath.sync.client  # while it can still be read

NOBODY = 65534

os.setgroups([])
os.setgid(NOBODY)
os.setuid(NOBODY)


def outcome(use: Callable[[], object]) -> str:
    try:
        use()
    except towpath.TowpathError as error:
        return type(error).__name__
    return "done"


try:
    client = towpath.connect(sys.argv[1])
except towpath.TowpathError as error:
    print("connect:", type(error).__name__)
    print(error, file=sys.stderr)
    sys.exit(0)
print("principal:", client.principal)
print("declare:", outcome(lambda: client.declare("nobodys")))
print("bind:", outcome(lambda: client.bind("nobodys", "pipe:id", direction="in")))
print("undeclare roots:", outcome(lambda: client.undeclare("roots", force=True)))
print("undeclare own:", outcome(lambda: client.undeclare("nobodys")))
subscription = client.subscribe("roots")
print("subscribed", flush=True)
print("received:", subscription.receive(timeout=60).payload.decode())
client.close()
